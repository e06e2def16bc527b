"""Backups of both stores, each restored into scratch space and compared before it counts as one.

A backup is a folder: ClickHouse's own files, PostgreSQL's dump, and a manifest that is written
last, so that a folder without one is none. A daily has every row but those of salts; a monthly has
no personal column and no people of the operational store. Keys are in it as PostgreSQL has them,
wrapped by the home's master key, which is in no backup.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from tidemark import clickhouse, cold, ledger, places, policy, postgres_dump
from tidemark.clickhouse import ClickHouseError, identifier, literal
from tidemark.cold import Column
from tidemark.config import Settings
from tidemark.coverage import SCRATCH
from tidemark.errors import Refused, TidemarkError, UsageError
from tidemark.flows import Note, warehouse
from tidemark.keys import Keyring
from tidemark.places import Place
from tidemark.policy import Policy
from tidemark.postgres import Connection

Kind = Literal["daily", "monthly"]

ARCHIVE, DUMP, MANIFEST = "clickhouse", "postgres.dump", "manifest.json"
#: Entries of the ledger.
DONE, CHECKED, EXPIRY_BEGUN, EXPIRED, RESTORED = (
    "backup_done", "backup_checked", "backup_expiry_begun", "backup_expired", "restored",
)  # fmt: skip
_WRITING = ".writing"
# Of PostgreSQL's advisory locks, that of what is noted beside the backups.
_NOTES_LOCK = 0x7469_6E6F
_ERASURES, _HOLDS = "erasures.json", "holds.json"
_FORMAT = 1
_NAME = re.compile(r"(daily|monthly)-\d{4}-\d{2}-\d{2}T\d{6}Z")
#: That are read back together, unless one table alone has more.
_ROWS_AT_ONCE = 10_000_000
# Nothing of a load stands before it is published: what a killed one left is no part of a backup.
_NOT_OURS = ("system", "information_schema", "INFORMATION_SCHEMA", "default", "load", SCRATCH)
# Of a large table the engine may say nothing for long.
_PATIENCE = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Table:
    """A table of ClickHouse as a backup has it."""

    name: str
    engine: str
    #: The statement that makes it.
    create: str = field(repr=False)
    columns: tuple[Column, ...]
    #: Personal columns that a monthly leaves out.
    left_out: tuple[str, ...]
    #: Of its rows; None before they were read.
    figures: Mapping[str, Any] | None = None

    @property
    def quoted(self) -> str:
        """Its name as SQL."""
        return _quoted(self.name)

    @property
    def is_reduced(self) -> bool:
        """Whether it lacks columns of the table that it was made of."""
        return bool(self.left_out)

    def select(self, relation: str) -> str:
        """SQL of what the rows of a relation of these columns are."""
        merged = " final" if self.engine.endswith("ReplacingMergeTree") else ""
        return (
            f"select {cold.figures(self.columns)}"
            f" from ({cold.flattened(self.columns, relation)}{merged})"
        )

    def as_dict(self) -> dict[str, Any]:
        """Its entry in the manifest."""
        return {
            "name": self.name,
            "engine": self.engine,
            "create": self.create,
            "columns": [{"name": own.name, "type": own.type} for own in self.columns],
            "left_out": list(self.left_out),
            **(self.figures or {}),
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Table":
        """The table of a manifest's entry."""
        return cls(
            entry["name"],
            entry["engine"],
            entry["create"],
            tuple(Column(own["name"], own["type"]) for own in entry["columns"]),
            tuple(entry["left_out"]),
            {name: entry[name] for name in ("rows", "column_hashes", "row_hash")},
        )


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was read back when it was made."""

    name: str
    kind: Kind
    #: The day that decides how long it stays.
    day: date
    made_at: datetime
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def tables(self) -> tuple[Table, ...]:
        """ClickHouse's tables in it, those with rows of their own."""
        return tuple(Table.from_dict(entry) for entry in self.manifest["clickhouse"]["tables"])

    @property
    def rows(self) -> int:
        """Rows of both stores."""
        entries = [
            *self.manifest["clickhouse"]["tables"],
            *self.manifest["postgres"]["tables"].values(),
        ]
        return sum(int(own["rows"]) for own in entries)

    @property
    def bytes(self) -> int:
        """Of its files."""
        return sum(int(own["bytes"]) for own in self.manifest["files"].values())

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "day": self.day,
            "made_at": self.made_at,
            "verified_at": self.manifest["verified_at"],
            "tables": len(self.tables) + len(self.manifest["postgres"]["tables"]),
            "rows": self.rows,
            "bytes": self.bytes,
            "files": {name: own["sha256"] for name, own in self.manifest["files"].items()},
        }


