create table if not exists reference.workspaces
(
    workspace_id String,
    timezone LowCardinality(String),
    currency LowCardinality(String),
    currency_exponent UInt8 comment 'Digits of the minor unit',
    plan LowCardinality(String),
    revenue_source LowCardinality(String) comment 'orders or payments'
)
engine = ReplacingMergeTree
order by workspace_id;

create table if not exists reference.user_agents
(
    ua_hash UInt128 comment 'Keyed sipHash of the user agent, which is not kept',
    device_type LowCardinality(String),
    browser LowCardinality(String),
    os LowCardinality(String),
    is_bot Bool,
    is_ai_agent Bool
)
engine = ReplacingMergeTree
order by ua_hash;

-- The days the running build recomputes, per measure group; written by the build, read by dbt.
create table if not exists reference.build_scope
(
    workspace_id LowCardinality(String),
    measure_group LowCardinality(String) comment 'pixel, orders, payments, spend or email',
    local_date Date
)
engine = MergeTree
order by (workspace_id, measure_group, local_date);

-- Days whose raw rows are gone, per measure group: no build may touch them again. Written by the purge.
create table if not exists retention.frozen_days
(
    workspace_id LowCardinality(String),
    measure_group LowCardinality(String),
    local_date Date
)
engine = ReplacingMergeTree
order by (workspace_id, measure_group, local_date);
