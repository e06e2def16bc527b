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
    select distinct toString(currency) as currency from workspaces
),

-- Each rate holds for its own day and the 7 after it, unless a later one comes.
carried as (
    select
        base_currency,
        quote_currency,
        rate_date,
        rate,
        rate_date + arrayJoin(range(8)) as date_day
    from rates
    where rate_date in (select date_day - arrayJoin(range(8)) from days)
),

latest as (
    select
        date_day,
        base_currency,
        quote_currency,
        argMax((rate, rate_date), rate_date) as rate_and_date
    from carried
    where date_day in (select date_day from days)
    group by date_day, base_currency, quote_currency
),

-- What one unit of a base is worth in each currency, in the base itself too: any two of these make a rate.
legs as (
    select
        date_day,
        base_currency,
        arrayPushBack(
            groupArray((
                toString(quote_currency),
                toDecimal256(rate_and_date.1, 38),
                rate_and_date.2
            )),
            (toString(base_currency), toDecimal256(1, 38), date_day)
        ) as all_legs
    from latest
    group by date_day, base_currency
),

pairs as (
    select
        date_day,
        base_currency,
        from_leg.1 as from_currency,
        to_leg.1 as to_currency,
        to_leg.2 / toDecimal256(from_leg.2, 12) as rate,
        least(from_leg.3, to_leg.3) as rate_date,
        multiIf(from_currency = base_currency, 'direct', to_currency = base_currency, 'inverse', 'crossed') as way
    from legs
    array join all_legs as from_leg
    array join all_legs as to_leg
    where
        from_currency != to_currency
        and to_currency in (select currency from wanted_currencies)
),

chosen as (
    select
        date_day,
        from_currency,
        to_currency,
        argMax(pairs.rate, (rate_date, indexOf(['crossed', 'inverse', 'direct'], way), base_currency)) as rate
    from pairs
    group by date_day, from_currency, to_currency
    union all
    select
        days.date_day as date_day,
        wanted_currencies.currency as from_currency,
        wanted_currencies.currency as to_currency,
        toDecimal256(1, 38) as rate
    from days
    cross join wanted_currencies
),

final as (
    select
        toLowCardinality('_') as workspace_id,
        date_day,
        toLowCardinality(from_currency) as from_currency,
        toLowCardinality(to_currency) as to_currency,
        rate
    from chosen
)

select * from final
