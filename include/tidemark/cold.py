"""The cold tier: what leaves the warehouse lies on as Parquet, and can be brought back for a while.

ClickHouse writes a file per table, workspace and month of a step, without personal columns, and a
manifest of what the rows were when they stood. A file is a mere copy until its step destroys the
rows; `seal` says so, in the transaction that begins the step, and from then on the file is the only
place they are in.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

from psycopg.types.json import Jsonb
from upath import UPath

from tidemark import clickhouse, policy
from tidemark.clickhouse import ClickHouseError
from tidemark.config import Settings
from tidemark.errors import Refused, TidemarkError
from tidemark.plan import Step, Target, identifier, literal
from tidemark.postgres import Connection

#: Rows that one statement writes, unless one workspace alone has more: each file being written
#: holds a row group in memory.
STATEMENT_ROWS = 500_000
_WRITING = {
    "output_format_parquet_compression_method": "zstd",
    "output_format_parquet_row_group_size": "100000",
    # Nothing searches these files by value.
    "output_format_parquet_write_bloom_filter": "0",
    # The key of the session would show in a log of queries as the value of a subquery.
    "log_queries": "0",
}
_READING = {
    # A column that a file lacks is damage, and not a column of zeros.
    "input_format_parquet_allow_missing_columns": "0",
    "use_hive_partitioning": "0",
}
_FILES_AT_ONCE = 100
_MANIFEST_FORMAT = 1
_TIERING = ".tiering"
_CHUNK_BYTES = 1 << 20
_WIDE = Context(prec=100)


@dataclass(frozen=True, slots=True)
class ColdCopy:
    """A cold file as it was written."""

    data_class: str
    table: str
    workspace_id: str
    month: date
    #: Below the cold location.
    path: str
    rows: int
    bytes: int
    sha256: str
    #: It stood already, from the same rows.
    is_reused: bool


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What reading cold copies back found: of one file, or of a table's files together."""

    data_class: str
    table: str
    #: Empty where it speaks of all files of the table.
    workspace_id: str
    month: date
    path: str
    rows: int
    #: What is wrong, a line each; no row of data.
    failures: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


# -- tiering -------------------------------------------------------------------------------------


def tier(
    settings: Settings,
    connection: Connection,
    ladder: policy.Policy,
    step: Step,
    plan_id: str,
    now: datetime,
) -> tuple[ColdCopy, ...]:
    """Write the cold copies of a step; nothing where its class has none.

    Safe to run again at any time, also after a kill: a finished file of the same rows is taken as
    it is, and copies of rows that have changed since are removed. The caller holds the warehouse's
    lock.

    Args:
        connection: commits by itself.

    Raises:
        TidemarkError: a file cannot be written, a column is not in the policy, or the rows are no
            longer those of the step. What the step names stays as it is.
    """
    data_class = ladder.classes[step.data_class]
    if "cold" not in step.expiry:
        return ()
    tiering = _Tiering(settings, connection, ladder, step, plan_id, now)
    copies: list[ColdCopy] = []
    for target in step.targets:
        if target.table in data_class.tables:
            copies += tiering.copy(target)
    return tuple(copies)


def sweep(settings: Settings, connection: Connection, keep: Iterable[Step]) -> int:
    """Remove copies of rows that still stand and that none of these steps is about to destroy.

    Returns:
        How many files it removed.
    """
    rows = connection.execute(
        "select cold_id, path from control.cold_files"
        " where sealed_at is null and step_id <> all(%s) order by cold_id",
        [[step.step_id for step in keep]],
    ).fetchall()
    _discard(_Place(settings), connection, rows)
    return len(rows)


