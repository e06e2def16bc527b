with

source as (
    select * from {{ source('app', 'workspaces') }}
),

final as (
    select
        workspace_id,
        timezone,
        currency,
        plan,
        revenue_source,
        created_at,
        cancelled_at,
        deleted_at
    from source
)

select * from final
