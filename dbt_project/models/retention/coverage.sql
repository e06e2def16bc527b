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

erased as (
    select
        workspace_id,
        class,
        local_date,
        currency,
        row_count,
        distinct_ids,
        money
    from {{ source('retention', 'erased_coverage') }}
),

-- The facts of a day are made again without who was erased; the load ledger still counts them.
known as (
    select *, false as is_purged from commerce
    union all
    select *, false as is_purged from marketing
    union all
    select *, false as is_purged from erased
    union all
    select *, true as is_purged from purged
),

-- Bounds of workspace, class and day reach the tables through the window, but no subquery.
marked as (
    select
        *,
        max(is_purged) over (partition by workspace_id, class, local_date) as has_purged
    from known
),

-- What was known of a day when its rows went holds, whether or not some of its facts still stand.
final as (
    select
        workspace_id,
        class,
        local_date,
        currency,
        sum(marked.row_count) as row_count,
        sum(marked.distinct_ids) as distinct_ids,
        sum(marked.money) as money
    from marked
    where is_purged = has_purged
    group by workspace_id, class, local_date, currency
)

select * from final
