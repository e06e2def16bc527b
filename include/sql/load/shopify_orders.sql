-- Shopify Admin API: an Order with its refunds. Amounts are shop money.
with parsed as (
    select
        line,
        load_id,
        line_number,
        JSONExtract(
            line,
            'Tuple(id Nullable(String), created_at Nullable(String), updated_at Nullable(String), cancelled_at Nullable(String), financial_status Nullable(String), test Nullable(Bool), currency Nullable(String), total_price Nullable(String), total_discounts Nullable(String), total_tax Nullable(String), total_shipping_price_set Tuple(shop_money Tuple(amount Nullable(String))), landing_site Nullable(String), referring_site Nullable(String), email Nullable(String), contact_email Nullable(String), customer Tuple(id Nullable(String), email Nullable(String)), line_items Array(Tuple(quantity Nullable(String), price Nullable(String))), refunds Array(Tuple(id Nullable(String), created_at Nullable(String), processed_at Nullable(String), transactions Array(Tuple(kind Nullable(String), status Nullable(String), amount Nullable(String), currency Nullable(String))))))'
        ) as o
    from {{ lines }}
),

fields as (
    select
        line,
        load_id,
        line_number,
        tidemark_text(o.id) as order_id,
        tidemark_text(o.created_at) as created_text,
        tidemark_time(o.created_at) as happened_at,
        tidemark_text(o.updated_at) as updated_text,
        tidemark_time(o.updated_at) as updated_at_or_null,
        tidemark_time(o.cancelled_at) as cancelled_at,
        tidemark_text(o.financial_status) as status,
        ifNull(o.test, false) as is_test,
        upper(tidemark_text(o.currency)) as currency,
        tidemark_text(o.total_price) as total_text,
        tidemark_amount(total_text) as total_or_null,
        tidemark_amount(coalesce(o.total_discounts, '0')) as discounts_or_null,
        tidemark_amount(coalesce(o.total_shipping_price_set.shop_money.amount, '0')) as shipping_or_null,
        tidemark_amount(coalesce(o.total_tax, '0')) as taxes_or_null,
        arrayMap(item -> tidemark_amount(ifNull(item.price, '')), o.line_items) as prices,
        arrayMap(item -> tidemark_integer(ifNull(item.quantity, '')), o.line_items) as quantities,
        arraySum(arrayMap((price, quantity) -> toDecimal128(ifNull(price, toDecimal64(0, 4)), 4) * ifNull(quantity, 0), prices, quantities)) as gross,
        coalesce(nullIf(tidemark_trimmed(o.email), ''), nullIf(tidemark_trimmed(o.contact_email), ''), o.customer.email, '') as email,
        tidemark_text(o.customer.id) as customer_id,
        tidemark_text(o.landing_site) as landing_site,
        tidemark_text(o.referring_site) as referring_site,
        toLowCardinality(lower(domain(landing_site))) as host,
        toLowCardinality(lower(domain(referring_site))) as referrer_host,
        tidemark_query(landing_site) as query,
        arrayMap(
            refund -> (
                tidemark_text(refund.id),
                coalesce(tidemark_time(refund.created_at), tidemark_time(refund.processed_at), toDateTime64(0, 6, 'UTC')),
                upper(coalesce(arrayFirst(t -> t.kind = 'refund' and t.status = 'success', refund.transactions).currency, o.currency, '')),
                arraySum(arrayMap(
                    t -> if(t.kind = 'refund' and t.status = 'success', ifNull(tidemark_amount(ifNull(t.amount, '')), toDecimal64(0, 4)), toDecimal64(0, 4)),
                    refund.transactions
                ))
            ),
            o.refunds
        ) as dated_refunds,
        arrayMap(
            refund -> (refund.1, refund.2, toDate(toTimeZone(refund.2, {timezone:String})), refund.3, refund.4),
            dated_refunds
        ) as all_refunds,
        arrayExists(
            refund -> arrayExists(
                t -> t.kind = 'refund' and t.status = 'success' and isNull(tidemark_amount(ifNull(t.amount, ''))),
                refund.transactions
            ),
            o.refunds
        )
        or arrayExists(refund -> not dictHas('reference.currencies_lookup', refund.4), all_refunds) as has_bad_refund
    from parsed
),

classified as (
    select
        *,
        toLowCardinality(lowerUTF8(trimBoth(tidemark_parameter(query, 'utm_source')))) as utm_source,
        toLowCardinality(lowerUTF8(trimBoth(tidemark_parameter(query, 'utm_medium')))) as utm_medium,
        tidemark_click_id_kind(query) as click_id_kind,
        tidemark_source_rule(utm_source, utm_medium, query, host, referrer_host) as source_rule_id
    from fields
)

select
    line,
    load_id,
    line_number,
    happened_at,
    tidemark_id('order_id', order_id, pseudonym_key) as order_id,
    tidemark_pseudonym('order', concat('shopify_orders', '\0', order_id), pseudonym_key) as order_key,
    ifNull(happened_at, toDateTime64(0, 6, 'UTC')) as created_at,
    coalesce(updated_at_or_null, happened_at, toDateTime64(0, 6, 'UTC')) as updated_at,
    status,
    is_test,
    cancelled_at,
    currency,
    ifNull(total_or_null, 0) as total,
    if(abs(gross) < 1000000000000, gross, toDecimal128(0, 4)) as gross_sales,
    ifNull(discounts_or_null, 0) as discounts,
    ifNull(shipping_or_null, 0) as shipping,
    ifNull(taxes_or_null, 0) as taxes,
    toUInt32(least(arraySum(arrayMap(quantity -> greatest(ifNull(quantity, 0), 0), quantities)), 4294967295)) as item_count,
    tidemark_customer(email, 'shopify_orders', customer_id, pseudonym_key) as customer_key,
    tidemark_source(source_rule_id, utm_source, click_id_kind, referrer_host) as traffic_source,
    tidemark_medium(source_rule_id, utm_medium) as medium,
    tidemark_redact(decodeURLComponent(tidemark_parameter(query, 'utm_campaign'))) as campaign,
    source_rule_id,
    tidemark_confidence(click_id_kind, utm_source, utm_medium) as source_confidence,
    all_refunds as refunds,
    multiIf(
        order_id = '', tidemark_unreadable(line, 'id'),
        tidemark_is_container(line, order_id, 'id'), 'bad_value:id',
        created_text = '', 'missing_field:created_at',
        happened_at is null, 'bad_value:created_at',
        updated_text != '' and updated_at_or_null is null, 'bad_value:updated_at',
        currency = '', 'missing_field:currency',
        not dictHas('reference.currencies_lookup', currency), 'bad_value:currency',
        total_text = '', 'missing_field:total_price',
        total_or_null is null, 'bad_value:total_price',
        discounts_or_null is null, 'bad_value:total_discounts',
        shipping_or_null is null, 'bad_value:total_shipping_price_set',
        taxes_or_null is null, 'bad_value:total_tax',
        tidemark_is_bad_list(line, 'line_items', length(prices)) or has(prices, null) or has(quantities, null) or abs(gross) >= 1000000000000, 'bad_value:line_items',
        tidemark_is_bad_list(line, 'refunds', length(all_refunds)) or has_bad_refund or arrayExists(refund -> refund.1 = '' or refund.2 < toDateTime64('2000-01-01 00:00:00', 6, 'UTC') or refund.2 >= toDateTime64('2100-01-01 00:00:00', 6, 'UTC'), all_refunds), 'bad_value:refunds',
        ''
    ) as reason
from classified
