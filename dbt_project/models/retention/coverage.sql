{{ config(materialized='view') }}

with

commerce as (
    select * from {{ ref('int_coverage_commerce') }}
),

marketing as (
    select * from {{ ref('int_coverage_marketing') }}
),

purged as (
    select
        workspace_id,
        class,
        local_date,
        currency,
        row_count,
        distinct_ids,
        money
    from {{ source('retention', 'purged_coverage') }}
),

facts as (
    select * from commerce
    union all
    select * from marketing
),

-- What was known of a day when its rows went holds, whether or not some of its facts still stand.
final as (
    select * from facts
    where (workspace_id, class, local_date) not in (select workspace_id, class, local_date from purged)
    union all
    select * from purged
)

select * from final
