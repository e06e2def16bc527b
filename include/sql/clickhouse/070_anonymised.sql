-- What is left of orders, payments and refunds once they are purged: written by dbt's snapshots in the
-- purge alone. They stand from the start, for the models read them before the first purge has run.
create table if not exists anonymised.orders
(
    workspace_id LowCardinality(String),
    source LowCardinality(String) comment 'shopify_orders or woocommerce_orders',
    order_key String comment 'Keyed pseudonym of source and id, 32 hex',
    date_day Date,
    is_counted Bool,
    revenue Decimal(18, 4),
    gross_sales Decimal(18, 4),
    discounts Decimal(18, 4),
    shipping Decimal(18, 4),
    taxes Decimal(18, 4),
    customer_key String,
    is_new_customer Bool,
    cohort_month Date,
    attribution LowCardinality(String),
    platform LowCardinality(String),
    campaign String,
    traffic_source LowCardinality(String),
    medium LowCardinality(String),
    source_rule_id LowCardinality(String),
    dbt_scd_id UInt64,
    dbt_updated_at DateTime,
    dbt_valid_from DateTime,
    dbt_valid_to Nullable(DateTime)
)
engine = MergeTree
partition by toYYYYMM(date_day)
order by (workspace_id, order_key)
settings index_granularity = 256;

create table if not exists anonymised.payments
(
    workspace_id LowCardinality(String),
    source LowCardinality(String) comment 'payments',
    order_key String comment 'Keyed pseudonym of source and id, 32 hex',
    date_day Date,
    is_counted Bool,
    revenue Decimal(18, 4),
    gross_sales Decimal(18, 4),
    discounts Decimal(18, 4),
    shipping Decimal(18, 4),
    taxes Decimal(18, 4),
    customer_key String,
    is_new_customer Bool,
    cohort_month Date,
    attribution LowCardinality(String),
    platform LowCardinality(String),
    campaign String,
    traffic_source LowCardinality(String),
    medium LowCardinality(String),
    source_rule_id LowCardinality(String),
    dbt_scd_id UInt64,
    dbt_updated_at DateTime,
    dbt_valid_from DateTime,
    dbt_valid_to Nullable(DateTime)
)
engine = MergeTree
partition by toYYYYMM(date_day)
order by (workspace_id, order_key)
settings index_granularity = 256;

create table if not exists anonymised.order_refunds
(
    workspace_id LowCardinality(String),
    source LowCardinality(String) comment 'shopify_orders, woocommerce_orders or payments',
    order_key String comment 'That of the order or payment',
    date_day Date,
    is_counted Bool,
    refunds Decimal(18, 4),
    refund_count UInt64,
    customer_key String,
    cohort_month Date,
    platform LowCardinality(String),
    campaign String,
    dbt_scd_id UInt64,
    dbt_updated_at DateTime,
    dbt_valid_from DateTime,
    dbt_valid_to Nullable(DateTime)
)
engine = MergeTree
partition by toYYYYMM(date_day)
order by (workspace_id, date_day, order_key)
settings index_granularity = 256;
