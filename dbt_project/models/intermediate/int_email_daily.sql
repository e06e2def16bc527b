{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        on_schema_change='fail',
        full_refresh=false,
        meta={'scope': 'int_dirty_days_marketing', 'measure_group': 'email'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, platform, campaign, currency)',
        settings={'index_granularity': 256},
    )
}}

with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_days_marketing') }}
    where measure_group = 'email'
),

events as (
    select * from {{ ref('stg_klaviyo__events') }}
),

email_orders as (
    select * from {{ ref('int_email_orders') }}
),

counted_rows as (
    select
        workspace_id,
        date_day,
        '' as campaign,
        currency,
        count() as row_count,
        uniqExact(event_id) as distinct_ids,
        toDecimal128(sum(value), 4) as money,
        toDecimal128(0, 4) as email_revenue
    from events
    where {{ on_days('dirty_days') }}
    group by workspace_id, date_day, currency
),

revenue as (
    select
        workspace_id,
        date_day,
        source_name as campaign,
        currency,
        toUInt64(0) as row_count,
        toUInt64(0) as distinct_ids,
        toDecimal128(0, 4) as money,
        toDecimal128(sum(email_orders.revenue), 4) as email_revenue
    from email_orders
    where
        is_counted
        and source_id != ''
        and {{ on_days('dirty_days') }}
    group by workspace_id, date_day, source_name, currency
),

unioned as (
    select * from counted_rows
    union all
    select * from revenue
),

final as (
    select
        workspace_id,
        date_day,
        toLowCardinality('email') as platform,
        campaign,
        currency,
        toUInt64(sum(unioned.row_count)) as row_count,
        toUInt64(sum(unioned.distinct_ids)) as distinct_ids,
        toDecimal128(sum(unioned.money), 4) as money,
        toDecimal64(sum(unioned.email_revenue), 4) as email_revenue
    from unioned
    group by workspace_id, date_day, campaign, currency
)

select * from final
