with

source as (
    select * from {{ source('control', 'verdicts') }}
),

final as (
    select
        verdict_id,
        checkpoint,
        plan_id,
        run_id,
        validation_result_id,
        success as is_success,
        as_of as as_of_date,
        created_at
    from source
)

select * from final
