with

source as (
    select * from {{ source('raw', 'email_events') }}
),

final as (
    select
        workspace_id,
        event_id,
        local_date as date_day,
        event_at,
        metric,
        profile_key,
        toLowCardinality(
            multiIf(flow_id != '', 'flow', message_id != '', 'campaign', 'unattributed')
        ) as kind,
        if(flow_id != '', flow_id, message_id) as source_id,
        message_name as source_name,
        order_id,
        value,
        currency,
        toLowCardinality(
            multiIf(attributed_flow_id != '', 'flow', attributed_campaign_id != '', 'campaign', 'unattributed')
        ) as attributed_kind,
        if(attributed_flow_id != '', attributed_flow_id, attributed_campaign_id) as attributed_source_id
    from source
)

select * from final
