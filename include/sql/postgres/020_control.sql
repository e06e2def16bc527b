-- What Tidemark itself decides with: policy, keys, ledgers. Times that decide something come in
-- as values; defaults of now() are bookkeeping only.
create table if not exists control.policy (
    version integer not null,
    sha256 text not null unique,
    document jsonb not null,
    loaded_at timestamptz not null
);

create table if not exists control.overrides (
    override_id bigint generated always as identity primary key,
    workspace_id text not null,
    class text not null,
    window_value integer not null check (window_value > 0),
    window_unit text not null check (window_unit in ('day', 'month')),
    set_at timestamptz not null,
    withdrawn_at timestamptz
);

create unique index if not exists overrides_in_force
on control.overrides (workspace_id, class) where withdrawn_at is null;

create table if not exists control.holds (
    hold_id bigint generated always as identity primary key,
    workspace_id text not null,
    class text,
    -- Of one person: every keyed hash that may stand for them; empty for the whole workspace.
    subject_hashes text[] not null default '{}',
    reason text not null,
    added_at timestamptz not null,
    released_at timestamptz
);

-- A destroyed key leaves its row as the record that it existed, never its bytes.
create table if not exists control.keys (
    workspace_id text not null,
    purpose text not null check (purpose in ('pseudonym', 'erasure', 'ledger')),
    wrapped_key bytea,
    created_at timestamptz not null,
    destroyed_at timestamptz,
    primary key (workspace_id, purpose),
    check ((wrapped_key is null) = (destroyed_at is not null))
);

create table if not exists control.salts (
    day date primary key,
    wrapped_salt bytea,
    created_at timestamptz not null,
    destroyed_at timestamptz,
    check ((wrapped_salt is null) = (destroyed_at is not null))
);

create table if not exists control.loads (
    load_id bigint generated always as identity primary key,
    source text not null,
    workspace_id text not null,
    delivery_date date not null,
    file_name_hash text not null,
    file_sha256 text not null,
    bytes bigint not null check (bytes >= 0),
    status text not null check (status in ('staged', 'loaded')),
    lines bigint check (lines >= 0),
    stored bigint check (stored >= 0),
    duplicate bigint check (duplicate >= 0),
    quarantined bigint check (quarantined >= 0),
    refused bigint check (refused >= 0),
    retryable bigint not null default 0 check (retryable >= 0),
    as_of date not null,
    attempt integer not null default 1 check (attempt >= 1),
    started_at timestamptz not null,
    loaded_at timestamptz,
    unique (source, workspace_id, delivery_date, file_name_hash, file_sha256),
    constraint loads_account_for_every_line check (
        status <> 'loaded'
        or (
            loaded_at is not null
            and coalesce(lines = stored + duplicate + quarantined + refused, false)
        )
    )
);

create table if not exists control.load_days (
    load_id bigint not null references control.loads (load_id),
    source text not null,
    workspace_id text not null,
    local_date date not null,
    measure text not null,
    currency text not null,
    event_count bigint not null,
    distinct_ids bigint not null,
    money numeric(38, 6) not null,
    primary key (load_id, source, workspace_id, local_date, currency, measure)
);

create index if not exists load_days_day on control.load_days (workspace_id, local_date);

create table if not exists control.verdicts (
    verdict_id bigint generated always as identity primary key,
    checkpoint text not null,
    plan_id text,
    run_id text not null,
    validation_result_id text not null,
    success boolean not null,
    as_of date not null,
    created_at timestamptz not null,
    statistics jsonb not null
);

create table if not exists control.purge_ledger (
    id bigint generated always as identity primary key,
    class text not null,
    workspace_id text not null,
    local_date date not null,
    plan_id text,
    purged_at timestamptz not null,
    unique (class, workspace_id, local_date)
);

create table if not exists control.requests (
    request_id bigint generated always as identity primary key,
    code text not null unique,
    workspace_id text not null,
    kind text not null check (kind in ('erase', 'export')),
    status text not null check (status in ('received', 'running', 'done', 'failed', 'held')),
    received_at timestamptz not null,
    due_at timestamptz not null,
    finished_at timestamptz
);

create table if not exists control.erasure_list (
    workspace_id text not null,
    subject_hash text not null,
    added_at timestamptz not null,
    primary key (workspace_id, subject_hash)
);

create table if not exists control.builds (
    build_id bigint generated always as identity primary key,
    started_at timestamptz not null,
    finished_at timestamptz,
    from_date date,
    to_date date,
    full_range boolean not null default false,
    success boolean,
    as_of date not null
);

create table if not exists control.build_days (
    build_id bigint not null references control.builds (build_id),
    workspace_id text not null,
    local_date date not null,
    primary key (build_id, workspace_id, local_date)
);

-- Statements run with `tidemark sql --write`: that one ran, never what it said.
create table if not exists control.emergency_writes (
    id bigint generated always as identity primary key,
    store text not null check (store in ('clickhouse', 'postgres')),
    os_user text not null,
    statement_kind text not null,
    query_sha256 text not null,
    started_at timestamptz not null,
    finished_at timestamptz,
    success boolean
);

-- Tables without personal data or secrets. Anything new stays closed until it is named here.
do $$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'analyst') then
        grant select on
            app.workspaces, control.loads, control.load_days, control.verdicts, control.builds,
            control.build_days, control.purge_ledger, control.overrides, control.policy,
            control.emergency_writes
        to analyst;
    end if;
end
$$;