def seal(connection: Connection, step: Step, now: datetime) -> None:
    """Record that the step destroys the rows, in the transaction that begins it.

    Raises:
        Refused: a copy that the step needs is missing or was not read back.
    """
    if "cold" not in step.expiry:
        return
    rows = connection.execute(
        "update control.cold_files set sealed_at = coalesce(sealed_at, %s)"
        " where step_id = %s and verified_at is not null and deleted_at is null"
        " returning table_name, (manifest ->> 'rows')::bigint as rows",
        [now, step.step_id],
    ).fetchall()
    for target in _cold_targets(step):
        copied = sum(row["rows"] for row in rows if row["table_name"] == target.table)
        if copied != target.rows:
            raise Refused(
                f"{step.data_class} of {step.month:%Y-%m}: cold files that were read back hold"
                f" {copied} of the {target.rows} rows of {target.table}"
            )


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a table as its cold file has it."""

    name: str
    type: str
    #: Pseudonyms under a key that no longer exists.
    is_rehashed: bool = False

    @property
    def is_state(self) -> bool:
        """Whether it is a sketch, which Parquet keeps as the bytes of its state."""
        return self.type.startswith("AggregateFunction(")

    @property
    def stored_type(self) -> str:
        """The type in the file."""
        return "String" if self.is_state else self.type

    @property
    def written(self) -> str:
        """SQL of its value in the file, from the table's row; `cold_key` is the key."""
        name = identifier(self.name)
        if self.is_rehashed:
            # The name and the workspace go in, so that equal ids of two columns or two workspaces
            # are not equal in the files.
            keyed = f"sipHash128Keyed(cold_key, {literal(self.name)}, workspace_id, {name})"
            return f"if({name} = '', '', lower(hex({keyed})))"
        return f"cast({name} as String)" if self.is_state else name

    @property
    def restored(self) -> str:
        """SQL of its value in the warehouse, from the file's row."""
        name = identifier(self.name)
        return f"cast({name} as {self.type})" if self.is_state else name

    @property
    def hashed(self) -> str:
        """What a hash takes of it: a hash of NULL would be NULL and fall out of the sum."""
        name = identifier(self.name)
        return f"tuple({name})" if self.stored_type.startswith("Nullable(") else name


@dataclass(frozen=True, slots=True)
class _Figures:
    """What rows are, however they are ordered and wherever they lie."""

    rows: int
    #: By column: 64 bits of a sum of hashes, in hex.
    hashes: dict[str, str]
    #: The same of whole rows, which ties the columns to each other.
    row_hash: str

    @staticmethod
    def select(columns: Sequence[_Column]) -> str:
        """SQL of the figures of the rows of a relation that has the columns as a file has them."""
        own = ", ".join(f"hex(sum(cityHash64({column.hashed})))" for column in columns)
        whole = ", ".join(column.hashed for column in columns)
        return (
            f"count() as rows, [{own}] as column_hashes, hex(sum(cityHash64({whole}))) as row_hash"
        )

    @classmethod
    def read(cls, row: Mapping[str, Any], columns: Sequence[_Column]) -> "_Figures":
        """Take them from a row that `select` made."""
        hashes = {
            column.name: text.lower()
            for column, text in zip(columns, row["column_hashes"], strict=True)
        }
        return cls(int(row["rows"]), hashes, row["row_hash"].lower())


@dataclass(frozen=True, slots=True)
class _Source:
    """One workspace's rows of a target as they stand."""

    workspace_id: str
    figures: _Figures
    first_day: date
    last_day: date
    #: Its part of the target's.
    fingerprint: int


