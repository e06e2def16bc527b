-- The three schemas and who may look into them. `analytics` is dbt's output on PostgreSQL.
create schema if not exists app;
create schema if not exists control;
create schema if not exists analytics;

revoke all on schema public from public;

-- A cluster names its own read-only login; there the administrator grants it the same.
do $$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'analyst') then
        grant usage on schema app, control, analytics to analyst;
        alter default privileges in schema analytics grant select on tables to analyst;
    end if;
end
$$;
