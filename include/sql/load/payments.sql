-- Stripe: a Charge object. Amounts are integers of the currency's minor unit.
with parsed as (
    select
        line,
        load_id,
        line_number,
        JSONExtract(
            line,
            'Tuple(id Nullable(String), amount Nullable(String), currency Nullable(String), created Nullable(String), customer Nullable(String), status Nullable(String), paid Nullable(Bool), livemode Nullable(Bool), billing_details Tuple(email Nullable(String)), receipt_email Nullable(String), metadata Tuple(visitor_id Nullable(String)), refunds Tuple(data Array(Tuple(id Nullable(String), amount Nullable(String), created Nullable(String), status Nullable(String)))))'
        ) as c
    from {{ lines }}
),

fields as (
    select
        line,
        load_id,
        line_number,
        tidemark_text(c.id) as payment_id,
        tidemark_text(c.created) as created_text,
        if(match(created_text, '^[0-9]{1,11}$'), fromUnixTimestamp64Micro(toInt64OrZero(created_text) * 1000000, 'UTC'), tidemark_time(created_text)) as happened_at,
        tidemark_text(c.status) as status,
        ifNull(c.paid, false) as is_paid,
        ifNull(c.livemode, false) as is_livemode,
        upper(tidemark_text(c.currency)) as currency,
        toInt64(exp10(dictGetOrDefault('reference.currencies_lookup', 'exponent', currency, toUInt8(2)))) as minor_units,
        tidemark_text(c.amount) as amount_text,
        tidemark_integer(amount_text) as amount_or_null,
        coalesce(nullIf(tidemark_trimmed(c.billing_details.email), ''), c.receipt_email, '') as email,
        tidemark_text(c.customer) as customer_id,
        tidemark_text(c.metadata.visitor_id) as visitor_id,
        c.refunds.data as data,
        arrayMap(refund -> tidemark_integer(ifNull(refund.amount, '')), data) as refund_amounts,
        arrayMap(refund -> fromUnixTimestamp64Micro(ifNull(tidemark_integer(ifNull(refund.created, '')), 0) * 1000000, 'UTC'), data) as refund_times
    from parsed
)

select
    line,
    load_id,
    line_number,
    happened_at,
    payment_id,
    tidemark_pseudonym('order', concat('payments', '\0', payment_id), pseudonym_key) as order_key,
    ifNull(happened_at, toDateTime64(0, 6, 'UTC')) as paid_at,
    status,
    is_paid,
    is_livemode,
    currency,
    toDecimal64(ifNull(amount_or_null, 0), 4) / minor_units as amount,
    arrayMap(
        (refund, at, minor) -> (
            tidemark_text(refund.id),
            at,
            toDate(toTimeZone(at, {timezone:String})),
            tidemark_text(refund.status),
            toDecimal64(ifNull(minor, 0), 4) / minor_units
        ),
        data, refund_times, refund_amounts
    ) as refunds,
    tidemark_customer(email, 'payments', customer_id, pseudonym_key) as customer_key,
    tidemark_id('anonymous_id', visitor_id, pseudonym_key) as visitor_id,
    multiIf(
        payment_id = '', tidemark_unreadable(line, 'id'),
        tidemark_is_container(line, payment_id, 'id'), 'bad_value:id',
        created_text = '', 'missing_field:created',
        happened_at is null, 'bad_value:created',
        currency = '', 'missing_field:currency',
        not dictHas('reference.currencies_lookup', currency), 'bad_value:currency',
        amount_text = '', 'missing_field:amount',
        amount_or_null is null, 'bad_value:amount',
        JSONType(line, 'refunds') not in ('Null', 'Object') or tidemark_is_bad_list(JSONExtractRaw(line, 'refunds'), 'data', length(data)) or has(refund_amounts, null) or arrayExists(at -> at < toDateTime64('2000-01-01 00:00:00', 6, 'UTC') or at >= toDateTime64('2100-01-01 00:00:00', 6, 'UTC'), refund_times)
        or arrayExists(refund -> tidemark_text(refund.id) = '', data), 'bad_value:refunds',
        ''
    ) as reason
from fields
