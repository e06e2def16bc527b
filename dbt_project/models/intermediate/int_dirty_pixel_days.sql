{{ config(post_hook="{{ remember_days(this) }}") }}

with

scope as (
    select
        workspace_id,
        date_day
    from {{ ref('int_scope_days') }}
    where measure_group = 'pixel'
),

days_before as (
    select
        workspace_id,
        date_day
    from {{ ref('int_days_before') }}
    where measure_group = 'pixel'
),

frozen_days as (
    select * from {{ source('retention', 'frozen_days') }}
    where measure_group = 'pixel'
),

session_days as (
    select * from {{ ref('int_session_days') }}
),

touched_sessions as (
    select distinct
        workspace_id,
        anonymous_id,
        session_key
    from session_days
    where {{ on_days('scope') }}
),

session_neighbours as (
    select distinct
        workspace_id,
        date_day
    from session_days
    where
        {{ on_days('scope', before=31, after=31) }}
        and (workspace_id, anonymous_id, session_key) in (
            select workspace_id, anonymous_id, session_key from touched_sessions
        )
),

unioned as (
    select * from scope
    union distinct
    select * from days_before
    union distinct
    select * from session_neighbours
),

final as (
    select
        workspace_id,
        toLowCardinality('pixel') as measure_group,
        date_day
    from unioned
    where (workspace_id, date_day) not in (select workspace_id, local_date from frozen_days)
)

select * from final
