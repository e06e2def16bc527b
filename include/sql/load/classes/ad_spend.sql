-- block: stage
platform LowCardinality(String),
account_id String,
report_date Date,
campaign_id String,
campaign String,
adset_id String,
adset_name String,
ad_id String,
ad_name String,
currency LowCardinality(String),
spend Decimal(18, 6),
impressions UInt64,
clicks UInt64,
conversions Decimal(18, 4),
conversion_value Decimal(18, 6)

-- block: key
reinterpretAsUInt128(sipHash128(toString(workspace_id), toString(source_system), account_id, local_date, ad_id))

-- block: version
toDateTime64(0, 6, 'UTC')

-- block: target raw.ad_spend
select stage.* except (source_system, row_key, version_at), source_system as source
from {{ stage }} as stage

-- block: effects ad_spend
select
    load_id,
    line_number,
    workspace_id,
    local_date,
    currency,
    concat(source, '\0', account_id, '\0', ad_id) as id,
    toDecimal128(spend, 6) as money
from {{ raw.ad_spend }}
