{{ config(materialized='view') }}

with

dirty_days as (
    select * from {{ ref('int_dirty_days') }}
    where measure_group in ('orders', 'payments', 'refunds')
),

frozen_days as (
    select * from {{ source('retention', 'frozen_days') }}
    where measure_group in ('orders', 'payments', 'refunds')
),

-- A month of which a part is purged could only be counted in part.
final as (
    select distinct
        workspace_id,
        toStartOfMonth(date_day) as date_day
    from dirty_days
    where
        (workspace_id, toStartOfMonth(date_day)) not in (
            select workspace_id, toStartOfMonth(local_date) as date_day from frozen_days
        )
)

select * from final
