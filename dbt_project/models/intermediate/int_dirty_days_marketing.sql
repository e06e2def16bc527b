with

scope as (
    select
        workspace_id,
        measure_group,
        local_date as date_day
    from {{ source('reference', 'build_scope') }}
    where measure_group in ('spend', 'email')
),

touched as (
    select
        workspace_id,
        date_day
    from scope
    where measure_group = 'email'
),

frozen_days as (
    select * from {{ source('retention', 'frozen_days') }}
    where
        measure_group in ('spend', 'email')
        and local_date >= (select min(date_day) from scope)
),

events as (
    select * from {{ ref('stg_klaviyo__events') }}
),

-- How far a touched day reaches. Clicks: 120 hours, which end on the sixth day after where a clock change
-- shortens one between. Orders: their later events no longer count. Sources: later orders take their name.
reaching as (
    select distinct
        workspace_id,
        date_day as reached_from,
        arrayJoin([
            ('click', '', 6),
            ('order', if(metric = 'Placed Order', order_id, ''), 31),
            (kind, if(metric in ('Received Email', 'Opened Email', 'Clicked Email'), source_id, ''), 31)
        ]) as reach,
        reach.1 as reach_kind,
        reach.2 as reach_key,
        reach.3 as reach_days
    from events
    where
        {{ on_days('touched') }}
        and (reach_kind = 'click' or reach_key != '')
),

orders as (
    select
        workspace_id,
        date_day,
        order_id,
        attributed_kind,
        attributed_source_id
    from events
    where
        metric = 'Placed Order'
        and {{ on_days('touched', after=31) }}
),

reachable as (
    select distinct
        workspace_id,
        date_day,
        arrayJoin([('click', ''), ('order', order_id), (attributed_kind, attributed_source_id)]) as reach,
        reach.1 as reach_kind,
        reach.2 as reach_key
    from orders
),

order_days as (
    select
        workspace_id,
        date_day
    from touched
    union distinct
    select
        reachable.workspace_id as workspace_id,
        reachable.date_day as date_day
    from reachable
    inner join reaching
        on
            reachable.workspace_id = reaching.workspace_id
            and reachable.reach_kind = reaching.reach_kind
            and reachable.reach_key = reaching.reach_key
    where
        reachable.date_day > reaching.reached_from
        and reachable.date_day <= reaching.reached_from + reaching.reach_days
),

-- A refund comes any time after its order and goes where the order goes.
refund_days as (
    select distinct
        workspace_id,
        date_day
    from events
    where
        metric = 'Refunded Order'
        and date_day >= (select min(date_day) from touched)
        and (workspace_id, order_id) in (
            select
                workspace_id,
                order_id
            from orders
            where
                order_id != ''
                and {{ on_days('order_days') }}
        )
),

dirty as (
    select * from scope
    union distinct
    select
        workspace_id,
        'email' as measure_group,
        date_day
    from order_days
    union distinct
    select
        workspace_id,
        'email' as measure_group,
        date_day
    from refund_days
),

final as (
    select
        toLowCardinality(workspace_id) as workspace_id,
        toLowCardinality(measure_group) as measure_group,
        date_day
    from dirty
    where
        (workspace_id, measure_group, date_day) not in (
            select
                workspace_id,
                measure_group,
                local_date
            from frozen_days
        )
)

select * from final
