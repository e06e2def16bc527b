-- block: stage
order_id String,
order_key String,
created_at DateTime64(6, 'UTC'),
updated_at DateTime64(6, 'UTC'),
status LowCardinality(String),
is_test Bool,
cancelled_at Nullable(DateTime64(6, 'UTC')),
currency LowCardinality(String),
total Decimal(18, 4),
gross_sales Decimal(18, 4),
discounts Decimal(18, 4),
shipping Decimal(18, 4),
taxes Decimal(18, 4),
item_count UInt32,
customer_key String,
traffic_source LowCardinality(String),
medium LowCardinality(String),
campaign String,
source_rule_id LowCardinality(String),
source_confidence LowCardinality(String),
refunds Array(Tuple(refund_id String, refunded_at DateTime64(6, 'UTC'), local_date Date, currency String, amount Decimal(18, 4))),
is_late Bool

-- block: carried refunds
arrayFilter(
    refund -> refund.3 >= {oldest:Date}
    and not has(
        (
            select groupArray(local_date) from retention.frozen_days
            where workspace_id = {workspace_id:String} and measure_group = 'refunds'
        ),
        refund.3
    ),
    refunds
)

-- block: key
reinterpretAsUInt128(sipHash128(toString(workspace_id), toString(source_system), order_id))

-- block: version
updated_at

-- block: standing
select workspace_id, source, order_id, local_date, updated_at, delivery_date, load_id, line_number
from raw.orders
union all
select workspace_id, source, order_id, local_date, updated_at, delivery_date, load_id, line_number
from raw.order_refunds

-- block: target raw.orders
select stage.* except (source_system, refunds, is_late, row_key, version_at), source_system as source
from {{ stage }} as stage
where not is_late

-- block: target raw.order_refunds
select
    workspace_id,
    source_system as source,
    refund.refund_id as refund_id,
    order_id,
    order_key,
    refund.local_date as local_date,
    refund.refunded_at as refunded_at,
    stage.local_date as order_local_date,
    updated_at,
    refund.currency as currency,
    refund.amount as amount,
    delivery_date,
    load_id,
    line_number
from {{ stage }} as stage
array join refunds as refund

-- block: effects orders
select
    load_id,
    line_number,
    workspace_id,
    local_date,
    currency,
    concat(source, '\0', order_id) as id,
    toDecimal128(total, 6) as money
from {{ raw.orders }}

-- block: effects order_refunds
select
    load_id,
    line_number,
    workspace_id,
    local_date,
    currency,
    concat(source, '\0', order_id, '\0', refund_id) as id,
    toDecimal128(amount, 6) as money
from {{ raw.order_refunds }}