class _Tiering:
    """The copies of one step."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        ladder: policy.Policy,
        step: Step,
        plan_id: str,
        now: datetime,
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.ladder = ladder
        self.data_class = ladder.classes[step.data_class]
        self.step = step
        self.plan_id = plan_id
        self.now = now
        self.place = _Place(settings)

    def copy(self, target: Target) -> list[ColdCopy]:
        """The copies of one table."""
        columns = _layout(self.settings, self.ladder, self.data_class, target.table)
        stale, taken = self._standing(target, columns)
        if taken:
            self.connection.execute(
                "update control.cold_files set step_id = %s, plan_id = %s where cold_id = any(%s)",
                [self.step.step_id, self.plan_id, [row["cold_id"] for row in taken]],
            )
        _discard(self.place, self.connection, stale)
        if taken:
            return [_copy_of(row, is_reused=True) for row in taken]
        work = self.place.folder / _TIERING
        shutil.rmtree(work, ignore_errors=True)
        try:
            _make_folder(work)
            with self._session() as session:
                sources = self._sources(target, columns, session)
                paths = self._announce(target, sources)
                written: list[ColdCopy] = []
                for batch in _batches(sources):
                    self._write(target, columns, batch, work, session)
                    for source in batch:
                        written.append(
                            self._settle(target, columns, source, work, paths[source.workspace_id])
                        )
        except ClickHouseError as error:
            raise self._unwritable(target, _kind(error)) from error
        except OSError as error:
            raise self._unwritable(target, error.strerror or type(error).__name__) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return written

    def _unwritable(self, target: Target, reason: str) -> TidemarkError:
        return TidemarkError(
            f"the cold copy of {target.table} of {self.step.month:%Y-%m} cannot be written to"
            f" {self.settings.cold} ({reason}); the rows stand as they did"
        )

    def _standing(
        self, target: Target, columns: Sequence[_Column]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Copies of this table and month: those of other rows, and those of just these."""
        rows = self.connection.execute(
            "select cold_id, step_id, class, table_name, workspace_id, month, path, manifest"
            " from control.cold_files where class = %s and table_name = %s and month = %s"
            " and (sealed_at is null or step_id = %s) and deleted_at is null order by cold_id",
            [self.step.data_class, target.table, self.step.month, self.step.step_id],
        ).fetchall()
        schema = [_described(column) for column in columns]
        by_step: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_step[row["step_id"]].append(row)
        for own in by_step.values():
            manifests = [row["manifest"] for row in own]
            if (
                all(manifests)
                and sum(manifest["rows"] for manifest in manifests) == target.rows
                and _added(manifest["fingerprint"] for manifest in manifests)
                == int(target.fingerprint)
                and all(_schema(manifest) == schema for manifest in manifests)
                and all(self.place.is_whole(row["path"], row["manifest"]) for row in own)
            ):
                return [row for row in rows if row not in own], own
        return rows, []

    @contextmanager
    def _session(self) -> Iterator[dict[str, str]]:
        """A session with a key for the pseudonyms in a temporary table; both end with it."""
        session = {"session_id": f"tidemark-cold-{secrets.token_hex(16)}", "session_timeout": "900"}
        key = {half: secrets.randbits(64) for half in ("first_half", "second_half")}
        clickhouse.execute(
            self.settings,
            "create temporary table tidemark_cold_key (first_half UInt64, second_half UInt64)",
            params=session,
        )
        try:
            clickhouse.stream_insert(
                self.settings,
                "insert into tidemark_cold_key format JSONEachRow",
                [json.dumps(key).encode()],
                params=session,
            )
            yield session
        finally:
            clickhouse.execute(
                self.settings, "drop temporary table if exists tidemark_cold_key", params=session
            )

    def _rows_of(self, target: Target, columns: Sequence[_Column], condition: str) -> str:
        """SELECT of the target's rows as the file has them, with the hash of the plan's columns."""
        written = ", ".join(f"{column.written} as {identifier(column.name)}" for column in columns)
        hashed = ", ".join(identifier(column) for column in target.columns)
        # Within one select an alias would take the place of the table's column.
        return (
            "with (select (any(first_half), any(second_half)) from tidemark_cold_key) as cold_key"
            f" select {written}, own_fingerprint from"
            f" (select *, reinterpretAsUInt128(sipHash128({hashed})) as own_fingerprint"
            f" from {target.table} where ({target.predicate}) and {condition})"
        )

    def _sources(
        self, target: Target, columns: Sequence[_Column], session: dict[str, str]
    ) -> list[_Source]:
        day = identifier(self.data_class.day)
        found = clickhouse.rows(
            self.settings,
            f"select workspace_id, {_Figures.select(columns)},"
            f" min({day}) as first_day, max({day}) as last_day,"
            " toString(sum(own_fingerprint)) as fingerprint"
            f" from ({self._rows_of(target, columns, 'true')})"
            " group by workspace_id order by workspace_id",
            params={**session, "log_queries": "0"},
        )
        sources = [
            _Source(
                row["workspace_id"],
                _Figures.read(row, columns),
                date.fromisoformat(row["first_day"]),
                date.fromisoformat(row["last_day"]),
                int(row["fingerprint"]),
            )
            for row in found
        ]
        rows = sum(source.figures.rows for source in sources)
        if rows != target.rows or _added(s.fingerprint for s in sources) != int(target.fingerprint):
            raise TidemarkError(
                f"{target.table} of {self.step.month:%Y-%m} has changed since the plan was made"
                f" ({rows} rows, planned {target.rows}): make a new plan"
            )
        return sources

    def _announce(self, target: Target, sources: Sequence[_Source]) -> dict[str, str]:
        """Record the files that will be there, so that a kill leaves none that nobody knows."""
        month, step = self.step.month, self.step
        name = f"{target.table.split('.')[1]}-{step.step_id[:16]}.parquet"
        paths = {
            source.workspace_id: f"{step.data_class}/{source.workspace_id}/{month:%Y-%m}/{name}"
            for source in sources
        }
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.executemany(
                "insert into control.cold_files (class, workspace_id, month, step_id, plan_id,"
                " table_name, path, tiered_at) values (%s, %s, %s, %s, %s, %s, %s, %s)",
                [
                    (
                        step.data_class, workspace_id, month, step.step_id, self.plan_id,
                        target.table, path, self.now,
                    )
                    for workspace_id, path in paths.items()
                ],
            )  # fmt: skip
        return paths

    def _write(
        self,
        target: Target,
        columns: Sequence[_Column],
        batch: Sequence[_Source],
        work: Path,
        session: dict[str, str],
    ) -> None:
        workspaces = ", ".join(literal(source.workspace_id) for source in batch)
        files = literal(f"{work}/{{_partition_id}}.parquet")
        clickhouse.execute(
            self.settings,
            f"insert into function file({files}, 'Parquet', {literal(_structure(columns))})"
            " partition by workspace_id select * except (own_fingerprint)"
            f" from ({self._rows_of(target, columns, f'workspace_id in ({workspaces})')})",
            params={**session, **_WRITING},
            timeout=3600,
        )

    def _settle(
        self, target: Target, columns: Sequence[_Column], source: _Source, work: Path, path: str
    ) -> ColdCopy:
        """Bring a file and its manifest to their place and make them last."""
        file = work / f"{source.workspace_id}.parquet"
        manifest = {
            "format": _MANIFEST_FORMAT,
            "class": self.step.data_class,
            "table": target.table,
            "workspace_id": source.workspace_id,
            "month": f"{self.step.month:%Y-%m}",
            "first_day": source.first_day.isoformat(),
            "last_day": source.last_day.isoformat(),
            "step_id": self.step.step_id,
            "policy_sha256": self.ladder.sha256,
            "fingerprint": str(source.fingerprint),
            "rows": source.figures.rows,
            "row_hash": source.figures.row_hash,
            "columns": [
                {**_described(column), "hash": source.figures.hashes[column.name]}
                for column in columns
            ],
            "left_out": list(self.ladder.columns_of(target.table, "personal")),
            "tiered_at": self.now.astimezone(UTC).isoformat(),
            "bytes": file.stat().st_size,
            "sha256": _sha256(UPath(file)),
        }
        self.place.put(file, path)
        self.place.put_manifest(manifest, path)
        row = self.connection.execute(
            "update control.cold_files set manifest = %s where path = %s and sealed_at is null"
            " returning class, table_name, workspace_id, month, path, manifest",
            [Jsonb(manifest), path],
        ).fetchone()
        assert row is not None
        return _copy_of(row, is_reused=False)


