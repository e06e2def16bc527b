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

frozen_days as (
    select
        workspace_id,
        local_date as date_day
    from {{ source('retention', 'frozen_days') }}
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
    {% endif %}
),

counted as (
    select
        *,
        order_id = ''
        or lagInFrame(date_day, 1, toDate(0)) over (
            partition by workspace_id, order_id order by event_at, event_id
            rows between unbounded preceding and current row
        ) < date_day - 31 as is_first
    from placed_and_earlier
),

-- 120 hours reach back into the sixth day before where a clock change shortens one between.
clicks as (
    select
        workspace_id,
        profile_key,
        event_at as clicked_at,
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
-- Where the clicks before an order are purged, its stored source is all that is left of them.
stored_sources as (
    select
        workspace_id,
        date_day,
        event_id,
        (kind, source_id) as stored_source
    from {{ this }}
    where
        source_id != ''
        and {{ on_days('dirty_days') }}
        and (workspace_id, date_day) in (
            select
                workspace_id,
                date_day + arrayJoin(range(1, 7)) as near_day
            from frozen_days
        )
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
        multiIf(
            counted.attributed_source_id != '', (counted.attributed_kind, counted.attributed_source_id),
            {% if is_incremental() %}
            stored_sources.event_id != '', stored_sources.stored_source,
            {% endif %}
            clicks.clicked_source.2 != '' and clicks.clicked_at >= counted.event_at - interval 120 hour,
            clicks.clicked_source,
            (toLowCardinality('unattributed'), '')
        ) as kind_and_source,
        kind_and_source.1 as kind,
        kind_and_source.2 as source_id
    from counted
    asof left join clicks
        on
            counted.workspace_id = clicks.workspace_id
            and counted.profile_key = clicks.profile_key
            and counted.event_at >= clicks.clicked_at
    {% if is_incremental() %}
    left join stored_sources
        on
            counted.workspace_id = stored_sources.workspace_id
            and counted.date_day = stored_sources.date_day
            and counted.event_id = stored_sources.event_id
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
        cast(sourced.kind as LowCardinality(String)) as kind,
        sourced.source_id as source_id,
        if(names.named_on >= sourced.date_day - 31, names.source_name, '') as source_name,
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
)

select * from final
