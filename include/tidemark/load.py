"""Loading: landing files become rows of `raw`: once, whole, and without personal data.

A batch of one source goes through four steps, and a kill between any two of them is mended by the
next run:

1. parse: each file streams into `load.stage` and `load.rejects` through the source's SQL;
2. judge: among rows of one key, in the order of the files, which are stored, duplicate, replaced;
3. prepare: `load.next_<table>` becomes the raw table as it shall be, by links to the parts that
   stay; then PostgreSQL records the batch with its counts;
4. publish: the tables change places with those of `raw`, and the counts enter the load ledger.
"""

import re
import secrets
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import accumulate
from typing import Any

import zstandard
from psycopg.types.json import Jsonb

from tidemark import clickhouse, keys, ledger, overrides, policy, privacy
from tidemark.clickhouse import ClickHouseError
from tidemark.config import Settings
from tidemark.errors import TidemarkError
from tidemark.landing import DAMAGED, LandingFile, Unreadable, discover
from tidemark.postgres import Connection
from tidemark.workspaces import UnknownWorkspace

#: A batch holds at most this much, or one larger file.
BATCH_BYTES = 256 << 20
BATCH_FILES = 400
PARSERS = 2
#: A statement costs a tenth of a second before its first line, so small files travel together, up
#: to this many bytes of text.
BUNDLE_BYTES = 64 << 20
#: A file of this size travels alone and packed as it lies: ClickHouse unpacks it faster.
WHOLE_BYTES = 8 << 20
#: Two threads insert side by side, blocks large enough to make few parts.
_INSERT = {
    "max_insert_threads": "2",
    # Else a table that others are fed from is written by one thread.
    "parallel_view_processing": "1",
    "min_insert_block_size_rows": "0",
    "min_insert_block_size_bytes": str(128 << 20),
}

RETRYABLE = ("unknown_workspace", "bad_timestamp", "past_retention")
_REFUSED = "refused:"
#: Why a bundle did not load.
_Failure = ClickHouseError | Unreadable
# What ClickHouse finds wrong before it reads a line: unknown names, wrong types, bad syntax, …
_STATEMENT_ERRORS = frozenset({16, 36, 42, 43, 44, 46, 47, 53, 60, 62, 63, 81, 179, 352, 386, 456})

_STAGE_COLUMNS = """
workspace_id LowCardinality(String),
source_system LowCardinality(String),
local_date Date,
delivery_date Date,
load_id UInt64,
line_number UInt64,
row_key UInt128,
version_at DateTime64(6, 'UTC')
"""


@dataclass(slots=True)
class Counts:
    """Lines of one file by their fate: lines = stored + duplicate + quarantined + refused."""

    lines: int = 0
    stored: int = 0
    duplicate: int = 0
    quarantined: int = 0
    refused: int = 0
    #: Of the quarantined, those that `--retry` may store later.
    retryable: int = 0


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one file."""

    file: str
    status: str
    load_id: int | None = None
    counts: Counts = field(default_factory=Counts)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a load did."""

    as_of: date
    files: tuple[FileReport, ...]
    #: Files that were loaded before.
    unchanged: int
    notes: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether a file could not be loaded."""
        return any(file.error for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON document."""
        total = Counts()
        for file in self.files:
            for name, value in asdict(file.counts).items():
                setattr(total, name, getattr(total, name) + value)
        return {
            "as_of": self.as_of,
            **asdict(total),
            "files": [
                {"file": f.file, "status": f.status, "load_id": f.load_id, **asdict(f.counts)}
                | ({"error": f.error} if f.error else {})
                for f in self.files
            ],
            "unchanged": self.unchanged,
            "notes": list(self.notes),
        }


Advance = Callable[[int], None]
#: Told the bytes that will be read, gives what to call with the bytes read.
Track = Callable[[int], Advance]


def run(
    settings: Settings,
    connection: Connection,
    *,
    as_of: date,
    now: datetime,
    sources: Sequence[str] = (),
    workspace: str | None = None,
    landing: str | None = None,
    retry: bool = False,
    delivered_from: date | None = None,
    track: Track = lambda _total: lambda _bytes: None,
) -> Report:
    """Load every landing file that is not loaded yet. The caller holds the warehouse's lock.

    Args:
        as_of: the day that decides windows and which times lie in the future.
        now: the clock of this run.
        landing: a path or URL; the settings' by default.
        retry: read files again whose lines were quarantined for their time or workspace, and
            take those lines alone.
        delivered_from: leave alone what was delivered before this day.

    Raises:
        Refused: as_of lies in the future.
        UsageError: there is no such source or workspace.
        TidemarkError: a store does not answer; what was published stays.
    """
    policy.refuse_future(as_of, now)
    loader = _Loader(settings, connection, policy.read(settings), as_of, now)
    loader.recover()
    files, notes = discover(landing or settings.landing, loader.policy, sources, workspace)
    # One that is delivered for goes to quarantine; one that is not is a name misspelt.
    is_delivered = any(file.workspace_id == workspace for file in files)
    if workspace is not None and workspace not in loader.workspaces and not is_delivered:
        raise UnknownWorkspace(workspace)
    todo, unchanged = loader.select(
        [file for file in files if delivered_from is None or file.delivery_date >= delivered_from],
        retry,
    )
    advance = track(sum(item.file.size for item in todo))
    reports: list[FileReport] = []
    for batch in _batches(todo):
        reports += loader.load(batch, files, advance)
    if reports:
        # The user agents that the last batch held in memory go now, and not with the next load.
        loader.sweep()
    return Report(as_of, tuple(reports), unchanged, tuple(notes))


