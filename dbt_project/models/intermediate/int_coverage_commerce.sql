{{ config(materialized='view') }}

with

pixel as (
    select * from {{ ref('int_pixel_daily') }}
),

orders as (
    select * from {{ ref('int_orders') }}
),

refunds as (
    select * from {{ ref('int_refunds') }}
),

pixel_coverage as (
    select
        workspace_id,
        toLowCardinality('pixel_events') as class,
        date_day as local_date,
        toLowCardinality('') as currency,
        sum(pixel.row_count) as row_count,
        sum(pixel.distinct_ids) as distinct_ids,
        toDecimal128(0, 6) as money
    from pixel
    group by workspace_id, date_day
),

order_coverage as (
    select
        workspace_id,
        toLowCardinality(measure_group) as class,
        date_day as local_date,
        currency,
        count() as row_count,
        uniqExact(source, order_id) as distinct_ids,
        toDecimal128(sum(amount), 6) as money
    from orders
    group by workspace_id, measure_group, date_day, currency
),

refund_coverage as (
    select
        workspace_id,
        toLowCardinality(if(source = 'payments', 'payment_refunds', 'order_refunds')) as class,
        date_day as local_date,
        currency,
        count() as row_count,
        uniqExact(source, order_id, refund_id) as distinct_ids,
        toDecimal128(sum(amount), 6) as money
    from refunds
    group by workspace_id, class, date_day, currency
),

final as (
    select * from pixel_coverage
    union all
    select * from order_coverage
    union all
    select * from refund_coverage
)

select * from final
