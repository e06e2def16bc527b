-- Meta Marketing API: insights at ad level, a day a row. Purchases come under several action types
-- that count the same sale: one type is read.
with parsed as (
    select
        line,
        load_id,
        line_number,
        JSONExtract(
            line,
            'Tuple(account_id Nullable(String), account_currency Nullable(String), campaign_id Nullable(String), campaign_name Nullable(String), adset_id Nullable(String), adset_name Nullable(String), ad_id Nullable(String), ad_name Nullable(String), date_start Nullable(String), impressions Nullable(String), clicks Nullable(String), spend Nullable(String), actions Array(Tuple(action_type Nullable(String), value Nullable(String))), action_values Array(Tuple(action_type Nullable(String), value Nullable(String))))'
        ) as r
    from {{ lines }}
),

fields as (
    select
        line,
        load_id,
        line_number,
        r,
        tidemark_text(r.account_id) as account_id,
        tidemark_text(r.date_start) as date_text,
        tidemark_time(date_text) as happened_at,
        tidemark_text(r.campaign_id) as campaign_id,
        tidemark_text(r.ad_id) as own_ad_id,
        upper(tidemark_text(r.account_currency)) as currency,
        tidemark_text(r.spend) as spend_text,
        tidemark_fine_amount(spend_text) as spend_or_null,
        toUInt64OrNull(coalesce(r.impressions, '0')) as impressions_or_null,
        toUInt64OrNull(coalesce(r.clicks, '0')) as clicks_or_null,
        tidemark_conversions(coalesce(if(
            arrayExists(a -> a.action_type = 'omni_purchase', r.actions),
            arrayFirst(a -> a.action_type = 'omni_purchase', r.actions),
            arrayFirst(a -> a.action_type = 'purchase', r.actions)
        ).value, '0')) as conversions_or_null,
        tidemark_fine_amount(coalesce(if(
            arrayExists(a -> a.action_type = 'omni_purchase', r.action_values),
            arrayFirst(a -> a.action_type = 'omni_purchase', r.action_values),
            arrayFirst(a -> a.action_type = 'purchase', r.action_values)
        ).value, '0')) as value_or_null
    from parsed
)

select
    line,
    load_id,
    line_number,
    happened_at,
    'meta' as platform,
    account_id,
    toDate(ifNull(happened_at, toDateTime64(0, 6, 'UTC'))) as report_date,
    campaign_id,
    tidemark_redact(tidemark_text(r.campaign_name)) as campaign,
    tidemark_text(r.adset_id) as adset_id,
    tidemark_redact(tidemark_text(r.adset_name)) as adset_name,
    -- Campaigns without ads of their own report at their own grain.
    if(own_ad_id = '', concat('campaign:', campaign_id), own_ad_id) as ad_id,
    tidemark_redact(tidemark_text(r.ad_name)) as ad_name,
    currency,
    ifNull(spend_or_null, 0) as spend,
    ifNull(impressions_or_null, 0) as impressions,
    ifNull(clicks_or_null, 0) as clicks,
    round(ifNull(conversions_or_null, 0), 4) as conversions,
    ifNull(value_or_null, 0) as conversion_value,
    multiIf(
        account_id = '', tidemark_unreadable(line, 'account_id'),
        startsWith(account_id, '{') or startsWith(account_id, '['), 'bad_value:account_id',
        date_text = '', 'missing_field:date_start',
        happened_at is null, 'bad_value:date_start',
        own_ad_id = '' and campaign_id = '', 'missing_field:ad_id',
        startsWith(own_ad_id, '{') or startsWith(own_ad_id, '['), 'bad_value:ad_id',
        currency = '', 'missing_field:account_currency',
        not dictHas('reference.currencies_lookup', currency), 'bad_value:account_currency',
        spend_text = '', 'missing_field:spend',
        spend_or_null is null, 'bad_value:spend',
        impressions_or_null is null, 'bad_value:impressions',
        clicks_or_null is null, 'bad_value:clicks',
        conversions_or_null is null, 'bad_value:actions',
        value_or_null is null, 'bad_value:action_values',
        ''
    ) as reason
from fields
