"""Cold data back into `recalled.*` for a while, without anyone who was erased since.

The rows are read into a work table that leaves erased subjects out, held against the files, and
then take the place of the month's partition at once. The files stay where they are.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

from tidemark import clickhouse, cold, ledger, policy
from tidemark.clickhouse import identifier, literal
from tidemark.cold import ColdFile, Column, recalled
from tidemark.config import Settings
from tidemark.errors import Refused, TidemarkError, UsageError
from tidemark.flows import Note, warehouse
from tidemark.keys import Keyring
from tidemark.postgres import Connection
from tidemark.workspaces import UnknownWorkspace

EXPIRES = "expires_at"


@dataclass(frozen=True, slots=True)
class Recall:
    """A month that can be read again."""

    recall_id: int
    data_class: str
    workspace_id: str
    #: First day of it.
    month: date
    #: Where to read it.
    tables: tuple[str, ...]
    files: int
    rows: int
    #: Rows of the files that are left out because their subject was erased.
    erased_rows: int
    #: The first day on which it is due to go.
    expires_on: date
    #: The same month was there already, in this state.
    is_unchanged: bool

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        own = asdict(self)
        return {"class" if name == "data_class" else name: value for name, value in own.items()}


def recall(
    settings: Settings,
    data_class: str,
    workspace_id: str,
    month: date,
    *,
    as_of: date,
    now: datetime,
    reason: str,
    note: Note = lambda _: None,
) -> Recall:
    """Bring a month of a class back. Safe to run again: it then stays for longer.

    Args:
        month: any day of it.
        as_of: the day that decides how long it stays.
        now: the clock of the run.
        reason: goes into the ledger, so it names nobody.

    Raises:
        UsageError: there is no such class or workspace, or the reason is empty or too long.
        Refused: as_of lies in the future, the class or the month has no cold files, they are
            deleted or due to be, a hold is on a person who was erased, or the reason holds what
            looks like an e-mail address, phone number or IP address.
        TidemarkError: a file is damaged, or a store does not answer.
    """
    ladder = policy.read(settings)
    if data_class not in ladder.classes:
        raise UsageError(
            f"no class {data_class}; {policy.path(settings)} has {', '.join(ladder.classes)}"
        )
    policy.refuse_future(as_of, now)
    reason = ledger.checked_reason(reason)
    keyring = Keyring.from_settings(settings)
    with warehouse(settings, note) as connection:
        own = _Recall(
            settings, connection, ladder, data_class, workspace_id, month.replace(day=1), as_of, now
        )
        files = own.files()
        note(f"reading {len(files)} cold files in full")
        own.check(files)
        with ledger.kept_outside(settings, connection, lambda: now):
            return own.bring_back(files, keyring, reason)


class _Recall:
    """One month of one class and workspace."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        ladder: policy.Policy,
        data_class: str,
        workspace_id: str,
        month: date,
        as_of: date,
        now: datetime,
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.ladder = ladder
        self.name = data_class
        self.data_class = ladder.classes[data_class]
        self.workspace_id = workspace_id
        self.month = month
        self.as_of = as_of
        self.now = now
        self.expires_on = _expiry(ladder, as_of)

    @property
    def _what(self) -> str:
        return f"{self.name} of {self.workspace_id} in {self.month:%Y-%m}"

    def files(self) -> list[ColdFile]:
        """The files to bring back, if a guard does not speak against it."""
        known = self.connection.execute(
            "select deleted_at from app.workspaces where workspace_id = %s", [self.workspace_id]
        ).fetchone()
        if known is None:
            raise UnknownWorkspace(self.workspace_id)
        if known["deleted_at"] is not None:
            raise Refused(f"workspace {self.workspace_id} was deleted")
        if "cold" not in self.data_class.expiry:
            raise Refused(
                f"nothing of {self.name} goes to the cold tier: {policy.path(self.settings)} has no"
                " cold in its expiry"
            )
        files = cold.sealed(self.connection, self.name, self.workspace_id, self.month)
        if not files:
            day = cold.deleted_on(self.connection, self.name, self.workspace_id, self.month)
            if day is not None:
                raise Refused(f"the cold files of {self._what} were deleted on {day}")
            raise Refused(f"nothing of {self._what} lies in the cold tier")
        over = {
            own.number
            for own in cold.due(self.connection, self.ladder, self.as_of)
            if own.data_class == "cold_files" and not own.held_by
        }
        if over & {file.cold_id for file in files}:
            raise Refused(f"the cold files of {self._what} are past their window and due to go")
        held = self.connection.execute(
            "select min(hold_id) as hold_id from control.holds inner join control.erasure_list"
            " on erasure_list.workspace_id = holds.workspace_id"
            " and subject_hash = any(subject_hashes)"
            " where released_at is null and holds.workspace_id = %s"
            " and (class is null or class = %s)",
            [self.workspace_id, self.name],
        ).fetchone()
        if held is not None and held["hold_id"] is not None:
            # Their rows may neither be shown nor left out.
            raise Refused(f"hold {held['hold_id']} is on a person whose erasure is due or done")
        return files

    def check(self, files: Sequence[ColdFile]) -> None:
        """Read the files in full."""
        failures = [line for own in cold.check(self.settings, files) for line in own.failures]
        if failures:
            raise TidemarkError(f"nothing was brought back: {'; '.join(failures)}")

    def bring_back(self, files: Sequence[ColdFile], keyring: Keyring, reason: str) -> Recall:
        """Load, publish and record."""
        before = self._begin(reason)
        tables = sorted({file.table for file in files})
        rows = erased = 0
        with self._session() as session:
            for table in tables:
                own = [file for file in files if file.table == table]
                loaded, left_out = self._load(table, own, session)
                rows, erased = rows + loaded, erased + left_out
        is_unchanged = before["recalled_at"] is not None and (
            before["row_count"], before["erased_rows"], before["expires_on"]
        ) == (rows, erased, self.expires_on)  # fmt: skip
        if not is_unchanged:
            with self.connection.transaction():
                self.connection.execute(
                    "update control.recalls set recalled_at = %s, row_count = %s, erased_rows = %s,"
                    " expires_on = %s, as_of = %s, reason = %s where recall_id = %s",
                    [
                        self.now, rows, erased, self.expires_on, self.as_of, reason,
                        before["recall_id"],
                    ],
                )  # fmt: skip
                ledger.append(
                    self.connection,
                    keyring,
                    "recall",
                    {
                        "recall_id": before["recall_id"],
                        "class": self.name,
                        "workspace_id": self.workspace_id,
                        "month": self.month,
                        "rows": rows,
                        "erased_rows": erased,
                        "files": [file.manifest["sha256"] for file in files if file.manifest],
                        "expires_on": self.expires_on,
                        "reason": reason,
                    },
                    self.now,
                )
        return Recall(
            recall_id=before["recall_id"],
            data_class=self.name,
            workspace_id=self.workspace_id,
            month=self.month,
            tables=tuple(recalled(table) for table in tables),
            files=len(files),
            rows=rows,
            erased_rows=erased,
            expires_on=self.expires_on,
            is_unchanged=is_unchanged,
        )

    def _begin(self, reason: str) -> dict[str, Any]:
        """The recall on record before a row of it stands, so that it ends even if it is killed."""
        values = [self.name, self.workspace_id, self.month]
        with self.connection.transaction():
            self.connection.execute(
                "insert into control.recalls (class, workspace_id, month, reason, as_of,"
                " expires_on, begun_at) values (%s, %s, %s, %s, %s, %s, %s)"
                " on conflict (class, workspace_id, month) where removed_at is null do nothing",
                [*values, reason, self.as_of, self.expires_on, self.now],
            )
            row = self.connection.execute(
                "select recall_id, recalled_at, row_count, erased_rows, expires_on"
                " from control.recalls where class = %s and workspace_id = %s and month = %s"
                " and removed_at is null",
                values,
            ).fetchone()
        assert row is not None
        # What an earlier recall promised for longer is not cut short.
        self.expires_on = max(self.expires_on, row["expires_on"])
        return row

    @contextmanager
    def _session(self) -> Iterator[dict[str, str]]:
        """A session that knows the workspace's erased subjects."""
        session = {"session_id": f"tidemark-recall-{secrets.token_hex(16)}"}
        session |= {"session_timeout": "900", "log_queries": "0"}
        self._run("create temporary table tidemark_erased (subject_hash String)", session)
        try:
            erased = self.connection.execute(
                "select subject_hash from control.erasure_list where workspace_id = %s",
                [self.workspace_id],
            ).fetchall()
            clickhouse.insert_rows(self.settings, "tidemark_erased", erased, params=session)
            yield session
        finally:
            for name in ("tidemark_erased", "tidemark_erased_links"):
                self._run(f"drop temporary table if exists {name}", session)

    def _load(
        self, table: str, files: Sequence[ColdFile], session: dict[str, str]
    ) -> tuple[int, int]:
        """Bring one table's rows back; how many, and how many of erased subjects stayed away."""
        columns = _columns(files)
        work = f"load.recalled_{table.split('.')[1]}"
        target = self._ready(table, columns)
        topology = clickhouse.topology(self.settings)
        drop = f"drop table if exists {work}{topology.on_cluster} sync"
        self._run(drop)
        for statement in topology.made_like(work, target):
            self._run(statement)
        try:
            names = ", ".join(identifier(column.name) for column in columns)
            is_erased = self._is_erased(table, columns, session)
            figures = cold.figures(columns)
            with cold.opened(self.settings, files, columns) as select:
                params = {**session, **cold.READING}
                self._run(
                    f"insert into {work} ({names}, {EXPIRES}) select {names},"
                    f" toDateTime({literal(self.expires_on)}, 'UTC') from ({select})"
                    f" where not ({is_erased})",
                    params,
                )
                (wanted,) = self._rows(
                    f"select countIf({is_erased}) as erased, countIf(not ({is_erased})) as kept"
                    f" from ({select})",
                    params,
                )
                (kept,) = self._rows(
                    f"select {figures} from ({cold.flattened(columns, f'({select})')})"
                    f" where not ({is_erased})",
                    params,
                )
            (stands,) = self._rows(
                f"select {figures} from ({cold.flattened(columns, work)})", session
            )
            (shown,) = self._rows(f"select countIf({is_erased}) as rows from {work}", session)
            written = sum(file.rows for file in files)
            if stands != kept or shown["rows"] or wanted["erased"] + wanted["kept"] != written:
                raise TidemarkError(
                    f"{self._what} did not come back as its cold files have it: run it again"
                )
            self._publish(work, target)
        finally:
            self._run(drop)
        return int(wanted["kept"]), int(wanted["erased"])

    def _is_erased(self, table: str, columns: Sequence[Column], session: dict[str, str]) -> str:
        """SQL that holds for rows of erased subjects; pseudonyms hashed again lead to nobody."""
        kept = {column.name for column in columns if not column.is_rehashed}
        own = [subject for subject in self.data_class.subjects if subject in kept]
        if own:
            return _any_of(own, "tidemark_erased")
        link = self.data_class.subject_links.get(table)
        if link is None:
            return "false"
        keys = [column for column in link.columns if column in kept]
        if not keys:
            raise TidemarkError(
                f"no cold column of {table} leads to {' or '.join(link.tables)}, so erasures cannot"
                " be replayed on it: see subject_links in include/policy.yml"
            )
        self._run("create or replace temporary table tidemark_erased_links (link String)", session)
        for relation in self._people(link.tables):
            with relation as (people, names):
                subjects = [subject for subject in self.data_class.subjects if subject in names]
                for key in (key for key in keys if key in names and subjects):
                    wide = clickhouse.topology(self.settings).broadcast
                    self._run(
                        f"insert into tidemark_erased_links select {identifier(key)}"
                        f" from ({people}) where workspace_id = {literal(self.workspace_id)}"
                        f" and ({_any_of(subjects, 'tidemark_erased', wide)})",
                        {**session, **cold.READING},
                    )
        # An erasure has put keys on the list of what no row leads to any more.
        return f"{_any_of(keys, 'tidemark_erased_links')} or {_any_of(keys, 'tidemark_erased')}"

    def _people(
        self, tables: Sequence[str]
    ) -> Iterator[AbstractContextManager[tuple[str, set[str]]]]:
        """Wherever rows that name people are: standing, and in cold files."""
        for table in tables:
            names = {
                row["name"]
                for row in self._rows(
                    "select name from system.columns where concat(database, '.', table)"
                    " = {table:String}",
                    {"param_table": table},
                )
            }
            if names:
                yield nullcontext((f"select * from {table}", names))
            files = cold.sealed_of(self.connection, table, self.workspace_id)
            if files:
                yield self._people_of(files)

    @contextmanager
    def _people_of(self, files: Sequence[ColdFile]) -> Iterator[tuple[str, set[str]]]:
        columns = [column for column in _columns(files) if not column.is_rehashed]
        with cold.opened(self.settings, files, columns) as select:
            yield select, {column.name for column in columns}

    def _ready(self, table: str, columns: Sequence[Column]) -> str:
        """The table of `recalled`, made or widened to these columns."""
        target = recalled(table)
        day = identifier(self.data_class.day)
        described = ", ".join(f"{identifier(own.name)} {own.type}" for own in columns)
        for statement in clickhouse.topology(self.settings).made(
            f"create table if not exists {target} ({described}, {EXPIRES} DateTime('UTC')"
            " comment 'When the rows are due to go again')"
            f" engine = MergeTree partition by (workspace_id, toYYYYMM({day}))"
            f" order by (workspace_id, {day})"
            " comment 'Cold rows brought back for a while, without personal columns'"
        ):
            self._run(statement)
        types = {
            row["name"]: row["type"]
            for row in self._rows(
                "select name, type from system.columns where database = 'recalled'"
                " and table = {name:String}",
                {"param_name": target.split(".")[1]},
            )
        }
        for own in columns:
            if own.name not in types:
                self._run(f"alter table {target} add column {identifier(own.name)} {own.type}")
            elif types[own.name] != own.type:
                raise TidemarkError(
                    f"{target} has {own.name} as {types[own.name]}, the cold files as {own.type}:"
                    " wait until what is recalled there has gone, or drop the table"
                )
        return target

    def _publish(self, work: str, target: str) -> None:
        """Put the work table's rows in the place of what stands of this month, at once."""
        partitions = self._rows(f"select distinct _partition_id as id from {work}")
        for row in partitions:
            self._run(f"alter table {target} replace partition id {literal(row['id'])} from {work}")
        if not partitions:
            cold.drop_recalled(self.settings, target, self.workspace_id, self.month)

    def _run(self, statement: str, params: dict[str, str] | None = None) -> None:
        clickhouse.execute(self.settings, statement, params=params, timeout=3600)

    def _rows(self, query: str, params: dict[str, str] | None = None) -> list[dict[str, Any]]:
        return clickhouse.rows(self.settings, query, params=params)


def _any_of(columns: Sequence[str], erased: str, wide: str = "") -> str:
    """SQL that holds where one of the columns is in the only column of a table."""
    return " or ".join(
        f"{identifier(column)} {wide}in (select * from {erased})" for column in columns
    )


def _columns(files: Sequence[ColdFile]) -> list[Column]:
    """The columns of all the files together."""
    found: dict[str, Column] = {}
    for file in files:
        for column in file.columns:
            if found.setdefault(column.name, column) != column:
                raise TidemarkError(
                    f"{column.name} is {found[column.name].type} in one cold file and"
                    f" {column.type} in {file.path}: recall them apart"
                )
    return list(found.values())


def _expiry(ladder: policy.Policy, as_of: date) -> date:
    """The first day on which rows recalled now are due to go."""
    window = ladder.classes["recalled"].window
    if window is None:
        raise TidemarkError("class recalled of include/policy.yml needs a window")
    return window.end(as_of)
