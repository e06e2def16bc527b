{#-
    Where tables lie is decided in include/tidemark/topology.py; these are its words for dbt, which are empty on one
    machine. Models, seeds and snapshots stand as on one machine.
-#}
{% macro on_cluster() %}
    {% set cluster = env_var('TIDEMARK_DBT_CLUSTER', '') %}
    {{ return(' on cluster `' ~ cluster ~ '`' if cluster else '') }}
{% endmacro %}


{#- What holds a host's own rows of a relation that is cut over the shards. -#}
{% macro local_relation(relation) %}
    {{ return(relation.incorporate(path={'identifier': local_name(relation.identifier)})) }}
{% endmacro %}


{% macro local_name(name) %}
    {{ return(name ~ env_var('TIDEMARK_DBT_LOCAL_SUFFIX', '')) }}
{% endmacro %}


{#- An engine with its place in Keeper: replicas of one shard, or of all hosts where each has the whole table. -#}
{% macro replicated(engine, is_whole) %}
    {% set place = env_var('TIDEMARK_DBT_ALL_HOSTS' if is_whole else 'TIDEMARK_DBT_ONE_SHARD', '') %}
    {% set name, _, arguments = engine.partition('(') %}
    {% set words = [place, arguments[:-1]] | select | join(', ') %}
    {{ return('Replicated' ~ name ~ '(' ~ words ~ ')' if place else engine) }}
{% endmacro %}


{#- In place of dbt-clickhouse's own. -#}
{% macro engine_clause() %}
    engine = {{ replicated(config.get('engine', default='MergeTree()'), model.resource_type in ('seed', 'snapshot')) }}
{% endmacro %}


{#- In place of dbt-clickhouse's own, which takes a model's key from its configuration and none for a random one. -#}
{% macro create_distributed_table(relation, own_relation) %}
    {% set key = fromjson(env_var('TIDEMARK_DBT_SHARDING', '{}')).get(this.schema ~ '.' ~ this.identifier) %}
    {% if not key %}
        {{ exceptions.raise_compiler_error(
            this ~ " has no sharding key: name it in include/tidemark/topology.py"
        ) }}
    {% endif %}
    create or replace table {{ relation }}{{ on_cluster() }} as {{ own_relation }}
    engine = Distributed(
        '{{ env_var("TIDEMARK_DBT_CLUSTER") }}', '{{ own_relation.schema }}', '{{ own_relation.identifier }}', {{ key }}
    )
{% endmacro %}


{#- Where tables are cut, makes the one under which all rows of a relation are read and written. -#}
{% macro distribute(relation, own_relation) %}
    {% if env_var('TIDEMARK_DBT_CLUSTER', '') %}
        {% do run_query(create_distributed_table(relation, own_relation)) %}
    {% endif %}
{% endmacro %}


{#- In place of dbt-clickhouse's own: dbt truncates seeds alone, and a whole table's replicas follow each other. -#}
{% macro clickhouse__truncate_relation(relation) %}
    {% call statement('truncate_relation') %}
        truncate table {{ relation }}
    {% endcall %}
{% endmacro %}


{#- In place of dbt-clickhouse's own, which leaves out the other shards. No model here has projections. -#}
{% macro add_index_and_projections(relation) %}
    {% for index in config.get('indexes', default=[]) %}
        {% call statement('add_index') %}
            alter table {{ relation }}{{ on_cluster() }} add index {{ index['name'] }} {{ index['definition'] }}
        {% endcall %}
    {% endfor %}
{% endmacro %}
