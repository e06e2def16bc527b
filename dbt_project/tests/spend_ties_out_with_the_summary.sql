-- Spend reaches the summary whole, on every day this build touched.
with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_days_marketing') }}
    where measure_group = 'spend'
),

rollup as (
    select
        workspace_id,
        date_day,
        sum(ad_spend) as spend,
        sum(impressions) as shown
    from {{ ref('int_spend_daily') }}
    where {{ on_days('dirty_days') }}
    group by workspace_id, date_day
    having spend != 0 or shown != 0
),

summary as (
    select
        workspace_id,
        date_day,
        sum(ad_spend) as spend,
        sum(impressions) as shown
    from {{ ref('summary_kpis_daily') }}
    where {{ on_days('dirty_days') }}
    group by workspace_id, date_day
    having spend != 0 or shown != 0
),

both_sides as (
    select * from rollup
    union all
    select * from summary
),

final as (
    select
        workspace_id,
        date_day
    from both_sides
    group by workspace_id, date_day, spend, shown
    having count() != 2
)

select * from final
