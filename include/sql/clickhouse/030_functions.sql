-- What the load SQL of several sources shares. Functions are expressions: they are expanded
-- into the statement that names them, so a branch that is not taken costs nothing.

-- Text that may hold an e-mail address, a phone number, an IP address or a user agent.
-- A cheap test that lets a few innocent texts through to tidemark_redact, and no guilty one past it.
create or replace function tidemark_is_suspect as (t) ->
    match(
        t,
        concat(
            '@|%[0-9A-Fa-f]{2}|[0-9][0-9 ().\-/\\x{a0}\\x{2000}-\\x{2015}\\x{202f}\\x{2212}\\x{3000}]{6,}[0-9]',
            '|[\\x{fe6b}\\x{ff01}-\\x{ff5e}]|[0-9A-Fa-f]:[0-9A-Fa-f]{0,4}:|(?:Mozilla|Dalvik|Opera|okhttp|CFNetwork)/'
        )
    );

create or replace function tidemark_decoded as (t) -> decodeURLComponent(decodeURLComponent(t));

-- As a person reads it: decoded, twice where it was encoded twice, with spaces, dashes, digits and
-- signs of any width (Unicode's NFKC) as those that the patterns know.
create or replace function tidemark_plain as (t) ->
    if(
        match(t, '[^\\x00-\\x7f]'),
        replaceRegexpAll(normalizeUTF8NFKC(toValidUTF8(t)), '[\\x{2010}-\\x{2015}\\x{2212}]', '-'),
        t
    );

create or replace function tidemark_as_read as (t) -> tidemark_plain(tidemark_decoded(t));

-- E-mail: anything@anything.tld. Phone: international (+ or 00), national with a leading zero,
-- grouped by separators, North American ten digits. Digit runs of other lengths are identifiers.
create or replace function tidemark_redact_text as (t) ->
    replaceRegexpAll(
        t,
        concat(
            '[^\s"<>(),;:=&?/@\\\\]+(?:@|%(?:25)*40)[^\s"''<>(),;:=&?/@\\\\]+\.[^\s"''<>(),;:=&?/@\\\\.]{2,}',
            '|(?:\+|\\b00)\(?[0-9][0-9 ().\-]{5,}[0-9]',
            '|\([0-9]{2,5}\) ?[0-9]{2,4}[ .\-]?[0-9]{3,4}',
            '|\\b[0-9]{2,5}[ .\-][0-9]{3,4}[ .\-][0-9]{3,4}(?:[ .\-][0-9]{2,4})*\\b',
            '|\\b0[0-9](?:[ .\-][0-9]{2}){4}\\b',
            '|\\b0[0-9]{2,5}[ .\-/][0-9]{5,8}\\b',
            '|\\b0[0-9]{9,10}\\b',
            '|\\b1?[2-9][0-9]{2}[2-9][0-9]{6}\\b',
            '|\\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\\b',
            '|\\b[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){7}\\b',
            '|\\b[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){1,6}::(?:[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){0,5}\\b)?',
            '|\\b[0-9A-Fa-f]{1,4}::[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){2,6}\\b',
            '|(?:Mozilla|Dalvik|Opera|okhttp|CFNetwork)/[0-9][^"]*'
        ),
        '[redacted]'
    );

-- What a text says to a person counts, not how it is encoded: a link kept in a text may carry an
-- address. One that says nothing stays as it was written.
create or replace function tidemark_redact as (t) ->
    if(
        tidemark_is_suspect(t) and tidemark_redact_text(tidemark_as_read(t)) != tidemark_as_read(t),
        tidemark_redact_text(tidemark_as_read(t)),
        t
    );

-- A path or a parameter is kept decoded.
create or replace function tidemark_redact_url as (t) ->
    multiIf(
        not (position(t, '%') > 0 or tidemark_is_suspect(t)), t,
        tidemark_redact_text(tidemark_as_read(t)) != tidemark_as_read(t), tidemark_redact_text(tidemark_as_read(t)),
        tidemark_decoded(t)
    );

-- Properties are re-serialised JSON, so that string literals can be told from the rest by pattern:
-- values of keys that name personal data go whole, then each literal is redacted as text.
create or replace function tidemark_properties_are_suspect as (p) ->
    match(
        p,
        concat(
            '(?i:"(?:[a-z_ \-]*(?:mail|phone|mobile|name|addr|street|postcode|zip|postal|birth|passport|agent)[a-z_0-9 \-]*|(?:[a-z]+[_ \-])?ip|ua|tel)":)'
        )
    )
    or tidemark_is_suspect(p);

create or replace function tidemark_personal_key as () ->
    concat(
        '(?i)("(?:[a-z_ \-]*(?:e[_ \-]?mail|phone|mobile|(?:first|last|full|given|family|middle|maiden|customer|user|billing|shipping|contact|recipient)[_ \-]?name',
        '|street|postcode|postal[_ \-]?code|zip|zip[_ \-]?code|user[_ \-]?agent|ip[_ \-]?address|date[_ \-]?of[_ \-]?birth|birth(?:day|date)|passport)[a-z_0-9]*',
        '|[a-z_ \-]*address[a-z_0-9]*|(?:[a-z]+[_ \-])?(?:ip|addr)|ua|surname|forename|tel)":)'
    );

-- A list or an object of literals, numbers, and what else is given.
create or replace function tidemark_container as (more) ->
    concat('[{\[](?:[^{}\[\]"]|"(?:[^"\\\\]|\\\\.)*"', more, ')*[}\]]');

-- What stands under such a key: a literal, a number, or a list or object of them, five deep. Of
-- what is deeper nothing stays.
create or replace function tidemark_without_deeper as (p) ->
    if(match(p, concat(tidemark_personal_key(), '[{\[]')), '{}', p);

create or replace function tidemark_personal_properties as (p) ->
    tidemark_without_deeper(replaceRegexpAll(
        p,
        concat(
            tidemark_personal_key(),
            '("(?:[^"\\\\]|\\\\.)*"|-?[0-9][0-9.eE+\-]*|',
            tidemark_container(concat('|', tidemark_container(concat('|', tidemark_container(concat('|', tidemark_container(concat('|', tidemark_container(''))))))))),
            ')'
        ),
        '\1"[redacted]"'
    ));

-- A literal goes whole where what is encoded in it, or written in other signs, must go: as a person
-- reads it, it might not be a literal.
create or replace function tidemark_redact_literal as (token) ->
    multiIf(
        not tidemark_is_suspect(token), token,
        position(token, '%') > 0 and tidemark_redact_text(tidemark_as_read(token)) != tidemark_as_read(token), '"[redacted]"',
        match(token, '[^\\x00-\\x7f]') and tidemark_redact_text(tidemark_plain(tidemark_redact_text(token))) != tidemark_plain(tidemark_redact_text(token)), '"[redacted]"',
        tidemark_redact_text(token)
    );

create or replace function tidemark_redact_properties as (p) ->
    if(
        tidemark_properties_are_suspect(p),
        arrayStringConcat(arrayMap(
            token -> if(startsWith(token, '"'), tidemark_redact_literal(token), token),
            extractAll(tidemark_personal_properties(p), '"(?:[^"\\\\]|\\\\.)*"|[^"]+')
        )),
        p
    );

-- Numbers whose sums and products stay far from overflow, which would stop the whole file: a
-- trillion or more is no amount.
create or replace function tidemark_amount as (value) ->
    if(abs(toDecimal128OrNull(value, 4)) < 1000000000000, toDecimal64OrNull(value, 4), null);

create or replace function tidemark_fine_amount as (value) ->
    if(abs(toDecimal128OrNull(value, 6)) < 1000000000000, toDecimal128OrNull(value, 6), null);

create or replace function tidemark_micros as (value) ->
    if(abs(toDecimal128OrNull(value, 6)) < 1000000000000000000, toDecimal128OrNull(value, 6) / 1000000, null);

create or replace function tidemark_conversions as (value) ->
    if(abs(toDecimal128OrNull(value, 9)) < 1000000000000, toDecimal128OrNull(value, 9), null);

create or replace function tidemark_integer as (value) ->
    if(toInt64OrNull(value) between -1000000000000 and 1000000000000, toInt64OrNull(value), null);

-- A field that should be text or a number but holds an object or a list.
create or replace function tidemark_is_container as (line, value, field) ->
    (startsWith(value, '{') or startsWith(value, '[')) and JSONType(line, field) in ('Object', 'Array');

-- A field that should be a list and is not, or one with an element that is no object: read as an
-- empty list, refunds and items would be lost without a trace.
create or replace function tidemark_is_bad_list as (json, field, length) ->
    JSONType(json, field) not in ('Null', 'Array') or JSONLength(json, field) != length;

-- Why a line that lacks its first required field can't be read.
create or replace function tidemark_unreadable as (line, field) ->
    multiIf(
        not isValidJSON(line), 'invalid_json',
        JSONType(line) != 'Object', 'not_an_object',
        concat('missing_field:', field)
    );

-- HMAC-SHA-256 (RFC 2104) from its two padded keys, in hex: eight times as fast as HMAC(), which
-- sets a context up for every row. key: (key xor ipad, key xor opad), 64 bytes each.
create or replace function tidemark_hmac as (message, key) ->
    lower(hex(SHA256(concat(key.2, SHA256(concat(key.1, message))))));

-- Keyed pseudonym: the first 128 bits as 32 hex digits, apart per kind of identifier.
create or replace function tidemark_pseudonym as (kind, value, key) ->
    if(value = '', '', substring(tidemark_hmac(concat(kind, '\0', value), key), 1, 32));

-- Of 32 bytes as key: for who has it (privacy.Seal) it is the text, for others nothing.
create or replace function tidemark_sealed as (value, key) -> encrypt('aes-256-cbc', value, key);

-- An identifier that somebody made of an e-mail address, or of a phone number that a plus, a space
-- or a bracket gives away; others must stay as they are to match.
create or replace function tidemark_id as (kind, value, key) ->
    if(
        (multiSearchAny(value, ['@', '%']) and match(value, '^[^{\[].*(?:@|%(?:25)*40)'))
        or (multiSearchAny(value, ['+', ' ', '(', '%']) and match(value, '^(?: |%(?:25)*20)*(?:(?:\+|%(?:25)*2[Bb])[0-9 ().\-]{7,}|\(?[0-9][0-9().\-]*[ )][0-9 ().\-]{4,})$')),
        tidemark_pseudonym(kind, value, key),
        value
    );

create or replace function tidemark_text as (value) -> ifNull(value, '');

-- A time says its day and year, or is seconds, milliseconds or microseconds since 1970: of less the
-- engine would make a time of this year.
create or replace function tidemark_time as (value) ->
    if(
        match(
            ifNull(value, ''),
            concat(
                '^\s*(?:[0-9]{4}[\-/.][0-9]{1,2}[\-/.][0-9]|[0-9]{8}(?:[T ]|\s*$)|[0-9]{14}',
                '|(?:[0-9]{9,10}(?:\.[0-9]+)?|[0-9]{13}|[0-9]{16})\s*$',
                '|(?:[A-Za-z]{3},? )?[0-9]{1,2}[ \-][A-Za-z]{3,9}[ \-][0-9]{4})'
            )
        ),
        parseDateTime64BestEffortOrNull(ifNull(value, ''), 6, 'UTC'),
        null
    );

-- Without the white space around it, as Python's str.strip() of privacy.subject_hashes leaves it.
create or replace function tidemark_trimmed as (value) ->
    replaceRegexpAll(value, '^[\\s\\x0b\\x1c-\\x1f\\x{85}\\p{Z}]+|[\\s\\x0b\\x1c-\\x1f\\x{85}\\p{Z}]+$', '');

-- A customer is an e-mail, else the vendor's id of it.
create or replace function tidemark_customer as (email, source, customer_id, key) ->
    if(
        tidemark_trimmed(email) != '',
        tidemark_pseudonym('email', lowerUTF8(tidemark_trimmed(email)), key),
        if(customer_id in ('', '0'), '', tidemark_pseudonym('customer', concat(source, '\0', customer_id), key))
    );

-- A host's entry in the lists of search engines, social networks and AI assistants: its own, its
-- parent's, or that of its registrable domain. Given a LowCardinality host, each distinct host is
-- looked up once a block.
create or replace function tidemark_source_kind as (host) ->
    multiIf(
        dictHas('reference.source_hosts_lookup', host),
        dictGetString('reference.source_hosts_lookup', 'kind', host),
        dictHas('reference.source_hosts_lookup', replaceRegexpOne(host, '^[^.]*\\.', '')),
        dictGetString('reference.source_hosts_lookup', 'kind', replaceRegexpOne(host, '^[^.]*\\.', '')),
        dictGetString('reference.source_hosts_lookup', 'kind', cutToFirstSignificantSubdomain(host))
    );

create or replace function tidemark_source_name as (host) ->
    multiIf(
        dictHas('reference.source_hosts_lookup', host),
        dictGetString('reference.source_hosts_lookup', 'name', host),
        dictHas('reference.source_hosts_lookup', replaceRegexpOne(host, '^[^.]*\\.', '')),
        dictGetString('reference.source_hosts_lookup', 'name', replaceRegexpOne(host, '^[^.]*\\.', '')),
        dictGetStringOrDefault('reference.source_hosts_lookup', 'name', cutToFirstSignificantSubdomain(host), host)
    );

create or replace function tidemark_is_paid as (medium) ->
    medium != ''
    and (
        dictHas('reference.paid_mediums_lookup', medium)
        or arrayExists(
            size -> dictGetOrDefault('reference.paid_mediums_lookup', 'is_prefix', substring(medium, 1, size), false),
            range(1, length(medium))
        )
    );

-- A plus in a query is a space, but for one that somebody forgot to encode: at the start of a number
-- or within an e-mail address. Read as a space it would hide either from the rules of redaction.
create or replace function tidemark_query_with_plus as (query) ->
    if(
        position(query, '+') > 0,
        replaceRegexpAll(
            replaceRegexpAll(query, '([=+]|%20)\+(\(?[0-9])', '\1%2B\2'),
            '\+([^&=+%]+(?:@|%(?:25)*40))', '%2B\1'
        ),
        query
    );

-- A parameter without a value names no click.
create or replace function tidemark_query_without_empty_click_ids as (query) ->
    if(
        position(query, '=&') > 0 or endsWith(query, '='),
        replaceRegexpAll(query, '(?:&(?:gclid|gbraid|wbraid|gad_source|fbclid|ttclid|epik|maas|_kx|msclkid|dclid|yclid|twclid|li_fat_id|ScCid|irclickid|aa_[^&=]*)=)+(&|$)', '\\1'),
        query
    );

-- A landing URL's query string with a leading '&', so that '&name=' finds a parameter.
create or replace function tidemark_query as (url) ->
    if(
        position(url, '?') > 0,
        tidemark_query_without_empty_click_ids(tidemark_query_with_plus(concat('&', queryString(url)))),
        ''
    );

create or replace function tidemark_parameter as (query, name) ->
    if(
        position(query, concat('&', name, '=')) > 0,
        decodeURLFormComponent(splitByChar('&', substring(query, position(query, concat('&', name, '=')) + length(name) + 2), 2)[1]),
        ''
    );

-- The click identifier a URL carries, by name; '' where it has none.
create or replace function tidemark_click_id_kind as (query) ->
    if(
        query = '',
        '',
        ['', 'gclid', 'gbraid', 'wbraid', 'gad_source', 'fbclid', 'ttclid', 'epik', 'maas', '_kx', 'msclkid', 'dclid', 'yclid', 'twclid', 'li_fat_id', 'ScCid', 'irclickid'][
            1 + multiSearchFirstIndex(query, ['&gclid=', '&gbraid=', '&wbraid=', '&gad_source=', '&fbclid=', '&ttclid=', '&epik=', '&maas=', '&_kx=', '&msclkid=', '&dclid=', '&yclid=', '&twclid=', '&li_fat_id=', '&ScCid=', '&irclickid='])
        ]
    );

-- The rules of the contract, first match wins. query is that of tidemark_query; utm_source and
-- medium are in lower case; the hosts in lower case, best as LowCardinality.
create or replace function tidemark_source_rule as (utm_source, medium, query, host, referrer_host) ->
    multiIf(
        utm_source = '' and medium = '' and query = '' and referrer_host = '', 'r13',
        utm_source = '' and medium = '' and query = '' and referrer_host = host, 'r08',
        multiSearchAny(query, ['&gclid=', '&gbraid=', '&wbraid=', '&gad_source='])
        or (utm_source in ('google', 'adwords', 'youtube') and tidemark_is_paid(medium)), 'r01',
        utm_source in ('facebook', 'fb', 'instagram', 'ig', 'meta', 'an')
        and (tidemark_is_paid(medium) or position(query, '&fbclid=') > 0), 'r02',
        position(query, '&ttclid=') > 0 or (utm_source = 'tiktok' and tidemark_is_paid(medium)), 'r03',
        position(query, '&epik=') > 0 or (utm_source = 'pinterest' and tidemark_is_paid(medium)), 'r04',
        multiSearchAny(query, ['&maas=', '&aa_']) or (utm_source = 'amazon' and tidemark_is_paid(medium)), 'r05',
        medium in ('email', 'e-mail', 'newsletter', 'sms') or utm_source = 'klaviyo' or position(query, '&_kx=') > 0, 'r06',
        medium != '' and tidemark_is_paid(medium), 'r07',
        referrer_host != '' and utm_source = '' and medium = '' and position(query, '&utm_') = 0
        and (
            referrer_host = host
            or (host != '' and cutToFirstSignificantSubdomain(referrer_host) = cutToFirstSignificantSubdomain(host) and cutToFirstSignificantSubdomain(host) != '')
        ), 'r08',
        tidemark_source_kind(referrer_host) = 'ai' or tidemark_source_kind(utm_source) = 'ai', 'r09',
        medium = 'organic' or tidemark_source_kind(referrer_host) = 'search' or tidemark_source_kind(utm_source) = 'search', 'r10',
        medium = 'social' or tidemark_source_kind(referrer_host) = 'social' or tidemark_source_kind(utm_source) = 'social'
        or (utm_source = '' and position(query, '&fbclid=') > 0), 'r11',
        referrer_host != '' or utm_source != '', 'r12',
        'r13'
    );

-- What a tagged link says of its source and medium, or else what the referrer, the click id and the
-- rule say.
create or replace function tidemark_source as (rule, utm_source, click_id_kind, referrer_host) ->
    multiIf(
        rule in ('r08', 'r13'), '',
        utm_source != '', tidemark_redact(utm_source),
        referrer_host != '', tidemark_source_name(referrer_host),
        rule = 'r05', 'amazon',
        transform(
            click_id_kind,
            ['gclid', 'gbraid', 'wbraid', 'gad_source', 'fbclid', 'ttclid', 'epik', '_kx'],
            ['google', 'google', 'google', 'google', 'facebook', 'tiktok', 'pinterest', 'klaviyo'],
            click_id_kind
        )
    );

create or replace function tidemark_medium as (rule, utm_medium) ->
    if(
        utm_medium != '',
        tidemark_redact(utm_medium),
        transform(
            rule,
            ['r01', 'r02', 'r03', 'r04', 'r05', 'r06', 'r07', 'r09', 'r10', 'r11', 'r12'],
            ['cpc', 'cpc', 'cpc', 'cpc', 'cpc', 'email', 'paid', 'ai', 'organic', 'social', 'referral'],
            ''
        )
    );

create or replace function tidemark_confidence as (click_id_kind, utm_source, utm_medium) ->
    multiIf(click_id_kind != '' or utm_medium != '', 'high', utm_source != '', 'medium', 'low');
