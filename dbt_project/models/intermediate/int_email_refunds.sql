{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        on_schema_change='fail',
        full_refresh=false,
        meta={'scope': 'int_dirty_days_marketing', 'measure_group': 'email'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, event_id)',
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

email_orders as (
    select * from {{ ref('int_email_orders') }}
),

rates as (
    select * from {{ ref('int_fx_rates') }}
    where date_day in (select date_day from dirty_days)
),

workspaces as (
    select * from {{ ref('stg_reference__workspaces') }}
),

refunds as (
    select
        workspace_id,
        date_day,
        event_id,
        event_at,
        order_id,
        value,
        currency
    from events
    where
        metric = 'Refunded Order'
        and {{ on_days('dirty_days') }}
),

-- No bound by day: the sorted key finds the order, however long ago it was.
refunded_orders as (
    select
        workspace_id,
        order_id,
        argMin((kind, source_id, source_name, date_day), (event_at, event_id)) as order_source
    from email_orders
    where
        is_counted
        and (workspace_id, order_id) in (select workspace_id, order_id from refunds where order_id != '')
    group by workspace_id, order_id
),

{% if is_incremental() %}
-- An order that is purged has left its source on the refunds that were known by then.
stored_sources as (
    select
        workspace_id,
        date_day,
        event_id,
        (kind, source_id, source_name, order_date) as order_source
    from {{ this }}
    where
        {{ on_days('dirty_days') }}
        and (workspace_id, order_date) in (
            select
                workspace_id,
                local_date
            from {{ source('retention', 'frozen_days') }}
            where measure_group = 'email'
        )
),
{% endif %}

sourced as (
    select
        refunds.*,
        multiIf(
            {% if is_incremental() %}
            stored_sources.event_id != '', stored_sources.order_source,
            {% endif %}
            refunded_orders.order_id != '', refunded_orders.order_source,
            (toLowCardinality('unattributed'), '', '', toDate(0))
        ) as order_source
    from refunds
    left join refunded_orders
        on
            refunds.workspace_id = refunded_orders.workspace_id
            and refunds.order_id = refunded_orders.order_id
    {% if is_incremental() %}
    left join stored_sources
        on
            refunds.workspace_id = stored_sources.workspace_id
            and refunds.date_day = stored_sources.date_day
            and refunds.event_id = stored_sources.event_id
    {% endif %}
),

final as (
    select
        refunds.workspace_id as workspace_id,
        refunds.date_day as date_day,
        refunds.event_id as event_id,
        refunds.event_at as event_at,
        refunds.order_id as order_id,
        cast(refunds.order_source.1 as LowCardinality(String)) as kind,
        refunds.order_source.2 as source_id,
        refunds.order_source.3 as source_name,
        refunds.order_source.4 as order_date,
        refunds.currency as currency,
        refunds.value as value,
        toDecimal64({{
            convert_money(
                'refunds.value',
                fx_rate(
                    'rates.rate',
                    'refunds.date_day',
                    "if(refunds.currency = '', workspaces.currency, refunds.currency)",
                    'workspaces.currency'
                ),
                'workspaces.currency_exponent'
            )
        }}, 4) as refund
    from sourced as refunds
    inner join workspaces on refunds.workspace_id = workspaces.workspace_id
    left join rates
        on
            refunds.date_day = rates.date_day
            and refunds.currency = rates.from_currency
            and workspaces.currency = rates.to_currency
)

select * from final
