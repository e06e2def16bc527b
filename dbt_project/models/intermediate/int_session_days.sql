{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        full_refresh=false,
        meta={'scope': 'int_scope_days', 'measure_group': 'pixel'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, anonymous_id, session_key, is_bot)',
        settings={'index_granularity': 512},
    )
}}

-- depends_on: {{ ref('int_days_before') }}

with

scope as (
    select
        workspace_id,
        date_day
    from {{ ref('int_scope_days') }}
    where measure_group = 'pixel'
),

events as (
    select * from {{ ref('stg_pixel__events') }}
    where {{ on_days('scope') }}
),

sessions as (
    select
        workspace_id,
        date_day,
        anonymous_id,
        session_key,
        is_bot,
        min(event_at) as first_event_at,
        max(event_at) as last_event_at,
        minIf(event_at, platform != 'direct') as origin_at,
        argMinIf(
            (platform, campaign, traffic_source, medium, source_rule_id),
            (event_at, event_id),
            platform != 'direct'
        ) as origin,
        countIf(event_name = '$pageview') as pageviews,
        countIf(event_name = 'purchase') as conversions,
        count() as row_count,
        uniqExact(event_id) as distinct_ids
    from events
    group by workspace_id, date_day, anonymous_id, session_key, is_bot
),

final as (
    select
        workspace_id,
        date_day,
        anonymous_id,
        session_key,
        is_bot,
        first_event_at,
        last_event_at,
        origin_at,
        cast(if(origin.1 = '', 'direct', origin.1) as LowCardinality(String)) as platform,
        origin.2 as campaign,
        cast(origin.3 as LowCardinality(String)) as traffic_source,
        cast(origin.4 as LowCardinality(String)) as medium,
        cast(origin.5 as LowCardinality(String)) as source_rule_id,
        pageviews,
        conversions,
        row_count,
        distinct_ids
    from sessions
)

select * from final
