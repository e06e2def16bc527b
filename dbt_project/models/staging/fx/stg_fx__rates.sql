with

source as (
    select * from {{ source('raw', 'fx_rates') }}
),

final as (
    select
        local_date as rate_date,
        base as base_currency,
        quote as quote_currency,
        rate
    from source
    where rate > 0
)

select * from final
