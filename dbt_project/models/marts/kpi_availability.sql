{{ config(materialized='view') }}

with

workspaces as (
    select * from {{ ref('stg_reference__workspaces') }}
),

windows as (
    select * from {{ ref('stg_reference__windows') }}
),

requirements as (
    select * from {{ ref('stg_reference__figures') }}
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
    where requirements.class != if(workspaces.revenue_source = 'payments', 'orders', 'payments')
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
        cast(figure as String) as figure,
        cast(window_months >= required_months as Bool) as is_supported,
        if(window_months >= required_months, '', 'insufficient retention') as reason,
        cast(class as String) as limiting_class,
        window_months,
        required_months
    from shortest
)

select * from final
