{{ config(meta={'is_step': true}) }}

with

dirty_days as (
    select * from {{ ref('int_dirty_order_days') }}
),

sales as (
    select * from {{ ref('int_sales') }}
),

final as (
    select * from sales
    where
        {{ on_days('dirty_days') }}
        and (workspace_id, measure_group, date_day) in (
            select workspace_id, measure_group, date_day from dirty_days
        )
)

select * from final
