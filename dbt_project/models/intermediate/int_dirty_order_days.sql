{{ config(post_hook="{{ remember_days(this) }}") }}

{#- Read by name: it is rebuilt after this model, which wants what the last build left in it. -#}
{% set stored_orders = stored_relation('int_orders') %}

with

scope as (
    select * from {{ ref('int_scope_days') }}
),

days_before as (
    select * from {{ ref('int_days_before') }}
    where measure_group in ('orders', 'payments')
),

frozen_days as (
    select * from {{ source('retention', 'frozen_days') }}
    where measure_group in ('orders', 'payments')
),

pixel_scope as (
    select
        workspace_id,
        date_day
    from scope
    where measure_group = 'pixel'
),

pixel_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_pixel_days') }}
),

sales as (
    select
        workspace_id,
        measure_group,
        date_day,
        order_id
    from {{ ref('int_sales') }}
),

purchase_links as (
    select
        workspace_id,
        order_id
    from {{ ref('int_purchase_links') }}
    where {{ on_days('pixel_scope') }}
),

changed_customers as (
    select
        workspace_id,
        customer_key
    from {{ ref('int_customer_changes') }}
    where was_known
),

-- Sessions of a day may have led to orders of the 720 hours after it.
sales_after_sessions as (
    select distinct
        workspace_id,
        measure_group,
        date_day
    from sales
    where {{ on_days('pixel_days', after=31) }}
),

linked_sales as (
    select distinct
        workspace_id,
        measure_group,
        date_day
    from sales
    where
        measure_group = 'orders'
        and {{ on_days('pixel_scope', before=31, after=31) }}
        and (workspace_id, order_id) in (select workspace_id, order_id from purchase_links)
),

{% if stored_orders %}
sales_of_changed_customers as (
    select distinct
        workspace_id,
        measure_group,
        date_day
    from {{ stored_orders }}
    where
        customer_key in (select customer_key from changed_customers)
        and (workspace_id, customer_key) in (select workspace_id, customer_key from changed_customers)
),
{% endif %}

unioned as (
    select * from scope
    where measure_group in ('orders', 'payments')
    union distinct
    select * from days_before
    union distinct
    select * from sales_after_sessions
    union distinct
    select * from linked_sales
    {% if stored_orders %}
    union distinct
    select * from sales_of_changed_customers
    {% endif %}
),

final as (
    select
        workspace_id,
        measure_group,
        date_day
    from unioned
    where
        (workspace_id, measure_group, date_day) not in (
            select workspace_id, measure_group, local_date from frozen_days
        )
)

select * from final
