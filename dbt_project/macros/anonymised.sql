{#- What orders and payments left behind that are purged: the snapshots' rows that hold, as one relation. -#}
{% macro anonymised_sales() -%}
    (
        select * from {{ source('anonymised', 'orders') }}
        where dbt_valid_to is null
        union all
        select * from {{ source('anonymised', 'payments') }}
        where dbt_valid_to is null
    )
{%- endmacro %}
