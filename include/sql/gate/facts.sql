-- What the facts behind the daily marts say of their figures. A block is a measure group.

-- block: pixel
select
    workspace_id,
    date_day as local_date,
    countIf(is_start and not is_bot) as sessions,
    sumIf(sessions.pageviews, not is_bot) as pageviews,
    sumIf(sessions.pageviews, is_bot) as bot_pageviews,
    sumIf(sessions.conversions, not is_bot) as conversions
from intermediate.int_sessions as sessions
where {{ asked date_day }}
group by workspace_id, date_day

-- block: sales
select
    workspace_id,
    date_day as local_date,
    countIf(is_counted) as orders,
    countIf(is_new_customer) as new_customer_orders,
    sum(sales.gross_sales) as gross_sales,
    sum(sales.discounts) as discounts,
    sum(sales.shipping) as shipping,
    sum(sales.taxes) as taxes,
    sum(sales.revenue) as revenue,
    sumIf(sales.revenue, is_new_customer) as new_customer_revenue,
    sum(sales.revenue) as net_revenue_and_refunds
from intermediate.int_orders as sales
where {{ asked date_day }}
group by workspace_id, date_day

-- block: refunds
select
    workspace_id,
    date_day as local_date,
    sum(facts.refunds) as refunds
from intermediate.int_refunds as facts
where {{ asked date_day }}
group by workspace_id, date_day

-- block: spend
select
    workspace_id,
    date_day as local_date,
    sum(spend.ad_spend) as ad_spend,
    sum(spend.impressions) as impressions,
    sum(spend.clicks) as clicks,
    sum(spend.platform_conversions) as platform_conversions,
    sum(spend.platform_conversion_value) as platform_conversion_value
from intermediate.int_spend_daily as spend
where {{ asked date_day }}
group by workspace_id, date_day

-- block: email
select
    workspace_id,
    local_date,
    sum(facts.email_revenue) as email_revenue,
    sum(facts.emails_received) as emails_received,
    sum(facts.emails_opened) as emails_opened,
    sum(facts.emails_clicked) as emails_clicked,
    sum(facts.email_orders) as email_orders,
    sum(facts.email_order_revenue) as email_order_revenue,
    sum(facts.email_refunds) as email_refunds
from (
    select
        workspace_id,
        date_day as local_date,
        if(source_id != '', revenue, 0) as email_revenue,
        toUInt64(0) as emails_received,
        toUInt64(0) as emails_opened,
        toUInt64(0) as emails_clicked,
        1 as email_orders,
        revenue as email_order_revenue,
        toDecimal64(0, 4) as email_refunds
    from intermediate.int_email_orders
    where is_counted and {{ asked date_day }}
    union all
    select workspace_id, date_day, 0, received, opened, clicked, 0, 0, 0
    from intermediate.int_email_messages_daily
    where {{ asked date_day }}
    union all
    select workspace_id, date_day, 0, 0, 0, 0, 0, 0, refund
    from intermediate.int_email_refunds
    where {{ asked date_day }}
) as facts
group by workspace_id, local_date
