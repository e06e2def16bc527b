{{ config(materialized='view') }}

{%- set counts = [
    'sessions', 'pageviews', 'bot_pageviews', 'conversions', 'orders', 'new_customer_orders', 'impressions', 'clicks',
] -%}
{%- set amounts = [
    'gross_sales', 'discounts', 'shipping', 'taxes', 'revenue', 'refunds', 'net_revenue', 'new_customer_revenue',
    'ad_spend', 'platform_conversions', 'platform_conversion_value', 'email_revenue',
] %}

with

summary as (
    select * from {{ ref('summary_kpis_daily') }}
),

-- Each row counts once for its platform and once for all of them; visitors are merged, never summed.
grouped as (
    select
        workspace_id,
        date_day,
        arrayJoin([toString(platform), 'all']) as platform_or_all,
        {%- for measure in counts %}
        toUInt64(sum(summary.{{ measure }})) as {{ measure }},
        {%- endfor %}
        {%- for measure in amounts %}
        toDecimal128(sum(summary.{{ measure }}), 4) as {{ measure }},
        {%- endfor %}
        uniqCombined64Merge(summary.visitors_state) as visitors
    from summary
    group by workspace_id, date_day, platform_or_all
),

final as (
    select
        workspace_id,
        date_day,
        platform_or_all as platform,
        {%- for measure in counts + amounts %}
        {{ measure }},
        {%- endfor %}
        visitors,
        {{ ratio('revenue', 'orders') }} as aov,
        {{ ratio('revenue', 'ad_spend') }} as roas,
        {{ ratio('platform_conversion_value', 'ad_spend') }} as platform_roas,
        {{ ratio('clicks', 'impressions') }} as ctr,
        {{ ratio('ad_spend', 'clicks') }} as cpc,
        {{ ratio('ad_spend * 1000', 'impressions') }} as cpm,
        {{ ratio('conversions', 'sessions') }} as conversion_rate,
        if(platform_or_all = 'all', {{ ratio('revenue', 'ad_spend') }}, null) as mer,
        if(platform_or_all = 'all', {{ ratio('new_customer_revenue', 'ad_spend') }}, null) as nmer,
        if(platform_or_all = 'all', {{ ratio('ad_spend', 'new_customer_orders') }}, null) as cac
    from grouped
)

select * from final
