{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        full_refresh=false,
        meta={
            'scope': 'int_dirty_order_days',
            'scope_columns': ['workspace_id', 'measure_group', 'date_day'],
        },
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, measure_group, platform, campaign)',
        settings={'index_granularity': 256},
    )
}}

with

dirty_days as (
    select * from {{ ref('int_dirty_order_days') }}
),

orders as (
    select * from {{ ref('int_orders') }}
    where
        {{ on_days('dirty_days') }}
        and (workspace_id, measure_group, date_day) in (
            select workspace_id, measure_group, date_day from dirty_days
        )
),

final as (
    select
        orders.workspace_id as workspace_id,
        orders.date_day as date_day,
        orders.measure_group as measure_group,
        orders.platform as platform,
        orders.campaign as campaign,
        countIf(orders.is_counted) as orders,
        countIf(orders.is_new_customer) as new_customer_orders,
        toDecimal64(sum(orders.gross_sales), 4) as gross_sales,
        toDecimal64(sum(orders.discounts), 4) as discounts,
        toDecimal64(sum(orders.shipping), 4) as shipping,
        toDecimal64(sum(orders.taxes), 4) as taxes,
        toDecimal64(sum(orders.revenue), 4) as revenue,
        toDecimal64(sumIf(orders.revenue, orders.is_new_customer), 4) as new_customer_revenue,
        count() as row_count
    from orders
    group by
        orders.workspace_id,
        orders.date_day,
        orders.measure_group,
        orders.platform,
        orders.campaign
)

select * from final
