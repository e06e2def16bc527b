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

messages as (
    select * from {{ ref('int_email_messages_daily') }}
    where {{ on_days('dirty_days') }}
),

email_orders as (
    select * from {{ ref('int_email_orders') }}
    where
        is_counted
        and {{ on_days('dirty_days') }}
),

email_refunds as (
    select * from {{ ref('int_email_refunds') }}
    where {{ on_days('dirty_days') }}
),

unioned as (
    select
        workspace_id,
        date_day,
        kind,
        source_id,
        source_name,
        3 as name_rank,
        received,
        opened,
        clicked,
        toUInt64(0) as orders,
        toDecimal64(0, 4) as revenue,
        toDecimal64(0, 4) as refunds
    from messages
    union all
    select
        workspace_id,
        date_day,
        kind,
        source_id,
        source_name,
        2 as name_rank,
        toUInt64(0) as received,
        toUInt64(0) as opened,
        toUInt64(0) as clicked,
        toUInt64(1) as orders,
        revenue,
        toDecimal64(0, 4) as refunds
    from email_orders
    union all
    select
        workspace_id,
        date_day,
        kind,
        source_id,
        source_name,
        1 as name_rank,
        toUInt64(0) as received,
        toUInt64(0) as opened,
        toUInt64(0) as clicked,
        toUInt64(0) as orders,
        toDecimal64(0, 4) as revenue,
        refund as refunds
    from email_refunds
),

final as (
    select
        workspace_id,
        date_day,
        kind,
        source_id,
        argMaxIf(unioned.source_name, (name_rank, unioned.source_name), unioned.source_name != '') as source_name,
        toUInt64(sum(unioned.received)) as received,
        toUInt64(sum(unioned.opened)) as opened,
        toUInt64(sum(unioned.clicked)) as clicked,
        toUInt64(sum(unioned.orders)) as orders,
        toDecimal64(sum(unioned.revenue), 4) as revenue,
        toDecimal64(sum(unioned.refunds), 4) as refunds
    from unioned
    group by workspace_id, date_day, kind, source_id
)

select * from final
