-- From the facts straight to the mart, past the rollup between them.
with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_order_days') }}
),

facts as (
    select
        workspace_id,
        date_day,
        countIf(is_counted) as orders,
        countIf(is_new_customer) as new_customer_orders,
        sum(int_orders.revenue) as revenue
    from {{ ref('int_orders') }} as int_orders
    where {{ on_days('dirty_days') }}
    group by workspace_id, date_day
),

mart as (
    select
        workspace_id,
        date_day,
        sum(summary.orders) as orders,
        sum(summary.new_customer_orders) as new_customer_orders,
        sum(summary.revenue) as revenue
    from {{ ref('summary_kpis_daily') }} as summary
    where {{ on_days('dirty_days') }}
    group by workspace_id, date_day
),

both_sides as (
    select
        workspace_id,
        date_day,
        orders,
        new_customer_orders,
        toDecimal128(revenue, 4) as revenue
    from facts
    where orders > 0
    union all
    select
        workspace_id,
        date_day,
        orders,
        new_customer_orders,
        toDecimal128(revenue, 4) as revenue
    from mart
    where orders > 0
),

final as (
    select
        workspace_id,
        date_day
    from both_sides
    group by workspace_id, date_day, orders, new_customer_orders, revenue
    having count() != 2
)

select * from final
