{{
    config(
        materialized='incremental',
        incremental_strategy='append_versions',
        full_refresh=false,
        engine='ReplacingMergeTree(version, is_deleted)',
        order_by='(workspace_id, customer_key)',
        settings={'index_granularity': 16},
    )
}}

-- depends_on: {{ ref('int_dirty_order_days') }}

with

changes as (
    select * from {{ ref('int_customer_changes') }}
),

final as (
    select
        workspace_id,
        customer_key,
        first_date,
        first_source,
        first_order_key,
        first_measure_group,
        toUInt8(is_deleted) as is_deleted,
        toUInt64(toUnixTimestamp64Micro(now64(6))) as version
    from changes
)

select * from final
