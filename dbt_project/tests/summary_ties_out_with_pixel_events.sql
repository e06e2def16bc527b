-- From the facts of single days to the mart, past the sessions and the rollup between them.
with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_pixel_days') }}
),

facts as (
    select
        workspace_id,
        date_day,
        sumIf(session_days.pageviews, not is_bot) as pageviews,
        sumIf(session_days.pageviews, is_bot) as bot_pageviews,
        sumIf(session_days.conversions, not is_bot) as conversions
    from {{ ref('int_session_days') }} as session_days
    where {{ on_days('dirty_days') }}
    group by workspace_id, date_day
),

mart as (
    select
        workspace_id,
        date_day,
        sum(summary.pageviews) as pageviews,
        sum(summary.bot_pageviews) as bot_pageviews,
        sum(summary.conversions) as conversions
    from {{ ref('summary_kpis_daily') }} as summary
    where {{ on_days('dirty_days') }}
    group by workspace_id, date_day
),

both_sides as (
    select * from facts
    where pageviews + bot_pageviews + conversions > 0
    union all
    select * from mart
    where pageviews + bot_pageviews + conversions > 0
),

final as (
    select
        workspace_id,
        date_day
    from both_sides
    group by workspace_id, date_day, pageviews, bot_pageviews, conversions
    having count() != 2
)

select * from final
