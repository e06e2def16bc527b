{{ config(materialized='view') }}

with

commerce as (
    select * from {{ ref('int_coverage_commerce') }}
),

marketing as (
    select * from {{ ref('int_coverage_marketing') }}
),

final as (
    select * from commerce
    union all
    select * from marketing
)

select * from final
