-- Google Ads API: ad_group_ad by day. Cost comes in micros.
with parsed as (
    select
        line,
        load_id,
        line_number,
        JSONExtract(
            line,
            'Tuple(customer Tuple(id Nullable(String), currencyCode Nullable(String)), campaign Tuple(id Nullable(String), name Nullable(String)), adGroup Tuple(id Nullable(String), name Nullable(String)), adGroupAd Tuple(ad Tuple(id Nullable(String), name Nullable(String))), segments Tuple(date Nullable(String)), metrics Tuple(costMicros Nullable(String), impressions Nullable(String), clicks Nullable(String), conversions Nullable(String), conversionsValue Nullable(String)))'
        ) as r
    from {{ lines }}
),

fields as (
    select
        line,
        load_id,
        line_number,
        r,
        tidemark_text(r.customer.id) as account_id,
        tidemark_text(r.segments.date) as date_text,
        tidemark_time(date_text) as happened_at,
        tidemark_text(r.campaign.id) as campaign_id,
        tidemark_text(r.adGroupAd.ad.id) as own_ad_id,
        upper(tidemark_text(r.customer.currencyCode)) as currency,
        tidemark_text(r.metrics.costMicros) as spend_text,
        tidemark_micros(spend_text) as spend_or_null,
        toUInt64OrNull(coalesce(r.metrics.impressions, '0')) as impressions_or_null,
        toUInt64OrNull(coalesce(r.metrics.clicks, '0')) as clicks_or_null,
        tidemark_conversions(coalesce(r.metrics.conversions, '0')) as conversions_or_null,
        tidemark_fine_amount(coalesce(r.metrics.conversionsValue, '0')) as value_or_null
    from parsed
)

select
    line,
    load_id,
    line_number,
    happened_at,
    'google' as platform,
    account_id,
    toDate(ifNull(happened_at, toDateTime64(0, 6, 'UTC'))) as report_date,
    campaign_id,
    tidemark_redact(tidemark_text(r.campaign.name)) as campaign,
    tidemark_text(r.adGroup.id) as adset_id,
    tidemark_redact(tidemark_text(r.adGroup.name)) as adset_name,
    -- Campaigns without ads of their own report at their own grain.
    if(own_ad_id = '', concat('campaign:', campaign_id), own_ad_id) as ad_id,
    tidemark_redact(tidemark_text(r.adGroupAd.ad.name)) as ad_name,
    currency,
    ifNull(spend_or_null, 0) as spend,
    ifNull(impressions_or_null, 0) as impressions,
    ifNull(clicks_or_null, 0) as clicks,
    round(ifNull(conversions_or_null, 0), 4) as conversions,
    ifNull(value_or_null, 0) as conversion_value,
    multiIf(
        account_id = '', tidemark_unreadable(line, 'customer.id'),
        startsWith(account_id, '{') or startsWith(account_id, '['), 'bad_value:customer.id',
        date_text = '', 'missing_field:segments.date',
        happened_at is null, 'bad_value:segments.date',
        own_ad_id = '' and campaign_id = '', 'missing_field:adGroupAd.ad.id',
        startsWith(own_ad_id, '{') or startsWith(own_ad_id, '['), 'bad_value:adGroupAd.ad.id',
        currency = '', 'missing_field:customer.currencyCode',
        not dictHas('reference.currencies_lookup', currency), 'bad_value:customer.currencyCode',
        spend_text = '', 'missing_field:metrics.costMicros',
        spend_or_null is null, 'bad_value:metrics.costMicros',
        impressions_or_null is null, 'bad_value:metrics.impressions',
        clicks_or_null is null, 'bad_value:metrics.clicks',
        conversions_or_null is null, 'bad_value:metrics.conversions',
        value_or_null is null, 'bad_value:metrics.conversionsValue',
        ''
    ) as reason
from fields
