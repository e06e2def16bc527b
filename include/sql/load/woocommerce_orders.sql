-- WooCommerce REST API v3: an Order with the refunds of its refunds endpoint merged in.
with parsed as (
    select
        line,
        load_id,
        line_number,
        JSONExtract(
            line,
            'Tuple(id Nullable(String), status Nullable(String), currency Nullable(String), date_created_gmt Nullable(String), date_modified_gmt Nullable(String), discount_total Nullable(String), shipping_total Nullable(String), total Nullable(String), total_tax Nullable(String), prices_include_tax Nullable(Bool), customer_id Nullable(String), billing Tuple(email Nullable(String)), line_items Array(Tuple(quantity Nullable(String), subtotal Nullable(String), subtotal_tax Nullable(String))), refunds Array(Tuple(id Nullable(String), total Nullable(String), date_created_gmt Nullable(String))), meta_data Array(Tuple(key Nullable(String), value Nullable(String))))'
        ) as o
    from {{ lines }}
),

fields as (
    select
        line,
        load_id,
        line_number,
        tidemark_text(o.id) as order_id,
        tidemark_text(o.date_created_gmt) as created_text,
        tidemark_time(o.date_created_gmt) as happened_at,
        tidemark_text(o.date_modified_gmt) as updated_text,
        tidemark_time(o.date_modified_gmt) as updated_at_or_null,
        tidemark_text(o.status) as status,
        tidemark_text(o.billing.email) as email,
        tidemark_text(o.customer_id) as customer_id,
        upper(tidemark_text(o.currency)) as currency,
        tidemark_text(o.total) as total_text,
        tidemark_amount(total_text) as total_or_null,
        tidemark_amount(coalesce(o.discount_total, '0')) as discounts_or_null,
        tidemark_amount(coalesce(o.shipping_total, '0')) as shipping_or_null,
        tidemark_amount(coalesce(o.total_tax, '0')) as taxes_or_null,
        -- Catalogue prices that include tax are what the customer was quoted.
        arrayMap(
            item -> tidemark_amount(ifNull(item.subtotal, ''))
            + if(ifNull(o.prices_include_tax, false), tidemark_amount(ifNull(item.subtotal_tax, '0')), tidemark_amount('0')),
            o.line_items
        ) as subtotals,
        arrayMap(item -> tidemark_integer(ifNull(item.quantity, '')), o.line_items) as quantities,
        arraySum(arrayMap(subtotal -> toDecimal128(ifNull(subtotal, toDecimal64(0, 4)), 4), subtotals)) as gross,
        CAST((
            arrayMap(entry -> tidemark_text(entry.key), o.meta_data),
            arrayMap(entry -> tidemark_text(entry.value), o.meta_data)
        ), 'Map(String, String)') as meta,
        meta['_wc_order_attribution_session_entry'] as landing_site,
        toLowCardinality(lower(domain(landing_site))) as host,
        toLowCardinality(lower(domain(meta['_wc_order_attribution_referrer']))) as referrer_host,
        tidemark_query(landing_site) as query,
        arrayMap(
            refund -> (
                tidemark_text(refund.id),
                coalesce(tidemark_time(refund.date_created_gmt), updated_at_or_null, toDateTime64(0, 6, 'UTC')),
                currency,
                abs(ifNull(tidemark_amount(ifNull(refund.total, '')), toDecimal64(0, 4)))
            ),
            o.refunds
        ) as dated_refunds,
        arrayMap(
            refund -> (refund.1, refund.2, toDate(toTimeZone(refund.2, {timezone:String})), refund.3, refund.4),
            dated_refunds
        ) as all_refunds,
        arrayExists(refund -> isNull(tidemark_amount(ifNull(refund.total, ''))), o.refunds) as has_bad_refund
    from parsed
),

classified as (
    select
        *,
        -- WooCommerce writes (direct) and (none) where it knows nothing.
        toLowCardinality(if(
            startsWith(meta['_wc_order_attribution_utm_source'], '('),
            '',
            lowerUTF8(trimBoth(meta['_wc_order_attribution_utm_source']))
        )) as utm_source,
        toLowCardinality(if(
            startsWith(meta['_wc_order_attribution_utm_medium'], '('),
            '',
            lowerUTF8(trimBoth(meta['_wc_order_attribution_utm_medium']))
        )) as utm_medium,
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
    tidemark_pseudonym('order', concat('woocommerce_orders', '\0', order_id), pseudonym_key) as order_key,
    ifNull(happened_at, toDateTime64(0, 6, 'UTC')) as created_at,
    coalesce(updated_at_or_null, happened_at, toDateTime64(0, 6, 'UTC')) as updated_at,
    status,
    false as is_test,
    CAST(null, 'Nullable(DateTime64(6, \'UTC\'))') as cancelled_at,
    currency,
    ifNull(total_or_null, 0) as total,
    if(abs(gross) < 1000000000000, gross, toDecimal128(0, 4)) as gross_sales,
    ifNull(discounts_or_null, 0) as discounts,
    ifNull(shipping_or_null, 0) as shipping,
    ifNull(taxes_or_null, 0) as taxes,
    toUInt32(least(arraySum(arrayMap(quantity -> greatest(ifNull(quantity, 0), 0), quantities)), 4294967295)) as item_count,
    tidemark_customer(email, 'woocommerce_orders', customer_id, pseudonym_key) as customer_key,
    tidemark_source(source_rule_id, utm_source, click_id_kind, referrer_host) as traffic_source,
    tidemark_medium(source_rule_id, utm_medium) as medium,
    if(
        startsWith(meta['_wc_order_attribution_utm_campaign'], '('),
        '',
        tidemark_redact(decodeURLComponent(meta['_wc_order_attribution_utm_campaign']))
    ) as campaign,
    source_rule_id,
    tidemark_confidence(click_id_kind, utm_source, utm_medium) as source_confidence,
    all_refunds as refunds,
    multiIf(
        order_id = '', tidemark_unreadable(line, 'id'),
        tidemark_is_container(line, order_id, 'id'), 'bad_value:id',
        created_text = '', 'missing_field:date_created_gmt',
        happened_at is null, 'bad_value:date_created_gmt',
        updated_text != '' and updated_at_or_null is null, 'bad_value:date_modified_gmt',
        currency = '', 'missing_field:currency',
        not dictHas('reference.currencies_lookup', currency), 'bad_value:currency',
        status = '', 'missing_field:status',
        total_text = '', 'missing_field:total',
        total_or_null is null, 'bad_value:total',
        discounts_or_null is null, 'bad_value:discount_total',
        shipping_or_null is null, 'bad_value:shipping_total',
        taxes_or_null is null, 'bad_value:total_tax',
        tidemark_is_bad_list(line, 'line_items', length(subtotals)) or has(subtotals, null) or has(quantities, null) or abs(gross) >= 1000000000000, 'bad_value:line_items',
        tidemark_is_bad_list(line, 'refunds', length(all_refunds)) or has_bad_refund or arrayExists(refund -> refund.1 = '' or refund.2 < toDateTime64('2000-01-01 00:00:00', 6, 'UTC') or refund.2 >= toDateTime64('2100-01-01 00:00:00', 6, 'UTC'), all_refunds), 'bad_value:refunds',
        ''
    ) as reason
from classified
