{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        full_refresh=false,
        meta={
            'scope': 'int_dirty_order_days',
            'scope_columns': ['workspace_id', 'measure_group', 'date_day'],
        },
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, source, order_id)',
        settings={'index_granularity': 256},
        indexes=[
            {'name': 'customer', 'definition': 'customer_key type bloom_filter(0.001) granularity 1'},
        ],
    )
}}

{% set amounts = {
    'total': 'revenue',
    'gross_sales': 'gross_sales',
    'discounts': 'discounts',
    'shipping': 'shipping',
    'taxes': 'taxes',
} %}

with

dirty_days as (
    select * from {{ ref('int_dirty_order_days') }}
),

sales as (
    select * from {{ ref('int_dirty_sales') }}
),

{% if is_incremental() %}
-- Where the pixel rows behind an order are purged, what the order keeps of them is all that is left: its link
-- and its session stand in for those.
frozen_days as (
    select
        workspace_id,
        local_date
    from {{ source('retention', 'frozen_days') }}
    where
        measure_group = 'pixel'
        and {{ on_days('dirty_days', before=31, after=31, day='local_date') }}
),

stored_orders as (
    select * from {{ this }}
    where {{ on_days('dirty_days') }}
),
{% endif %}

purchase_links as (
    select
        workspace_id,
        date_day,
        order_id,
        event_at,
        anonymous_id
    from {{ ref('int_purchase_links') }}
    where {{ on_days('dirty_days', before=31, after=31) }}
    {% if is_incremental() %}
    union all
    select
        workspace_id,
        link_date as date_day,
        order_id,
        linked_at as event_at,
        visitor_id as anonymous_id
    from stored_orders
    where
        measure_group = 'orders'
        and (workspace_id, link_date) in (select workspace_id, local_date from frozen_days)
    {% endif %}
),

sessions as (
    select
        workspace_id,
        date_day,
        anonymous_id,
        session_key,
        started_at,
        platform,
        campaign,
        traffic_source,
        medium,
        source_rule_id
    from {{ ref('int_sessions') }}
    where
        is_start
        and not is_bot
        and platform != 'direct'
        and {{ on_days('dirty_days', before=31) }}
    {% if is_incremental() %}
    union all
    select
        workspace_id,
        session_date as date_day,
        visitor_id as anonymous_id,
        '' as session_key,
        session_started_at as started_at,
        platform,
        campaign,
        traffic_source,
        medium,
        source_rule_id
    from stored_orders
    where
        attribution = 'session'
        and (workspace_id, session_date) in (select workspace_id, local_date from frozen_days)
    {% endif %}
),

customers as (
    select
        workspace_id,
        customer_key,
        argMax((first_source, first_order_key, first_date, is_deleted), version) as first_sale
    from {{ ref('int_customers') }}
    where
        (workspace_id, customer_key) in (
            select workspace_id, customer_key from sales where is_counted and customer_key != ''
        )
    group by workspace_id, customer_key
    having first_sale.4 = 0
),

rates as (
    select * from {{ ref('int_fx_rates') }}
    where date_day in (select date_day from dirty_days)
),

workspaces as (
    select * from {{ ref('stg_reference__workspaces') }}
),

linked_visitors as (
    select
        sales.workspace_id as workspace_id,
        sales.source as source,
        sales.order_id as order_id,
        argMin(
            (purchase_links.anonymous_id, purchase_links.event_at, purchase_links.date_day),
            (purchase_links.event_at, purchase_links.anonymous_id)
        ) as link
    from sales
    inner join purchase_links
        on
            sales.workspace_id = purchase_links.workspace_id
            and sales.order_id = purchase_links.order_id
    where
        sales.measure_group = 'orders'
        and purchase_links.date_day between sales.date_day - 31 and sales.date_day + 31
    group by sales.workspace_id, sales.source, sales.order_id
),

visits as (
    select
        sales.workspace_id as workspace_id,
        sales.date_day as date_day,
        sales.source as source,
        sales.order_id as order_id,
        sales.created_at as created_at,
        if(sales.measure_group = 'payments', sales.visitor_id, linked_visitors.link.1) as visitor_id,
        linked_visitors.link.2 as linked_at,
        linked_visitors.link.3 as link_date
    from sales
    left join linked_visitors
        on
            sales.workspace_id = linked_visitors.workspace_id
            and sales.source = linked_visitors.source
            and sales.order_id = linked_visitors.order_id
),

visitor_sessions as (
    select
        workspace_id,
        date_day,
        anonymous_id,
        session_key,
        started_at,
        platform,
        campaign,
        traffic_source,
        medium,
        source_rule_id
    from sessions
    where anonymous_id in (select visitor_id from visits where visitor_id != '')
),

