{{
    config(
        materialized='incremental',
        incremental_strategy='replace_days',
        full_refresh=false,
        meta={'scope': 'int_dirty_refund_days'},
        partition_by='toYYYYMM(date_day)',
        order_by='(workspace_id, date_day, platform, campaign)',
        settings={'index_granularity': 256},
    )
}}

with

dirty_days as (
    select
        workspace_id,
        date_day
    from {{ ref('int_dirty_refund_days') }}
),

refunds as (
    select * from {{ ref('int_refunds') }}
    where {{ on_days('dirty_days') }}
),

final as (
    select
        refunds.workspace_id as workspace_id,
        refunds.date_day as date_day,
        refunds.platform as platform,
        refunds.campaign as campaign,
        toDecimal64(sum(refunds.refunds), 4) as refunds,
        count() as row_count
    from refunds
    group by refunds.workspace_id, refunds.date_day, refunds.platform, refunds.campaign
)

select * from final
