-- Daily rates: units of quote for one of base.
with parsed as (
    select
        line,
        load_id,
        line_number,
        JSONExtract(line, 'Tuple(date Nullable(String), base Nullable(String), quote Nullable(String), rate Nullable(String))') as r
    from {{ lines }}
),

fields as (
    select
        line,
        load_id,
        line_number,
        tidemark_text(r.date) as date_text,
        tidemark_time(date_text) as happened_at,
        upper(tidemark_text(r.base)) as base,
        upper(tidemark_text(r.quote)) as quote,
        tidemark_text(r.rate) as rate_text,
        toDecimal128OrNull(rate_text, 12) as rate_or_null
    from parsed
)

select
    line,
    load_id,
    line_number,
    happened_at,
    base,
    quote,
    ifNull(rate_or_null, 0) as rate,
    multiIf(
        date_text = '', tidemark_unreadable(line, 'date'),
        happened_at is null, 'bad_value:date',
        base = '', 'missing_field:base',
        not dictHas('reference.currencies_lookup', base), 'bad_value:base',
        quote = '', 'missing_field:quote',
        not dictHas('reference.currencies_lookup', quote), 'bad_value:quote',
        rate_text = '', 'missing_field:rate',
        rate_or_null is null or rate_or_null <= 0 or rate_or_null >= 1000000000, 'bad_value:rate',
        ''
    ) as reason
from fields
