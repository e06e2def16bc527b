{{ config(post_hook="{{ remember_days(this) }}") }}

with

scope as (
    select
        workspace_id,
        date_day
    from {{ ref('int_scope_days') }}
    where measure_group = 'refunds'
),

days_before as (
    select
        workspace_id,
        date_day
    from {{ ref('int_days_before') }}
    where measure_group = 'refunds'
),

frozen_days as (
    select * from {{ source('retention', 'frozen_days') }}
    where measure_group = 'refunds'
),

order_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_order_days') }}
    where measure_group = 'orders'
),

payment_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_order_days') }}
    where measure_group = 'payments'
),

order_refunds as (
    select * from {{ ref('stg_commerce__order_refunds') }}
),

payment_refunds as (
    select * from {{ ref('stg_payments__refunds') }}
),

-- A refund takes platform and customer from its order, which it never precedes.
refunds_of_orders as (
    select distinct
        workspace_id,
        date_day
    from order_refunds
    where
        date_day >= (select min(date_day) from order_days)
        and workspace_id in (select workspace_id from order_days)
        and (workspace_id, order_date) in (select workspace_id, date_day from order_days)
),

refunds_of_payments as (
    select distinct
        workspace_id,
        date_day
    from payment_refunds
    where
        date_day >= (select min(date_day) from payment_days)
        and workspace_id in (select workspace_id from payment_days)
        and (workspace_id, payment_date) in (select workspace_id, date_day from payment_days)
),

unioned as (
    select * from scope
    union distinct
    select * from days_before
    union distinct
    select * from refunds_of_orders
    union distinct
    select * from refunds_of_payments
),

final as (
    select
        workspace_id,
        toLowCardinality('refunds') as measure_group,
        date_day
    from unioned
    where (workspace_id, date_day) not in (select workspace_id, local_date from frozen_days)
)

select * from final
