{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        on_schema_change='fail',
        full_refresh=false,
        meta={'scope': 'int_dirty_days_marketing', 'measure_group': 'email'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, order_id, event_at, event_id)',
        settings={'index_granularity': 8},
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

{% if is_incremental() %}
frozen_days as (
    select
        workspace_id,
        local_date as date_day
    from {{ source('retention', 'frozen_days') }}
    where
        measure_group = 'email'
        and {{ on_days('dirty_days', before=31, day='local_date') }}
),

-- What an order keeps of earlier days is all that is left of those once they are purged.
stored_orders as (
    select * from {{ this }}
    where
        {{ on_days('dirty_days') }}
        and {{ on_days('frozen_days', after=31) }}
),
{% endif %}

events as (
    select * from {{ ref('stg_klaviyo__events') }}
),

messages as (
    select * from {{ ref('int_email_messages_daily') }}
),

rates as (
    select * from {{ ref('int_fx_rates') }}
    where date_day in (select date_day from dirty_days)
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

placed_and_earlier as (
    select
        *,
        true as is_dirty
    from placed
    {% if is_incremental() %}
    union all
    select
        workspace_id,
        date_day,
        event_id,
        event_at,
        order_id,
        '' as profile_key,
        value,
        currency,
        toLowCardinality('') as attributed_kind,
        '' as attributed_source_id,
        false as is_dirty
    from {{ this }}
    where
        order_id != ''
        and {{ on_days('dirty_days', before=31) }}
        and (workspace_id, date_day) not in (select workspace_id, date_day from dirty_days)
    union all
    select
        workspace_id,
        previous_date as date_day,
        '' as event_id,
        toDateTime64(previous_date, 6, 'UTC') as event_at,
        order_id,
        '' as profile_key,
        value,
        currency,
        toLowCardinality('') as attributed_kind,
        '' as attributed_source_id,
        false as is_dirty
    from stored_orders
    where (workspace_id, previous_date) in (select workspace_id, date_day from frozen_days)
    {% endif %}
),

counted as (
    select
        *,
        lagInFrame(date_day, 1, toDate(0)) over (
            partition by workspace_id, order_id order by event_at, event_id
            rows between unbounded preceding and current row
        ) as last_date,
        order_id = '' or last_date < date_day - 31 as is_first
    from placed_and_earlier
),

-- 120 hours reach back into the sixth day before where a clock change shortens one between.
clicks as (
    select
        workspace_id,
        profile_key,
        event_at as clicked_at,
        any(date_day) as click_date,
        argMax((kind, source_id), (metric = 'Clicked Email', event_id)) as clicked_source
    from events
    where
        metric in ('Clicked Email', 'Opened Email')
        and source_id != ''
        and profile_key != ''
        and {{ on_days('dirty_days', before=6) }}
    group by workspace_id, profile_key, event_at
),

{% if is_incremental() %}
stored_clicks as (
    select
        workspace_id,
        date_day,
        event_id,
        clicked_at as stored_clicked_at,
        click_date as stored_click_date,
        (kind, source_id) as stored_source
    from stored_orders
    where (workspace_id, click_date) in (select workspace_id, date_day from frozen_days)
),

stored_names as (
    select
        workspace_id,
        date_day,
        event_id,
        kind,
        source_id,
        source_name as stored_name
    from stored_orders
    where source_name != ''
),
{% endif %}

sourced as (
    select
        counted.workspace_id as workspace_id,
        counted.date_day as date_day,
        counted.event_id as event_id,
        counted.event_at as event_at,
        counted.order_id as order_id,
        counted.value as value,
        counted.currency as currency,
        counted.is_first as is_counted,
        if(counted.is_first, toDate(0), counted.last_date) as previous_date,
        -- Where it comes from, and when the click was that says so.
        multiIf(
            counted.attributed_source_id != '',
            (
                counted.attributed_kind, counted.attributed_source_id, toDateTime64(0, 6, 'UTC'), toDate(0)
            ),
            clicks.clicked_source.2 != ''
            and clicks.clicked_at >= counted.event_at - interval 120 hour
            {% if is_incremental() %}
            and clicks.clicked_at >= stored_clicks.stored_clicked_at
            {% endif %},
            (clicks.clicked_source.1, clicks.clicked_source.2, clicks.clicked_at, clicks.click_date),
            {% if is_incremental() %}
            stored_clicks.event_id != '',
            (
                stored_clicks.stored_source.1, stored_clicks.stored_source.2,
                stored_clicks.stored_clicked_at, stored_clicks.stored_click_date
            ),
            {% endif %}
            (toLowCardinality('unattributed'), '', toDateTime64(0, 6, 'UTC'), toDate(0))
        ) as origin,
        origin.1 as kind,
        origin.2 as source_id,
        origin.3 as clicked_at,
        origin.4 as click_date
    from counted
    asof left join clicks
        on
            counted.workspace_id = clicks.workspace_id
            and counted.profile_key = clicks.profile_key
            and counted.event_at >= clicks.clicked_at
    {% if is_incremental() %}
    left join stored_clicks
        on
            counted.workspace_id = stored_clicks.workspace_id
            and counted.date_day = stored_clicks.date_day
            and counted.event_id = stored_clicks.event_id
    {% endif %}
    where counted.is_dirty
),

names as (
    select
        workspace_id,
        kind,
        source_id,
        date_day as named_on,
        source_name
    from messages
    where
        source_name != ''
        and {{ on_days('dirty_days', before=31) }}
),

final as (
    select
        sourced.workspace_id as workspace_id,
        sourced.date_day as date_day,
        sourced.event_id as event_id,
        sourced.event_at as event_at,
        sourced.order_id as order_id,
        cast(sourced.is_counted as Bool) as is_counted,
        sourced.previous_date as previous_date,
        cast(sourced.kind as LowCardinality(String)) as kind,
        sourced.source_id as source_id,
        if(
            names.named_on >= sourced.date_day - 31,
            names.source_name,
            {% if is_incremental() %}stored_names.stored_name{% else %}''{% endif %}
        ) as source_name,
        sourced.clicked_at as clicked_at,
        sourced.click_date as click_date,
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
    asof left join names
        on
            sourced.workspace_id = names.workspace_id
            and sourced.kind = names.kind
            and sourced.source_id = names.source_id
            and sourced.date_day >= names.named_on
    {% if is_incremental() %}
    left join stored_names
        on
            sourced.workspace_id = stored_names.workspace_id
            and sourced.date_day = stored_names.date_day
            and sourced.event_id = stored_names.event_id
            and sourced.kind = stored_names.kind
            and sourced.source_id = stored_names.source_id
    {% endif %}
)

select * from final
