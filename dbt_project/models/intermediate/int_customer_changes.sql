{{ config(meta={'is_step': true}) }}

{#- Read by name: both are rebuilt after this model, which wants what the last build left in them. -#}
{% set stored_customers = stored_relation('int_customers') %}
{% set stored_orders = stored_relation('int_orders') %}

with

scope as (
    select * from {{ ref('int_scope_days') }}
    where measure_group in ('orders', 'payments')
),

sales as (
    select * from {{ ref('int_scope_sales') }}
),

-- Ids of one source that are numbers are told apart as numbers.
first_in_scope as (
    select
        workspace_id,
        customer_key,
        min((
            date_day, created_at, source, toUInt64OrZero(order_id), order_id, order_key, measure_group
        )) as first_sale
    from sales
    group by workspace_id, customer_key
),

{% if stored_customers and stored_orders %}
stored_sales as (
    select * from {{ stored_orders }}
),

touched_customers as (
    select
        workspace_id,
        customer_key
    from first_in_scope
    union distinct
    select
        workspace_id,
        customer_key
    from stored_sales
    where
        is_new_customer
        and {{ on_days('scope') }}
        and (workspace_id, measure_group, date_day) in (select workspace_id, measure_group, date_day from scope)
),

customers as (
    select * from {{ stored_customers }} final
    where (workspace_id, customer_key) in (select workspace_id, customer_key from touched_customers)
),

-- Their first order is in scope and no longer what it was: any order of theirs may be the first now.
unsettled_customers as (
    select
        workspace_id,
        customer_key
    from customers
    where
        (workspace_id, first_measure_group, first_date) in (
            select workspace_id, measure_group, date_day from scope
        )
        and (workspace_id, customer_key, first_source, first_order_key, first_date) not in (
            select workspace_id, customer_key, source, order_key, date_day from sales
        )
),

first_elsewhere as (
    select
        workspace_id,
        customer_key,
        min((
            date_day, created_at, source, toUInt64OrZero(order_id), order_id, order_key, measure_group
        )) as first_sale
    from stored_sales
    where
        is_counted
        and (workspace_id, customer_key) in (select workspace_id, customer_key from unsettled_customers)
        and customer_key in (select customer_key from unsettled_customers)
        and (workspace_id, measure_group, date_day) not in (
            select workspace_id, measure_group, date_day from scope
        )
    group by workspace_id, customer_key
),

-- Of orders that are gone the day is known. It decides: whole days go, so no other day's order is as old.
purged_sales as (
    select
        workspace_id,
        customer_key,
        (
            date_day, toDateTime64(0, 6, 'UTC'), source, toUInt64(0), '', order_key,
            toLowCardinality(if(source = 'payments', 'payments', 'orders'))
        ) as sale
    from {{ anonymised_sales() }}
    where
        is_counted
        and (workspace_id, customer_key) in (select workspace_id, customer_key from unsettled_customers)
),

first_purged as (
    select
        workspace_id,
        customer_key,
        min(purged_sales.sale) as first_sale
    from purged_sales
    group by workspace_id, customer_key
),

-- One whose day is in scope is among the sales, or the customer is unsettled.
first_stored as (
    select
        workspace_id,
        customer_key,
        (
            first_date, toDateTime64(0, 6, 'UTC'), first_source, toUInt64(0), '', first_order_key,
            first_measure_group
        ) as first_sale
    from customers
    where
        (workspace_id, first_measure_group, first_date) not in (
            select workspace_id, measure_group, date_day from scope
        )
),
{% endif %}

candidates as (
    select
        workspace_id,
        customer_key,
        first_sale
    from first_in_scope
    {% if stored_customers and stored_orders %}
    union all
    select
        workspace_id,
        customer_key,
        first_sale
    from first_elsewhere
    union all
    select
        workspace_id,
        customer_key,
        first_sale
    from first_purged
    union all
    select
        workspace_id,
        customer_key,
        first_sale
    from first_stored
    {% endif %}
),

firsts as (
    select
        workspace_id,
        customer_key,
        min(candidates.first_sale) as first_sale
    from candidates
    group by workspace_id, customer_key
),

compared as (
    {% if stored_customers and stored_orders %}
    select
        if(firsts.customer_key = '', customers.workspace_id, firsts.workspace_id) as workspace_id,
        if(firsts.customer_key = '', customers.customer_key, firsts.customer_key) as customer_key,
        firsts.first_sale as first_sale,
        firsts.customer_key = '' as is_deleted,
        customers.customer_key != '' as was_known,
        (customers.first_date, customers.first_source, customers.first_order_key) as known_sale
    from firsts
    full join customers
        on
            firsts.workspace_id = customers.workspace_id
            and firsts.customer_key = customers.customer_key
    {% else %}
    select
        workspace_id,
        customer_key,
        first_sale,
        false as is_deleted,
        false as was_known,
        (first_sale.1, first_sale.3, '') as known_sale
    from firsts
    {% endif %}
),

final as (
    select
        cast(workspace_id as LowCardinality(String)) as workspace_id,
        customer_key,
        first_sale.1 as first_date,
        cast(first_sale.3 as LowCardinality(String)) as first_source,
        first_sale.6 as first_order_key,
        cast(first_sale.7 as LowCardinality(String)) as first_measure_group,
        cast(is_deleted as Bool) as is_deleted,
        cast(was_known as Bool) as was_known
    from compared
    where
        is_deleted
        or not was_known
        or known_sale != (first_sale.1, first_sale.3, first_sale.6)
)

select * from final
