with

source as (
    select * from {{ source('raw', 'payments') }}
),

workspaces as (
    select * from {{ ref('stg_reference__workspaces') }}
),

final as (
    select
        source.workspace_id as workspace_id,
        source.payment_id as payment_id,
        source.order_key as order_key,
        source.local_date as date_day,
        source.paid_at as paid_at,
        source.currency as currency,
        source.amount as amount,
        source.customer_key as customer_key,
        source.visitor_id as visitor_id,
        cast(
            workspaces.revenue_source = 'payments'
            and source.is_livemode
            and source.is_paid
            and source.status = 'succeeded' as Bool
        ) as is_counted
    from source
    left join workspaces on source.workspace_id = workspaces.workspace_id
)

select * from final
