-- A batch makes files of one source visible together. prepared: every table of it stands ready
-- in ClickHouse, so a rerun rolls it forward; what came less far a rerun throws away.
create table if not exists control.load_batches (
    batch_id bigint generated always as identity primary key,
    source text not null,
    status text not null check (status in ('prepared', 'done')),
    -- Names of the raw tables that change.
    tables text[] not null,
    -- Per load: what to add to its counts and days.
    results jsonb not null,
    prepared_at timestamptz not null,
    done_at timestamptz
);

-- The days a batch changed; a build takes those of the batches since the last one.
create table if not exists control.touched_days (
    batch_id bigint not null references control.load_batches (batch_id),
    workspace_id text not null,
    measure text not null,
    local_date date not null,
    primary key (batch_id, workspace_id, measure, local_date)
);

alter table control.builds add column if not exists last_batch_id bigint;
