-- block: stage
base LowCardinality(String),
quote LowCardinality(String),
rate Decimal(38, 12)

-- block: key
reinterpretAsUInt128(sipHash128(local_date, toString(base), toString(quote)))

-- block: version
toDateTime64(0, 6, 'UTC')

-- block: target raw.fx_rates
select stage.* except (source_system, row_key, version_at)
from {{ stage }} as stage

-- block: effects fx_rates
select
    load_id,
    line_number,
    workspace_id,
    local_date,
    quote as currency,
    concat(base, '\0', quote) as id,
    toDecimal128(0, 6) as money
from {{ raw.fx_rates }}
