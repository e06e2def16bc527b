{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        on_schema_change='fail',
        full_refresh=false,
        meta={'scope': 'int_dirty_days_marketing', 'measure_group': 'spend'},
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
    where measure_group = 'spend'
),

spend as (
    select * from {{ ref('stg_ads__spend') }}
    where {{ on_days('dirty_days') }}
),

rates as (
    select * from {{ ref('int_fx_rates') }}
    where date_day in (select date_day from dirty_days)
),

workspaces as (
    select * from {{ ref('stg_reference__workspaces') }}
),

rated as (
    select
        spend.workspace_id as workspace_id,
        spend.date_day as date_day,
        spend.platform as platform,
        spend.campaign as campaign,
        spend.currency as currency,
        spend.source as source,
        spend.account_id as account_id,
        spend.ad_id as ad_id,
        spend.spend as original_spend,
        spend.impressions as impressions,
        spend.clicks as clicks,
        spend.conversions as conversions,
        spend.conversion_value as original_value,
        workspaces.currency_exponent as exponent,
        {{
            fx_rate(
                'rates.rate',
                'spend.date_day',
                "if(spend.currency = '', workspaces.currency, spend.currency)",
                'workspaces.currency'
            )
        }} as rate
    from spend
    inner join workspaces on spend.workspace_id = workspaces.workspace_id
    left join rates
        on
            spend.date_day = rates.date_day
            and spend.currency = rates.from_currency
            and workspaces.currency = rates.to_currency
),

final as (
    select
        workspace_id,
        date_day,
        platform,
        campaign,
        currency,
        count() as row_count,
        uniqExact(source, account_id, ad_id) as distinct_ids,
        toDecimal128(sum(original_spend), 6) as money,
        toDecimal64(sum({{ convert_money('original_spend', 'rate', 'exponent') }}), 4) as ad_spend,
        toUInt64(sum(rated.impressions)) as impressions,
        toUInt64(sum(rated.clicks)) as clicks,
        toDecimal64(sum(conversions), 4) as platform_conversions,
        toDecimal64(sum({{ convert_money('original_value', 'rate', 'exponent') }}), 4) as platform_conversion_value
    from rated
    group by workspace_id, date_day, platform, campaign, currency
)

select * from final
