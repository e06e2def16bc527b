with

source as (
    select * from {{ source('retention_policy', 'windows') }} final
),

final as (
    select
        workspace_id,
        class,
        window_months,
        is_override
    from source
)

select * from final