@dataclass(frozen=True, slots=True)
class LastBackup:
    """The newest daily as the ledger knows it."""

    name: str
    #: When it had been read back.
    verified_at: datetime
    #: It still lies at the location, its files in their sizes.
    is_there: bool

    def is_fresh(self, now: datetime, hours: int) -> bool:
        """Whether it lets a purge pass."""
        return self.is_there and now - self.verified_at <= timedelta(hours=hours)


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a run made, and what was past its time."""

    made: tuple[Backup, ...]
    expired: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON document."""
        return {"made": [own.as_dict() for own in self.made], "expired": list(self.expired)}


def make(
    settings: Settings,
    *,
    as_of: date,
    clock: Callable[[], datetime],
    note: Note = lambda _: None,
) -> BackupReport:
    """Make the day's backup, and the month's where it has none; delete those past their time.

    Nothing is loaded, built or purged meanwhile. Safe to run again, also after a kill.

    Raises:
        Refused: the day lies in the future.
        TidemarkError: a store fails, or what was read back is not what stands; nothing is deleted
            then.
    """
    refuse_cluster(settings)
    policy.refuse_future(as_of, clock())
    ladder = policy.read(settings)
    with warehouse(settings, note) as connection:
        keyring = Keyring.from_settings(settings)
        with ledger.kept_outside(settings, connection, clock):
            if not _has_workspaces(connection):
                note("there is no workspace yet, so nothing to back up")
                return BackupReport((), ())
            _refuse_half_loaded(connection)
            _sweep(settings)
            maker = _Maker(settings, connection, ladder, keyring, as_of, clock, note)
            months = {own.day.replace(day=1) for own in stored(settings) if own.kind == "monthly"}
            made = [maker.make("daily")]
            if as_of.replace(day=1) not in months:
                made.append(maker.make("monthly"))
            report = BackupReport(tuple(made), tuple(maker.expire()))
            _forget_erasures(settings, connection)
            keep_holds(settings, connection)
            return report


