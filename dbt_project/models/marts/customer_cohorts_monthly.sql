{{ config(materialized='view') }}

with

cells as (
    select * from {{ ref('int_cohort_months') }}
),

latest_months as (
    select
        workspace_id,
        max(date_day) as latest_month
    from cells
    group by workspace_id
),

cohorts as (
    select
        cells.workspace_id as workspace_id,
        cells.cohort_month as cohort_month,
        cells.customers as cohort_customers,
        latest_months.latest_month as latest_month
    from cells
    inner join latest_months on cells.workspace_id = latest_months.workspace_id
    where cells.date_day = cells.cohort_month
),

-- A month in which nobody of a cohort came back is a row of zeros, and carries the cohort's value so far.
months as (
    select
        workspace_id,
        cohort_month,
        cohort_customers,
        arrayJoin(range(24)) as months_since,
        addMonths(cohort_month, months_since) as month
    from cohorts
    where month <= latest_month
),

filled as (
    select
        months.workspace_id as workspace_id,
        months.cohort_month as cohort_month,
        months.months_since as months_since,
        months.cohort_customers as cohort_customers,
        cells.customers as customers,
        cells.orders as orders,
        cells.revenue as revenue,
        cells.refunds as refunds,
        sum(toDecimal128(cells.revenue, 4) - toDecimal128(cells.refunds, 4)) over (
            partition by months.workspace_id, months.cohort_month
            order by months.months_since
            rows between unbounded preceding and current row
        ) as cumulative_revenue
    from months
    left join cells
        on
            months.workspace_id = cells.workspace_id
            and months.cohort_month = cells.cohort_month
            and months.month = cells.date_day
),

final as (
    select
        workspace_id,
        cohort_month,
        toUInt8(months_since) as months_since,
        customers,
        orders,
        revenue,
        refunds,
        toDecimal64(cumulative_revenue, 4) as cumulative_net_revenue,
        cast({{ ratio('cumulative_revenue', 'cohort_customers') }} as Nullable(Decimal(18, 6))) as cumulative_ltv
    from filled
)

select * from final
