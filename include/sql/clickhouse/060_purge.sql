-- What the purge's one door opens: a macro destroys only what a row here names, until it expires.
create table if not exists retention.permits
(
    plan_id String,
    step_id String,
    table_name LowCardinality(String),
    partition_id String,
    predicate String comment 'SQL over the table that holds for the rows to go',
    is_whole_partition Bool,
    row_count UInt64,
    hashed_columns String comment 'What the fingerprint is made of, as SQL',
    fingerprint String,
    expires_at DateTime('UTC')
)
engine = MergeTree
order by (plan_id, step_id, table_name);

-- The days of the step that runs, whose facts the snapshots keep.
create table if not exists retention.expiring_days
(
    workspace_id LowCardinality(String),
    measure_group LowCardinality(String),
    local_date Date
)
engine = MergeTree
order by (workspace_id, measure_group, local_date);

-- What the facts behind the marts knew of raw's rows when these went.
create table if not exists retention.purged_coverage
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

-- Pseudonyms that a hold names, from the operational store; class is empty where it names all.
create table if not exists retention.held_subjects
(
    hold_id UInt64,
    workspace_id String,
    class String,
    subject String
)
engine = MergeTree
order by (workspace_id, class, subject);
