with

source as (
    select * from {{ source('raw', 'order_refunds') }}
),

workspaces as (
    select * from {{ ref('stg_reference__workspaces') }}
),

final as (
    select
        source.workspace_id as workspace_id,
        source.source as source,
        source.refund_id as refund_id,
        source.order_id as order_id,
        source.order_key as order_key,
        source.local_date as date_day,
        source.refunded_at as refunded_at,
        source.order_local_date as order_date,
        source.currency as currency,
        source.amount as amount,
        cast(workspaces.revenue_source = 'orders' as Bool) as is_revenue_source
    from source
    left join workspaces on source.workspace_id = workspaces.workspace_id
)

select * from final
