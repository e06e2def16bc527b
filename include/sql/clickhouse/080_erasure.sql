-- By what the rows of a person are found while a request for their erasure runs: keyed hashes, keys of
-- what is linked to them, and for each the random pseudonym that takes its place where a row stays.
-- A request's partition is dropped when it has run; nothing remembers then what became of what.
create table if not exists retention.erasing_values
(
    code String comment 'Of the request',
    kind LowCardinality(String) comment 'What the value is: see include/tidemark/erasure.py',
    value String,
    pseudonym String
)
engine = MergeTree
partition by code
order by (code, kind, value);

-- What was erased of days that still change: the facts are made again without it, the load ledger has it.
create table if not exists retention.erased_coverage
(
    workspace_id LowCardinality(String),
    class LowCardinality(String) comment 'The measure, as retention.coverage names it',
    local_date Date,
    currency LowCardinality(String),
    row_count UInt64,
    distinct_ids UInt64,
    money Decimal(38, 6),
    step_id String
)
engine = MergeTree
order by (workspace_id, class, local_date, currency);
