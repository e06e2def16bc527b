-- block: stage
event_at DateTime64(6, 'UTC'),
event_id String,
event_name LowCardinality(String),
anonymous_id String,
session_id String,
customer_key String,
user_key String,
order_id String,
url_host LowCardinality(String),
url_path String,
url_parameters String,
referrer_host LowCardinality(String),
referrer_path String,
click_id_kind LowCardinality(String),
click_id_hash String,
source LowCardinality(String),
medium LowCardinality(String),
campaign String,
source_rule_id LowCardinality(String),
source_confidence LowCardinality(String),
country LowCardinality(String),
ua_hash UInt128,
ip_hash String,
viewport LowCardinality(String),
language LowCardinality(String),
timezone LowCardinality(String),
properties String

-- block: key
reinterpretAsUInt128(sipHash128(concat(workspace_id, '\0', event_id, '\0', toString(toYYYYMM(local_date)))))

-- block: version
toDateTime64(0, 6, 'UTC')

-- block: target raw.pixel_events
select
    stage.* except (source_system, ua_hash, row_key, version_at),
    user_agents.device_type,
    user_agents.browser,
    user_agents.os,
    user_agents.is_bot,
    user_agents.is_ai_agent
from {{ stage }} as stage
left any join (
    select *
    from reference.user_agents
    where ua_hash in (select ua_hash from {{ user_agents_seen }})
) as user_agents on stage.ua_hash = user_agents.ua_hash

-- block: effects pixel_events
select
    load_id,
    line_number,
    workspace_id,
    local_date,
    '' as currency,
    event_id as id,
    toDecimal128(0, 6) as money
from {{ raw.pixel_events }}
