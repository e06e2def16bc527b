-- Klaviyo Events API: an event with its relationships.
with parsed as (
    select
        line,
        load_id,
        line_number,
        JSONExtract(
            line,
            'Tuple(id Nullable(String), attributes Tuple(timestamp Nullable(String), datetime Nullable(String), event_properties Tuple(`$message` Nullable(String), `Campaign Name` Nullable(String), `$flow` Nullable(String), `$value` Nullable(String), `$event_id` Nullable(String), currency Nullable(String))), relationships Tuple(profile Tuple(data Tuple(id Nullable(String))), metric Tuple(name Nullable(String)), attributions Tuple(data Array(Tuple(relationships Tuple(campaign Tuple(data Tuple(id Nullable(String))), flow Tuple(data Tuple(id Nullable(String)))))))), profile Tuple(email Nullable(String)))'
        ) as e
    from {{ lines }}
),

fields as (
    select
        line,
        load_id,
        line_number,
        tidemark_text(e.id) as event_id,
        coalesce(e.attributes.datetime, e.attributes.timestamp, '') as time_text,
        tidemark_time(time_text) as happened_at,
        tidemark_text(e.relationships.metric.name) as metric,
        tidemark_text(e.relationships.profile.data.id) as profile_id,
        tidemark_text(e.profile.email) as email,
        e.attributes.event_properties as p,
        tidemark_amount(ifNull(p.`$value`, '0')) as value_or_null,
        upper(if(tidemark_text(p.currency) = '', {currency:String}, tidemark_text(p.currency))) as currency,
        e.relationships.attributions.data as attributions
    from parsed
)

select
    line,
    load_id,
    line_number,
    happened_at,
    tidemark_id('event_id', event_id, pseudonym_key) as event_id,
    ifNull(happened_at, toDateTime64(0, 6, 'UTC')) as event_at,
    tidemark_redact(metric) as metric,
    tidemark_pseudonym('profile', profile_id, pseudonym_key) as profile_key,
    tidemark_pseudonym('email', lowerUTF8(tidemark_trimmed(email)), pseudonym_key) as customer_key,
    tidemark_id('message_id', tidemark_text(p.`$message`), pseudonym_key) as message_id,
    tidemark_redact(tidemark_text(p.`Campaign Name`)) as message_name,
    tidemark_id('flow_id', tidemark_text(p.`$flow`), pseudonym_key) as flow_id,
    tidemark_id('order_id', tidemark_text(p.`$event_id`), pseudonym_key) as order_id,
    ifNull(value_or_null, 0) as value,
    currency,
    tidemark_text(arrayFirst(a -> a.relationships.campaign.data.id is not null, attributions).relationships.campaign.data.id) as attributed_campaign_id,
    tidemark_text(arrayFirst(a -> a.relationships.flow.data.id is not null, attributions).relationships.flow.data.id) as attributed_flow_id,
    multiIf(
        event_id = '', tidemark_unreadable(line, 'id'),
        tidemark_is_container(line, event_id, 'id'), 'bad_value:id',
        time_text = '', 'missing_field:datetime',
        happened_at is null, 'bad_value:datetime',
        metric = '', 'missing_field:metric',
        profile_id = '', 'missing_field:profile',
        value_or_null is null, 'bad_value:$value',
        not dictHas('reference.currencies_lookup', currency), 'bad_value:currency',
        ''
    ) as reason
from fields
