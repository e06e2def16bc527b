{{ config(materialized='view') }}

with

workspaces as (
    select * from {{ ref('stg_reference__workspaces') }}
),

windows as (
    select * from {{ ref('stg_reference__windows') }}
),

requirements as (
    select
        'trailing_12_months' as figure,
        'pixel_events' as class,
        toUInt16(12) as required_months
    union all
    select
        'cohort_ltv_24_months' as figure,
        arrayJoin(['orders', 'order_refunds', 'payments', 'ad_spend']) as class,
        toUInt16(24) as required_months
),

-- A workspace counts orders or payments, never both: the other's window darkens nothing.
needed as (
    select
        workspaces.workspace_id as workspace_id,
        requirements.figure as figure,
        requirements.class as class,
        requirements.required_months as required_months
    from workspaces
    cross join requirements
    where not has(
        if(workspaces.revenue_source = 'payments', ['orders', 'order_refunds'], ['payments']), requirements.class
    )
),

-- A class without a known window supports nothing.
shortest as (
    select
        needed.workspace_id as workspace_id,
        needed.figure as figure,
        max(needed.required_months) as required_months,
        min(windows.window_months) as window_months,
        argMin(needed.class, (windows.window_months, needed.class)) as class
    from needed
    left join windows
        on
            needed.workspace_id = windows.workspace_id
            and needed.class = windows.class
    group by needed.workspace_id, needed.figure
),

final as (
    select
        cast(workspace_id as String) as workspace_id,
        figure,
        cast(window_months >= required_months as Bool) as is_supported,
        if(window_months >= required_months, '', 'insufficient retention') as reason,
        class as limiting_class,
        window_months,
        required_months
    from shortest
)

select * from final
