with

source as (
    select * from {{ source('raw', 'payments') }}
),

final as (
    select
        workspace_id,
        payment_id,
        local_date as payment_date,
        refund.1 as refund_id,
        refund.2 as refunded_at,
        refund.3 as date_day,
        refund.4 as amount,
        currency
    from source
    array join
        arrayZip(
            refunds.refund_id, refunds.refunded_at, refunds.local_date, refunds.amount, refunds.status
        ) as refund
    where refund.5 = 'succeeded'
)

select * from final
