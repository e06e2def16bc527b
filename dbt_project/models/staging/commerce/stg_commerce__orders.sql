with

source as (
    select * from {{ source('raw', 'orders') }}
),

rules as (
    select * from {{ ref('source_rules') }}
),

workspaces as (
    select * from {{ ref('stg_reference__workspaces') }}
),

final as (
    select
        source.workspace_id as workspace_id,
        source.source as source,
        source.order_id as order_id,
        source.order_key as order_key,
        source.local_date as date_day,
        source.created_at as created_at,
        source.currency as currency,
        source.total as total,
        source.gross_sales as gross_sales,
        source.discounts as discounts,
        source.shipping as shipping,
        source.taxes as taxes,
        source.customer_key as customer_key,
        source.traffic_source as traffic_source,
        source.medium as medium,
        source.campaign as campaign,
        source.source_rule_id as source_rule_id,
        if(rules.platform = '', 'direct', rules.platform) as platform,
        cast(
            workspaces.revenue_source = 'orders'
            and multiIf(
                source.source = 'shopify_orders',
                not source.is_test and source.status != 'voided',
                source.source = 'woocommerce_orders',
                source.status in ('processing', 'on-hold', 'completed', 'refunded'),
                false
            ) as Bool
        ) as is_counted
    from source
    left join rules on source.source_rule_id = rules.rule_id
    left join workspaces on source.workspace_id = workspaces.workspace_id
)

select * from final
