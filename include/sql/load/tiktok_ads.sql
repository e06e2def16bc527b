-- TikTok Business API: integrated report at ad level by day.
with parsed as (
    select
        line,
        load_id,
        line_number,
        JSONExtract(
            line,
            'Tuple(advertiser_id Nullable(String), currency Nullable(String), dimensions Tuple(ad_id Nullable(String), stat_time_day Nullable(String)), metrics Tuple(campaign_id Nullable(String), campaign_name Nullable(String), adgroup_id Nullable(String), adgroup_name Nullable(String), ad_name Nullable(String), spend Nullable(String), impressions Nullable(String), clicks Nullable(String), conversion Nullable(String), total_purchase_value Nullable(String)))'
        ) as r
    from {{ lines }}
),

fields as (
    select
        line,
        load_id,
        line_number,
        r,
        tidemark_text(r.advertiser_id) as account_id,
        tidemark_text(r.dimensions.stat_time_day) as date_text,
        tidemark_time(date_text) as happened_at,
        tidemark_text(r.metrics.campaign_id) as campaign_id,
        tidemark_text(r.dimensions.ad_id) as own_ad_id,
        upper(tidemark_text(r.currency)) as currency,
        tidemark_text(r.metrics.spend) as spend_text,
        tidemark_fine_amount(spend_text) as spend_or_null,
        toUInt64OrNull(coalesce(r.metrics.impressions, '0')) as impressions_or_null,
        toUInt64OrNull(coalesce(r.metrics.clicks, '0')) as clicks_or_null,
        tidemark_conversions(coalesce(r.metrics.conversion, '0')) as conversions_or_null,
        tidemark_fine_amount(coalesce(r.metrics.total_purchase_value, '0')) as value_or_null
    from parsed
)

select
    line,
    load_id,
    line_number,
    happened_at,
    'tiktok' as platform,
    account_id,
    toDate(ifNull(happened_at, toDateTime64(0, 6, 'UTC'))) as report_date,
    campaign_id,
    tidemark_redact(tidemark_text(r.metrics.campaign_name)) as campaign,
    tidemark_text(r.metrics.adgroup_id) as adset_id,
    tidemark_redact(tidemark_text(r.metrics.adgroup_name)) as adset_name,
    -- Campaigns without ads of their own report at their own grain.
    if(own_ad_id = '', concat('campaign:', campaign_id), own_ad_id) as ad_id,
    tidemark_redact(tidemark_text(r.metrics.ad_name)) as ad_name,
    currency,
    ifNull(spend_or_null, 0) as spend,
    ifNull(impressions_or_null, 0) as impressions,
    ifNull(clicks_or_null, 0) as clicks,
    round(ifNull(conversions_or_null, 0), 4) as conversions,
    ifNull(value_or_null, 0) as conversion_value,
    multiIf(
        account_id = '', tidemark_unreadable(line, 'advertiser_id'),
        startsWith(account_id, '{') or startsWith(account_id, '['), 'bad_value:advertiser_id',
        date_text = '', 'missing_field:dimensions.stat_time_day',
        happened_at is null, 'bad_value:dimensions.stat_time_day',
        own_ad_id = '' and campaign_id = '', 'missing_field:dimensions.ad_id',
        startsWith(own_ad_id, '{') or startsWith(own_ad_id, '['), 'bad_value:dimensions.ad_id',
        currency = '', 'missing_field:currency',
        not dictHas('reference.currencies_lookup', currency), 'bad_value:currency',
        spend_text = '', 'missing_field:metrics.spend',
        spend_or_null is null, 'bad_value:metrics.spend',
        impressions_or_null is null, 'bad_value:metrics.impressions',
        clicks_or_null is null, 'bad_value:metrics.clicks',
        conversions_or_null is null, 'bad_value:metrics.conversion',
        value_or_null is null, 'bad_value:metrics.total_purchase_value',
        ''
    ) as reason
from fields