attributions as (
    select
        visits.workspace_id as workspace_id,
        visits.source as source,
        visits.order_id as order_id,
        argMax(
            (
                visitor_sessions.platform, visitor_sessions.campaign, visitor_sessions.traffic_source,
                visitor_sessions.medium, visitor_sessions.source_rule_id, visitor_sessions.started_at,
                visitor_sessions.date_day
            ),
            (visitor_sessions.started_at, visitor_sessions.session_key)
        ) as origin
    from visits
    inner join visitor_sessions
        on
            visits.workspace_id = visitor_sessions.workspace_id
            and visits.visitor_id = visitor_sessions.anonymous_id
    where
        visitor_sessions.started_at >= visits.created_at - interval 720 hour
        and visitor_sessions.started_at <= visits.created_at
    group by visits.workspace_id, visits.source, visits.order_id
),

attributed as (
    select
        sales.workspace_id as workspace_id,
        sales.measure_group as measure_group,
        sales.date_day as date_day,
        sales.source as source,
        sales.order_id as order_id,
        sales.order_key as order_key,
        sales.created_at as created_at,
        sales.is_counted as is_counted,
        sales.currency as currency,
        sales.total as total,
        sales.gross_sales as gross_sales,
        sales.discounts as discounts,
        sales.shipping as shipping,
        sales.taxes as taxes,
        sales.customer_key as customer_key,
        visits.visitor_id as visitor_id,
        visits.linked_at as linked_at,
        visits.link_date as link_date,
        attributions.origin.6 as session_started_at,
        attributions.origin.7 as session_date,
        multiIf(
            attributions.origin.1 != '',
            (
                'session',
                (
                    attributions.origin.1, attributions.origin.2, attributions.origin.3, attributions.origin.4,
                    attributions.origin.5
                )
            ),
            sales.platform != 'direct',
            (
                'landing',
                (sales.platform, sales.campaign, sales.traffic_source, sales.medium, sales.source_rule_id)
            ),
            ('direct', ('direct', '', '', '', sales.source_rule_id))
        ) as attribution,
        -- An order that does not count needs no rate.
        if(sales.is_counted and sales.currency != '', sales.currency, workspaces.currency) as from_currency,
        workspaces.currency as to_currency,
        workspaces.currency_exponent as exponent
    from sales
    left join workspaces on sales.workspace_id = workspaces.workspace_id
    left join visits
        on
            sales.workspace_id = visits.workspace_id
            and sales.source = visits.source
            and sales.order_id = visits.order_id
    left join attributions
        on
            sales.workspace_id = attributions.workspace_id
            and sales.source = attributions.source
            and sales.order_id = attributions.order_id
),

rated as (
    select
        attributed.*,
        {{ fx_rate('rates.rate', 'attributed.date_day', 'attributed.from_currency', 'attributed.to_currency') }} as rate
    from attributed
    left join rates
        on
            attributed.date_day = rates.date_day
            and attributed.from_currency = rates.from_currency
            and attributed.to_currency = rates.to_currency
),

final as (
    select
        rated.workspace_id as workspace_id,
        rated.measure_group as measure_group,
        rated.date_day as date_day,
        rated.source as source,
        rated.order_id as order_id,
        rated.order_key as order_key,
        rated.created_at as created_at,
        rated.is_counted as is_counted,
        rated.currency as currency,
        rated.total as amount,
        {% for amount, measure in amounts.items() %}
        toDecimal64(
            if(rated.is_counted, {{ convert_money('rated.' ~ amount, 'rated.rate', 'rated.exponent') }}, 0), 4
        ) as {{ measure }},
        {% endfor %}
        rated.customer_key as customer_key,
        cast(
            rated.is_counted
            and rated.customer_key != ''
            and customers.first_sale.1 = rated.source
            and customers.first_sale.2 = rated.order_key as Bool
        ) as is_new_customer,
        if(
            rated.is_counted and customers.customer_key != '',
            toStartOfMonth(customers.first_sale.3),
            toDate(0)
        ) as cohort_month,
        rated.visitor_id as visitor_id,
        rated.linked_at as linked_at,
        rated.link_date as link_date,
        rated.session_started_at as session_started_at,
        rated.session_date as session_date,
        cast(rated.attribution.1 as LowCardinality(String)) as attribution,
        cast(rated.attribution.2.1 as LowCardinality(String)) as platform,
        rated.attribution.2.2 as campaign,
        cast(rated.attribution.2.3 as LowCardinality(String)) as traffic_source,
        cast(rated.attribution.2.4 as LowCardinality(String)) as medium,
        cast(rated.attribution.2.5 as LowCardinality(String)) as source_rule_id
    from rated
    left join customers
        on
            rated.workspace_id = customers.workspace_id
            and rated.customer_key = customers.customer_key
)

select * from final
