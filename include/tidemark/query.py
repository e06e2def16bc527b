"""Run a person's query, read-only as the analyst or, on record, as the owner."""

import getpass
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import psycopg

from tidemark import clickhouse, ledger, postgres
from tidemark.config import Settings
from tidemark.errors import TidemarkError, UsageError
from tidemark.keys import Keyring

Store = Literal["clickhouse", "postgres"]

_COMMENT = re.compile(r"\A(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Result:
    """Rows of a query; a statement without rows has neither columns nor rows.

    `raw` holds the answer as it came when the query names an output format itself.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    raw: bytes | None = None

    def as_objects(self) -> list[dict[str, Any]]:
        """The rows as dicts.

        Raises:
            UsageError: the query chose its own output format, so there are no rows to read.
        """
        if self.raw is not None:
            raise UsageError("leave FORMAT out of the query to get JSON rows")
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def run(settings: Settings, query: str, store: Store, *, write: bool = False) -> Result:
    """Run one query.

    Args:
        write: run it as the owner; `control.emergency_writes` then says who ran what kind of
            statement and its hash, and the ledger that one ran, whatever comes of it.

    Raises:
        TidemarkError: the store refused or failed the query, or the ledger is not what it was.
        UsageError: the query is empty.
    """
    if not query[_comment_end(query) :].strip(" \t\r\n;"):
        raise UsageError("the query is empty")
    if not write:
        return _run(settings, query, store, owner=False)
    with _on_record(settings, query, store):
        return _run(settings, query, store, owner=True)


def _run(settings: Settings, query: str, store: Store, *, owner: bool) -> Result:
    if store == "clickhouse":
        return _run_clickhouse(settings, query, owner)
    return _run_postgres(settings, query, owner)


def _run_clickhouse(settings: Settings, query: str, owner: bool) -> Result:
    response = clickhouse.execute(
        settings,
        query,
        "owner" if owner else "analyst",
        params={"default_format": "JSONCompact"},
    )
    if not response.body.strip():
        return Result((), ())
    if response.format not in (None, "JSONCompact"):
        return Result((), (), raw=response.body)
    try:
        document = json.loads(response.body, parse_float=Decimal)
        columns = [(str(column["name"]), str(column["type"])) for column in document["meta"]]
        data = document["data"]
    except (ValueError, KeyError, TypeError):
        return Result((), (), raw=response.body)
    is_time = [_is_utc_time(kind) for _, kind in columns]
    return Result(
        tuple(name for name, _ in columns),
        tuple(
            tuple(
                value.replace(" ", "T") + "Z" if utc and isinstance(value, str) else value
                for value, utc in zip(row, is_time, strict=True)
            )
            for row in data
        ),
    )


def _is_utc_time(kind: str) -> bool:
    # Both daemon and servers run in UTC, so a time without a zone of its own is UTC too.
    inner = re.sub(r"\A(?:Nullable|LowCardinality)\((.*)\)\Z", r"\1", kind)
    zone = re.search(r"'([^']*)'", inner)
    return inner.startswith("DateTime") and (zone is None or zone[1] in ("UTC", "Etc/UTC"))


def _run_postgres(settings: Settings, query: str, owner: bool) -> Result:
    with postgres.connect(settings, "tidemark" if owner else "analyst") as connection:
        try:
            with connection.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
                cursor.execute(query.encode())
                # Of several statements, the last one that returns rows is shown.
                result = Result((), ())
                while True:
                    if cursor.description is not None:
                        columns = tuple(column.name for column in cursor.description)
                        result = Result(columns, tuple(cursor.fetchall()))
                    if not cursor.nextset():
                        return result
        except psycopg.Error as error:
            primary = error.diag.message_primary or str(error).strip()
            raise TidemarkError(f"PostgreSQL: {primary}") from error


@contextmanager
def _on_record(settings: Settings, query: str, store: Store) -> Iterator[None]:
    ledger.refuse_half_restored(settings)
    keyring = Keyring.from_settings(settings)
    kind, digest = _kind(query), hashlib.sha256(query.encode()).hexdigest()
    with postgres.connect(settings, autocommit=True) as connection:
        now = datetime.now(UTC)
        with connection.transaction():
            row = connection.execute(
                "insert into control.emergency_writes"
                " (store, os_user, statement_kind, query_sha256, started_at)"
                " values (%s, %s, %s, %s, %s) returning id",
                [store, getpass.getuser(), kind, digest, now],
            ).fetchone()
            assert row is not None
            known = {
                "id": row["id"], "store": store, "statement_kind": kind, "query_sha256": digest,
            }  # fmt: skip
            ledger.append(connection, keyring, "emergency_write_begun", known, now)
        # Copied before the statement runs: it may be one that cuts the ledger.
        ledger.copy_head(settings, connection, now)
        success = False
        try:
            yield
            success = True
        finally:
            now = datetime.now(UTC)
            with connection.transaction():
                connection.execute(
                    "update control.emergency_writes set finished_at = %s, success = %s"
                    " where id = %s",
                    [now, success, row["id"]],
                )
                done = {**known, "success": success}
                ledger.append(connection, keyring, "emergency_write_done", done, now)
            ledger.copy_head(settings, connection, now)


def _comment_end(query: str) -> int:
    found = _COMMENT.match(query)
    return found.end() if found else 0


def _kind(query: str) -> str:
    word = re.match(r"[A-Za-z]+", query[_comment_end(query) :])
    return word[0].lower() if word else "other"
