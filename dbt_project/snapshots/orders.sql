{% snapshot orders %}

{{
    config(
        strategy='check',
        unique_key="concat(workspace_id, '|', source, '|', order_key)",
        check_cols='all',
        query_settings={'join_use_nulls': 1},
    )
}}

with

expiring_days as (
    select * from {{ source('retention', 'expiring_days') }}
    where measure_group = 'orders'
),

sales as (
    select * from {{ ref('int_orders') }}
    where measure_group = 'orders'
),

final as (
    select
        workspace_id,
        source,
        order_key,
        date_day,
        is_counted,
        revenue,
        gross_sales,
        discounts,
        shipping,
        taxes,
        customer_key,
        is_new_customer,
        cohort_month,
        attribution,
        platform,
        campaign,
        traffic_source,
        medium,
        source_rule_id
    from sales
    where (workspace_id, date_day) in (select workspace_id, local_date from expiring_days)
)

select * from final

{% endsnapshot %}
