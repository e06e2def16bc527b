-- Rows of raw that are about to go and have no row that holds in the anonymised snapshots, by measure.
-- None may be missing when a row is destroyed.
select
    'orders' as measure,
    count() as missing
from raw.orders
where
    (workspace_id, local_date) in (
        select workspace_id, local_date from retention.expiring_days where measure_group = 'orders'
    )
    and (workspace_id, source, order_key) not in (
        select workspace_id, source, order_key from anonymised.orders where dbt_valid_to is null
    )
union all
select
    'order_refunds' as measure,
    count() as missing
from raw.order_refunds
where
    (workspace_id, local_date) in (
        select workspace_id, local_date from retention.expiring_days where measure_group = 'refunds'
    )
    and (workspace_id, source, order_key, local_date) not in (
        select workspace_id, source, order_key, date_day from anonymised.order_refunds
        where dbt_valid_to is null
    )
union all
select
    'payments' as measure,
    count() as missing
from raw.payments
where
    (workspace_id, local_date) in (
        select workspace_id, local_date from retention.expiring_days where measure_group = 'payments'
    )
    and (workspace_id, order_key) not in (
        select workspace_id, order_key from anonymised.payments where dbt_valid_to is null
    )
union all
select
    'payment_refunds' as measure,
    count() as missing
from raw.payment_refunds
where
    status = 'succeeded'
    and (workspace_id, local_date) in (
        select workspace_id, local_date from retention.expiring_days where measure_group = 'refunds'
    )
    and (workspace_id, order_key, local_date) not in (
        select workspace_id, order_key, date_day from anonymised.order_refunds
        where source = 'payments' and dbt_valid_to is null
    )
