{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        on_schema_change='fail',
        full_refresh=false,
        meta={'scope': 'int_dirty_days_marketing', 'measure_group': 'email'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, kind, source_id)',
        settings={'index_granularity': 256},
    )
}}

with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_days_marketing') }}
    where measure_group = 'email'
),

events as (
    select * from {{ ref('stg_klaviyo__events') }}
),

final as (
    select
        workspace_id,
        date_day,
        kind,
        source_id,
        argMaxIf(source_name, (event_at, event_id), source_name != '') as source_name,
        countIf(metric = 'Received Email') as received,
        countIf(metric = 'Opened Email') as opened,
        countIf(metric = 'Clicked Email') as clicked
    from events
    where
        metric in ('Received Email', 'Opened Email', 'Clicked Email')
        and {{ on_days('dirty_days') }}
    group by workspace_id, date_day, kind, source_id
)

select * from final
