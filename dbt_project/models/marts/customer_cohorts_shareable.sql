{{ config(materialized='view') }}

with

cells as (
    select * from {{ ref('customer_cohorts_monthly') }}
),

limits as (
    select * from {{ ref('stg_reference__limits') }}
),

-- Without a limit nothing is large enough.
minimum as (
    select if(count() = 0, 4294967295, max(value)) as k
    from limits
    where name = 'k'
),

cohorts as (
    select
        workspace_id,
        cohort_month,
        customers as cohort_customers
    from cells
    where
        months_since = 0
        and customers >= (select k from minimum)
),

-- What is left out is in no sum either: else the sums before and after would give it away.
shown as (
    select
        cells.workspace_id as workspace_id,
        cells.cohort_month as cohort_month,
        cells.months_since as months_since,
        cells.customers as customers,
        cells.orders as orders,
        cells.revenue - cells.refunds as net_revenue,
        cohorts.cohort_customers as cohort_customers,
        sum(toDecimal128(cells.revenue, 4) - toDecimal128(cells.refunds, 4)) over (
            partition by cells.workspace_id, cells.cohort_month
            order by cells.months_since
            rows between unbounded preceding and current row
        ) as cumulative_revenue
    from cells
    inner join cohorts
        on
            cells.workspace_id = cohorts.workspace_id
            and cells.cohort_month = cohorts.cohort_month
    where cells.customers >= (select k from minimum)
),

final as (
    select
        workspace_id,
        cohort_month,
        months_since,
        customers,
        orders,
        net_revenue,
        toDecimal64(cumulative_revenue, 4) as cumulative_net_revenue,
        cast({{ ratio('cumulative_revenue', 'cohort_customers') }} as Nullable(Decimal(18, 6))) as cumulative_ltv
    from shown
)

select * from final
