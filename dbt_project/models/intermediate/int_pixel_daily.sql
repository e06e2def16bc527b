{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        full_refresh=false,
        meta={'scope': 'int_dirty_pixel_days'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, platform, campaign)',
        settings={'index_granularity': 256},
    )
}}

with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_pixel_days') }}
),

sessions as (
    select * from {{ ref('int_sessions') }}
    where {{ on_days('dirty_days') }}
),

final as (
    select
        workspace_id,
        date_day,
        platform,
        campaign,
        countIf(is_start and not is_bot) as sessions,
        sumIf(sessions.pageviews, not is_bot) as pageviews,
        sumIf(sessions.pageviews, is_bot) as bot_pageviews,
        sumIf(sessions.conversions, not is_bot) as conversions,
        uniqCombined64StateIf(anonymous_id, not is_bot) as visitors_state,
        sum(sessions.row_count) as row_count,
        sum(sessions.distinct_ids) as distinct_ids
    from sessions
    group by workspace_id, date_day, platform, campaign
)

select * from final