@dataclass(frozen=True, slots=True)
class Trial:
    """The parse of one file, to be measured: it can run any number of times."""

    #: What the parse makes of a line.
    columns: tuple[str, ...]
    #: Parse the file once, without making the columns given.
    run: Callable[[Collection[str]], None]


@contextmanager
def trial(
    settings: Settings, connection: Connection, file: LandingFile, *, as_of: date, now: datetime
) -> Iterator[Trial]:
    """Set up the parse of a file as a load does it, except that no row is written.

    The caller holds the warehouse's lock. The file need not stand in landing.

    Raises:
        TidemarkError: a store does not answer.
    """
    loader = _Loader(settings, connection, policy.read(settings), as_of, now)
    class_name, _ = loader.policy.class_of(file.source)
    sql = _ClassSql(settings, class_name)
    item = _Item(file, "", "", load_id=1, is_retry=False)
    session_id = f"tidemark-load-{secrets.token_hex(16)}"

    def run(left_out: Collection[str]) -> None:
        statement = loader._parse_statement(file.source, class_name, sql, left_out)
        for bundle in _bundles([item], {}, _nowhere, WHOLE_BYTES):
            loader._stream(bundle, statement, session_id, class_name)

    loader.sweep()
    try:
        loader._make_tables(sql)
        loader._open_session(session_id, file.workspace_id)
        yield Trial(tuple(loader._columns("load.lines")), run)
    finally:
        loader._close_session(session_id)
        loader.sweep()


def effects(settings: Settings, class_name: str, where: Callable[[str], str]) -> dict[str, str]:
    """Per measure of a class, the query of what the load ledger counts of raw.

    Args:
        where: for each raw table that it reads, SQL that holds for the rows to count.

    Raises:
        TidemarkError: the class has no SQL file, or the file lacks a block.
    """
    return {
        measure: re.sub(
            r"\{\{ (raw\.\w+) \}\}",
            lambda found: f"(select * from {found[1]} where {where(found[1])})",
            select,
        )
        for measure, select in _ClassSql(settings, class_name).effects.items()
    }


def counted(effects: str) -> str:
    """The query of rows, distinct ids and money per workspace, day and currency of what one counts.

    Raw lies in the order of workspace and day, so the ids of one day are in memory at a time: of a
    month of 20 million events 0.1 GB, instead of 1.5. With the engine's own size of a block, of 50
    MB a thread, it would be 0.5.
    """
    return (
        "select workspace_id, local_date, currency, count() as events, uniqExact(id) as ids,"
        f" sum(money) as money from ({effects}) group by workspace_id, local_date, currency"
        " settings optimize_aggregation_in_order = 1,"
        " aggregation_in_order_max_block_bytes = 1000000"
    )


def unloaded(
    settings: Settings, connection: Connection, ladder: policy.Policy, sources: Sequence[str]
) -> list[LandingFile]:
    """Files of these sources that stand in landing and are not loaded.

    Raises:
        TidemarkError: landing or a store cannot be read.
    """
    if not sources:
        return []
    files, _ = discover(settings.landing, ladder, sources, None)
    row = connection.execute(
        "select exists (select from control.keys where workspace_id = %s and purpose = 'ledger')"
        " as made",
        [keys.LEDGER_WORKSPACE],
    ).fetchone()
    if row is None or not row["made"]:
        return files
    ledger_key = keys.Keyring.from_settings(settings).key(
        connection, keys.LEDGER_WORKSPACE, "ledger"
    )
    loaded = {
        tuple(row.values())
        for row in connection.execute(
            "select source, workspace_id, delivery_date, file_name_hash, file_sha256"
            " from control.loads where status = 'loaded' and source = any(%s)",
            [list(sources)],
        )
    }
    return [
        file
        for file in files
        if (
            file.source,
            file.workspace_id,
            file.delivery_date,
            _name_hash(ledger_key, file.name),
            file.sha256(),
        )
        not in loaded
    ]


@dataclass(frozen=True, slots=True)
class _Item:
    """A file to load: new, or again for the lines it has in quarantine."""

    file: LandingFile
    name_hash: str
    sha256: str
    load_id: int
    is_retry: bool


