{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        on_schema_change='fail',
        full_refresh=false,
        meta={'scope': 'int_fx_days'},
        partition_by='toYYYYMM(date_day)',
        order_by='(date_day, to_currency, from_currency)',
        settings={'index_granularity': 256},
    )
}}

with

days as (
    select date_day from {{ ref('int_fx_days') }}
),

rates as (
    select * from {{ ref('stg_fx__rates') }}
),

workspaces as (
    select * from {{ ref('stg_reference__workspaces') }}
),

wanted_currencies as (
    select distinct currency as to_currency from workspaces
),

-- Each rate holds for its own day and the 7 after it, unless a later one comes.
carried as (
    select
        rate_date,
        base_currency,
        quote_currency,
        toDecimal256(rate, 38) as rate,
        rate_date + arrayJoin(range(8)) as date_day
    from rates
    where
        rate_date between (select min(date_day) - 7 from days) and (select max(date_day) from days)
        and rate_date in (select date_day - arrayJoin(range(8)) from days)
),

latest as (
    select
        date_day,
        base_currency,
        quote_currency,
        max(rate_date) as latest_date,
        argMax(rate, rate_date) as latest_rate
    from carried
    where date_day in (select date_day from days)
    group by date_day, base_currency, quote_currency
),

direct as (
    select
        date_day,
        base_currency as from_currency,
        quote_currency as to_currency,
        latest_rate as rate,
        latest_date as rate_date,
        3 as preference,
        '' as through
    from latest
),

inverse as (
    select
        date_day,
        quote_currency as from_currency,
        base_currency as to_currency,
        toDecimal256(1, 38) / toDecimal256(latest_rate, 12) as rate,
        latest_date as rate_date,
        2 as preference,
        '' as through
    from latest
),

crossed as (
    select
        legs_from.date_day as date_day,
        legs_from.quote_currency as from_currency,
        legs_to.quote_currency as to_currency,
        legs_to.latest_rate / toDecimal256(legs_from.latest_rate, 12) as rate,
        least(legs_from.latest_date, legs_to.latest_date) as rate_date,
        1 as preference,
        legs_from.base_currency as through
    from latest as legs_from
    inner join latest as legs_to
        on
            legs_from.date_day = legs_to.date_day
            and legs_from.base_currency = legs_to.base_currency
    where legs_to.quote_currency in (select to_currency from wanted_currencies)
),

identity as (
    select
        days.date_day as date_day,
        wanted_currencies.to_currency as from_currency,
        wanted_currencies.to_currency as to_currency,
        toDecimal256(1, 38) as rate,
        days.date_day as rate_date,
        4 as preference,
        '' as through
    from days
    cross join wanted_currencies
),

candidates as (
    select * from direct
    union all
    select * from inverse
    union all
    select * from crossed
    union all
    select * from identity
),

chosen as (
    select
        date_day,
        from_currency,
        to_currency,
        argMax(rate, (from_currency = to_currency, rate_date, preference, through)) as chosen_rate
    from candidates
    where to_currency in (select to_currency from wanted_currencies)
    group by date_day, from_currency, to_currency
),

final as (
    select
        toLowCardinality('_') as workspace_id,
        date_day,
        cast(from_currency as LowCardinality(String)) as from_currency,
        cast(to_currency as LowCardinality(String)) as to_currency,
        chosen_rate as rate
    from chosen
)

select * from final
