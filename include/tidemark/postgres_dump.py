"""Dumps of PostgreSQL by its own programs, and what the rows in them are."""

import os
import secrets
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psycopg import sql

from tidemark import postgres, processes, secrets_store
from tidemark.config import Settings
from tidemark.errors import TidemarkError
from tidemark.postgres import Connection

#: Tidemark's own: what its schema files and dbt make.
SCHEMAS = ("app", "control", "analytics")
#: A dump is read back into a database of this name, which is gone afterwards.
SCRATCH = "tidemark_scratch"


def tables(connection: Connection) -> tuple[str, ...]:
    """Every table of the schemas, as `schema.table`, in order."""
    rows = connection.execute(
        "select concat(schemaname, '.', tablename) as name from pg_catalog.pg_tables"
        " where schemaname = any(%s)",
        [list(SCHEMAS)],
    )
    return tuple(sorted(row["name"] for row in rows))


def figures(connection: Connection, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """What the rows of tables are: how many, and a sum of hashes over every column of each."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        table = sql.Identifier(*name.split(".", 1))
        row = connection.execute(
            sql.SQL(
                "select count(*) as rows,"
                " coalesce(sum(hashtextextended(own::text, 0)::numeric), 0)::text as hash"
                " from {} as own"
            ).format(table)
        ).fetchone()
        assert row is not None
        found[name] = {"rows": int(row["rows"]), "hash": row["hash"]}
    return found


@contextmanager
def snapshot(settings: Settings) -> Iterator[tuple[Connection, str]]:
    """A connection that sees one moment, and the name under which a dump sees the same."""
    with postgres.connect(settings) as connection:
        connection.execute("set transaction isolation level repeatable read, read only")
        row = connection.execute("select pg_export_snapshot() as name").fetchone()
        assert row is not None
        yield connection, row["name"]


def dump(settings: Settings, path: Path, of_snapshot: str, without: Collection[str]) -> None:
    """Write the schemas into a file, in pg_dump's custom format.

    Args:
        without: tables whose rows stay out.

    Raises:
        TidemarkError: pg_dump fails.
    """
    _run(
        settings,
        "pg_dump",
        "--format=custom",
        f"--snapshot={of_snapshot}",
        *(f"--schema={schema}" for schema in SCHEMAS),
        *(f"--exclude-table-data={name}" for name in sorted(without)),
        f"--file={path}",
        "--dbname=tidemark",
    )
    path.chmod(0o600)


def restore(settings: Settings, path: Path, database: str, table: str | None = None) -> None:
    """Bring a dump's schemas into a database that has none of them, all or nothing.

    Owners and rights are not the dump's: `postgres.migrate` and `roles` give them again.

    Args:
        table: only the rows of this one, whose table stands.

    Raises:
        TidemarkError: pg_restore fails.
    """
    only = []
    if table is not None:
        schema, name = table.split(".", 1)
        only = ["--data-only", f"--schema={schema}", f"--table={name}"]
    _run(
        settings,
        "pg_restore",
        "--no-owner",
        "--no-privileges",
        "--single-transaction",
        "--exit-on-error",
        *only,
        f"--dbname={database}",
        str(path),
    )


@contextmanager
def scratch(settings: Settings) -> Iterator[Connection]:
    """A connection to an empty database that is dropped at the end; a killed run's goes first."""
    with postgres.connect(settings, "superuser", autocommit=True) as superuser:
        name = sql.Identifier(SCRATCH)
        drop = sql.SQL("drop database if exists {} with (force)").format(name)
        superuser.execute(drop)
        try:
            superuser.execute(sql.SQL("create database {} owner tidemark").format(name))
            superuser.execute(sql.SQL("revoke all on database {} from public").format(name))
            with postgres.connect(settings, database=SCRATCH, autocommit=True) as connection:
                yield connection
        finally:
            superuser.execute(drop)


def _run(settings: Settings, program: str, *arguments: str) -> None:
    with _password_file(settings) as path:
        environment: Mapping[str, str] = {
            **processes.clean_environment(),
            "PGPASSFILE": str(path),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(settings.postgres_port),
            "PGUSER": "tidemark",
            "PGTZ": "UTC",
        }
        done = subprocess.run(
            [str(postgres.binaries() / program), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            umask=0o077,
        )
    if done.returncode != 0:
        # Its first line; what follows may quote a row.
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise TidemarkError(f"{program} failed: {said[0].strip()}")


@contextmanager
def _password_file(settings: Settings) -> Iterator[Path]:
    path = settings.run / f"pgpass-{secrets.token_hex(8)}"
    password = (
        secrets_store.read_password(settings.secrets, secrets_store.POSTGRES_OWNER)
        .replace("\\", "\\\\")
        .replace(":", "\\:")
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"127.0.0.1:{settings.postgres_port}:*:tidemark:{password}\n")
        yield path
    finally:
        path.unlink(missing_ok=True)
