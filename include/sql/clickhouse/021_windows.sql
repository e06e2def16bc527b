-- The retention window in force per workspace and class, in whole months (an override in days rounds down).
-- Written by the build from the policy and its overrides, read by marts.kpi_availability.
create table if not exists reference.windows
(
    workspace_id LowCardinality(String),
    class LowCardinality(String) comment 'As the policy names it: pixel_events, orders, payments, ad_spend, …',
    window_months UInt16,
    is_override Bool
)
engine = ReplacingMergeTree
order by (workspace_id, class);

-- What each figure that needs a long history asks of each class.
create table if not exists reference.figures
(
    figure LowCardinality(String),
    class LowCardinality(String) comment 'As the policy names it',
    required_months UInt16
)
engine = ReplacingMergeTree
order by (figure, class);

-- Numbers of the policy that models compare with.
create table if not exists reference.limits
(
    name LowCardinality(String),
    value UInt64
)
engine = ReplacingMergeTree
order by name;