def _batches(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    size = 0
    for item in items:
        if batch and (
            item.file.source != batch[0].file.source
            or item.is_retry != batch[0].is_retry
            or size + item.file.size > BATCH_BYTES
            or len(batch) == BATCH_FILES
        ):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.file.size
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Piece:
    """Whole lines of a file."""

    item: _Item
    #: Lines of the file before it.
    offset: int
    text: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Bundle:
    """Pieces of one workspace's files whose lines go to ClickHouse in one statement."""

    pieces: tuple[_Piece, ...]
    #: It is one file, whole and packed: its piece has no text.
    is_whole: bool = False

    @property
    def items(self) -> list[_Item]:
        """The files it has lines of."""
        return [piece.item for piece in self.pieces]

    @property
    def first_lines(self) -> list[int]:
        """Where each piece begins among the lines of the whole, from 1."""
        counts = (piece.text.count(b"\n") for piece in self.pieces[:-1])
        return list(accumulate(counts, initial=1))


def _bundles(
    batch: Sequence[_Item], failures: dict[int, str], advance: Advance, whole: int
) -> Iterator[_Bundle]:
    """Cut the files into bundles as they are read; a file that can't be read goes to `failures`.

    Files of `whole` bytes and more are left to be read by who sends them.
    """
    pieces: list[_Piece] = []
    size = 0
    for item in sorted(batch, key=lambda item: item.file.workspace_id):
        offset = 0
        try:
            # ClickHouse would take the mark for a part of the first line.
            if item.file.size >= whole and not item.file.has_mark():
                yield _Bundle((_Piece(item, 0, b""),), is_whole=True)
                continue
            for text in item.file.lines(BUNDLE_BYTES, advance):
                other = pieces and pieces[0].item.file.workspace_id != item.file.workspace_id
                if other or (pieces and size + len(text) > BUNDLE_BYTES):
                    yield _Bundle(tuple(pieces))
                    pieces, size = [], 0
                pieces.append(_Piece(item, offset, text))
                size += len(text)
                offset += text.count(b"\n")
        except FileNotFoundError:
            failures[item.load_id] = "it has gone since it was listed; nothing of it was loaded"
        except DAMAGED as error:
            kind = item.file.encoding or "file"
            failures[item.load_id] = (
                f"after line {item.file.readable_lines()}: the {kind} data is damaged or cut"
                f" short ({type(error).__name__}); nothing of it was loaded"
            )
    if pieces:
        yield _Bundle(tuple(pieces))


class _ClassSql:
    """The blocks of `include/sql/load/classes/<class>.sql`."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.path = settings.sql / "load" / "classes" / f"{name}.sql"
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError as error:
            raise TidemarkError(f"class {name} has no {self.path}") from error
        parts = re.split(r"^-- block: (.+)\n", text, flags=re.MULTILINE)
        blocks = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
        try:
            self.stage = blocks.pop("stage")
            self.key = blocks.pop("key")
            self.version = blocks.pop("version")
        except KeyError as error:
            raise TidemarkError(f"{self.path} has no block {error}") from error
        #: Columns of rows with days of their own, and what of them may still load.
        self.carried = {
            n.split()[1]: blocks.pop(n) for n in list(blocks) if n.startswith("carried ")
        }
        self.has_user_agents = re.search(r"^ua_hash\b", self.stage, re.MULTILINE) is not None
        standing = blocks.pop("standing", None)
        self.targets = {n.split()[1]: b for n, b in blocks.items() if n.startswith("target ")}
        #: The rows in raw that a new row of their key may replace.
        self.standing = f"({standing})" if standing else next(iter(self.targets))
        self.effects = {n.split()[1]: b for n, b in blocks.items() if n.startswith("effects ")}


class _Loader:
    """One run: its stores, its policy, its clock."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        ladder: policy.Policy,
        as_of: date,
        now: datetime,
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.policy = ladder
        self.as_of = as_of
        self.now = now
        self.keyring = keys.Keyring.from_settings(settings)
        with connection.transaction():
            self.ledger_key = self.keyring.ledger_key(connection, now)
            gone = keys.destroy_salts(connection, as_of, now)
            self.salts = self.keyring.daily_salts(
                connection, [as_of + timedelta(days=n) for n in range(-3, 2)], as_of, now
            )
            if gone:
                ledger.append(connection, self.keyring, "salts_destroyed", {"days": gone}, now)
        if gone:
            ledger.copy_head(settings, connection, now)
        self.workspaces = {
            row["workspace_id"]: row
            for row in connection.execute(
                "select workspace_id, timezone, currency, plan, revenue_source"
                " from app.workspaces where deleted_at is null"
            )
        }
        self.overrides = overrides.in_force(connection, ladder)
        self.topology = clickhouse.topology(settings)
        self.seal = privacy.Seal()

    # -- which files ---------------------------------------------------------------------------

    def select(self, files: Iterable[LandingFile], retry: bool) -> tuple[list[_Item], int]:
        """The files to load now, and how many need nothing."""
        known = {
            (
                r["source"],
                r["workspace_id"],
                r["delivery_date"],
                r["file_name_hash"],
                r["file_sha256"],
            ): r
            for r in self.connection.execute(
                "select load_id, source, workspace_id, delivery_date, file_name_hash, file_sha256,"
                " status, retryable from control.loads"
            )
        }
        items: list[_Item] = []
        unchanged = 0
        for file in files:
            name_hash, sha256 = self._name_hash(file.name), file.sha256()
            row = known.get((file.source, file.workspace_id, file.delivery_date, name_hash, sha256))
            if row is None or row["status"] == "staged":
                load_id = row["load_id"] if row else self._claim(file, name_hash, sha256)
                items.append(_Item(file, name_hash, sha256, load_id, is_retry=False))
            elif retry and row["retryable"]:
                items.append(_Item(file, name_hash, sha256, row["load_id"], is_retry=True))
            else:
                unchanged += 1
        return items, unchanged

    def _name_hash(self, name: str) -> str:
        return _name_hash(self.ledger_key, name)

    def _claim(self, file: LandingFile, name_hash: str, sha256: str) -> int:
        with self.connection.transaction():
            row = self.connection.execute(
                "insert into control.loads (source, workspace_id, delivery_date, file_name_hash,"
                " file_sha256, bytes, status, as_of, started_at)"
                " values (%s, %s, %s, %s, %s, %s, 'staged', %s, %s) returning load_id",
                [
                    file.source, file.workspace_id, file.delivery_date, name_hash, sha256,
                    file.size, self.as_of, self.now,
                ],
            ).fetchone()  # fmt: skip
        assert row is not None
        return int(row["load_id"])

    # -- one batch -----------------------------------------------------------------------------

    def load(
        self, batch: list[_Item], listed: Sequence[LandingFile], advance: Advance
    ) -> list[FileReport]:
        """Load the files of one source together; a file that can't be read is left out."""
        source = batch[0].file.source
        class_name, data_class = self.policy.class_of(source)
        sql = _ClassSql(self.settings, class_name)
        self.sweep()
        failures = self._parse(batch, source, class_name, sql, advance)
        kept = [item for item in batch if item.load_id not in failures]
        reports = [
            FileReport(item.file.shown, "failed", item.load_id, error=failures[item.load_id])
            for item in batch
            if item.load_id in failures
        ]
        if not kept:
            return reports
        with ThreadPoolExecutor(1) as beside:
            classified = beside.submit(self._classify_user_agents, sql)
            self._describe_files(kept, listed)
            self._judge(sql, data_class)
            counts = self._counts(kept)
            classified.result()
        results: dict[str, dict[str, Any]] = {
            str(item.load_id): {
                "counts": asdict(counts[item.load_id]),
                "is_retry": item.is_retry,
                "days": [],
            }
            for item in kept
        }
        bounds = self._bounds(kept, class_name)
        with ThreadPoolExecutor(1) as beside:
            days = beside.submit(lambda: list(self._days(sql, data_class, bounds)))
            tables = self._prepare(kept, sql, data_class, bounds)
        for day in days.result():
            results[str(day.pop("load_id"))]["days"].append(day)
        with self.connection.transaction():
            row = self.connection.execute(
                "insert into control.load_batches (source, status, tables, results, prepared_at)"
                " values (%s, 'prepared', %s, %s, %s) returning batch_id",
                [source, tables, Jsonb(results), self.now],
            ).fetchone()
            assert row is not None
            batch_id = int(row["batch_id"])
            # Before the commit: from then on a rerun takes the tables for finished.
            for table in tables:
                # A comment is a host's own.
                for _, host in clickhouse.hosts(self.settings):
                    clickhouse.execute(
                        host,
                        f"alter table {self.topology.local(_next(table))}"
                        f" modify comment 'load batch {batch_id}'",
                    )
        self._publish(batch_id)
        return reports + [
            FileReport(
                item.file.shown,
                "retried" if item.is_retry else "loaded",
                item.load_id,
                counts[item.load_id],
            )
            for item in kept
        ]

    def sweep(self) -> None:
        """Drop the work tables, those too that an earlier run left on another host."""
        for _, host in clickhouse.hosts(self.settings):
            for row in clickhouse.rows(
                host, "select name from system.tables where database = 'load'"
            ):
                clickhouse.execute(
                    host, f"drop table if exists load.{clickhouse.identifier(row['name'])}"
                )

    def _parse(
        self, batch: list[_Item], source: str, class_name: str, sql: _ClassSql, advance: Advance
    ) -> dict[int, str]:
        """Stream the files into `load.stage` and `load.rejects`; the errors, by load."""
        self._make_tables(sql)
        self._distribute(sql)
        statement = self._parse_statement(source, class_name, sql)
        failures: dict[int, str] = {}
        sessions = threading.local()
        opened: list[str] = []

        def parse(bundle: _Bundle) -> _Failure | None:
            workspace_id = bundle.items[0].file.workspace_id
            if getattr(sessions, "workspace_id", None) != workspace_id:
                sessions.session_id = f"tidemark-load-{secrets.token_hex(16)}"
                opened.append(sessions.session_id)
                self._open_session(sessions.session_id, workspace_id)
                sessions.workspace_id = workspace_id
            try:
                self._stream(bundle, statement, sessions.session_id, class_name, advance)
            except Unreadable as error:
                return error
            except ClickHouseError as error:
                if error.code in _STATEMENT_ERRORS:
                    raise TidemarkError(f"include/sql/load/{source}.sql: {error}") from error
                return error
            return None

        with ThreadPoolExecutor(PARSERS) as pool:
            suspects: dict[int, _Item] = {}
            bundles = _bundles(batch, failures, advance, WHOLE_BYTES)
            for bundle, error in _side_by_side(pool, parse, bundles):
                if error is not None:
                    suspects |= {item.load_id: item for item in bundle.items}
            # Files that failed together, or packed, are read again one by one: that shows which is
            # at fault, and where.
            self._forget(list(suspects.values()))
            for item in suspects.values():
                bundles = _bundles([item], failures, _nowhere, sys.maxsize)
                for _, error in _side_by_side(pool, parse, bundles):
                    if isinstance(error, ClickHouseError):
                        failures[item.load_id] = _reason_to_show(error)
        for session_id in opened:
            self._close_session(session_id)
        self._forget([item for item in batch if item.load_id in failures])
        return failures

    def _make_tables(self, sql: _ClassSql) -> None:
        """Make the tables that the parse fills; what arrives in `load.lines` goes nowhere yet."""
        columns = f"{_STAGE_COLUMNS.strip()},\n{sql.stage}"
        extra = ", sealed_user_agent LowCardinality(String)" if sql.has_user_agents else ""
        self._run(
            f"create table load.stage ({columns}) engine = MergeTree order by tuple()"
            # It lives for seconds: packing or merging it would cost more than writing it.
            " settings default_compression_codec = 'NONE',"
            " max_bytes_to_merge_at_max_space_in_pool = 1"
        )
        self._run(
            f"create table load.lines ({columns}, reason LowCardinality(String), line_hash String"
            f"{extra}) engine = Null"
        )
        self._run(
            "create table load.rejects (load_id UInt64, line_number UInt64, reason LowCardinality"
            "(String), line_hash String) engine = MergeTree order by (load_id, line_number)"
        )
        if sql.has_user_agents:
            # In memory alone, and sealed: a user agent must not reach the disk, nor outlive a load.
            self._run(
                "create table load.user_agents_seen (ua_hash UInt128, sealed_user_agent String)"
                " engine = Memory"
            )

    def _distribute(self, sql: _ClassSql) -> None:
        """Send what arrives in `load.lines` on to the other work tables."""
        not_staged = "reason, line_hash" + (", sealed_user_agent" if sql.has_user_agents else "")
        self._run(
            "create materialized view load.lines_to_stage to load.stage as"
            f" select * except ({not_staged}) from load.lines where reason = ''"
        )
        self._run(
            "create materialized view load.lines_to_rejects to load.rejects as"
            " select load_id, line_number, reason, line_hash from load.lines where reason != ''"
        )
        if sql.has_user_agents:
            self._run(
                "create materialized view load.lines_to_user_agents to load.user_agents_seen as"
                " select ua_hash, any(sealed_user_agent) as sealed_user_agent from load.lines"
                " where ua_hash != 0 group by ua_hash"
            )

    def _classify_user_agents(self, sql: _ClassSql) -> None:
        if sql.has_user_agents:
            privacy.classify_user_agents(self.settings, self.seal)

    def _forget(self, items: Sequence[_Item]) -> None:
        """Take what part of some files was staged out again."""
        if items:
            broken = ", ".join(str(item.load_id) for item in items)
            for table in ("stage", "rejects"):
                self._run(
                    f"alter table load.{table} delete where load_id in ({broken})"
                    " settings mutations_sync = 2"
                )

    def _parse_statement(
        self, source: str, class_name: str, sql: _ClassSql, left_out: Collection[str] = ()
    ) -> str:
        _, data_class = self.policy.class_of(source)
        path = self.settings.sql / "load" / f"{source}.sql"
        try:
            select = path.read_text(encoding="utf-8")
        except OSError as error:
            raise TidemarkError(f"source {source} has no {path}") from error
        erased = " or ".join(
            f"{column} in (select subject_hash from tidemark_erased)"
            for column in data_class.subjects
        )
        carried = ", ".join(f"{part} as {column}" for column, part in sql.carried.items())
        carrier = " or ".join(f"notEmpty({column})" for column in sql.carried)
        return self._template(
            "parse",
            columns=clickhouse.identifiers(
                name for name in self._columns("load.lines") if name not in left_out
            ),
            source=select.replace("{{ lines }}", "wanted_lines"),
            retryable=str(RETRYABLE),
            measure_group=next(iter(data_class.measures.values())),
            is_erased=erased or "false",
            carried=f" replace ({carried})" if carried else "",
            is_carrier=f"({carrier})" if carrier else "false",
            row_key=sql.key,
            version=sql.version,
        )

    def _template(self, name: str, **parts: str) -> str:
        """The SQL of `include/sql/load/steps/<name>.sql` with its parts filled in.

        The parts are names and expressions of the policy and the class files; values are bound.
        """
        path = self.settings.sql / "load" / "steps" / f"{name}.sql"
        text = path.read_text(encoding="utf-8")
        for part, value in parts.items():
            text = text.replace("{{ " + part + " }}", value)
        return text

    def _open_session(self, session_id: str, workspace_id: str) -> None:
        """Bring the keys into a temporary table of the session, in the body of an insert."""
        session = {"session_id": session_id, "session_timeout": "3600"}
        self._run(
            "create temporary table tidemark_keys"
            " (name String, day Date, inner_key String, outer_key String)",
            session,
        )
        self._run("create temporary table tidemark_erased (subject_hash String)", session)
        rows = [("ledger", self.as_of, self.ledger_key)]
        rows += [("salt", day, salt) for day, salt in self.salts.items()]
        erased: list[dict[str, str]] = []
        if workspace_id in self.workspaces:
            pseudonym_key = self.keyring.pseudonym_key(self.connection, workspace_id)
            rows.append(("pseudonym", self.as_of, pseudonym_key))
            erased = self.connection.execute(
                "select subject_hash from control.erasure_list where workspace_id = %s",
                [workspace_id],
            ).fetchall()
        documents = [
            {"name": name, "day": day.isoformat(), **privacy.hmac_pads(key)}
            for name, day, key in rows
        ]
        others = {
            "user_agent": privacy.siphash_key(self.ledger_key),
            "seal": {"inner_key": self.seal.key.hex(), "outer_key": ""},
        }
        documents += [
            {"name": name, "day": self.as_of.isoformat(), **key} for name, key in others.items()
        ]
        clickhouse.insert_rows(self.settings, "tidemark_keys", documents, params=session)
        clickhouse.insert_rows(self.settings, "tidemark_erased", erased, params=session)

    def _close_session(self, session_id: str) -> None:
        # The keys need not wait in the server's memory for the session to time out.
        self._run("drop temporary table if exists tidemark_keys", {"session_id": session_id})

    def _stream(
        self,
        bundle: _Bundle,
        statement: str,
        session_id: str,
        class_name: str,
        advance: Advance = lambda _: None,
    ) -> None:
        file = bundle.items[0].file
        workspace_id, source = file.workspace_id, file.source
        data_class = self.policy.classes[class_name]
        own_folder = self.policy.sources[source].workspace
        workspace = self.workspaces.get(workspace_id)
        is_known = workspace_id == own_folder if own_folder else workspace is not None
        by_workspace = data_class.days == "workspace" and workspace is not None
        dates = ",".join(f"'{item.file.delivery_date}'" for item in bundle.items)
        params = {
            "session_id": session_id,
            "param_workspace_id": workspace_id,
            "param_source": source,
            "param_timezone": workspace["timezone"] if by_workspace and workspace else "UTC",
            "param_currency": workspace["currency"] if workspace else "",
            "param_first_lines": str(bundle.first_lines),
            "param_load_ids": str([item.load_id for item in bundle.items]),
            "param_delivery_dates": f"[{dates}]",
            "param_offsets": str([piece.offset for piece in bundle.pieces]),
            "param_is_retry": str(int(bundle.items[0].is_retry)),
            "param_is_known": str(int(is_known)),
            "param_as_of": self.as_of.isoformat(),
            "param_oldest": self._oldest(class_name, workspace_id).isoformat(),
            # One stream up to the window function, so that line numbers are the file's.
            "parallelize_output_from_storages": "0",
            "log_queries": "0",
            **_INSERT,
        }
        if bundle.is_whole:
            clickhouse.stream_insert(
                self.settings,
                statement,
                file.packed(advance),
                content_encoding=file.encoding,
                params=params,
            )
            return
        # Packed lightly: what costs is moving the bytes from process to process.
        packed = zstandard.ZstdCompressor(level=-1).compress(
            b"".join(piece.text for piece in bundle.pieces)
        )
        clickhouse.stream_insert(
            self.settings, statement, [packed], content_encoding="zstd", params=params
        )

    def _describe_files(self, kept: list[_Item], listed: Sequence[LandingFile]) -> None:
        """`load.files`: the order of the batch's files, and each known file's rank in its folder.

        Names stay out of the stores, so the rank among the names that stand in the folder now
        stands for the name. A file that is gone from landing ranks below those that are there.
        """
        order = {item.load_id: number for number, item in enumerate(kept, start=1)}
        folders = {(i.file.source, i.file.workspace_id, i.file.delivery_date) for i in kept}
        names: dict[tuple[str, str, date], list[str]] = defaultdict(list)
        for file in listed:
            folder = (file.source, file.workspace_id, file.delivery_date)
            if folder in folders:
                names[folder].append(file.name)
        rank_of = {
            (*folder, self._name_hash(name)): rank
            for folder, listing in names.items()
            for rank, name in enumerate(sorted(listing), start=1)
        }
        rows = self.connection.execute(
            "select load_id, source, workspace_id, delivery_date, file_name_hash"
            " from control.loads where source = %s and delivery_date = any(%s)",
            [kept[0].file.source, [folder[2] for folder in folders]],
        ).fetchall()
        documents = [
            {
                "load_id": row["load_id"],
                "seq": order.get(row["load_id"], 0),
                "name_rank": rank_of.get(
                    (
                        row["source"],
                        row["workspace_id"],
                        row["delivery_date"],
                        row["file_name_hash"],
                    ),
                    0,
                ),
            }
            for row in rows
        ]
        self._run(
            "create table load.files (load_id UInt64, seq UInt64, name_rank UInt64)"
            " engine = MergeTree order by load_id"
        )
        clickhouse.insert_rows(self.settings, "load.files", documents)

    def _judge(self, sql: _ClassSql, data_class: policy.DataClass) -> None:
        """`load.fates`: of every row whose key stands elsewhere too, what becomes of it.

        Keys that stand once, by far the most, get no entry: their rows are stored.
        """
        key = self._raw_expression(sql.key)
        version = self._raw_expression(sql.version)
        wide = self.topology.broadcast
        bounds = f"workspace_id {wide}in (select distinct workspace_id from load.stage)"
        if data_class.versions == "first":
            # An event's key holds within its month.
            bounds += (
                " and toYYYYMM(local_date)"
                f" {wide}in (select distinct toYYYYMM(local_date) from load.stage)"
            )
        self._run(
            "create table load.contested (row_key UInt128) engine = MergeTree order by row_key"
        )
        parts = {
            "row_key": key, "version": version, "table": sql.standing, "bounds": bounds,
            "broadcast": wide,
        }  # fmt: skip
        self._run(self._template("contested", **parts))
        self._run(
            "create table load.fates (load_id UInt64, line_number UInt64, seq UInt64,"
            " is_duplicate Bool, is_replaced Bool, previous_load_id UInt64,"
            " previous_line_number UInt64) engine = MergeTree order by (load_id, line_number)"
        )
        contenders = self._template("contenders", **parts)
        self._run(self._template(f"fates_{data_class.versions}", contenders=contenders))

    @staticmethod
    def _raw_expression(expression: str) -> str:
        """An expression of the stage's columns, for a raw table."""
        return expression.replace("source_system", "source")

    def _counts(self, kept: list[_Item]) -> dict[int, Counts]:
        counts = {item.load_id: Counts() for item in kept}
        for row in self._rows("select load_id, count() as n from load.stage group by load_id"):
            counts[row["load_id"]].stored = row["n"]
        for row in self._rows(
            "select load_id, count() as n from load.fates where seq > 0 and is_duplicate"
            " group by load_id"
        ):
            counts[row["load_id"]].stored -= row["n"]
            counts[row["load_id"]].duplicate = row["n"]
        for row in self._rows(
            "select load_id, reason, count() as n from load.rejects group by load_id, reason"
        ):
            count = counts[row["load_id"]]
            if row["reason"].startswith(_REFUSED):
                count.refused += row["n"]
            else:
                count.quarantined += row["n"]
                count.retryable += row["n"] if row["reason"] in RETRYABLE else 0
        for count in counts.values():
            count.lines = count.stored + count.duplicate + count.quarantined + count.refused
        return counts

    def _bounds(self, kept: list[_Item], class_name: str) -> dict[str, str]:
        """The oldest day of each workspace that may load, as parameters of a query."""
        names = sorted({item.file.workspace_id for item in kept})
        days = (self._oldest(class_name, name) for name in names)
        return {
            "param_workspaces": f"[{','.join(map(clickhouse.literal, names))}]",
            "param_oldest": f"[{','.join(clickhouse.literal(day.isoformat()) for day in days)}]",
        }

    def _oldest(self, class_name: str, workspace_id: str) -> date:
        own = self.overrides.get((workspace_id, class_name))
        return self.policy.classes[class_name].oldest_day(self.as_of, own) or date(1970, 1, 1)

    def _replaced(self, table: str, data_class: policy.DataClass) -> str:
        """The rows of a raw table that go because a newer version came.

        A row of a day that can't be loaded stays: what comes now may not take its place there.
        """
        group = data_class.measures[table.removeprefix("raw.")]
        return (
            f"((load_id, line_number) {self.topology.broadcast}in"
            " (select load_id, line_number from load.fates where seq = 0 and is_replaced)"
            " and local_date >= transform(toString(workspace_id), {workspaces:Array(String)},"
            " {oldest:Array(Date)}, toDate(0))"
            " and (workspace_id, local_date) not in (select workspace_id, local_date"
            f" from retention.frozen_days where measure_group = '{group}'))"
        )

    def _days(
        self, sql: _ClassSql, data_class: policy.DataClass, bounds: dict[str, str]
    ) -> Iterator[dict[str, Any]]:
        """What each file adds per day and currency, and what it takes away by replacing rows."""
        stored = self._stage("not (is_duplicate and seq > 0)")
        for measure, effects in sql.effects.items():
            added, replaced = effects, effects
            for table, select in sql.targets.items():
                columns = clickhouse.identifiers(self._columns(table))
                new = f"select {columns} from ({self._target(select, stored)})"
                old = f"select {columns} from {table} where {self._replaced(table, data_class)}"
                mark = "{{ " + table + " }}"
                added = added.replace(mark, f"({new})")
                replaced = replaced.replace(mark, f"({new} union all {old})")
            statement = self._template("days", added=added, replaced=replaced)
            for row in self._rows(statement, bounds):
                yield {"measure": measure, **row}

    def _stage(self, kept: str) -> str:
        """The staged rows with some fates."""
        return (
            "(select * from load.stage where (load_id, line_number) not in"
            f" (select load_id, line_number from load.fates where not ({kept})))"
        )

    @staticmethod
    def _target(select: str, stage: str) -> str:
        return select.replace("{{ stage }}", stage).replace(
            "{{ user_agents_seen }}", "load.user_agents_seen"
        )

    def _prepare(
        self,
        kept: list[_Item],
        sql: _ClassSql,
        data_class: policy.DataClass,
        bounds: dict[str, str],
    ) -> list[str]:
        """Build `load.next_<table>` of every raw table that changes; their names."""
        published = self._stage("not (seq > 0 and (is_duplicate or is_replaced))")
        changes = [
            (table, self._target(select, published), self._replaced(table, data_class))
            for table, select in sql.targets.items()
        ]
        loads = [
            {
                "load_id": item.load_id,
                "source": item.file.source,
                "workspace_id": item.file.workspace_id,
                "delivery_date": item.file.delivery_date.isoformat(),
                "file_name_hash": item.name_hash,
            }
            for item in kept
        ]
        self._run(
            "create table load.loads (load_id UInt64, source String, workspace_id String,"
            " delivery_date Date, file_name_hash String) engine = Memory"
        )
        clickhouse.insert_rows(self.settings, "load.loads", loads)
        retried = ", ".join(str(item.load_id) for item in kept if item.is_retry) or "0"
        changes.append(
            (
                "raw.quarantine",
                "select source, workspace_id, delivery_date as local_date, delivery_date,"
                " file_name_hash, line_number, line_hash, reason, load_id from load.rejects"
                " inner join load.loads using (load_id)"
                f" where not startsWith(reason, '{_REFUSED}')",
                f"load_id in ({retried}) and reason in {RETRYABLE}",
            )
        )
        return [
            table
            for table, rows, outdated in changes
            if self._prepare_table(table, rows, outdated, bounds)
        ]

    def _prepare_table(self, table: str, rows: str, outdated: str, bounds: dict[str, str]) -> bool:
        columns = clickhouse.identifiers(self._columns(table))
        target, on_cluster = _next(table), self.topology.on_cluster
        own = f"{self.topology.local(target)}{on_cluster}"
        for statement in self.topology.made_like(target, table):
            self._run(statement)
        self._run(f"alter table {own} attach partition all from {self.topology.local(table)}")
        touched = [
            row["partition_id"]
            for row in self._rows(
                f"select distinct _partition_id as partition_id from {table} where {outdated}",
                bounds,
            )
        ]
        for partition_id in touched:
            self._run(f"alter table {own} drop partition id '{partition_id}'")
            self._run(
                f"insert into {target} ({columns}) select {columns} from {table}"
                f" where _partition_id = '{partition_id}' and not ({outdated})",
                bounds,
            )
        summary = self._run(
            f"insert into {target} ({columns}) select {columns} from ({rows})",
            _INSERT,
        ).summary
        if not touched and int(summary.get("written_rows", 0)) == 0:
            for _, host in clickhouse.hosts(self.settings):
                self._drop(host, target)
            return False
        return True

    # -- publish and recover -------------------------------------------------------------------

    def recover(self) -> None:
        """Finish what a killed run had prepared, and drop what it had not."""
        for row in self.connection.execute(
            "select batch_id from control.load_batches where status = 'prepared' order by batch_id"
        ).fetchall():
            self._publish(row["batch_id"])
        self.sweep()

    def _publish(self, batch_id: int) -> None:
        row = self.connection.execute(
            "select tables, results from control.load_batches where batch_id = %s", [batch_id]
        ).fetchone()
        assert row is not None
        for table in row["tables"]:
            # Host by host: a queue of the cluster could run an exchange a second time.
            for _, host in clickhouse.hosts(self.settings):
                self._exchange(host, table, batch_id)
        with self.connection.transaction():
            self._enter(row["results"])
            with self.connection.cursor() as cursor:
                cursor.executemany(
                    "insert into control.touched_days (batch_id, workspace_id, measure, local_date)"
                    " values (%s, %s, %s, %s) on conflict do nothing",
                    [
                        (batch_id, day["workspace_id"], day["measure"], day["local_date"])
                        for result in row["results"].values()
                        for day in result["days"]
                    ],
                )
            self.connection.execute(
                "update control.load_batches set status = 'done', done_at = %s where batch_id = %s",
                [self.now, batch_id],
            )

    def _exchange(self, host: Settings, table: str, batch_id: int) -> None:
        """Let a host's next table take its place, where it has not yet."""
        comment = f"load batch {batch_id}"
        comments = {
            f"{r['database']}.{r['name']}": r["comment"]
            for r in clickhouse.rows(
                host,
                "select database, name, comment from system.tables"
                " where database in ('raw', 'load')",
            )
        }
        own, following = self.topology.local(table), self.topology.local(_next(table))
        # The comment travels with the table, so it says whether the exchange has happened.
        if comments[own] != comment:
            if comments.get(following) != comment:
                raise TidemarkError(
                    f"{following} of load batch {batch_id} is gone although PostgreSQL has"
                    " the batch as prepared: restore ClickHouse, or both stores, from a backup"
                )
            clickhouse.execute(host, f"exchange tables {following} and {own}")
        self._drop(host, _next(table))

    def _drop(self, host: Settings, table: str) -> None:
        for statement in self.topology.drops(table):
            clickhouse.execute(host, statement)

    def _enter(self, results: dict[str, Any]) -> None:
        """Add a batch's counts and days to the load ledger, in the caller's transaction."""
        for load_id, result in results.items():
            counts = result["counts"]
            if result["is_retry"]:
                # The lines read again leave the quarantine and meet their new fate.
                self.connection.execute(
                    "update control.loads set stored = stored + %(stored)s,"
                    " duplicate = duplicate + %(duplicate)s, refused = refused + %(refused)s,"
                    " quarantined = quarantined - %(lines)s + %(quarantined)s,"
                    " retryable = %(retryable)s, attempt = attempt + 1, as_of = %(as_of)s,"
                    " loaded_at = %(now)s where load_id = %(load_id)s",
                    {**counts, "load_id": load_id, "now": self.now, "as_of": self.as_of},
                )
            else:
                self.connection.execute(
                    "update control.loads set status = 'loaded', lines = %(lines)s,"
                    " stored = %(stored)s, duplicate = %(duplicate)s,"
                    " quarantined = %(quarantined)s, refused = %(refused)s,"
                    " retryable = %(retryable)s, loaded_at = %(now)s where load_id = %(load_id)s",
                    {**counts, "load_id": load_id, "now": self.now},
                )
            with self.connection.cursor() as cursor:
                cursor.executemany(
                    "insert into control.load_days as d (load_id, source, workspace_id, local_date,"
                    " measure, currency, event_count, distinct_ids, money)"
                    " select load_id, source, %(workspace_id)s, %(local_date)s, %(measure)s,"
                    " %(currency)s, %(event_count)s, %(distinct_ids)s, %(money)s"
                    " from control.loads where load_id = %(load_id)s"
                    " on conflict (load_id, source, workspace_id, local_date, currency, measure)"
                    " do update set event_count = d.event_count + excluded.event_count,"
                    " distinct_ids = d.distinct_ids + excluded.distinct_ids,"
                    " money = d.money + excluded.money",
                    [
                        {**day, "money": Decimal(day["money"]), "load_id": load_id}
                        for day in result["days"]
                    ],
                )

    # -- the stores ----------------------------------------------------------------------------

    def _columns(self, table: str) -> list[str]:
        database, name = table.split(".")
        rows = self._rows(
            "select name from system.columns where database = {database:String}"
            " and table = {name:String} order by position",
            {"param_database": database, "param_name": name},
        )
        return [row["name"] for row in rows]

    def _run(self, statement: str, params: dict[str, str] | None = None) -> clickhouse.Response:
        return clickhouse.execute(self.settings, statement, params=params, timeout=3600)

    def _rows(self, query: str, params: dict[str, str] | None = None) -> list[dict[str, Any]]:
        return clickhouse.rows(self.settings, query, params=params)


def _name_hash(ledger_key: bytes, name: str) -> str:
    return privacy.keyed_hash(ledger_key, name.encode("utf-8", "surrogateescape"))


def _next(table: str) -> str:
    return f"load.next_{table.split('.')[1]}"


def _nowhere(_bytes: int) -> None:
    """Progress that nobody watches."""


def _side_by_side(
    pool: ThreadPoolExecutor,
    work: Callable[[_Bundle], _Failure | None],
    bundles: Iterator[_Bundle],
) -> Iterator[tuple[_Bundle, _Failure | None]]:
    """Do the work on bundles in the pool, reading no further ahead than it can take."""
    running: dict[Future[_Failure | None], _Bundle] = {}
    for bundle in bundles:
        if len(running) == PARSERS:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
        running[pool.submit(work, bundle)] = bundle
    for future in as_completed(running):
        yield running[future], future.result()


def _reason_to_show(error: ClickHouseError) -> str:
    """The kind of an error without its text, which may quote the line it failed on."""
    name = re.search(r"\(([A-Z0-9_]+)\)", str(error))
    kind = name[1] if name else "error"
    return f"ClickHouse could not read it (code {error.code}, {kind}); nothing of it was loaded"
