-- Cold files and what was brought back of them. A file without a manifest is still being written;
-- one without sealed_at is a copy of rows that stand, and with it the only place they are in.
create table if not exists control.cold_files (
    cold_id bigint generated always as identity primary key,
    class text not null,
    workspace_id text not null,
    -- The first day of the month.
    month date not null,
    step_id text not null,
    plan_id text not null,
    table_name text not null,
    -- Below the cold location.
    path text not null,
    manifest jsonb,
    tiered_at timestamptz not null,
    verified_at timestamptz,
    sealed_at timestamptz,
    deleted_at timestamptz,
    check (sealed_at is null or manifest is not null),
    check (deleted_at is null or sealed_at is not null)
);

create unique index if not exists cold_files_path on control.cold_files (path);
create index if not exists cold_files_month on control.cold_files (class, workspace_id, month);
create index if not exists cold_files_step on control.cold_files (step_id);

-- A month that was brought back, or is being: its rows may be read once recalled_at is set.
create table if not exists control.recalls (
    recall_id bigint generated always as identity primary key,
    class text not null,
    workspace_id text not null,
    -- The first day of the month.
    month date not null,
    reason text not null,
    as_of date not null,
    -- The first day on which its rows are due to go.
    expires_on date not null,
    begun_at timestamptz not null,
    recalled_at timestamptz,
    -- Rows brought back, and rows left out because their subject was erased.
    row_count bigint check (row_count >= 0),
    erased_rows bigint check (erased_rows >= 0),
    removed_at timestamptz
);

create unique index if not exists recalls_in_force
on control.recalls (class, workspace_id, month) where removed_at is null;

do $$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'analyst') then
        grant select on control.cold_files, control.recalls to analyst;
    end if;
end
$$;
