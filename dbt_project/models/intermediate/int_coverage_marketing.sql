{{ config(materialized='view') }}

with

spend as (
    select * from {{ ref('int_spend_daily') }}
),

email as (
    select * from {{ ref('int_email_daily') }}
),

spend_coverage as (
    select
        workspace_id,
        toLowCardinality('ad_spend') as class,
        date_day as local_date,
        currency,
        toUInt64(sum(spend.row_count)) as row_count,
        toUInt64(sum(spend.distinct_ids)) as distinct_ids,
        toDecimal128(sum(spend.money), 6) as money
    from spend
    group by workspace_id, date_day, currency
),

email_coverage as (
    select
        workspace_id,
        toLowCardinality('email_events') as class,
        date_day as local_date,
        currency,
        toUInt64(sum(email.row_count)) as row_count,
        toUInt64(sum(email.distinct_ids)) as distinct_ids,
        toDecimal128(sum(email.money), 6) as money
    from email
    group by workspace_id, date_day, currency
),

final as (
    select * from spend_coverage
    union all
    select * from email_coverage
)

select * from final
