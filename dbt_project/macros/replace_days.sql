{#-
    Incremental models of this project know two strategies.

    replace_days replaces whole days. The model's SQL returns the rows of its scope, a set of days per workspace,
    and no other row. Its meta says:
        scope          the model that lists the workspace_id and date_day to be replaced
        measure_group  where given, only the scope's rows of this group count
        scope_columns  the columns that tell what is replaced; default workspace_id and date_day

    The rows go into a work table of the same structure, the kept rows of the touched months follow, and each
    month is swapped in one step. A day without rows thereby loses what it had, which insert_overwrite and
    delete+insert do not do. Reads stay within the touched months. A killed run is simply run again.

    append_versions adds newer versions of rows to a ReplacingMergeTree.
-#}
{% materialization incremental, adapter='clickhouse' %}

    {%- set strategy = config.get('incremental_strategy') -%}
    {%- if strategy not in ('replace_days', 'append_versions') -%}
        {{ exceptions.raise_compiler_error(
            "Model " ~ model.name ~ ": incremental_strategy must be replace_days or append_versions, not " ~ strategy
        ) }}
    {%- endif -%}

    {%- set target_relation = this.incorporate(type='table') -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {% if load_cached_relation(this) is none %}
        {% set own_relation = local_relation(target_relation) %}
        {% do clickhouse__create_empty_table(False, own_relation, sql, config.get('contract').enforced) %}
        {% do distribute(target_relation, own_relation) %}
        {% do persist_docs(target_relation, model) %}
    {% else %}
        {% do get_assert_columns_equivalent(sql) %}
    {% endif %}

    {% if strategy == 'append_versions' %}
        {% call statement('main') %}
            {{ insert_rows(target_relation, sql) }}
        {% endcall %}
    {% else %}
        {% set months = replace_days_months() %}
        {% if months %}
            {% do replace_days_fill(target_relation, months) %}
            {% do replace_days_swap(target_relation, months) %}
        {% else %}
            {% call statement('main') %}select 'no day in scope'{% endcall %}
        {% endif %}
    {% endif %}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {% do adapter.commit() %}
    {{ run_hooks(post_hooks, inside_transaction=False) }}

    {{ return({'relations': [target_relation]}) }}

{% endmaterialization %}


{% macro insert_rows(relation, query) %}
    {%- set columns = '`' ~ model['columns'].values() | map(attribute='name') | join('`, `') ~ '`' %}
    insert into {{ relation }} ({{ columns }})
    select {{ columns }}
    from (
        {{ query }}
    )
    {{ adapter.get_model_query_settings(model) }}
{% endmacro %}


{% macro replace_days_columns() %}
    {{ return(config.get('meta', {}).get('scope_columns', ['workspace_id', 'date_day']) | join(', ')) }}
{% endmacro %}


{#- The query of a model's scope. -#}
{% macro replace_days_scope() %}
    {%- set meta = config.get('meta', {}) -%}
    select {{ replace_days_columns() }} from {{ ref(meta['scope']) }}
    {%- if meta.get('measure_group') %} where measure_group = '{{ meta['measure_group'] }}'{% endif -%}
{% endmacro %}


{% macro replace_days_months() %}
    {% set rows = run_query(
        "select distinct toString(toYYYYMM(date_day)) from (" ~ replace_days_scope() ~ ") order by 1"
    ) %}
    {{ return(rows.columns[0].values() | list if rows | length else []) }}
{% endmacro %}


{% macro replace_days_fill(target_relation, months) %}
    {% set work_relation = replace_days_work(target_relation) %}
    {% set own_relation = replace_days_work(local_relation(target_relation)) %}
    {% do run_query(
        "create or replace table " ~ own_relation ~ " " ~ on_cluster() ~ " as " ~ local_relation(target_relation)
    ) %}
    {% do distribute(work_relation, own_relation) %}
    {% call statement('main') %}
        {{ insert_rows(work_relation, sql) }}
    {% endcall %}
    {#- A row outside the scope would stand beside the kept row of its day, counted twice: refuse it. -#}
    {% set kept_rows %}
        select *
        from {{ target_relation }}
        where
            toYYYYMM(date_day) in ({{ months | join(', ') }})
            and ({{ replace_days_columns() }}) not in ({{ replace_days_scope() }})
            and throwIf(
                (
                    select count() > 0 from {{ work_relation }}
                    where ({{ replace_days_columns() }}) not in ({{ replace_days_scope() }})
                ),
                '{{ model.name }} returned rows outside its scope'
            ) = 0
    {% endset %}
    {% call statement('kept_rows') %}
        {{ insert_rows(work_relation, kept_rows) }}
    {% endcall %}
{% endmacro %}


{% macro replace_days_work(relation) %}
    {{ return(make_temp_relation(relation, '__replace_days')) }}
{% endmacro %}


{#-
    Each shard swaps its own. From 26.6 on, a month for which nothing is left is only cleared where this setting says
    so.
-#}
{% macro replace_days_swap(target_relation, months) %}
    {% set own_relation = local_relation(target_relation) %}
    {% set changes = [] %}
    {% for month in months %}
        {% do changes.append("replace partition id '" ~ month ~ "' from " ~ replace_days_work(own_relation)) %}
    {% endfor %}
    {% do run_query(
        "alter table " ~ own_relation ~ " " ~ on_cluster() ~ " " ~ changes | join(', ')
        ~ (" settings allow_replace_partition_from_empty_source = 1" if adapter.is_at_or_after_version('26.6') else "")
    ) %}
    {% for relation in [target_relation, own_relation] | unique %}
        {% do run_query("drop table " ~ replace_days_work(relation) ~ " " ~ on_cluster() ~ " sync") %}
    {% endfor %}
{% endmacro %}
