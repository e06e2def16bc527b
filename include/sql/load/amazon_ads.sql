-- Amazon Ads API: advertised product report by day; sales and purchases within 14 days.
with parsed as (
    select
        line,
        load_id,
        line_number,
        JSONExtract(
            line,
            'Tuple(profileId Nullable(String), date Nullable(String), campaignId Nullable(String), campaignName Nullable(String), adGroupId Nullable(String), adGroupName Nullable(String), adId Nullable(String), impressions Nullable(String), clicks Nullable(String), cost Nullable(String), purchases14d Nullable(String), sales14d Nullable(String), campaignBudgetCurrencyCode Nullable(String))'
        ) as r
    from {{ lines }}
),

fields as (
    select
        line,
        load_id,
        line_number,
        r,
        tidemark_text(r.profileId) as account_id,
        tidemark_text(r.date) as date_text,
        tidemark_time(date_text) as happened_at,
        tidemark_text(r.campaignId) as campaign_id,
        tidemark_text(r.adId) as own_ad_id,
        upper(tidemark_text(r.campaignBudgetCurrencyCode)) as currency,
        tidemark_text(r.cost) as spend_text,
        tidemark_fine_amount(spend_text) as spend_or_null,
        toUInt64OrNull(coalesce(r.impressions, '0')) as impressions_or_null,
        toUInt64OrNull(coalesce(r.clicks, '0')) as clicks_or_null,
        tidemark_conversions(coalesce(r.purchases14d, '0')) as conversions_or_null,
        tidemark_fine_amount(coalesce(r.sales14d, '0')) as value_or_null
    from parsed
)

select
    line,
    load_id,
    line_number,
    happened_at,
    'amazon' as platform,
    account_id,
    toDate(ifNull(happened_at, toDateTime64(0, 6, 'UTC'))) as report_date,
    campaign_id,
    tidemark_redact(tidemark_text(r.campaignName)) as campaign,
    tidemark_text(r.adGroupId) as adset_id,
    tidemark_redact(tidemark_text(r.adGroupName)) as adset_name,
    -- Campaigns without ads of their own report at their own grain.
    if(own_ad_id = '', concat('campaign:', campaign_id), own_ad_id) as ad_id,
    '' as ad_name,
    currency,
    ifNull(spend_or_null, 0) as spend,
    ifNull(impressions_or_null, 0) as impressions,
    ifNull(clicks_or_null, 0) as clicks,
    round(ifNull(conversions_or_null, 0), 4) as conversions,
    ifNull(value_or_null, 0) as conversion_value,
    multiIf(
        account_id = '', tidemark_unreadable(line, 'profileId'),
        startsWith(account_id, '{') or startsWith(account_id, '['), 'bad_value:profileId',
        date_text = '', 'missing_field:date',
        happened_at is null, 'bad_value:date',
        own_ad_id = '' and campaign_id = '', 'missing_field:adId',
        startsWith(own_ad_id, '{') or startsWith(own_ad_id, '['), 'bad_value:adId',
        currency = '', 'missing_field:campaignBudgetCurrencyCode',
        not dictHas('reference.currencies_lookup', currency), 'bad_value:campaignBudgetCurrencyCode',
        spend_text = '', 'missing_field:cost',
        spend_or_null is null, 'bad_value:cost',
        impressions_or_null is null, 'bad_value:impressions',
        clicks_or_null is null, 'bad_value:clicks',
        conversions_or_null is null, 'bad_value:purchases14d',
        value_or_null is null, 'bad_value:sales14d',
        ''
    ) as reason
from fields
