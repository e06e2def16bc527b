-- block: stage
payment_id String,
paid_at DateTime64(6, 'UTC'),
status LowCardinality(String),
is_paid Bool,
is_livemode Bool,
currency LowCardinality(String),
amount Decimal(18, 4),
`refunds.refund_id` Array(String),
`refunds.refunded_at` Array(DateTime64(6, 'UTC')),
`refunds.local_date` Array(Date),
`refunds.amount` Array(Decimal(18, 4)),
`refunds.status` Array(String),
customer_key String,
visitor_id String

-- block: key
reinterpretAsUInt128(sipHash128(toString(workspace_id), payment_id))

-- block: version
toDateTime64(0, 6, 'UTC')

-- block: target raw.payments
select stage.* except (source_system, row_key, version_at)
from {{ stage }} as stage

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
    refund_date as local_date,
    currency,
    concat(payment_id, '\0', refund_id) as id,
    toDecimal128(refund_amount, 6) as money
from {{ raw.payments }}
array join
    `refunds.refund_id` as refund_id,
    `refunds.local_date` as refund_date,
    `refunds.amount` as refund_amount,
    `refunds.status` as refund_status
where refund_status = 'succeeded'
