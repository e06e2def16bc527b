with

source as (
    select * from {{ source('raw', 'ad_spend') }}
),

final as (
    select
        workspace_id,
        source,
        platform,
        account_id,
        local_date as date_day,
        campaign_id,
        campaign,
        ad_id,
        currency,
        spend,
        impressions,
        clicks,
        conversions,
        conversion_value
    from source
)

select * from final
