with

source as (
    select * from {{ source('reference', 'workspaces') }} final
),

final as (
    select
        workspace_id,
        timezone,
        currency,
        currency_exponent,
        plan,
        revenue_source
    from source
)

select * from final
