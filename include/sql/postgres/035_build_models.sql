-- Builds that run in layers, as Airflow does them: what became of each node, for the run's page and
-- for a retry, which leaves out what is done.
alter table control.builds add column if not exists scope_batch_id bigint;

create table if not exists control.build_models (
    build_id bigint not null references control.builds (build_id),
    node text not null,
    name text not null,
    layer text not null check (layer in ('staging', 'intermediate', 'marts')),
    status text not null,
    seconds double precision not null check (seconds >= 0),
    -- In the table afterwards; null for views and tests.
    rows bigint check (rows >= 0),
    finished_at timestamptz not null,
    primary key (build_id, node)
);

create table if not exists control.build_layers (
    build_id bigint not null references control.builds (build_id),
    layer text not null check (layer in ('staging', 'intermediate', 'marts')),
    finished_at timestamptz not null,
    primary key (build_id, layer)
);

-- The page Retention counts the deliveries of the last weeks, of all sources and workspaces.
create index if not exists loads_delivery
on control.loads (delivery_date, source, workspace_id);

do $$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'analyst') then
        grant select on control.build_models, control.build_layers to analyst;
    end if;
end
$$;
