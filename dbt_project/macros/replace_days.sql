{#-
    Incremental models of this project replace whole days and know no other strategy.

    A model's SQL returns the rows of its scope, a set of (workspace_id, day), and no other row. It names both
    in its meta:
        day_column     the Date column that the model is partitioned by month on; default date_day
        scope          the model that lists workspace_id and date_day to be replaced
        measure_group  where given, only the scope's rows of this group count

    The rows go into a work table of the same structure, the kept rows of the touched months follow, and each
    month is swapped in one step. A day without rows thereby loses what it had, which insert_overwrite and
    delete+insert do not do. Reads stay within the touched months. A killed run is simply run again.
-#}
{% materialization incremental, adapter='clickhouse' %}

    {%- set strategy = config.get('incremental_strategy') -%}
    {%- if strategy != 'replace_days' -%}
        {{ exceptions.raise_compiler_error(
            "Model " ~ model.name ~ ": incremental_strategy must be replace_days, not " ~ strategy
        ) }}
    {%- endif -%}

    {%- set target_relation = this.incorporate(type='table') -%}
    {%- set work_relation = make_temp_relation(target_relation, '__replace_days') -%}
    {%- set day = config.get('meta', {}).get('day_column', 'date_day') -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {% if load_cached_relation(this) is none %}
        {% do clickhouse__create_empty_table(False, target_relation, sql, config.get('contract').enforced) %}
        {% do persist_docs(target_relation, model) %}
    {% endif %}

    {% set months = replace_days_months(day) %}
    {% if months | length == 0 %}
        {% call statement('main') %}select 'no day in scope'{% endcall %}
    {% else %}
        {% do replace_days_fill(target_relation, work_relation, day, months) %}
        {% do replace_days_swap(target_relation, work_relation, months) %}
    {% endif %}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {% do adapter.commit() %}
    {{ run_hooks(post_hooks, inside_transaction=False) }}

    {{ return({'relations': [target_relation]}) }}

{% endmaterialization %}


{#- The query of a model's scope: workspace_id, date_day. -#}
{% macro replace_days_scope() %}
    {%- set meta = config.get('meta', {}) -%}
    select workspace_id, date_day from {{ ref(meta['scope']) }}
    {%- if meta.get('measure_group') %} where measure_group = '{{ meta['measure_group'] }}'{% endif -%}
{% endmacro %}


{% macro replace_days_months(day) %}
    {% set rows = run_query(
        "select distinct toString(toYYYYMM(date_day)) from (" ~ replace_days_scope() ~ ") order by 1"
    ) %}
    {{ return(rows.columns[0].values() | list if rows | length else []) }}
{% endmacro %}


{% macro replace_days_fill(target_relation, work_relation, day, months) %}
    {% if config.get('contract').enforced %}
        {% do get_assert_columns_equivalent(sql) %}
    {% endif %}
    {% do run_query("drop table if exists " ~ work_relation ~ " " ~ on_cluster_clause(work_relation) ~ " sync") %}
    {% do run_query(
        "create table " ~ work_relation ~ " " ~ on_cluster_clause(work_relation) ~ " as " ~ target_relation
    ) %}

    {% set columns = model['columns'].values() | map(attribute='name') | map('replace', '`', '') | list %}
    {% set column_list = '`' ~ columns | join('`, `') ~ '`' %}
    {% call statement('main') %}
        insert into {{ work_relation }} ({{ column_list }})
        select {{ column_list }}
        from (
            {{ sql }}
        )
        {{ adapter.get_model_query_settings(model) }}
    {% endcall %}
    {% do replace_days_check(work_relation, day) %}
    {% call statement('kept_rows') %}
        insert into {{ work_relation }} ({{ column_list }})
        select {{ column_list }}
        from {{ target_relation }}
        where
            toYYYYMM({{ day }}) in ({{ months | join(', ') }})
            and (workspace_id, {{ day }}) not in ({{ replace_days_scope() }})
    {% endcall %}
{% endmacro %}


{#- A row outside the scope would stand beside the kept row of its day, counted twice. -#}
{% macro replace_days_check(work_relation, day) %}
    {% set strays = run_query(
        "select toString(workspace_id), toString(" ~ day ~ ") from " ~ work_relation
        ~ " where (workspace_id, " ~ day ~ ") not in (" ~ replace_days_scope() ~ ") limit 1"
    ) %}
    {% if strays | length %}
        {{ exceptions.raise_compiler_error(
            "Model " ~ model.name ~ " returned a row outside its scope: workspace " ~ strays[0][0]
            ~ ", day " ~ strays[0][1]
        ) }}
    {% endif %}
{% endmacro %}


{% macro replace_days_swap(target_relation, work_relation, months) %}
    {% set filled = run_query(
        "select distinct partition_id from system.parts where active and database = '" ~ work_relation.schema
        ~ "' and table = '" ~ work_relation.identifier ~ "'"
    ).columns[0].values() | list %}
    {% set changes = [] %}
    {% for month in months %}
        {% if month in filled %}
            {% do changes.append("replace partition id '" ~ month ~ "' from " ~ work_relation) %}
        {% else %}
            {% do changes.append("drop partition id '" ~ month ~ "'") %}
        {% endif %}
    {% endfor %}
    {% do run_query(
        "alter table " ~ target_relation ~ " " ~ on_cluster_clause(target_relation) ~ " " ~ changes | join(', ')
    ) %}
    {% do run_query("drop table if exists " ~ work_relation ~ " " ~ on_cluster_clause(work_relation) ~ " sync") %}
{% endmacro %}
