-- Plans as they were made: a verdict and a purge refer to one by its id, a hash of the document.
create table if not exists control.plans (
    plan_id text primary key,
    as_of date not null,
    created_at timestamptz not null,
    document jsonb not null
);

alter table control.verdicts add column if not exists class text;
create index if not exists verdicts_plan on control.verdicts (plan_id, class);

-- What went, counted as the load ledger counts it: with what stands it adds up to what was loaded.
create table if not exists control.purged_rows (
    step_id text not null,
    class text not null,
    measure text not null,
    workspace_id text not null,
    local_date date not null,
    currency text not null,
    event_count bigint not null,
    distinct_ids bigint not null,
    money numeric(38, 6) not null,
    primary key (step_id, measure, workspace_id, local_date, currency)
);

create index if not exists purged_rows_day on control.purged_rows (workspace_id, local_date);

-- What a purge closes stays closed, and what it counted stays counted.
create or replace function control.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only', tg_table_name;
end
$$;

do $$
declare
    kept text;
begin
    foreach kept in array array['plans', 'purged_rows', 'purge_ledger'] loop
        execute format(
            'create or replace trigger refuse_change before update or delete on control.%I'
            ' for each row execute function control.refuse_change()', kept
        );
        execute format(
            'create or replace trigger refuse_truncate before truncate on control.%I'
            ' for each statement execute function control.refuse_change()', kept
        );
    end loop;
    if exists (select from pg_catalog.pg_roles where rolname = 'analyst') then
        grant select on control.plans, control.purged_rows to analyst;
    end if;
end
$$;
