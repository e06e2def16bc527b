with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_refund_days') }}
),

facts as (
    select
        workspace_id,
        date_day,
        toDecimal128(sum(int_refunds.refunds), 4) as refunds
    from {{ ref('int_refunds') }} as int_refunds
    where {{ on_days('dirty_days') }}
    group by workspace_id, date_day
),

mart as (
    select
        workspace_id,
        date_day,
        toDecimal128(sum(summary.refunds), 4) as refunds
    from {{ ref('summary_kpis_daily') }} as summary
    where {{ on_days('dirty_days') }}
    group by workspace_id, date_day
),

both_sides as (
    select * from facts
    where refunds != 0
    union all
    select * from mart
    where refunds != 0
),

final as (
    select
        workspace_id,
        date_day
    from both_sides
    group by workspace_id, date_day, refunds
    having count() != 2
)

select * from final
