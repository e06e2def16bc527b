{{ config(materialized='view') }}

with

dirty_days as (
    select * from {{ ref('int_dirty_days') }}
    where measure_group in ('orders', 'payments', 'refunds')
),

final as (
    select distinct
        workspace_id,
        toStartOfMonth(date_day) as date_day
    from dirty_days
)

select * from final
