{{ config(materialized='view') }}

with

scope as (
    select * from {{ source('reference', 'build_scope') }}
),

final as (
    select distinct
        toLowCardinality('_') as workspace_id,
        local_date as date_day
    from scope
)

select * from final
