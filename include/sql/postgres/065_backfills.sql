-- Backfills, with their reason; one without finished_at did not come to its end.
create table if not exists control.backfills (
    backfill_id bigint generated always as identity primary key,
    from_date date not null,
    to_date date not null,
    reason text not null,
    as_of date not null,
    started_at timestamptz not null,
    finished_at timestamptz,
    files bigint,
    stored bigint,
    quarantined bigint,
    -- Workspace days rebuilt, and months of a class that were left as they are.
    days bigint,
    closed bigint,
    check (to_date >= from_date)
);

do $$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'analyst') then
        grant select on control.backfills to analyst;
    end if;
end
$$;
