with

source as (
    select * from {{ source('control', 'load_days') }}
),

final as (
    select
        load_id,
        source as source_name,
        workspace_id,
        local_date,
        measure,
        currency,
        event_count,
        distinct_ids,
        money
    from source
)

select * from final