def _layout(
    settings: Settings, ladder: policy.Policy, data_class: policy.DataClass, table: str
) -> list[_Column]:
    """The columns of a table's cold files: all but the personal ones."""
    database, name = table.split(".")
    found = clickhouse.rows(
        settings,
        "select name, type from system.columns where database = {database:String}"
        " and table = {name:String} order by position",
        params={"param_database": database, "param_name": name},
    )
    known = ladder.columns.get(table, {})
    columns = []
    for row in found:
        if row["name"] not in known:
            raise TidemarkError(
                f"column {row['name']} of {table} is not in include/policy.yml: name it under"
                " columns before its rows are tiered"
            )
        kind = known[row["name"]].kind
        if kind == "personal":
            continue
        is_rehashed = kind == "pseudonym" and data_class.cold_pseudonyms == "rehash"
        if is_rehashed and row["type"] not in ("String", "LowCardinality(String)"):
            raise TidemarkError(
                f"column {row['name']} of {table} is {row['type']}: only a pseudonym that is text"
                " can be hashed again"
            )
        type_ = "String" if is_rehashed else row["type"]
        columns.append(_Column(row["name"], type_, is_rehashed))
    return columns


def _structure(columns: Iterable[_Column]) -> str:
    return ", ".join(f"{identifier(column.name)} {column.stored_type}" for column in columns)


