{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        full_refresh=false,
        meta={'scope': 'int_scope_days', 'measure_group': 'pixel'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, order_id)',
        settings={'index_granularity': 256},
    )
}}

-- depends_on: {{ ref('int_days_before') }}

with

scope as (
    select
        workspace_id,
        date_day
    from {{ ref('int_scope_days') }}
    where measure_group = 'pixel'
),

events as (
    select * from {{ ref('stg_pixel__events') }}
    where {{ on_days('scope') }}
),

purchases as (
    select
        workspace_id,
        date_day,
        order_id,
        argMin((event_at, anonymous_id), (event_at, event_id)) as earliest
    from events
    where
        event_name = 'purchase'
        and order_id != ''
    group by workspace_id, date_day, order_id
),

final as (
    select
        workspace_id,
        date_day,
        order_id,
        earliest.1 as event_at,
        earliest.2 as anonymous_id
    from purchases
)

select * from final
