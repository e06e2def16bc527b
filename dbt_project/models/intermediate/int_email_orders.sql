{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        on_schema_change='fail',
        full_refresh=false,
        meta={'scope': 'int_dirty_days_marketing', 'measure_group': 'email'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, order_id, event_at, event_id)',
        settings={'index_granularity': 16},
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

frozen_days as (
    select
        workspace_id,
        local_date as date_day
    from {{ source('retention', 'frozen_days') }} final
    where measure_group = 'email'
),

events as (
    select * from {{ ref('stg_klaviyo__events') }}
),

messages as (
    select * from {{ ref('int_email_messages_daily') }}
),

rates as (
    select * from {{ ref('int_fx_rates') }}
),

workspaces as (
    select * from {{ ref('stg_reference__workspaces') }}
),

placed as (
    select
        workspace_id,
        date_day,
        event_id,
        event_at,
        order_id,
        profile_key,
        value,
        currency,
        attributed_kind,
        attributed_source_id
    from events
    where
        metric = 'Placed Order'
        and {{ on_days('dirty_days') }}
),

-- 120 hours reach back into the sixth day before where a clock change shortens one between.
clicks as (
    select
        workspace_id,
        event_id,
        event_at,
        profile_key,
        metric = 'Clicked Email' as is_click,
        kind,
        source_id
    from events
    where
        metric in ('Clicked Email', 'Opened Email')
        and source_id != ''
        and profile_key != ''
        and {{ on_days('dirty_days', before=6) }}
),

last_clicks as (
    select
        placed.workspace_id as workspace_id,
        placed.date_day as date_day,
        placed.event_id as event_id,
        argMax(
            (clicks.kind, clicks.source_id), (clicks.event_at, clicks.is_click, clicks.event_id)
        ) as last_click
    from placed
    inner join clicks
        on
            placed.workspace_id = clicks.workspace_id
            and placed.profile_key = clicks.profile_key
    where
        placed.attributed_source_id = ''
        and clicks.event_at <= placed.event_at
        and clicks.event_at >= placed.event_at - interval 120 hour
    group by placed.workspace_id, placed.date_day, placed.event_id
),

{% if is_incremental() %}
stored as (
    select
        workspace_id,
        date_day,
        event_id,
        event_at,
        order_id,
        kind,
        source_id
    from {{ this }}
    where {{ on_days('dirty_days') }}
),

-- Where the clicks before an order are purged, its stored source is all that is left of them.
stored_sources as (
    select
        workspace_id,
        date_day,
        event_id,
        kind,
        source_id
    from stored
    where
        source_id != ''
        and (workspace_id, date_day) in (
            select
                workspace_id,
                date_day + arrayJoin(range(1, 7))
            from frozen_days
            where {{ on_days('dirty_days', before=6) }}
        )
),

earlier_orders as (
    select
        workspace_id,
        date_day,
        event_id,
        event_at,
        order_id
    from {{ this }}
    where
        {{ on_days('dirty_days', before=31) }}
        and (workspace_id, order_id) in (select workspace_id, order_id from placed where order_id != '')
        and (workspace_id, date_day) not in (select workspace_id, date_day from dirty_days)
),
{% endif %}

siblings as (
    select
        workspace_id,
        date_day,
        event_id,
        event_at,
        order_id
    from placed
    where order_id != ''
    {% if is_incremental() %}
    union all
    select
        workspace_id,
        date_day,
        event_id,
        event_at,
        order_id
    from earlier_orders
    {% endif %}
),

duplicates as (
    select distinct
        placed.workspace_id as workspace_id,
        placed.date_day as date_day,
        placed.event_id as event_id
    from placed
    inner join siblings
        on
            placed.workspace_id = siblings.workspace_id
            and placed.order_id = siblings.order_id
    where
        (siblings.event_at, siblings.event_id) < (placed.event_at, placed.event_id)
        and siblings.date_day >= placed.date_day - 31
),

sourced as (
    select
        placed.workspace_id as workspace_id,
        placed.date_day as date_day,
        placed.event_id as event_id,
        placed.event_at as event_at,
        placed.order_id as order_id,
        placed.value as value,
        placed.currency as currency,
        multiIf(
            placed.attributed_source_id != '', (placed.attributed_kind, placed.attributed_source_id),
            {% if is_incremental() %}
            stored_sources.source_id != '', (stored_sources.kind, stored_sources.source_id),
            {% endif %}
            last_clicks.last_click.2 != '', (last_clicks.last_click.1, last_clicks.last_click.2),
            ('unattributed', '')
        ) as kind_and_source,
        kind_and_source.1 as kind,
        kind_and_source.2 as source_id,
        (placed.workspace_id, placed.date_day, placed.event_id) not in (
            select workspace_id, date_day, event_id from duplicates
        ) as is_counted
    from placed
    left join last_clicks
        on
            placed.workspace_id = last_clicks.workspace_id
            and placed.date_day = last_clicks.date_day
            and placed.event_id = last_clicks.event_id
    {% if is_incremental() %}
    left join stored_sources
        on
            placed.workspace_id = stored_sources.workspace_id
            and placed.date_day = stored_sources.date_day
            and placed.event_id = stored_sources.event_id
    {% endif %}
),

names as (
    select
        sourced_days.workspace_id as workspace_id,
        sourced_days.date_day as date_day,
        sourced_days.kind as kind,
        sourced_days.source_id as source_id,
        argMax(messages.source_name, messages.date_day) as source_name
    from (select distinct workspace_id, date_day, kind, source_id from sourced where source_id != '') as sourced_days
    inner join (
        select
            workspace_id,
            date_day,
            kind,
            source_id,
            source_name
        from messages
        where
            source_name != ''
            and {{ on_days('dirty_days', before=31) }}
    ) as messages
        on
            sourced_days.workspace_id = messages.workspace_id
            and sourced_days.kind = messages.kind
            and sourced_days.source_id = messages.source_id
    where
        messages.date_day <= sourced_days.date_day
        and messages.date_day >= sourced_days.date_day - 31
    group by sourced_days.workspace_id, sourced_days.date_day, sourced_days.kind, sourced_days.source_id
),

final as (
    select
        sourced.workspace_id as workspace_id,
        sourced.date_day as date_day,
        sourced.event_id as event_id,
        sourced.event_at as event_at,
        sourced.order_id as order_id,
        cast(sourced.is_counted as Bool) as is_counted,
        cast(sourced.kind as LowCardinality(String)) as kind,
        sourced.source_id as source_id,
        names.source_name as source_name,
        sourced.currency as currency,
        sourced.value as value,
        toDecimal64({{
            convert_money(
                'sourced.value',
                fx_rate(
                    'rates.rate',
                    'sourced.date_day',
                    "if(sourced.currency = '', workspaces.currency, sourced.currency)",
                    'workspaces.currency'
                ),
                'workspaces.currency_exponent'
            )
        }}, 4) as revenue
    from sourced
    inner join workspaces on sourced.workspace_id = workspaces.workspace_id
    left join rates
        on
            sourced.date_day = rates.date_day
            and sourced.currency = rates.from_currency
            and workspaces.currency = rates.to_currency
    left join names
        on
            sourced.workspace_id = names.workspace_id
            and sourced.date_day = names.date_day
            and sourced.kind = names.kind
            and sourced.source_id = names.source_id
)

select * from final
