-- block: stage
payment_id String,
order_key String,
paid_at DateTime64(6, 'UTC'),
status LowCardinality(String),
is_paid Bool,
is_livemode Bool,
currency LowCardinality(String),
amount Decimal(18, 4),
customer_key String,
visitor_id String,
refunds Array(Tuple(refund_id String, refunded_at DateTime64(6, 'UTC'), local_date Date, status String, amount Decimal(18, 4))),
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
reinterpretAsUInt128(sipHash128(toString(workspace_id), payment_id))

-- block: version
toDateTime64(0, 6, 'UTC')

-- block: standing
select workspace_id, payment_id, local_date, delivery_date, load_id, line_number
from raw.payments
union all
select workspace_id, payment_id, local_date, delivery_date, load_id, line_number
from raw.payment_refunds

-- block: target raw.payments
select stage.* except (source_system, refunds, is_late, row_key, version_at)
from {{ stage }} as stage
where not is_late

-- block: target raw.payment_refunds
select
    workspace_id,
    refund.refund_id as refund_id,
    payment_id,
    order_key,
    refund.local_date as local_date,
    refund.refunded_at as refunded_at,
    stage.local_date as payment_local_date,
    refund.status as status,
    currency,
    refund.amount as amount,
    delivery_date,
    load_id,
    line_number
from {{ stage }} as stage
array join refunds as refund

-- block: effects payments
select
    load_id,
    line_number,
    workspace_id,
    local_date,
    currency,
    payment_id as id,
    toDecimal128(amount, 6) as money
from {{ raw.payments }}

-- block: effects payment_refunds
select
    load_id,
    line_number,
    workspace_id,
    local_date,
    currency,
    concat(payment_id, '\0', refund_id) as id,
    toDecimal128(amount, 6) as money
from {{ raw.payment_refunds }}
where status = 'succeeded'
