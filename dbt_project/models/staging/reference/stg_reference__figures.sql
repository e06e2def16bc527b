with

source as (
    select * from {{ source('retention_policy', 'figures') }} final
),

final as (
    select
        figure,
        class,
        required_months
    from source
)

select * from final
