-- The project's own pixel: one event a line, as the SDK sends it.
with parsed as (
    select
        line,
        load_id,
        line_number,
        JSONExtract(
            line,
            'Tuple(event_id String, event_name String, timestamp String, anonymous_id String, user_id String, session_id String, email String, ip String, user_agent String, url String, referrer String, viewport String, language String, timezone String, consent String, properties Nullable(String))'
        ) as e
    from {{ lines }}
),

fields as (
    select
        line,
        load_id,
        line_number,
        e.event_id as event_id,
        toLowCardinality(e.event_name) as event_name,
        e.anonymous_id as anonymous_id,
        e.timestamp as timestamp_text,
        tidemark_time(timestamp_text) as happened_at,
        e.session_id as session_id,
        lowerUTF8(tidemark_trimmed(e.email)) as email,
        e.user_id as user_id,
        toLowCardinality(e.ip) as ip,
        toLowCardinality(e.user_agent) as user_agent,
        e.url as url,
        toLowCardinality(cutQueryStringAndFragment(url)) as page,
        toLowCardinality(cutQueryStringAndFragment(e.referrer)) as referring_page,
        toLowCardinality(e.viewport) as viewport,
        toLowCardinality(e.language) as language,
        toLowCardinality(e.timezone) as timezone,
        toLowCardinality(e.consent) as consent,
        ifNull(e.properties, '{}') as raw_properties,
        lower(domain(page)) as url_host,
        lower(domain(referring_page)) as referrer_host,
        tidemark_query(url) as query,
        position(query, '&utm_') > 0 as has_utm
    from parsed
),

classified as (
    select
        *,
        toLowCardinality(if(has_utm, lowerUTF8(trimBoth(tidemark_parameter(query, 'utm_source'))), '')) as utm_source,
        toLowCardinality(if(has_utm, lowerUTF8(trimBoth(tidemark_parameter(query, 'utm_medium'))), '')) as utm_medium,
        toLowCardinality(tidemark_source_rule(utm_source, utm_medium, query, url_host, referrer_host)) as source_rule_id,
        tidemark_click_id_kind(query) as click_id_kind
    from fields
)

select
    line,
    load_id,
    line_number,
    tidemark_id('event_id', event_id, pseudonym_key) as event_id,
    happened_at,
    ifNull(happened_at, toDateTime64(0, 6, 'UTC')) as event_at,
    tidemark_redact(event_name) as event_name,
    tidemark_id('anonymous_id', anonymous_id, pseudonym_key) as anonymous_id,
    tidemark_id('session_id', session_id, pseudonym_key) as session_id,
    tidemark_pseudonym('email', email, pseudonym_key) as customer_key,
    tidemark_pseudonym('user_id', user_id, pseudonym_key) as user_key,
    tidemark_id('order_id', if(position(raw_properties, '"order_id"') > 0, JSONExtractString(raw_properties, 'order_id'), ''), pseudonym_key) as order_id,
    url_host,
    tidemark_redact_url(path(page)) as url_path,
    if(
        has_utm,
        arrayStringConcat(
            arrayMap(
                parameter -> tidemark_redact_url(replaceAll(parameter, '+', ' ')),
                arrayFilter(parameter -> startsWith(parameter, 'utm_'), splitByChar('&', query))
            ),
            '&'
        ),
        ''
    ) as url_parameters,
    referrer_host,
    tidemark_redact_url(path(referring_page)) as referrer_path,
    click_id_kind,
    if(click_id_kind = '', '', tidemark_pseudonym('click_id', tidemark_parameter(query, click_id_kind), pseudonym_key)) as click_id_hash,
    tidemark_source(source_rule_id, utm_source, click_id_kind, referrer_host) as source,
    tidemark_medium(source_rule_id, utm_medium) as medium,
    if(has_utm, tidemark_redact(decodeURLComponent(tidemark_parameter(query, 'utm_campaign'))), '') as campaign,
    source_rule_id,
    tidemark_confidence(click_id_kind, utm_source, utm_medium) as source_confidence,
    dictGetOrDefault('reference.geo', 'country', ifNull(toIPv6OrNull(ip), toIPv6('::')), '') as country,
    if(user_agent = '', toUInt128(0), reinterpretAsUInt128(sipHash128Keyed(user_agent_key, user_agent))) as ua_hash,
    tidemark_sealed(user_agent, seal_key) as sealed_user_agent,
    -- A day whose salt is destroyed, or was never made, has no hash.
    if(
        ip = '' or toDate(event_at) not in (select day from tidemark_keys where name = 'salt'),
        '',
        tidemark_pseudonym('ip', ip, salts[indexOf(salt_days, toDate(event_at))])
    ) as ip_hash,
    tidemark_redact(viewport) as viewport,
    tidemark_redact(language) as language,
    tidemark_redact(timezone) as timezone,
    if(
        length(raw_properties) > 8192,
        concat('{"__truncated":true,"original_bytes":', toString(length(raw_properties)), '}'),
        tidemark_redact_properties(raw_properties)
    ) as properties,
    multiIf(
        -- Nearly every line. What follows copies the lines that it is asked of.
        event_id != '' and event_name != '' and anonymous_id != '' and happened_at is not null
        and substring(event_id, 1, 1) not in ('{', '[') and substring(event_name, 1, 1) not in ('{', '[')
        and substring(anonymous_id, 1, 1) not in ('{', '[') and substring(url, 1, 1) not in ('{', '[')
        and startsWith(raw_properties, '{') and consent in ('', '{"analytics":true}'), '',
        event_id = '', tidemark_unreadable(line, 'event_id'),
        tidemark_is_container(line, event_id, 'event_id'), 'bad_value:event_id',
        event_name = '', 'missing_field:event_name',
        tidemark_is_container(line, event_name, 'event_name'), 'bad_value:event_name',
        anonymous_id = '', 'missing_field:anonymous_id',
        tidemark_is_container(line, anonymous_id, 'anonymous_id'), 'bad_value:anonymous_id',
        timestamp_text = '', 'missing_field:timestamp',
        happened_at is null, 'bad_value:timestamp',
        not startsWith(raw_properties, '{'), 'bad_value:properties',
        tidemark_is_container(line, url, 'url'), 'bad_value:url',
        lower(trimBoth(if(startsWith(consent, '{'), JSONExtractString(consent, 'analytics'), consent))) in ('false', '0', 'no', 'denied'), 'refused:consent',
        ''
    ) as reason
from classified
