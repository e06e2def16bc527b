with

source as (
    select * from {{ source('control', 'loads') }}
),

final as (
    select
        load_id,
        source as source_name,
        workspace_id,
        delivery_date,
        file_name_hash,
        bytes as file_bytes,
        status,
        lines as line_count,
        stored as stored_count,
        duplicate as duplicate_count,
        quarantined as quarantined_count,
        refused as refused_count,
        retryable as retryable_count,
        as_of as as_of_date,
        attempt,
        started_at,
        loaded_at
    from source
)

select * from final
