{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        full_refresh=false,
        meta={'scope': 'int_dirty_cohort_months'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, cohort_month)',
        settings={'index_granularity': 256},
    )
}}

with

dirty_months as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_cohort_months') }}
),

month_days as (
    select
        workspace_id,
        date_day + arrayJoin(range(31)) as date_day
    from dirty_months
),

standing_orders as (
    select * from {{ ref('int_orders') }}
    where
        (workspace_id, date_day) in (select workspace_id, date_day from month_days)
        and (workspace_id, toStartOfMonth(date_day)) in (select workspace_id, date_day from dirty_months)
),

standing_refunds as (
    select * from {{ ref('int_refunds') }}
    where
        (workspace_id, date_day) in (select workspace_id, date_day from month_days)
        and (workspace_id, toStartOfMonth(date_day)) in (select workspace_id, date_day from dirty_months)
),

-- Of a month's days the oldest may be purged, and what counts of them lies in the snapshots.
orders as (
    select
        workspace_id,
        date_day,
        customer_key,
        cohort_month,
        revenue
    from standing_orders
    where
        is_counted
        and cohort_month != toDate(0)
    union all
    select
        workspace_id,
        date_day,
        customer_key,
        cohort_month,
        revenue
    from {{ anonymised_sales() }}
    where
        is_counted
        and cohort_month != toDate(0)
        and (workspace_id, date_day) in (select workspace_id, date_day from month_days)
        and (workspace_id, toStartOfMonth(date_day)) in (select workspace_id, date_day from dirty_months)
        and (workspace_id, source, order_key) not in (
            select workspace_id, source, order_key from standing_orders
        )
),

refunds as (
    select
        workspace_id,
        date_day,
        cohort_month,
        refunds
    from standing_refunds
    where
        is_counted
        and cohort_month != toDate(0)
    union all
    select
        workspace_id,
        date_day,
        cohort_month,
        refunds
    from {{ source('anonymised', 'order_refunds') }}
    where
        dbt_valid_to is null
        and is_counted
        and cohort_month != toDate(0)
        and (workspace_id, date_day) in (select workspace_id, date_day from month_days)
        and (workspace_id, toStartOfMonth(date_day)) in (select workspace_id, date_day from dirty_months)
        and (workspace_id, source, order_key, date_day) not in (
            select workspace_id, source, order_key, date_day from standing_refunds
        )
),

ordered as (
    select
        workspace_id,
        toStartOfMonth(date_day) as month,
        cohort_month,
        uniqExact(customer_key) as customers,
        count() as orders,
        sum(orders.revenue) as revenue,
        toDecimal128(0, 4) as refunds
    from orders
    group by workspace_id, month, cohort_month
),

refunded as (
    select
        workspace_id,
        toStartOfMonth(date_day) as month,
        cohort_month,
        toUInt64(0) as customers,
        toUInt64(0) as orders,
        toDecimal128(0, 4) as revenue,
        sum(refunds.refunds) as refunds
    from refunds
    group by workspace_id, month, cohort_month
),

unioned as (
    select * from ordered
    union all
    select * from refunded
),

final as (
    select
        unioned.workspace_id as workspace_id,
        unioned.month as date_day,
        unioned.cohort_month as cohort_month,
        sum(unioned.customers) as customers,
        sum(unioned.orders) as orders,
        toDecimal64(sum(unioned.revenue), 4) as revenue,
        toDecimal64(sum(unioned.refunds), 4) as refunds
    from unioned
    group by unioned.workspace_id, unioned.month, unioned.cohort_month
)

select * from final
