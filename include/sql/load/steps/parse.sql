-- Lines to rows and reasons: what every source shares around its own select.
insert into load.lines ({{ columns }})
with
    (select (unhex(any(inner_key)), unhex(any(outer_key))) from tidemark_keys where name = 'pseudonym') as pseudonym_key,
    (select (unhex(any(inner_key)), unhex(any(outer_key))) from tidemark_keys where name = 'ledger') as ledger_key,
    (select (reinterpretAsUInt64(unhex(any(inner_key))), reinterpretAsUInt64(unhex(any(outer_key)))) from tidemark_keys where name = 'user_agent') as user_agent_key,
    (select unhex(any(inner_key)) from tidemark_keys where name = 'seal') as seal_key,
    (select arraySort(groupArray((day, unhex(inner_key), unhex(outer_key)))) from tidemark_keys where name = 'salt') as salt_rows,
    arrayMap(salt -> salt.1, salt_rows) as salt_days,
    arrayMap(salt -> (salt.2, salt.3), salt_rows) as salts,
    numbered_lines as (
        select line, row_number() over (rows between current row and current row) as number
        -- Behind the numbering the lines go on in as many threads as there were streams before it:
        -- without the second, empty one that is a single thread.
        from (select line from input('line String') union all select '' from numbers(0))
    ),
    wanted_lines as (
        select
            line,
            roundDown(number, {first_lines:Array(UInt64)}) as first_line,
            transform(
                first_line, {first_lines:Array(UInt64)}, {offsets:Array(UInt64)}, toUInt64(0)
            ) + number - first_line + 1 as line_number,
            transform(
                first_line, {first_lines:Array(UInt64)}, {load_ids:Array(UInt64)}, toUInt64(0)
            ) as load_id
        from numbered_lines
        where {is_retry:UInt8} = 0 or (load_id, line_number) in (
            select load_id, line_number from raw.quarantine
            where load_id in {load_ids:Array(UInt64)} and reason in {{ retryable }}
        )
    ),
    parsed_lines as (
{{ source }}
    ),
    placed_lines as (
        select
            *{{ carried }},
            {workspace_id:String} as workspace_id,
            {source:String} as source_system,
            toDate(toTimeZone(ifNull(happened_at, toDateTime64(0, 6, 'UTC')), {timezone:String})) as local_date,
            transform(
                load_id,
                {load_ids:Array(UInt64)},
                {delivery_dates:Array(Date)},
                toDate(0)
            ) as delivery_date
        from parsed_lines
    ),
    aged_lines as (
        select
            *,
            local_date < {oldest:Date}
            or local_date in (
                select local_date from retention.frozen_days
                where workspace_id = {workspace_id:String} and measure_group = '{{ measure_group }}'
            ) as is_late
        from placed_lines
    ),
    judged_lines as (
        select
            * except (reason),
            multiIf(
                {is_known:UInt8} = 0, 'unknown_workspace',
                -- The parse would read a list by the places of its elements.
                not startsWith(line, '{') and not startsWith(trimLeft(line), '{'),
                if(isValidJSON(line), 'not_an_object', 'invalid_json'),
                reason != '', reason,
                happened_at < toDateTime64('2000-01-01 00:00:00', 6, 'UTC')
                or happened_at >= toDateTime64(addDays({as_of:Date}, 2), 6, 'UTC'), 'bad_timestamp',
                is_late and not {{ is_carrier }}, 'past_retention',
                {{ is_erased }}, 'refused:erasure',
                ''
            ) as reason
        from aged_lines
    ),
    final as (
        select
            *,
            {{ row_key }} as row_key,
            {{ version }} as version_at,
            if(
                reason = '' or startsWith(reason, 'refused:'),
                '',
                substring(tidemark_hmac(line, ledger_key), 1, 32)
            ) as line_hash
        from judged_lines
    )
select {{ columns }}
from final
format LineAsString
