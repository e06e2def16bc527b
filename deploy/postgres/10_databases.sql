-- Runs once, in an empty server: logins and databases as `tidemark up` makes them on a laptop.
-- Passwords come from files into psql's variables; the server gets them once, over its own socket.
\set ON_ERROR_STOP on
\set owner_password `cat /run/secrets/postgres_owner`
\set analyst_password `cat /run/secrets/postgres_analyst`
\set airflow_password `cat /run/secrets/postgres_airflow`

set log_statement = 'none';
set log_min_error_statement = 'panic';
create role tidemark login password :'owner_password';
create role analyst login password :'analyst_password';
create role airflow login password :'airflow_password';
create database tidemark owner tidemark;
create database airflow owner airflow;
revoke all on database tidemark from public;
revoke all on database airflow from public;
grant connect on database tidemark to analyst;
alter role analyst in database tidemark set search_path = analytics;
alter role analyst set default_transaction_read_only = on;
alter role analyst set statement_timeout = '10min';

\connect tidemark
-- By default every login may make large objects and take advisory locks.
do $$
declare
    signature text;
begin
    for signature in
        select oid::regprocedure::text from pg_catalog.pg_proc
        where pronamespace = 'pg_catalog'::regnamespace
            and proname ~ '^(lo_|lowrite$|loread$|pg_(try_)?advisory_)'
    loop
        execute format('revoke execute on function %s from public', signature);
        execute format('grant execute on function %s to tidemark', signature);
    end loop;
end
$$;
