with

scope as (
    select * from {{ source('reference', 'build_scope') }}
),

frozen_days as (
    select * from {{ source('retention', 'frozen_days') }}
),

final as (
    select distinct
        workspace_id,
        measure_group,
        local_date as date_day
    from scope
    where
        (workspace_id, measure_group, local_date) not in (
            select
                workspace_id,
                measure_group,
                local_date
            from frozen_days
        )
)

select * from final
