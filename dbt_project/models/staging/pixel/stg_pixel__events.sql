with

source as (
    select * from {{ source('raw', 'pixel_events') }}
),

rules as (
    select * from {{ ref('source_rules') }}
),

final as (
    select
        source.workspace_id as workspace_id,
        source.local_date as date_day,
        source.event_id as event_id,
        source.event_at as event_at,
        source.event_name as event_name,
        source.anonymous_id as anonymous_id,
        -- A shop's own session id could look like a bucket: the prefix keeps the two apart.
        if(
            source.session_id = '',
            concat('b:', toString(intDiv(toUnixTimestamp(source.event_at), 1800))),
            concat('s:', source.session_id)
        ) as session_key,
        source.order_id as order_id,
        source.source as traffic_source,
        source.medium as medium,
        source.campaign as campaign,
        source.source_rule_id as source_rule_id,
        if(rules.platform = '', 'direct', rules.platform) as platform,
        source.is_bot as is_bot
    from source
    left join rules on source.source_rule_id = rules.rule_id
)

select * from final
