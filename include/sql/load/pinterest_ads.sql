-- Pinterest API v5: ad analytics by day. Money comes in micros of the account's currency.
with parsed as (
    select
        line,
        load_id,
        line_number,
        JSONExtract(
            line,
            'Tuple(AD_ACCOUNT_ID Nullable(String), CAMPAIGN_ID Nullable(String), CAMPAIGN_NAME Nullable(String), AD_GROUP_ID Nullable(String), AD_GROUP_NAME Nullable(String), AD_ID Nullable(String), DATE Nullable(String), CURRENCY Nullable(String), SPEND_IN_MICRO_DOLLAR Nullable(String), IMPRESSION_1 Nullable(String), CLICKTHROUGH_1 Nullable(String), TOTAL_CHECKOUT Nullable(String), TOTAL_CHECKOUT_VALUE_IN_MICRO_DOLLAR Nullable(String))'
        ) as r
    from {{ lines }}
),

fields as (
    select
        line,
        load_id,
        line_number,
        r,
        tidemark_text(r.AD_ACCOUNT_ID) as account_id,
        tidemark_text(r.DATE) as date_text,
        tidemark_time(date_text) as happened_at,
        tidemark_text(r.CAMPAIGN_ID) as campaign_id,
        tidemark_text(r.AD_ID) as own_ad_id,
        upper(tidemark_text(r.CURRENCY)) as currency,
        tidemark_text(r.SPEND_IN_MICRO_DOLLAR) as spend_text,
        tidemark_micros(spend_text) as spend_or_null,
        toUInt64OrNull(coalesce(r.IMPRESSION_1, '0')) as impressions_or_null,
        toUInt64OrNull(coalesce(r.CLICKTHROUGH_1, '0')) as clicks_or_null,
        tidemark_conversions(coalesce(r.TOTAL_CHECKOUT, '0')) as conversions_or_null,
        tidemark_micros(coalesce(r.TOTAL_CHECKOUT_VALUE_IN_MICRO_DOLLAR, '0')) as value_or_null
    from parsed
)

select
    line,
    load_id,
    line_number,
    happened_at,
    'pinterest' as platform,
    account_id,
    toDate(ifNull(happened_at, toDateTime64(0, 6, 'UTC'))) as report_date,
    campaign_id,
    tidemark_redact(tidemark_text(r.CAMPAIGN_NAME)) as campaign,
    tidemark_text(r.AD_GROUP_ID) as adset_id,
    tidemark_redact(tidemark_text(r.AD_GROUP_NAME)) as adset_name,
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
        account_id = '', tidemark_unreadable(line, 'AD_ACCOUNT_ID'),
        startsWith(account_id, '{') or startsWith(account_id, '['), 'bad_value:AD_ACCOUNT_ID',
        date_text = '', 'missing_field:DATE',
        happened_at is null, 'bad_value:DATE',
        own_ad_id = '' and campaign_id = '', 'missing_field:AD_ID',
        startsWith(own_ad_id, '{') or startsWith(own_ad_id, '['), 'bad_value:AD_ID',
        currency = '', 'missing_field:CURRENCY',
        not dictHas('reference.currencies_lookup', currency), 'bad_value:CURRENCY',
        spend_text = '', 'missing_field:SPEND_IN_MICRO_DOLLAR',
        spend_or_null is null, 'bad_value:SPEND_IN_MICRO_DOLLAR',
        impressions_or_null is null, 'bad_value:IMPRESSION_1',
        clicks_or_null is null, 'bad_value:CLICKTHROUGH_1',
        conversions_or_null is null, 'bad_value:TOTAL_CHECKOUT',
        value_or_null is null, 'bad_value:TOTAL_CHECKOUT_VALUE_IN_MICRO_DOLLAR',
        ''
    ) as reason
from fields