def _described(column: _Column) -> dict[str, Any]:
    return {"name": column.name, "type": column.type, "is_rehashed": column.is_rehashed}


def _schema(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_described(column) for column in _columns(manifest)]


def _columns(manifest: Mapping[str, Any]) -> list[_Column]:
    return [
        _Column(column["name"], column["type"], column["is_rehashed"])
        for column in manifest["columns"]
    ]


def _batches(sources: Sequence[_Source]) -> Iterator[list[_Source]]:
    batch: list[_Source] = []
    rows = 0
    for source in sources:
        if batch and rows + source.figures.rows > STATEMENT_ROWS:
            yield batch
            batch, rows = [], 0
        batch.append(source)
        rows += source.figures.rows
    if batch:
        yield batch


def _copy_of(row: Mapping[str, Any], *, is_reused: bool) -> ColdCopy:
    manifest = row["manifest"]
    return ColdCopy(
        data_class=row["class"],
        table=row["table_name"],
        workspace_id=row["workspace_id"],
        month=row["month"],
        path=row["path"],
        rows=manifest["rows"],
        bytes=manifest["bytes"],
        sha256=manifest["sha256"],
        is_reused=is_reused,
    )


def _cold_targets(step: Step) -> list[Target]:
    """The tables that a step has cold copies of: not what was derived from them."""
    return [own for own in step.targets if not own.table.startswith("intermediate.")]


