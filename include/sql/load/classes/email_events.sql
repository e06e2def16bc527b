-- block: stage
event_id String,
event_at DateTime64(6, 'UTC'),
metric LowCardinality(String),
profile_key String,
customer_key String,
message_id String,
message_name String,
flow_id String,
order_id String,
value Decimal(18, 4),
currency LowCardinality(String),
attributed_campaign_id String,
attributed_flow_id String

-- block: key
reinterpretAsUInt128(sipHash128(toString(workspace_id), event_id, toYYYYMM(local_date)))

-- block: version
toDateTime64(0, 6, 'UTC')

-- block: target raw.email_events
select stage.* except (source_system, row_key, version_at)
from {{ stage }} as stage

-- block: effects email_events
select
    load_id,
    line_number,
    workspace_id,
    local_date,
    currency,
    event_id as id,
    toDecimal128(value, 6) as money
from {{ raw.email_events }}
