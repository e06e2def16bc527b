-- Every raw table carries load_id, delivery_date and line_number: with the file's rank in its
-- folder they order the versions of a row, and they lead back to the load ledger.

create table if not exists raw.pixel_events
(
    workspace_id LowCardinality(String),
    local_date Date comment 'Day of event_at in the workspace''s timezone',
    event_at DateTime64(6, 'UTC'),
    event_id String,
    event_name LowCardinality(String),
    anonymous_id String,
    session_id String comment 'As the SDK sent it, or empty',
    customer_key String comment 'Keyed pseudonym of the e-mail, 32 hex, or empty',
    user_key String comment 'Keyed pseudonym of user_id, 32 hex, or empty',
    order_id String comment 'properties.order_id as text, or empty',
    url_host LowCardinality(String),
    url_path String,
    url_parameters String comment 'The utm_ parameters alone, as k=v&k=v',
    referrer_host LowCardinality(String),
    referrer_path String,
    click_id_kind LowCardinality(String) comment 'gclid, fbclid, ttclid, … or empty',
    click_id_hash String comment 'Keyed hash, 32 hex, or empty',
    source LowCardinality(String),
    medium LowCardinality(String),
    campaign String,
    source_rule_id LowCardinality(String),
    source_confidence LowCardinality(String) comment 'high, medium or low',
    country LowCardinality(String) comment 'ISO 3166-1 alpha-2, or empty',
    device_type LowCardinality(String),
    browser LowCardinality(String),
    os LowCardinality(String),
    is_bot Bool,
    is_ai_agent Bool,
    ip_hash String comment 'HMAC under the salt of that UTC day, 32 hex, or empty',
    viewport LowCardinality(String),
    language LowCardinality(String),
    timezone LowCardinality(String),
    properties String comment 'JSON, at most 8 KB',
    delivery_date Date,
    load_id UInt64,
    line_number UInt64
)
engine = MergeTree
partition by toYYYYMM(local_date)
order by (workspace_id, local_date, anonymous_id, event_at, event_id);

create table if not exists raw.orders
(
    workspace_id LowCardinality(String),
    source LowCardinality(String) comment 'shopify_orders or woocommerce_orders',
    order_id String,
    order_key String comment 'Keyed pseudonym of source and order_id, 32 hex: it outlives the order',
    local_date Date comment 'Day of created_at in the workspace''s timezone',
    created_at DateTime64(6, 'UTC'),
    updated_at DateTime64(6, 'UTC'),
    status LowCardinality(String) comment 'Shopify financial_status, WooCommerce status',
    is_test Bool,
    cancelled_at Nullable(DateTime64(6, 'UTC')),
    currency LowCardinality(String) comment 'Shop currency of every amount of the row',
    total Decimal(18, 4),
    gross_sales Decimal(18, 4),
    discounts Decimal(18, 4),
    shipping Decimal(18, 4),
    taxes Decimal(18, 4),
    item_count UInt32,
    customer_key String comment 'Keyed pseudonym, 32 hex, or empty where the order has no customer',
    traffic_source LowCardinality(String),
    medium LowCardinality(String),
    campaign String,
    source_rule_id LowCardinality(String),
    source_confidence LowCardinality(String),
    delivery_date Date,
    load_id UInt64,
    line_number UInt64
)
engine = MergeTree
partition by toYYYYMM(local_date)
order by (workspace_id, local_date, source, order_id);

create table if not exists raw.order_refunds
(
    workspace_id LowCardinality(String),
    source LowCardinality(String),
    refund_id String,
    order_id String,
    order_key String comment 'That of the order, which may be purged',
    local_date Date comment 'Day of refunded_at in the workspace''s timezone',
    refunded_at DateTime64(6, 'UTC'),
    order_local_date Date,
    updated_at DateTime64(6, 'UTC') comment 'That of the order''s version it came with',
    currency LowCardinality(String),
    amount Decimal(18, 4) comment 'Positive: what went back to the customer',
    delivery_date Date,
    load_id UInt64,
    line_number UInt64
)
engine = MergeTree
partition by toYYYYMM(local_date)
order by (workspace_id, local_date, source, order_id, refund_id);

