{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        full_refresh=false,
        meta={'scope': 'int_dirty_pixel_days'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, anonymous_id, session_key, is_bot)',
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

session_days as (
    select * from {{ ref('int_session_days') }}
),

dirty_sessions as (
    select distinct
        workspace_id,
        anonymous_id,
        session_key,
        is_bot
    from session_days
    where {{ on_days('dirty_days') }}
),

candidates as (
    select * from session_days
    where
        {{ on_days('dirty_days', before=31, after=31) }}
        and (workspace_id, anonymous_id, session_key, is_bot) in (
            select workspace_id, anonymous_id, session_key, is_bot from dirty_sessions
        )
),

-- A session id that lives on for months would make every day depend on all of history: 31 days to either side
-- decide, and after 31 silent days it starts anew.
spans as (
    select
        workspace_id,
        date_day,
        anonymous_id,
        session_key,
        is_bot,
        pageviews,
        conversions,
        row_count,
        distinct_ids,
        min(date_day) over nearby as first_date,
        min(first_event_at) over nearby as started_at,
        argMinIf(
            (platform, campaign, traffic_source, medium, source_rule_id),
            origin_at,
            platform != 'direct'
        ) over nearby as origin
    from candidates
    window nearby as (
        partition by workspace_id, anonymous_id, session_key, is_bot
        order by date_day
        range between 31 preceding and 31 following
    )
),

final as (
    select
        workspace_id,
        date_day,
        anonymous_id,
        session_key,
        is_bot,
        cast(date_day = first_date as Bool) as is_start,
        started_at,
        cast(if(origin.1 = '', 'direct', origin.1) as LowCardinality(String)) as platform,
        origin.2 as campaign,
        cast(origin.3 as LowCardinality(String)) as traffic_source,
        cast(origin.4 as LowCardinality(String)) as medium,
        cast(origin.5 as LowCardinality(String)) as source_rule_id,
        pageviews,
        conversions,
        row_count,
        distinct_ids
    from spans
    where {{ on_days('dirty_days') }}
)

select * from final
