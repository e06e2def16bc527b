-- What raw alone says of the daily marts' figures, by the contract's rules and without dbt's SQL.
-- A block is a measure group; {{ asked <column> }} bounds it to the days asked. A money figure is
-- null where a row of the day is in another currency than the workspace's: raw has no rates.

-- block: pixel
select
    workspace_id,
    local_date,
    countIf(event_name = '$pageview' and not is_bot) as pageviews,
    countIf(event_name = '$pageview' and is_bot) as bot_pageviews,
    countIf(event_name = 'purchase' and not is_bot) as conversions
from raw.pixel_events
where {{ asked local_date }}
group by workspace_id, local_date

-- block: sales
with
    sales as (
        select
            workspace_id,
            local_date,
            currency,
            total as revenue,
            gross_sales,
            discounts,
            shipping,
            taxes
        from raw.orders
        where
            {{ asked local_date }}
            and workspace_id in (
                select workspace_id from reference.workspaces final where revenue_source = 'orders'
            )
            and (
                (source = 'shopify_orders' and not is_test and status != 'voided')
                or (
                    source = 'woocommerce_orders'
                    and status in ('processing', 'on-hold', 'completed', 'refunded')
                )
            )
        union all
        select
            workspace_id,
            local_date,
            currency,
            amount as revenue,
            amount as gross_sales,
            toDecimal64(0, 4) as discounts,
            toDecimal64(0, 4) as shipping,
            toDecimal64(0, 4) as taxes
        from raw.payments
        where
            {{ asked local_date }}
            and workspace_id in (
                select workspace_id from reference.workspaces final where revenue_source = 'payments'
            )
            and is_livemode
            and is_paid
            and status = 'succeeded'
    )

select
    sales.workspace_id as workspace_id,
    sales.local_date as local_date,
    count() as orders,
    countIf(sales.currency not in ('', workspaces.currency)) > 0 as has_foreign_money,
    if(has_foreign_money, null, sum(round(sales.revenue, workspaces.currency_exponent))) as revenue,
    if(has_foreign_money, null, sum(round(sales.gross_sales, workspaces.currency_exponent))) as gross_sales,
    if(has_foreign_money, null, sum(round(sales.discounts, workspaces.currency_exponent))) as discounts,
    if(has_foreign_money, null, sum(round(sales.shipping, workspaces.currency_exponent))) as shipping,
    if(has_foreign_money, null, sum(round(sales.taxes, workspaces.currency_exponent))) as taxes
from sales
inner join (select * from reference.workspaces final) as workspaces
    on sales.workspace_id = workspaces.workspace_id
group by workspace_id, local_date

-- block: refunds
with
    order_refunds as (
        select
            workspace_id,
            local_date,
            source,
            order_id,
            order_local_date,
            currency,
            amount
        from raw.order_refunds
        where
            {{ asked local_date }}
            and workspace_id in (
                select workspace_id from reference.workspaces final where revenue_source = 'orders'
            )
    ),

    refunded_orders as (
        select
            workspace_id,
            source,
            order_id,
            (source = 'shopify_orders' and not is_test and status != 'voided')
            or (
                source = 'woocommerce_orders'
                and status in ('processing', 'on-hold', 'completed', 'refunded')
            ) as is_counted
        from raw.orders
        where
            (workspace_id, local_date, source, order_id) in (
                select workspace_id, order_local_date, source, order_id from order_refunds
            )
    ),

    payment_refunds as (
        select
            workspace_id,
            local_date,
            payment_id,
            payment_local_date,
            currency,
            amount
        from raw.payment_refunds
        where
            {{ asked local_date }}
            and status = 'succeeded'
            and workspace_id in (
                select workspace_id from reference.workspaces final where revenue_source = 'payments'
            )
    ),

    refunded_payments as (
        select
            workspace_id,
            payment_id,
            is_livemode and is_paid and status = 'succeeded' as is_counted
        from raw.payments
        where
            (workspace_id, local_date, payment_id) in (
                select workspace_id, payment_local_date, payment_id from payment_refunds
            )
    ),

    refunds as (
        select
            order_refunds.workspace_id as workspace_id,
            order_refunds.local_date as local_date,
            order_refunds.currency as currency,
            order_refunds.amount as amount,
            -- Whether an order counted that is purged since, raw cannot tell.
            refunded_orders.order_id = '' as is_orphan
        from order_refunds
        left join refunded_orders
            on
                order_refunds.workspace_id = refunded_orders.workspace_id
                and order_refunds.source = refunded_orders.source
                and order_refunds.order_id = refunded_orders.order_id
        where is_orphan or refunded_orders.is_counted
        union all
        select
            payment_refunds.workspace_id as workspace_id,
            payment_refunds.local_date as local_date,
            payment_refunds.currency as currency,
            payment_refunds.amount as amount,
            refunded_payments.payment_id = '' as is_orphan
        from payment_refunds
        left join refunded_payments
            on
                payment_refunds.workspace_id = refunded_payments.workspace_id
                and payment_refunds.payment_id = refunded_payments.payment_id
        where is_orphan or refunded_payments.is_counted
    )

select
    refunds.workspace_id as workspace_id,
    refunds.local_date as local_date,
    if(
        countIf(refunds.is_orphan or refunds.currency not in ('', workspaces.currency)) > 0,
        null,
        sum(round(refunds.amount, workspaces.currency_exponent))
    ) as refunds
from refunds
inner join (select * from reference.workspaces final) as workspaces
    on refunds.workspace_id = workspaces.workspace_id
group by workspace_id, local_date

-- block: spend
select
    spend.workspace_id as workspace_id,
    spend.local_date as local_date,
    sum(spend.impressions) as impressions,
    sum(spend.clicks) as clicks,
    sum(spend.conversions) as platform_conversions,
    countIf(spend.currency not in ('', workspaces.currency)) > 0 as has_foreign_money,
    if(has_foreign_money, null, sum(round(spend.spend, workspaces.currency_exponent))) as ad_spend,
    if(has_foreign_money, null, sum(round(spend.conversion_value, workspaces.currency_exponent)))
        as platform_conversion_value
from (select * from raw.ad_spend where {{ asked local_date }}) as spend
inner join (select * from reference.workspaces final) as workspaces
    on spend.workspace_id = workspaces.workspace_id
group by workspace_id, local_date

-- block: email
select
    events.workspace_id as workspace_id,
    events.local_date as local_date,
    countIf(events.metric = 'Received Email') as emails_received,
    countIf(events.metric = 'Opened Email') as emails_opened,
    countIf(events.metric = 'Clicked Email') as emails_clicked,
    if(
        countIf(events.metric = 'Refunded Order' and events.currency not in ('', workspaces.currency)) > 0,
        null,
        sumIf(round(events.value, workspaces.currency_exponent), events.metric = 'Refunded Order')
    ) as email_refunds
from (select * from raw.email_events where {{ asked local_date }}) as events
inner join (select * from reference.workspaces final) as workspaces
    on events.workspace_id = workspaces.workspace_id
group by workspace_id, local_date
