{% snapshot order_refunds %}

{{
    config(
        strategy='check',
        unique_key="concat(workspace_id, '|', source, '|', order_key, '|', toString(date_day))",
        check_cols='all',
        query_settings={'join_use_nulls': 1},
    )
}}

with

expiring_days as (
    select * from {{ source('retention', 'expiring_days') }}
    where measure_group = 'refunds'
),

refunds as (
    select * from {{ ref('int_refunds') }}
),

final as (
    select
        refunds.workspace_id as workspace_id,
        refunds.source as source,
        refunds.order_key as order_key,
        refunds.date_day as date_day,
        refunds.is_counted as is_counted,
        toDecimal64(sum(refunds.refunds), 4) as refunds,
        count() as refund_count,
        refunds.customer_key as customer_key,
        refunds.cohort_month as cohort_month,
        refunds.platform as platform,
        refunds.campaign as campaign
    from refunds
    where (refunds.workspace_id, refunds.date_day) in (select workspace_id, local_date from expiring_days)
    group by
        refunds.workspace_id,
        refunds.source,
        refunds.order_key,
        refunds.date_day,
        refunds.is_counted,
        refunds.customer_key,
        refunds.cohort_month,
        refunds.platform,
        refunds.campaign
)

select * from final

{% endsnapshot %}
