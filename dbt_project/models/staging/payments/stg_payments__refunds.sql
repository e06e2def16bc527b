with

source as (
    select * from {{ source('raw', 'payment_refunds') }}
),

workspaces as (
    select * from {{ ref('stg_reference__workspaces') }}
),

final as (
    select
        source.workspace_id as workspace_id,
        source.payment_id as payment_id,
        source.order_key as order_key,
        source.payment_local_date as payment_date,
        source.refund_id as refund_id,
        source.refunded_at as refunded_at,
        source.local_date as date_day,
        source.currency as currency,
        source.amount as amount,
        cast(workspaces.revenue_source = 'payments' as Bool) as is_revenue_source
    from source
    left join workspaces on source.workspace_id = workspaces.workspace_id
    where source.status = 'succeeded'
)

select * from final
