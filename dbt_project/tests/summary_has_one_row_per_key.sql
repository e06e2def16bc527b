with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_days') }}
),

summary as (
    select * from {{ ref('summary_kpis_daily') }}
),

final as (
    select
        workspace_id,
        date_day,
        platform,
        campaign
    from summary
    where {{ on_days('dirty_days') }}
    group by workspace_id, date_day, platform, campaign
    having count() > 1
)

select * from final
