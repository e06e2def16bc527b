{#-
    Compares a model's SQL with its contract by DESCRIBE alone. dbt-clickhouse 1.10 runs the query with LIMIT 0,
    which fills every set of every subquery first: a second build, as slow as the first.

    Even so the questions take half of a small build's SQL. So whoever knows that the contracts held for this very
    project, over raw tables of this very schema, says so in TIDEMARK_CONTRACTS.
-#}
{% macro clickhouse__get_assert_columns_equivalent(sql) %}
    {%- if env_var('TIDEMARK_CONTRACTS', 'ask') == 'held' -%}
        {{ return('') }}
    {%- endif -%}
    {%- set contracted = [] -%}
    {%- for column in model['columns'].values() -%}
        {%- do contracted.append({'name': column['name'], 'data_type': column['data_type']}) -%}
    {%- endfor -%}
    {%- set described = [] -%}
    {%- for row in run_query("describe (\n" ~ sql ~ "\n)") -%}
        {%- do described.append({'name': row['name'], 'data_type': row['type']}) -%}
    {%- endfor -%}
    {%- if described | sort(attribute='name') != contracted | sort(attribute='name') -%}
        {%- do exceptions.raise_contract_error(contracted, described) -%}
    {%- endif -%}
{%- endmacro %}