def stored(settings: Settings) -> tuple[Backup, ...]:
    """The backups that lie at the location, newest first.

    Raises:
        TidemarkError: a manifest is not one.
    """
    place, found = _place(settings), []
    for name in place.folders():
        text = None if name.startswith(".") else place.read(f"{name}/{MANIFEST}")
        if text is None:
            continue
        try:
            manifest = json.loads(text)
            if manifest["format"] != _FORMAT or manifest["name"] != name:
                raise ValueError("format or name")
            found.append(
                Backup(
                    manifest["name"],
                    manifest["kind"],
                    date.fromisoformat(manifest["day"]),
                    datetime.fromisoformat(manifest["made_at"]),
                    manifest,
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TidemarkError(
                f"{settings.backups}/{name}/{MANIFEST} is no manifest of a backup: move it away"
            ) from error
    return tuple(sorted(found, key=lambda own: (own.made_at, own.name), reverse=True))


def find(settings: Settings, name: str | None) -> Backup:
    """A backup by its name; the newest daily without one.

    Raises:
        UsageError: there is none such.
        TidemarkError: a manifest is not one.
    """
    every = stored(settings)
    wanted = [own for own in every if (own.kind == "daily" if name is None else own.name == name)]
    if not wanted:
        what = f"no backup {name}" if name else "no daily backup"
        raise UsageError(f"{what} in {settings.backups}; `tidemark backup --list` names them")
    return wanted[0]


def check(
    settings: Settings,
    name: str | None,
    *,
    clock: Callable[[], datetime],
    note: Note = lambda _: None,
) -> Backup:
    """Restore a backup into scratch space once more, and compare every column of every row.

    Args:
        name: the newest daily without one.

    Raises:
        UsageError: there is no such backup.
        TidemarkError: it is damaged; the message names the file or table.
    """
    refuse_cluster(settings)
    with warehouse(settings, note) as connection:
        found = find(settings, name)
        with fetched(settings, found) as folder:
            verify(settings, folder, found.manifest, note)
        with ledger.kept_outside(settings, connection, clock), connection.transaction():
            keyring = Keyring.from_settings(settings)
            ledger.append(connection, keyring, CHECKED, {"name": found.name}, clock())
        return found


def last_made(settings: Settings, connection: Connection) -> "LastBackup | None":
    """The newest daily that the ledger knows, or what all was restored from since.

    A home that was restored knows no entry of the very backup that it is made of. None where none
    was ever made.
    """
    row = connection.execute(
        "select coalesce(document ->> 'name', document ->> 'backup') as name, at"
        " from control.ledger where (kind = %s and document ->> 'kind' = 'daily')"
        " or (kind = %s and document ->> 'table' is null) order by entry_id desc limit 1",
        [DONE, RESTORED],
    ).fetchone()
    if row is None:
        return None
    return LastBackup(row["name"], row["at"], _is_whole(settings, row["name"]))


def _is_whole(settings: Settings, name: str) -> bool:
    """Whether a backup's files are there in their sizes; their contents only a check reads."""
    place = _place(settings)
    manifest = place.json(f"{name}/{MANIFEST}")
    return manifest is not None and all(
        place.size(f"{name}/{file}") == own["bytes"] for file, own in manifest["files"].items()
    )


def keep_erasure(
    settings: Settings,
    connection: Connection,
    code: str,
    workspace_id: str,
    hashes: Sequence[str],
) -> None:
    """Note beside the backups whom a restore must not bring back; the same request once.

    Called before anything of the person goes. Where there is no backup nothing is noted: a later
    one has the request itself, as waiting.

    Args:
        hashes: of the person, as the request has them.

    Raises:
        TidemarkError: the ledger knows backups, and the location has none.
    """
    if not _has_backups(settings, connection):
        return
    with _noting(connection):
        known = noted_erasures(settings)
        if not any(own["code"] == code for own in known):
            line = {"code": code, "workspace_id": workspace_id, "hashes": list(hashes)}
            _place(settings).put_json([*known, line], _ERASURES)


def noted_erasures(settings: Settings) -> list[Mapping[str, Any]]:
    """What `keep_erasure` noted: code, workspace_id and hashes of each request.

    Raises:
        TidemarkError: the file is damaged.
    """
    return _noted(settings, _ERASURES)


def keep_holds(settings: Settings, connection: Connection) -> None:
    """Note beside the backups which holds are in force: a restore of an older one obeys them.

    Raises:
        TidemarkError: the ledger knows backups, and the location has none.
    """
    if not _has_backups(settings, connection):
        return
    with _noting(connection):
        standing = connection.execute(
            "select workspace_id, class as data_class, subject_hashes as hashes, reason"
            " from control.holds where released_at is null order by hold_id"
        ).fetchall()
        if standing != noted_holds(settings):
            _place(settings).put_json(standing, _HOLDS)


def noted_holds(settings: Settings) -> list[Mapping[str, Any]]:
    """What `keep_holds` noted: workspace_id, data_class, hashes and reason of each hold.

    Raises:
        TidemarkError: the file is damaged.
    """
    return _noted(settings, _HOLDS)


@contextmanager
def _noting(connection: Connection) -> Iterator[None]:
    """One at a time reads what is noted and writes it anew, to the end of the transaction."""
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(%s)", [_NOTES_LOCK])
        yield


def _noted(settings: Settings, name: str) -> list[Mapping[str, Any]]:
    text = _place(settings).read(name)
    try:
        return list(json.loads(text)) if text is not None else []
    except ValueError as error:
        raise TidemarkError(
            f"{settings.backups}/{name} is no JSON: bring back what it was; without it a restore"
            " would not know what came after a backup"
        ) from error


def _has_backups(settings: Settings, connection: Connection) -> bool:
    """Whether there are backups that a restore could take."""
    if stored(settings):
        return True
    known = connection.execute(
        "select document ->> 'name' from control.ledger where kind = %s"
        " except select document ->> 'name' from control.ledger where kind = %s",
        [DONE, EXPIRED],
    ).fetchone()
    if known is not None:
        raise TidemarkError(
            f"none of the backups that the ledger knows is in {settings.backups}: is its disk"
            " there, and is TIDEMARK_BACKUPS what it was? Where they are lost, run"
            " `tidemark backup` first"
        )
    return False


def erased_since(
    settings: Settings, connection: Connection, backup: Backup
) -> Iterator[Mapping[str, Any]]:
    """Those of the noted erasures whose persons may have rows in a backup."""
    for own in noted_erasures(settings):
        if not _ended_before(connection, own["code"], backup.made_at):
            yield own


def _ended_before(connection: Connection, code: str, moment: datetime) -> bool:
    found = connection.execute(
        "select from control.requests where code = %s and status = 'done' and finished_at < %s",
        [code, moment],
    ).fetchone()
    return found is not None


def _forget_erasures(settings: Settings, connection: Connection) -> None:
    """Forget those that ended before the oldest backup was made: it has none of their rows."""
    oldest = stored(settings)[-1].made_at
    with _noting(connection):
        known = noted_erasures(settings)
        needed = [own for own in known if not _ended_before(connection, own["code"], oldest)]
        if needed != known:
            _place(settings).put_json(needed, _ERASURES)


# -- making --------------------------------------------------------------------------------------


class _Maker:
    """One run."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        ladder: Policy,
        keyring: Keyring,
        as_of: date,
        clock: Callable[[], datetime],
        note: Note,
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.ladder = ladder
        self.keyring = keyring
        self.as_of = as_of
        self.clock = clock
        self.note = note

    def make(self, kind: Kind) -> Backup:
        """Write a backup, read it back, and let it appear."""
        made_at = self.clock()
        name = f"{kind}-{made_at.astimezone(UTC):%Y-%m-%dT%H%M%SZ}"
        work = self.settings.backups_folder / _WRITING
        shutil.rmtree(work, ignore_errors=True)
        folder = work / name
        try:
            folder.mkdir(mode=0o700, parents=True)
            self.note(f"{name}: writing")
            manifest: dict[str, Any] = {
                "format": _FORMAT,
                "name": name,
                "kind": kind,
                "day": self.as_of.isoformat(),
                "made_at": made_at.astimezone(UTC).isoformat(),
                "policy_sha256": self.ladder.sha256,
                # Opens with the master key alone that the keys in the dump are wrapped by.
                "master_key": self.keyring.wrap(name.encode(), name).hex(),
                "clickhouse": self._archive(kind, folder / ARCHIVE),
                "postgres": self._dump(kind, folder / DUMP),
            }
            manifest["files"] = {name: _listed(folder / name) for name in (ARCHIVE, DUMP)}
            self.note(f"{name}: reading it back")
            verify(self.settings, folder, manifest, lambda _: None)
            manifest["verified_at"] = self.clock().astimezone(UTC).isoformat()
            _publish(self.settings, folder, manifest)
        except OSError as error:
            raise TidemarkError(
                f"the backup cannot be written to {self.settings.backups}"
                f" ({error.strerror or type(error).__name__}); older ones stay as they are"
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        backup = Backup(name, kind, self.as_of, made_at, manifest)
        with self.connection.transaction():
            ledger.append(self.connection, self.keyring, DONE, backup.as_dict(), self.clock())
        return backup

    def expire(self) -> Iterator[str]:
        """Delete what is past its time; the newest daily stays in any case."""
        every = stored(self.settings)
        newest = next((own.name for own in every if own.kind == "daily"), None)
        due = {
            own.name
            for own in every
            if own.name != newest
            and own.day < getattr(self.ladder.backups, own.kind).start(self.as_of)
        }
        same = "done.document -> 'name' = begun.document -> 'name'"
        begun = {
            entry["name"] for entry in ledger.unended(self.connection, EXPIRY_BEGUN, EXPIRED, same)
        }
        for name in sorted(due | begun):
            if name not in begun:
                self._enter(EXPIRY_BEGUN, name)
            self.note(f"{name}: is past its time")
            _remove(self.settings, name)
            self._enter(EXPIRED, name)
            yield name

    def _enter(self, kind: str, name: str) -> None:
        with self.connection.transaction():
            ledger.append(self.connection, self.keyring, kind, {"name": name}, self.clock())

    def _archive(self, kind: Kind, path: Path) -> dict[str, Any]:
        tables = [
            replace(own, figures=_figures(self.settings, own, own.name))
            for own in _standing(self.settings, self.ladder, kind)
        ]
        databases = [
            row["name"]
            for row in clickhouse.rows(
                self.settings,
                "select distinct database as name from system.tables where database not in"
                f" ({', '.join(map(literal, _NOT_OURS))}) and not is_temporary order by name",
            )
        ]
        reduced = [own for own in tables if own.is_reduced]
        with _scratch(self.settings):
            for number, table in enumerate(reduced):
                columns = clickhouse.identifiers(own.name for own in table.columns)
                run(
                    self.settings,
                    f"create table {SCRATCH}.reduced_{number} engine = MergeTree order by tuple()"
                    f" as select {columns} from {table.quoted}",
                )
            but = f"all except databases {clickhouse.identifiers(_NOT_OURS)}"
            if reduced:
                but += f" except tables {', '.join(table.quoted for table in reduced)}"
            elements = [
                f"table {SCRATCH}.reduced_{number} as {table.quoted}"
                for number, table in enumerate(reduced)
            ]
            run(
                self.settings, f"backup {', '.join([*elements, but])} to File({literal(str(path))})"
            )
        (version,) = clickhouse.rows(self.settings, "select version() as version")
        return {
            "version": version["version"],
            "databases": databases,
            "tables": [table.as_dict() for table in tables],
        }

    def _dump(self, kind: Kind, path: Path) -> dict[str, Any]:
        rules = self.ladder.backups
        with postgres_dump.snapshot(self.settings) as (connection, name):
            every = postgres_dump.tables(connection)
            without = set(rules.never)
            if kind == "monthly":
                without |= {
                    own for own in every if own.startswith("app.") and own not in rules.monthly_app
                }
            held = [own for own in every if own not in without]
            found = postgres_dump.figures(connection, held)
            postgres_dump.dump(self.settings, path, name, without)
            version = connection.info.server_version // 10000
        return {"version": version, "tables": found, "left_out": sorted(without)}


def verify(settings: Settings, folder: Path, manifest: Mapping[str, Any], note: Note) -> None:
    """Restore a backup's files into scratch space and compare them with its manifest.

    Raises:
        TidemarkError: something differs or cannot be read.
    """
    check_files(folder, manifest)
    for tables in _batches(Table.from_dict(own) for own in manifest["clickhouse"]["tables"]):
        note(f"reading back {len(tables)} tables, {tables[0].name} and on")
        with beside(settings, folder, tables) as relations:
            for table, relation in zip(tables, relations, strict=True):
                compare(settings, table, relation)
    note("reading back PostgreSQL's dump")
    with postgres_dump.scratch(settings) as connection:
        postgres_dump.restore(settings, folder / DUMP, postgres_dump.SCRATCH)
        compare_postgres(connection, manifest)


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Hold the files against the manifest's sizes and SHA-256.

    Raises:
        TidemarkError: one is missing or another.
    """
    for name, own in manifest["files"].items():
        found = _listed(folder / name) if (folder / name).exists() else None
        if found != own:
            raise TidemarkError(f"{name} of {manifest['name']} is missing, cut short or damaged")


@contextmanager
def beside(settings: Settings, folder: Path, tables: Sequence[Table]) -> Iterator[list[str]]:
    """Tables of a backup's archive, restored beside what stands; they are gone afterwards."""
    with _scratch(settings):
        relations = [f"{SCRATCH}.restored_{number}" for number in range(len(tables))]
        elements = (
            f"table {table.quoted} as {relation}"
            for table, relation in zip(tables, relations, strict=True)
        )
        run(
            settings,
            f"restore {', '.join(elements)} from File({literal(str(folder / ARCHIVE))})",
        )
        yield relations


def compare(settings: Settings, table: Table, relation: str) -> None:
    """Hold the rows of a relation against what the manifest says of a table's.

    Raises:
        TidemarkError: they differ.
    """
    found = _figures(settings, table, relation)
    assert table.figures is not None
    if dict(found) != dict(table.figures):
        raise TidemarkError(
            f"{table.name} does not come back as it was: {found['rows']} rows of"
            f" {table.figures['rows']}, or other values"
        )


def compare_postgres(connection: Connection, manifest: Mapping[str, Any]) -> None:
    """The same of PostgreSQL's tables; those that were left out must be empty.

    Raises:
        TidemarkError: they differ.
    """
    wanted = manifest["postgres"]["tables"]
    found = postgres_dump.figures(connection, postgres_dump.tables(connection))
    for name in sorted(found.keys() | wanted.keys()):
        own = found.get(name, {"rows": 0, "hash": "0"})
        if own != wanted.get(name, {"rows": 0, "hash": "0"}):
            raise TidemarkError(f"{name} does not come back as it was: {own['rows']} rows")


@contextmanager
def fetched(settings: Settings, backup: Backup) -> Iterator[Path]:
    """A folder in which the engines can read a backup's files."""
    place = _place(settings)
    with place.fetched(place.files(backup.name)) as folder:
        yield folder / backup.name


def _place(settings: Settings) -> Place:
    return Place(settings.backups, settings.backups_folder, "TIDEMARK_BACKUPS")


def _sweep(settings: Settings) -> None:
    """Remove what a killed run left: a folder of a backup's name without a manifest."""
    place = _place(settings)
    for name in place.folders():
        if _NAME.fullmatch(name) and not place.exists(f"{name}/{MANIFEST}"):
            place.remove_folder(name)


def _refuse_half_loaded(connection: Connection) -> None:
    """What a killed load has prepared would be neither here nor there after a restore."""
    if connection.execute("select from control.load_batches where status = 'prepared'").fetchone():
        raise TidemarkError("a load was killed while it published: run `tidemark load` first")


def _has_workspaces(connection: Connection) -> bool:
    return connection.execute("select from app.workspaces limit 1").fetchone() is not None


def _batches(tables: Iterable[Table]) -> Iterator[list[Table]]:
    """Tables to read back at once: an archive is searched anew each time, and the disk has ends."""
    batch: list[Table] = []
    rows = 0
    for table in tables:
        assert table.figures is not None
        own = int(table.figures["rows"])
        if batch and rows + own > _ROWS_AT_ONCE:
            yield batch
            batch, rows = [], 0
        batch.append(table)
        rows += own
    if batch:
        yield batch


def refuse_cluster(settings: Settings) -> None:
    """Refuse where the stores are not Tidemark's own."""
    if settings.profile == "cluster":
        raise Refused("a cluster's servers are backed up by their own means: see docs/backups.md")


def _standing(settings: Settings, ladder: Policy, kind: Kind) -> list[Table]:
    """The tables with rows of their own, and their columns as a backup of this kind has them."""
    found = clickhouse.rows(
        settings,
        "select concat(tables.database, '.', tables.name) as name, any(tables.engine) as engine,"
        " any(tables.create_table_query) as create,"
        " arraySort(groupArray((columns.position, columns.name, columns.type))) as columns"
        " from system.tables as tables inner join system.columns as columns"
        " on tables.database = columns.database and tables.name = columns.table"
        f" where tables.database not in ({', '.join(map(literal, _NOT_OURS))})"
        " and tables.engine like '%MergeTree' and not tables.is_temporary"
        " and columns.default_kind not in ('ALIAS', 'EPHEMERAL') group by name order by name",
    )
    tables = []
    for row in found:
        known = ladder.columns.get(row["name"], {}) if kind == "monthly" else {}
        columns = [Column(name, type_) for _, name, type_ in row["columns"]]
        left_out = tuple(name for name, own in known.items() if own.kind == "personal")
        kept = tuple(column for column in columns if column.name not in left_out)
        tables.append(Table(row["name"], row["engine"], row["create"], kept, left_out))
    return tables


def _figures(settings: Settings, table: Table, relation: str) -> dict[str, Any]:
    (found,) = clickhouse.rows(settings, table.select(_quoted(relation)), timeout=_PATIENCE)
    return {name: found[name] for name in ("rows", "column_hashes", "row_hash")}


@contextmanager
def _scratch(settings: Settings) -> Iterator[None]:
    """An empty database for what stands only meanwhile; a killed run's goes first."""
    drop_scratch(settings)
    run(settings, f"create database {SCRATCH}")
    try:
        yield
    finally:
        drop_scratch(settings)


def drop_scratch(settings: Settings) -> None:
    """Drop what a killed run left beside what stands; the caller holds the warehouse's lock."""
    run(settings, f"drop database if exists {SCRATCH} sync")


def run(settings: Settings, statement: str) -> None:
    """Run a statement that may take hours."""
    try:
        clickhouse.execute(settings, statement, timeout=_PATIENCE)
    except ClickHouseError as error:
        if "is not allowed for backups" in str(error):
            raise TidemarkError(
                "ClickHouse was started for another TIDEMARK_BACKUPS: run `tidemark down` and"
                " `tidemark up`"
            ) from error
        raise TidemarkError(f"ClickHouse: {error}") from error


def _quoted(name: str) -> str:
    database, table = name.split(".", 1)
    return f"{identifier(database)}.{identifier(table)}"


def _publish(settings: Settings, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Bring the files to their place and make them last; the manifest is the last of them."""
    name = manifest["name"]
    if "://" in settings.backups:
        place = _place(settings)
        for path in _files(folder):
            place.put(path, f"{name}/{path.relative_to(folder).as_posix()}")
        place.put_json(manifest, f"{name}/{MANIFEST}")
        return
    # Thousands of files on a disk appear at once, by one rename.
    descriptor = os.open(folder / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(places.json_bytes(manifest))
    for path in sorted(folder.rglob("*"), reverse=True):
        places.sync(path)
    places.sync(folder)
    final = settings.backups_folder / name
    folder.replace(final)
    places.sync(final.parent)


def _remove(settings: Settings, name: str) -> None:
    """Remove a backup, its manifest first: from then on it is none."""
    place = _place(settings)
    place.remove(f"{name}/{MANIFEST}")
    place.remove_folder(name)
    if place.exists(name):
        raise TidemarkError(f"something of {name} is still in {settings.backups}")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _listed(path: Path) -> dict[str, Any]:
    """A file's size in bytes and SHA-256; of a folder the SHA-256 of the list of its files."""
    if path.is_file():
        return {"bytes": path.stat().st_size, "sha256": places.sha256(path)}
    lines, size = [], 0
    for file in _files(path):
        own = _listed(file)
        lines.append(f"{own['sha256']}  {file.relative_to(path).as_posix()}\n")
        size += own["bytes"]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return {"bytes": size, "files": len(lines), "sha256": digest}
