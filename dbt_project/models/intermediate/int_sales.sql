{{ config(materialized='view') }}

with

orders as (
    select * from {{ ref('stg_commerce__orders') }}
),

charges as (
    select * from {{ ref('stg_payments__charges') }}
),

order_sales as (
    select
        workspace_id,
        toLowCardinality('orders') as measure_group,
        date_day,
        source,
        order_id,
        order_key,
        created_at,
        currency,
        total,
        gross_sales,
        discounts,
        shipping,
        taxes,
        customer_key,
        '' as visitor_id,
        platform,
        campaign,
        traffic_source,
        medium,
        source_rule_id,
        is_counted
    from orders
),

payment_sales as (
    select
        workspace_id,
        toLowCardinality('payments') as measure_group,
        date_day,
        toLowCardinality('payments') as source,
        payment_id as order_id,
        order_key,
        paid_at as created_at,
        currency,
        amount as total,
        amount as gross_sales,
        toDecimal64(0, 4) as discounts,
        toDecimal64(0, 4) as shipping,
        toDecimal64(0, 4) as taxes,
        customer_key,
        visitor_id,
        'direct' as platform,
        '' as campaign,
        toLowCardinality('') as traffic_source,
        toLowCardinality('') as medium,
        toLowCardinality('') as source_rule_id,
        is_counted
    from charges
),

final as (
    select * from order_sales
    union all
    select * from payment_sales
)

select * from final
