with

source as (
    select * from {{ source('retention_policy', 'limits') }} final
),

final as (
    select
        name,
        value
    from source
)

select * from final
