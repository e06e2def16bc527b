-- intermediate.int_spend_daily of one workspace's purged days, from the month that was recalled. A rate that is
-- missing leaves a zero, which the ledger's hash does not let through.
with
    rated as (
        select
            spend.workspace_id as workspace_id,
            spend.local_date as date_day,
            spend.platform as platform,
            spend.campaign as campaign,
            spend.currency as currency,
            spend.source as source,
            spend.account_id as account_id,
            spend.ad_id as ad_id,
            spend.spend as spend,
            spend.impressions as impressions,
            spend.clicks as clicks,
            spend.conversions as conversions,
            spend.conversion_value as conversion_value,
            workspaces.currency_exponent as exponent,
            if(
                spend.currency in ('', workspaces.currency), toDecimal256(1, 38), rates.rate
            ) as own_rate
        from (
            select * from recalled.ad_spend
            where
                workspace_id = {workspace:String}
                and local_date between {first:Date} and {last:Date}
        ) as spend
        inner join (select * from reference.workspaces final) as workspaces
            on spend.workspace_id = workspaces.workspace_id
        left join (
            select * from intermediate.int_fx_rates
            where date_day between {first:Date} and {last:Date}
        ) as rates
            on
                spend.local_date = rates.date_day
                and spend.currency = rates.from_currency
                and workspaces.currency = rates.to_currency
    )

select
    workspace_id,
    date_day,
    platform,
    campaign,
    currency,
    count() as row_count,
    uniqExact(source, account_id, ad_id) as distinct_ids,
    sum(rated.spend) as money,
    sum(round(round(toDecimal256(rated.spend, 6) * own_rate, 24), exponent)) as ad_spend,
    sum(rated.impressions) as impressions,
    sum(rated.clicks) as clicks,
    sum(rated.conversions) as platform_conversions,
    sum(round(round(toDecimal256(rated.conversion_value, 6) * own_rate, 24), exponent)) as platform_conversion_value
from rated
group by workspace_id, date_day, platform, campaign, currency
