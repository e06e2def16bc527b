-- intermediate.int_orders_daily of one workspace's purged payments, from the month that was recalled: the recalled
-- rows say which payments there are, and the anonymised facts to whom and what each was attributed.
select
    workspace_id,
    date_day,
    'payments' as measure_group,
    platform,
    campaign,
    countIf(is_counted) as orders,
    countIf(is_new_customer) as new_customer_orders,
    sum(facts.gross_sales) as gross_sales,
    sum(facts.discounts) as discounts,
    sum(facts.shipping) as shipping,
    sum(facts.taxes) as taxes,
    sum(facts.revenue) as revenue,
    sumIf(facts.revenue, is_new_customer) as new_customer_revenue,
    count() as row_count
from anonymised.payments as facts
where
    dbt_valid_to is null
    and workspace_id = {workspace:String}
    and date_day between {first:Date} and {last:Date}
    and (order_key, date_day) in (
        select order_key, local_date from recalled.payments where workspace_id = {workspace:String}
    )
group by workspace_id, date_day, platform, campaign