create table if not exists raw.payments
(
    workspace_id LowCardinality(String),
    payment_id String,
    order_key String comment 'Keyed pseudonym of payment_id, 32 hex: it outlives the payment',
    local_date Date comment 'Day of paid_at in the workspace''s timezone',
    paid_at DateTime64(6, 'UTC'),
    status LowCardinality(String),
    is_paid Bool,
    is_livemode Bool,
    currency LowCardinality(String),
    amount Decimal(18, 4),
    customer_key String,
    visitor_id String comment 'metadata.visitor_id, the anonymous_id of the pixel, or empty',
    delivery_date Date,
    load_id UInt64,
    line_number UInt64
)
engine = MergeTree
partition by toYYYYMM(local_date)
order by (workspace_id, local_date, payment_id);

create table if not exists raw.payment_refunds
(
    workspace_id LowCardinality(String),
    refund_id String,
    payment_id String,
    order_key String comment 'That of the payment, which may be purged',
    local_date Date comment 'Day of refunded_at in the workspace''s timezone',
    refunded_at DateTime64(6, 'UTC'),
    payment_local_date Date,
    status LowCardinality(String),
    currency LowCardinality(String),
    amount Decimal(18, 4) comment 'Positive: what went back to the customer',
    delivery_date Date,
    load_id UInt64,
    line_number UInt64
)
engine = MergeTree
partition by toYYYYMM(local_date)
order by (workspace_id, local_date, payment_id, refund_id);

create table if not exists raw.ad_spend
(
    workspace_id LowCardinality(String),
    source LowCardinality(String) comment 'meta_ads, google_ads, tiktok_ads, amazon_ads or pinterest_ads',
    platform LowCardinality(String) comment 'meta, google, tiktok, amazon or pinterest',
    account_id String,
    local_date Date comment 'The report''s own day',
    report_date Date,
    campaign_id String,
    campaign String comment 'Name of the campaign',
    adset_id String,
    adset_name String,
    ad_id String,
    ad_name String,
    currency LowCardinality(String),
    spend Decimal(18, 6),
    impressions UInt64,
    clicks UInt64 comment 'All clicks',
    conversions Decimal(18, 4),
    conversion_value Decimal(18, 6),
    delivery_date Date,
    load_id UInt64,
    line_number UInt64
)
engine = MergeTree
partition by toYYYYMM(local_date)
order by (workspace_id, local_date, source, account_id, ad_id);

create table if not exists raw.email_events
(
    workspace_id LowCardinality(String),
    event_id String,
    local_date Date comment 'Day of event_at in the workspace''s timezone',
    event_at DateTime64(6, 'UTC'),
    metric LowCardinality(String) comment 'Received Email, Opened Email, Clicked Email, Placed Order, Refunded Order, …',
    profile_key String comment 'Keyed pseudonym of the vendor''s profile id, 32 hex',
    customer_key String comment 'Keyed pseudonym of the e-mail, 32 hex, or empty',
    message_id String,
    message_name String comment 'Campaign Name or flow name, or empty',
    flow_id String comment 'event_properties.$flow, or empty',
    order_id String comment 'event_properties.$event_id as text, or empty',
    value Decimal(18, 4) comment 'event_properties.$value',
    currency LowCardinality(String),
    attributed_campaign_id String,
    attributed_flow_id String,
    delivery_date Date,
    load_id UInt64,
    line_number UInt64
)
engine = MergeTree
partition by toYYYYMM(local_date)
order by (workspace_id, local_date, metric, profile_key, event_at, event_id);

create table if not exists raw.fx_rates
(
    workspace_id LowCardinality(String) comment 'Always _',
    local_date Date comment 'Day of the rate',
    base LowCardinality(String),
    quote LowCardinality(String),
    rate Decimal(38, 12) comment 'Units of quote for one of base',
    delivery_date Date,
    load_id UInt64,
    line_number UInt64
)
engine = MergeTree
partition by toYear(local_date)
order by (local_date, base, quote)
-- Rates are looked up by day: coarser marks would read years of them.
settings index_granularity = 256;

create table if not exists raw.quarantine
(
    source LowCardinality(String),
    workspace_id LowCardinality(String),
    local_date Date comment 'The delivery date: a line that did not load has no day of its own',
    delivery_date Date,
    file_name_hash String comment 'Keyed hash, 32 hex',
    line_number UInt64,
    line_hash String comment 'Keyed hash, 32 hex',
    reason LowCardinality(String),
    load_id UInt64
)
engine = MergeTree
partition by toYYYYMM(delivery_date)
order by (workspace_id, source, delivery_date, file_name_hash, line_number);
