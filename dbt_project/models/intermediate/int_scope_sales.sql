{{ config(meta={'is_step': true}) }}

with

scope as (
    select * from {{ ref('int_scope_days') }}
    where measure_group in ('orders', 'payments')
),

sales as (
    select * from {{ ref('int_sales') }}
),

final as (
    select
        workspace_id,
        measure_group,
        date_day,
        source,
        order_id,
        order_key,
        created_at,
        customer_key
    from sales
    where
        is_counted
        and customer_key != ''
        and {{ on_days('scope') }}
        and (workspace_id, measure_group, date_day) in (select workspace_id, measure_group, date_day from scope)
)

select * from final
