with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_days_marketing') }}
    where measure_group = 'email'
),

final as (
    select
        workspace_id,
        date_day,
        kind,
        source_id,
        count() as row_count
    from {{ ref('email_revenue_daily') }}
    where {{ on_days('dirty_days') }}
    group by workspace_id, date_day, kind, source_id
    having row_count > 1 or (kind = 'unattributed') != (source_id = '')
)

select * from final
