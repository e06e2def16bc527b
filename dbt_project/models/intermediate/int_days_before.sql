{{ config(post_hook="{{ remember_days(this) }}") }}

{#- Read by name: they are rebuilt after this model, which wants what the last build left in them. -#}
{% set stored_session_days = stored_relation('int_session_days') %}
{% set stored_purchase_links = stored_relation('int_purchase_links') %}

with

scope as (
    select
        workspace_id,
        date_day
    from {{ ref('int_scope_days') }}
    where measure_group = 'pixel'
),

orders as (
    select * from {{ ref('stg_commerce__orders') }}
),

{% if stored_session_days %}
session_days as (
    select * from {{ stored_session_days }}
),

touched_sessions as (
    select distinct
        workspace_id,
        anonymous_id,
        session_key
    from session_days
    where {{ on_days('scope') }}
),

pixel_days as (
    select distinct
        workspace_id,
        'pixel' as measure_group,
        date_day
    from session_days
    where
        {{ on_days('scope', before=31, after=31) }}
        and (workspace_id, anonymous_id, session_key) in (
            select workspace_id, anonymous_id, session_key from touched_sessions
        )
),
{% endif %}

{% if stored_purchase_links %}
purchase_links as (
    select * from {{ stored_purchase_links }}
),

order_days as (
    select distinct
        workspace_id,
        'orders' as measure_group,
        date_day
    from orders
    where
        {{ on_days('scope', before=31, after=31) }}
        and (workspace_id, order_id) in (
            select workspace_id, order_id from purchase_links where {{ on_days('scope') }}
        )
),
{% endif %}

-- What a build that did not finish had found: its rows may be gone from where it found them.
unfinished as (
    select
        workspace_id,
        measure_group,
        date_day
    from {{ pending_days() }}
),

unioned as (
    {% if stored_session_days %}
    select * from pixel_days
    union distinct
    {% endif %}
    {% if stored_purchase_links %}
    select * from order_days
    union distinct
    {% endif %}
    select * from unfinished
),

final as (
    select
        cast(workspace_id as LowCardinality(String)) as workspace_id,
        cast(measure_group as LowCardinality(String)) as measure_group,
        date_day
    from unioned
)

select * from final
