{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        full_refresh=false,
        meta={'scope': 'int_dirty_refund_days'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, source, order_id, refund_id)',
        settings={'index_granularity': 256},
    )
}}

with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_refund_days') }}
),

order_refunds as (
    select
        workspace_id,
        date_day,
        source,
        order_id,
        order_key,
        refund_id,
        refunded_at,
        order_date,
        currency,
        amount,
        is_revenue_source
    from {{ ref('stg_commerce__order_refunds') }}
    where {{ on_days('dirty_days') }}
),

payment_refunds as (
    select
        workspace_id,
        date_day,
        toLowCardinality('payments') as source,
        payment_id as order_id,
        order_key,
        refund_id,
        refunded_at,
        payment_date as order_date,
        currency,
        amount,
        is_revenue_source
    from {{ ref('stg_payments__refunds') }}
    where {{ on_days('dirty_days') }}
),

orders as (
    select * from {{ ref('int_orders') }}
),

rates as (
    select * from {{ ref('int_fx_rates') }}
    where date_day in (select date_day from dirty_days)
),

workspaces as (
    select * from {{ ref('stg_reference__workspaces') }}
),

refunds as (
    select * from order_refunds
    union all
    select * from payment_refunds
),

standing_orders as (
    select
        workspace_id,
        source,
        order_key,
        is_counted,
        customer_key,
        cohort_month,
        platform,
        campaign
    from orders
    where
        (workspace_id, date_day, source, order_id) in (
            select workspace_id, order_date, source, order_id from refunds
        )
),

-- An order whose rows are gone has left its facts; while both stand they are the same.
refunded_orders as (
    select * from standing_orders
    union all
    select
        workspace_id,
        source,
        order_key,
        is_counted,
        customer_key,
        cohort_month,
        platform,
        campaign
    from {{ anonymised_sales() }}
    where
        (workspace_id, order_key) in (select workspace_id, order_key from refunds)
        and (workspace_id, source, order_key) not in (
            select workspace_id, source, order_key from standing_orders
        )
),

attributed as (
    select
        refunds.workspace_id as workspace_id,
        refunds.date_day as date_day,
        refunds.source as source,
        refunds.order_id as order_id,
        refunds.order_key as order_key,
        refunds.refund_id as refund_id,
        refunds.refunded_at as refunded_at,
        refunds.order_date as order_date,
        refunds.currency as currency,
        refunds.amount as amount,
        -- The source is empty where the join finds no order.
        if(refunded_orders.source = '', refunds.is_revenue_source, refunded_orders.is_counted) as is_counted,
        refunded_orders.customer_key as customer_key,
        refunded_orders.cohort_month as cohort_month,
        if(refunded_orders.source = '', 'direct', refunded_orders.platform) as platform,
        refunded_orders.campaign as campaign,
        if(is_counted and refunds.currency != '', refunds.currency, workspaces.currency) as from_currency,
        workspaces.currency as to_currency,
        workspaces.currency_exponent as exponent
    from refunds
    left join workspaces on refunds.workspace_id = workspaces.workspace_id
    left join refunded_orders
        on
            refunds.workspace_id = refunded_orders.workspace_id
            and refunds.source = refunded_orders.source
            and refunds.order_key = refunded_orders.order_key
),

rated as (
    select
        attributed.*,
        {{ fx_rate('rates.rate', 'attributed.date_day', 'attributed.from_currency', 'attributed.to_currency') }} as rate
    from attributed
    left join rates
        on
            attributed.date_day = rates.date_day
            and attributed.from_currency = rates.from_currency
            and attributed.to_currency = rates.to_currency
),

final as (
    select
        workspace_id,
        date_day,
        source,
        order_id,
        order_key,
        refund_id,
        refunded_at,
        order_date,
        cast(is_counted as Bool) as is_counted,
        currency,
        amount,
        toDecimal64(if(is_counted, {{ convert_money('amount', 'rate', 'exponent') }}, 0), 4) as refunds,
        customer_key,
        cohort_month,
        cast(platform as LowCardinality(String)) as platform,
        campaign
    from rated
)

select * from final
