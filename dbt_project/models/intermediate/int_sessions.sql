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

{% if is_incremental() %}
-- Days that are purged have left the start and the origin of a session on the days that it lives on.
frozen_days as (
    select
        workspace_id,
        local_date as date_day
    from {{ source('retention', 'frozen_days') }}
    where
        measure_group = 'pixel'
        and {{ on_days('dirty_days', before=62, after=62, day='local_date') }}
),

stored_sessions as (
    select * from {{ this }}
    where
        {{ on_days('frozen_days', before=31, after=31) }}
        and {{ on_days('dirty_days', before=31, after=31) }}
        and (workspace_id, anonymous_id, session_key, is_bot) in (
            select workspace_id, anonymous_id, session_key, is_bot from dirty_sessions
        )
),
{% endif %}

candidates as (
    select
        workspace_id,
        date_day,
        anonymous_id,
        session_key,
        is_bot,
        first_event_at,
        origin_at,
        platform,
        campaign,
        traffic_source,
        medium,
        source_rule_id,
        pageviews,
        conversions,
        row_count,
        distinct_ids
    from session_days
    where
        {{ on_days('dirty_days', before=31, after=31) }}
        and (workspace_id, anonymous_id, session_key, is_bot) in (
            select workspace_id, anonymous_id, session_key, is_bot from dirty_sessions
        )
    {% if is_incremental() %}
    union all
    select
        workspace_id,
        start_date as date_day,
        anonymous_id,
        session_key,
        is_bot,
        started_at as first_event_at,
        toDateTime64(0, 6, 'UTC') as origin_at,
        toLowCardinality('direct') as platform,
        '' as campaign,
        toLowCardinality('') as traffic_source,
        toLowCardinality('') as medium,
        toLowCardinality('') as source_rule_id,
        toUInt64(0) as pageviews,
        toUInt64(0) as conversions,
        toUInt64(0) as row_count,
        toUInt64(0) as distinct_ids
    from stored_sessions
    where (workspace_id, start_date) in (select workspace_id, date_day from frozen_days)
    union all
    select
        workspace_id,
        origin_date as date_day,
        anonymous_id,
        session_key,
        is_bot,
        origin_at as first_event_at,
        origin_at,
        platform,
        campaign,
        traffic_source,
        medium,
        source_rule_id,
        toUInt64(0) as pageviews,
        toUInt64(0) as conversions,
        toUInt64(0) as row_count,
        toUInt64(0) as distinct_ids
    from stored_sessions
    where (workspace_id, origin_date) in (select workspace_id, date_day from frozen_days)
    {% endif %}
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
        min(date_day) over nearby as start_date,
        min(first_event_at) over nearby as started_at,
        argMinIf(
            (platform, campaign, traffic_source, medium, source_rule_id, origin_at, date_day),
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
        cast(date_day = start_date as Bool) as is_start,
        start_date,
        started_at,
        origin.7 as origin_date,
        origin.6 as origin_at,
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
