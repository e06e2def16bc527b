-- Whose rows an analyst of one workspace sees: row-level security asks own_workspace().
create table if not exists control.workspace_logins (
    login text primary key,
    workspace_id text not null
);

-- As the owner, because its callers may not read the table. The session's own login decides, which
-- neither `set role` nor a setting changes; without a row there it is null, and no row is seen.
create or replace function control.own_workspace() returns text
language sql stable security definer set search_path = pg_catalog
as $$
    select workspace_id from control.workspace_logins where login = session_user
$$;
