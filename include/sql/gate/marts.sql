-- What the daily marts say, summed per workspace and day. A block is a mart.

-- block: summary_kpis_daily
select
    workspace_id,
    date_day as local_date,
    sum(kpis.sessions) as sessions,
    sum(kpis.pageviews) as pageviews,
    sum(kpis.bot_pageviews) as bot_pageviews,
    sum(kpis.conversions) as conversions,
    sum(kpis.orders) as orders,
    sum(kpis.new_customer_orders) as new_customer_orders,
    sum(kpis.gross_sales) as gross_sales,
    sum(kpis.discounts) as discounts,
    sum(kpis.shipping) as shipping,
    sum(kpis.taxes) as taxes,
    sum(kpis.revenue) as revenue,
    sum(kpis.new_customer_revenue) as new_customer_revenue,
    sum(kpis.net_revenue) + sum(kpis.refunds) as net_revenue_and_refunds,
    sum(kpis.refunds) as refunds,
    sum(kpis.ad_spend) as ad_spend,
    sum(kpis.impressions) as impressions,
    sum(kpis.clicks) as clicks,
    sum(kpis.platform_conversions) as platform_conversions,
    sum(kpis.platform_conversion_value) as platform_conversion_value,
    sum(kpis.email_revenue) as email_revenue
from marts.summary_kpis_daily as kpis
where {{ asked date_day }}
group by workspace_id, date_day

-- block: email_revenue_daily
select
    workspace_id,
    date_day as local_date,
    sum(email.received) as emails_received,
    sum(email.opened) as emails_opened,
    sum(email.clicked) as emails_clicked,
    sum(email.orders) as email_orders,
    sum(email.revenue) as email_order_revenue,
    sum(email.refunds) as email_refunds
from marts.email_revenue_daily as email
where {{ asked date_day }}
group by workspace_id, date_day
