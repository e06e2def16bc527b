-- Each counted order is in the mart once, under its own source, on every day this build touched.
with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_days_marketing') }}
    where measure_group = 'email'
),

facts as (
    select
        workspace_id,
        date_day,
        kind,
        source_id,
        count() as orders,
        sum(revenue) as revenue
    from {{ ref('int_email_orders') }}
    where
        is_counted
        and {{ on_days('dirty_days') }}
    group by workspace_id, date_day, kind, source_id
),

mart as (
    select
        workspace_id,
        date_day,
        kind,
        source_id,
        sum(email_revenue_daily.orders) as orders,
        sum(email_revenue_daily.revenue) as revenue
    from {{ ref('email_revenue_daily') }} as email_revenue_daily
    where {{ on_days('dirty_days') }}
    group by workspace_id, date_day, kind, source_id
    having orders > 0
),

both_sides as (
    select * from facts
    union all
    select * from mart
),

final as (
    select
        workspace_id,
        date_day,
        kind,
        source_id
    from both_sides
    group by workspace_id, date_day, kind, source_id, orders, revenue
    having count() != 2
)

select * from final
