with

cohorts as (
    select * from {{ ref('customer_cohorts_shareable') }}
),

limits as (
    select * from {{ ref('stg_reference__limits') }}
),

final as (
    select
        workspace_id,
        cohort_month,
        months_since,
        customers
    from cohorts
    where customers < (select max(value) from limits where name = 'k')
)

select * from final
