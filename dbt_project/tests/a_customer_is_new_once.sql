with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_order_days') }}
),

orders as (
    select * from {{ ref('int_orders') }}
),

final as (
    select
        workspace_id,
        customer_key
    from orders
    where
        is_new_customer
        and {{ on_days('dirty_days') }}
    group by workspace_id, customer_key
    having count() > 1
)

select * from final
