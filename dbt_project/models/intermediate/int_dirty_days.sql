{{ config(materialized='view') }}

with

pixel_days as (
    select * from {{ ref('int_dirty_pixel_days') }}
),

order_days as (
    select * from {{ ref('int_dirty_order_days') }}
),

refund_days as (
    select * from {{ ref('int_dirty_refund_days') }}
),

marketing_days as (
    select * from {{ ref('int_dirty_days_marketing') }}
),

final as (
    select * from pixel_days
    union all
    select * from order_days
    union all
    select * from refund_days
    union all
    select * from marketing_days
)

select * from final
