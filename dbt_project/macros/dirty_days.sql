{#-
    Days that a build has to recompute follow from rows that the same build replaces. A build that is killed
    halfway could not find them again, so they are kept aside until one has come to its end.
-#}
{% macro pending_days() -%}
    intermediate.pending_days
{%- endmacro %}


{% macro create_pending_days() %}
    {% if execute and target.type == 'clickhouse' and flags.WHICH in ('run', 'build') %}
        create table if not exists {{ pending_days() }}{{ on_cluster() }}
        (
            workspace_id LowCardinality(String),
            measure_group LowCardinality(String),
            date_day Date
        )
        engine = {{ replicated('ReplacingMergeTree', is_whole=true) }}
        order by (workspace_id, measure_group, date_day)
    {% endif %}
{% endmacro %}


{% macro remember_days(relation) %}
    insert into {{ pending_days() }} select workspace_id, measure_group, date_day from {{ relation }}
{% endmacro %}


{#- Only a whole and faultless build may forget; one model run by hand may not. -#}
{% macro forget_days(results) %}
    {% if execute and target.type == 'clickhouse' and flags.WHICH in ('run', 'build') %}
        {% set built = [] %}
        {% for result in results if result.node.resource_type == 'model' and result.status == 'success' %}
            {% do built.append(result.node.unique_id) %}
        {% endfor %}
        {% set missing = [] %}
        {% for node in graph.nodes.values() if node.resource_type == 'model' and node.config.materialized != 'view'
            and node.unique_id not in built %}
            {% do missing.append(node.unique_id) %}
        {% endfor %}
        {% if missing | length == 0 %}
            truncate table {{ pending_days() }}
        {% endif %}
    {% endif %}
{% endmacro %}


{#- Steps between two models hold rows of customers and visitors, and no longer than a build lasts. -#}
{% macro empty_steps() %}
    {% if execute and target.type == 'clickhouse' and flags.WHICH in ('run', 'build') %}
        {% for node in graph.nodes.values() if node.config.get('meta', {}).get('is_step') %}
            {% do run_query("truncate table if exists " ~ node.schema ~ "." ~ local_name(node.name) ~ on_cluster()) %}
        {% endfor %}
    {% endif %}
{% endmacro %}


{#- What an earlier build left under a model's name, or none; for models that run before it. -#}
{% macro stored_relation(name) %}
    {{ return(adapter.get_relation(database='', schema='intermediate', identifier=name) if execute else none) }}
{% endmacro %}
