{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        full_refresh=false,
        meta={'scope': 'int_dirty_days'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, platform, campaign)',
        settings={'index_granularity': 1024},
    )
}}

{% set measures = {
    'sessions': 'toUInt64',
    'pageviews': 'toUInt64',
    'bot_pageviews': 'toUInt64',
    'conversions': 'toUInt64',
    'orders': 'toUInt64',
    'new_customer_orders': 'toUInt64',
    'gross_sales': 'toDecimal64',
    'discounts': 'toDecimal64',
    'shipping': 'toDecimal64',
    'taxes': 'toDecimal64',
    'revenue': 'toDecimal64',
    'refunds': 'toDecimal64',
    'new_customer_revenue': 'toDecimal64',
    'ad_spend': 'toDecimal64',
    'impressions': 'toUInt64',
    'clicks': 'toUInt64',
    'platform_conversions': 'toDecimal64',
    'platform_conversion_value': 'toDecimal64',
    'email_revenue': 'toDecimal64',
} %}

{% set groups = {
    'int_pixel_daily': ['sessions', 'pageviews', 'bot_pageviews', 'conversions'],
    'int_orders_daily': [
        'orders', 'new_customer_orders', 'gross_sales', 'discounts', 'shipping', 'taxes', 'revenue',
        'new_customer_revenue',
    ],
    'int_refunds_daily': ['refunds'],
    'int_spend_daily': [
        'ad_spend', 'impressions', 'clicks', 'platform_conversions', 'platform_conversion_value',
    ],
    'int_email_daily': ['email_revenue'],
} %}

with

dirty_days as (
    select distinct
        workspace_id,
        date_day
    from {{ ref('int_dirty_days') }}
),

{% for group, own in groups.items() %}
{{ group | replace('int_', '') }} as (
    select * from {{ ref(group) }}
    where {{ on_days('dirty_days') }}
),

{% endfor %}

unioned as (
    {% for group, own in groups.items() %}
    select
        workspace_id,
        date_day,
        platform,
        campaign,
        {% for measure, type in measures.items() %}
        {% if measure in own %}
        {{ measure }},
        {% elif type == 'toUInt64' %}
        toUInt64(0) as {{ measure }},
        {% else %}
        toDecimal64(0, 4) as {{ measure }},
        {% endif %}
        {% endfor %}
        {% if group == 'int_pixel_daily' %}
        visitors_state
        {% else %}
        arrayReduce('uniqCombined64State', emptyArrayString()) as visitors_state
        {% endif %}
    from {{ group | replace('int_', '') }}
    {% if not loop.last %}
    union all
    {% endif %}
    {% endfor %}
),

summed as (
    select
        unioned.workspace_id as workspace_id,
        unioned.date_day as date_day,
        unioned.platform as platform,
        unioned.campaign as campaign,
        {% for measure, type in measures.items() %}
        {% if type == 'toUInt64' %}
        sum(unioned.{{ measure }}) as {{ measure }},
        {% else %}
        toDecimal64(sum(unioned.{{ measure }}), 4) as {{ measure }},
        {% endif %}
        {% endfor %}
        uniqCombined64MergeState(unioned.visitors_state) as visitors_state
    from unioned
    group by unioned.workspace_id, unioned.date_day, unioned.platform, unioned.campaign
),

final as (
    select
        workspace_id,
        date_day,
        cast(platform as LowCardinality(String)) as platform,
        campaign,
        sessions,
        pageviews,
        bot_pageviews,
        conversions,
        orders,
        new_customer_orders,
        gross_sales,
        discounts,
        shipping,
        taxes,
        revenue,
        refunds,
        revenue - refunds as net_revenue,
        new_customer_revenue,
        ad_spend,
        impressions,
        clicks,
        platform_conversions,
        platform_conversion_value,
        email_revenue,
        visitors_state
    from summed
    where
        {% for measure in measures %}
        {{ measure }} != 0
        or
        {% endfor %}
        finalizeAggregation(visitors_state) > 0
)

select * from final