def _discard(place: "_Place", connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Remove files that are mere copies, and then what is known of them."""
    for row in rows:
        place.remove(row["path"])
        connection.execute(
            "delete from control.cold_files where cold_id = %s and sealed_at is null",
            [row["cold_id"]],
        )


# -- reading back --------------------------------------------------------------------------------


def read_back(
    settings: Settings, connection: Connection, step: Step, plan_id: str, now: datetime
) -> tuple[ReadBack, ...]:
    """Read every cold copy of a step in full, and hold it against its manifest and the plan.

    Every column of every row goes into a hash: a count alone would come from the file's footer.
    Files that agree are recorded as verified; the others no longer are.

    Returns:
        A line for each file, and one for all files of a table together; empty where the step's
        class has no cold copies. It holds where no line has a failure.
    """
    place = _Place(settings)
    lines: list[ReadBack] = []
    if "cold" not in step.expiry:
        return ()
    for target in _cold_targets(step):
        rows = connection.execute(
            "select cold_id, class, table_name, workspace_id, month, path, manifest"
            " from control.cold_files where step_id = %s and plan_id = %s and table_name = %s"
            " and deleted_at is null order by workspace_id",
            [step.step_id, plan_id, target.table],
        ).fetchall()
        summed = list(target.sums)
        found = list(_checked(settings, place, rows, summed))
        failures = list(_shortfalls(target, [row["manifest"] for row in rows], found))
        lines += [line for line, _ in found]
        lines.append(
            ReadBack(
                data_class=step.data_class,
                table=target.table,
                workspace_id="",
                month=step.month,
                path="",
                rows=sum(line.rows for line, _ in found),
                failures=tuple(failures),
            )
        )
        is_good = not failures and not any(line.failures for line, _ in found)
        connection.execute(
            "update control.cold_files set verified_at = %s"
            " where cold_id = any(%s) and sealed_at is null",
            [now if is_good else None, [row["cold_id"] for row in rows]],
        )
    return tuple(lines)


def _shortfalls(
    target: Target,
    manifests: Sequence[Mapping[str, Any] | None],
    found: Sequence[tuple[ReadBack, Mapping[str, str]]],
) -> Iterator[str]:
    """What all files of a table together lack of what the plan says."""
    rows = sum(line.rows for line, _ in found)
    if rows != target.rows:
        yield f"the cold files of {target.table} hold {rows} rows, the plan {target.rows}"
    if _added(m["fingerprint"] for m in manifests if m) != int(target.fingerprint):
        yield f"the cold files of {target.table} are copies of other rows than the plan's"
    for column, planned in target.sums.items():
        total = Decimal(0)
        for _, sums in found:
            total = _WIDE.add(total, Decimal(sums.get(column, "0")))
        if total != Decimal(planned):
            yield f"{column} of the cold files of {target.table} adds up to {total}, not {planned}"


def _checked(
    settings: Settings,
    place: "_Place",
    rows: Sequence[Mapping[str, Any]],
    summed: Sequence[str] = (),
) -> Iterator[tuple[ReadBack, Mapping[str, str]]]:
    """Each file read in full, with the sums of some columns."""
    for some in _alike(rows):
        with place.fetched([row["path"] for row in some]) as fetched:
            faults = {row["path"]: list(_file_faults(place, fetched, row)) for row in some}
            readable = [row for row in some if not faults[row["path"]]]
            figures = _figures_of(settings, fetched, readable, summed)
        for row in some:
            own = figures.get(row["path"])
            failures = faults[row["path"]]
            if not failures and own is None:
                failures = ["cannot be read"]
            elif own is not None:
                failures = list(_differences(row["manifest"], own[0]))
            where = f"{row['class']} of {row['workspace_id']}, {row['month']:%Y-%m}: {row['path']}"
            line = ReadBack(
                data_class=row["class"],
                table=row["table_name"],
                workspace_id=row["workspace_id"],
                month=row["month"],
                path=row["path"],
                rows=own[0].rows if own else 0,
                failures=tuple(f"{where} {failure}" for failure in failures),
            )
            yield line, own[1] if own else {}


def _alike(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Files that one statement can read: of one schema, and not too many."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        schema = json.dumps(_schema(row["manifest"])) if row["manifest"] else ""
        groups[schema].append(row)
    for group in groups.values():
        for start in range(0, len(group), _FILES_AT_ONCE):
            yield group[start : start + _FILES_AT_ONCE]


def _file_faults(place: "_Place", fetched: Path, row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a file before a row of it is read."""
    manifest = row["manifest"]
    if manifest is None:
        yield "was never finished"
        return
    if place.manifest(row["path"]) != manifest:
        yield "has a manifest beside it that is missing or not the one on record"
    file = fetched / row["path"]
    try:
        size = file.stat().st_size
        if size != manifest["bytes"]:
            yield f"has {size} bytes, its manifest {manifest['bytes']}"
        elif _sha256(UPath(file)) != manifest["sha256"]:
            yield "has other bytes than were written"
    except FileNotFoundError:
        yield "is missing"
    except OSError as error:
        yield f"cannot be read ({error.strerror})"


def _figures_of(
    settings: Settings, folder: Path, rows: Sequence[Mapping[str, Any]], summed: Sequence[str]
) -> dict[str, tuple[_Figures, dict[str, str]]]:
    """Figures and sums by path; files that ClickHouse cannot read are left out."""
    if not rows:
        return {}
    columns = _columns(rows[0]["manifest"])
    sums = ", ".join(f"toString(sum({identifier(column)}))" for column in summed)
    paths = [row["path"] for row in rows]
    try:
        found = clickhouse.rows(
            settings,
            f"select _path as path, {_Figures.select(columns)}, [{sums}]::Array(String) as sums"
            f" from {_relation(folder, paths, columns)} group by path",
            params=_READING,
        )
    except ClickHouseError:
        if len(rows) == 1:
            return {}
        # One that fails must not hide the others.
        merged: dict[str, tuple[_Figures, dict[str, str]]] = {}
        for row in rows:
            merged |= _figures_of(settings, folder, [row], summed)
        return merged
    by_tail = {_tail(path): path for path in paths}
    figures = {
        by_tail[_tail(row["path"])]: (
            _Figures.read(row, columns),
            dict(zip(summed, row["sums"], strict=True)),
        )
        for row in found
    }
    # A file without rows has no group.
    nothing = _Figures(0, {column.name: "" for column in columns}, "")
    return {path: figures.get(path, (nothing, {})) for path in paths}


def _differences(manifest: Mapping[str, Any], figures: _Figures) -> Iterator[str]:
    if figures.rows != manifest["rows"]:
        yield f"holds {figures.rows} rows, its manifest {manifest['rows']}"
        return
    different = [
        column["name"]
        for column in manifest["columns"]
        if figures.hashes[column["name"]] != column["hash"]
    ]
    if different:
        yield f"holds other values than stood in the warehouse in {', '.join(different)}"
    elif figures.row_hash != manifest["row_hash"]:
        yield "holds the values of its rows in another combination"


def _relation(folder: Path, paths: Sequence[str], columns: Sequence[_Column]) -> str:
    """The rows of some files as a table function; workspaces and names have no pattern in them."""
    names = f"{{{','.join(paths)}}}" if len(paths) > 1 else paths[0]
    return f"file({literal(f'{folder}/{names}')}, 'Parquet', {literal(_structure(columns))})"


def _tail(path: str) -> tuple[str, ...]:
    """What tells a file apart however the engine spells the folders above."""
    return tuple(path.split("/")[-4:])


# -- where files lie -----------------------------------------------------------------------------


class _Place:
    """The cold location: a folder, or an object store behind a folder that ClickHouse reaches."""

    def __init__(self, settings: Settings) -> None:
        #: Where ClickHouse writes and reads.
        self.folder = settings.cold_folder
        self._root = UPath(settings.cold)
        self._is_remote = "://" in settings.cold

    def put(self, file: Path, path: str) -> None:
        """Bring a file that ClickHouse wrote to its place, where it appears whole."""
        if self._is_remote:
            with file.open("rb") as source, self._target(path).open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
            file.unlink()
        else:
            file.chmod(0o600)
            _sync(file)
            final = self.folder / path
            _make_folder(final.parent)
            file.replace(final)
            _sync(final.parent)

    def put_manifest(self, manifest: Mapping[str, Any], path: str) -> None:
        """Write the manifest beside its file."""
        text = json.dumps(manifest, indent=1).encode() + b"\n"
        if self._is_remote:
            self._target(_manifest_path(path)).write_bytes(text)
            return
        final = self.folder / _manifest_path(path)
        draft = final.with_name(f"{final.name}.new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(final)
        _sync(final.parent)

    def manifest(self, path: str) -> Any:
        """The manifest beside a file; None where it is missing or no JSON."""
        try:
            return json.loads((self._root / _manifest_path(path)).read_bytes())
        except (OSError, ValueError):
            return None

    def is_whole(self, path: str, manifest: Mapping[str, Any]) -> bool:
        """Whether a file stands with its size and its manifest."""
        try:
            size = (self._root / path).stat().st_size
        except OSError:
            return False
        return bool(size == manifest["bytes"] and self.manifest(path) == manifest)

    @contextmanager
    def fetched(self, paths: Iterable[str]) -> Iterator[Path]:
        """A folder in which ClickHouse can read these files, as far as they exist."""
        if not self._is_remote:
            yield self.folder
            return
        folder = self.folder / ".fetched"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            for path in paths:
                final = folder / path
                _make_folder(final.parent)
                try:
                    with (self._root / path).open("rb") as source, final.open("wb") as target:
                        shutil.copyfileobj(source, target, _CHUNK_BYTES)
                except FileNotFoundError:
                    final.unlink(missing_ok=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, path: str) -> None:
        """Remove a file and then its manifest; nothing happens where they are gone."""
        for name in (path, _manifest_path(path), f"{_manifest_path(path)}.new"):
            (self._root / name).unlink(missing_ok=True)
        if not self._is_remote:
            folder = (self.folder / path).parent
            if folder.is_dir():
                _sync(folder)
            while folder != self.folder and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent

    def exists(self, path: str) -> bool:
        """Whether a file or its manifest is there."""
        return any((self._root / name).exists() for name in (path, _manifest_path(path)))

    def _target(self, path: str) -> UPath:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _manifest_path(path: str) -> str:
    return f"{path.removesuffix('.parquet')}.json"


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, closed to other accounts."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: UPath) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _added(parts: Iterable[int | str]) -> int:
    """Fingerprints of disjoint rows, added as ClickHouse adds them."""
    return sum(map(int, parts)) % 2**128


def _kind(error: ClickHouseError) -> str:
    """The kind of an error without its text, which may quote a value."""
    name = re.search(r"\(([A-Z0-9_]+)\)", str(error))
    return f"ClickHouse error {error.code}, {name[1]}" if name else f"ClickHouse error {error.code}"
