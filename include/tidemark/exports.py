"""Exports: what the warehouse has of a workspace or of one person, as files for whoever asked.

ClickHouse writes a file per table and reads it back; the manifest comes last, so a folder without
one is no export. A person reaches ClickHouse as keyed hashes in a temporary table alone.
"""

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any

from tidemark import clickhouse, cold, coverage, ledger, places, policy, privacy, requests
from tidemark.clickhouse import ClickHouseError, identifier, literal
from tidemark.cold import Column, Due, recalled
from tidemark.config import Settings
from tidemark.errors import Refused, TidemarkError, UsageError
from tidemark.flows import Note, warehouse
from tidemark.keys import Keyring
from tidemark.places import Place
from tidemark.policy import DataClass, Policy
from tidemark.postgres import Connection
from tidemark.requests import FileFormat, Request

#: Of the policy.
CLASS = "exports"
CLASSES: tuple[str, ...] = (CLASS,)
MANIFEST = "manifest.json"
_MANIFEST_FORMAT = 1

# Money is written digit for digit and times say that they are UTC; each reads back as it was.
_AS_TEXT = {
    "date_time_output_format": "iso",
    "format_csv_null_representation": "",
    "output_format_json_escape_forward_slashes": "0",
    "output_format_json_quote_64bit_integers": "0",
    "output_format_json_quote_decimals": "0",
}
_FROM_TEXT = {"date_time_input_format": "best_effort", "format_csv_null_representation": ""}
_UNSAID = "a store does not answer: the log of the run has which"
# The name that ClickHouse has for each.
_FORMATS: dict[FileFormat, str] = {
    "parquet": "Parquet",
    "jsonl": "JSONEachRow",
    "csv": "CSVWithNames",
}
# Tables of a session: the hashes of a person, and what leads from their rows to others.
_PERSON, _LINKS = "tidemark_export_person", "tidemark_export_links"


def receive(
    settings: Settings,
    *,
    workspace_id: str,
    subject: str | None,
    file_format: FileFormat | None,
    now: datetime,
) -> tuple[Request, bool]:
    """Put an export on record; see `requests.receive`.

    Args:
        file_format: by default parquet for a workspace, jsonl for a person.

    Raises:
        UsageError: there is no such workspace, or the subject is empty.
        TidemarkError: PostgreSQL does not answer.
    """
    return requests.receive(
        settings,
        workspace_id=workspace_id,
        kind="export",
        subject=subject,
        now=now,
        file_format=file_format or ("parquet" if subject is None else "jsonl"),
    )


def carry_out(
    settings: Settings,
    code: str,
    *,
    as_of: date,
    clock: Callable[[], datetime],
    note: Note = lambda _: None,
) -> Request:
    """Write the files of an export that was received. Safe to run again at any time.

    What a killed run left of it is replaced; an export that is done stays as it is.

    Args:
        as_of: recalled rows that are due to go on this day are left out.

    Raises:
        UsageError: there is no such request, it asks for something else, or nothing here speaks to
            where exports lie.
        Refused: as_of lies in the future.
        TidemarkError: a file cannot be written or does not read back; the request says so too, and
            no file of it is left.
    """
    policy.refuse_future(as_of, clock())
    ladder = policy.read(settings)
    keyring = Keyring.from_settings(settings)
    place = _place(settings)
    with warehouse(settings, note) as connection:
        request = requests.find(connection, code)
        if request.kind != "export":
            raise UsageError(f"request {code} is of kind {request.kind}, and no export")
        if request.status == "done":
            return request
        with ledger.kept_outside(settings, connection, clock):
            expires_on = _expiry(ladder, clock())
            with connection.transaction():
                requests.advance(connection, keyring, code, "running", clock())
                # Before a file is written, so that none is left that nobody knows of.
                _expire_on(connection, code, expires_on)
            try:
                outcome = _Export(
                    settings, place, connection, ladder, request, as_of, expires_on, clock(), note
                ).write()
            except (TidemarkError, OSError) as error:
                reason = _reason(settings, error)
                # The ledger takes no address, not even a store's.
                kept = _UNSAID if privacy.holds_identifier(reason) else reason
                with connection.transaction():
                    requests.advance(connection, keyring, code, "failed", clock(), reason=kept)
                    # A folder that cannot be removed now goes with its time.
                    with contextlib.suppress(OSError):
                        place.remove_folder(code)
                        _expire_on(connection, code, None)
                # What ClickHouse says may quote a value, so it is no cause of this.
                raise TidemarkError(f"export {code} failed: {reason}") from None
            with connection.transaction():
                return requests.advance(connection, keyring, code, "done", clock(), outcome=outcome)


def location(settings: Settings, code: str) -> str:
    """Where the files of an export lie: a folder, or a URL."""
    return f"{settings.exports}/{code}"


def manifest(settings: Settings, code: str) -> dict[str, Any] | None:
    """What an export consists of; None where there is none under the code."""
    found: dict[str, Any] | None = _place(settings).json(f"{code}/{MANIFEST}")
    return found


class _Export:
    """The files of one request."""

    def __init__(
        self,
        settings: Settings,
        place: Place,
        connection: Connection,
        ladder: Policy,
        request: Request,
        as_of: date,
        expires_on: date,
        now: datetime,
        note: Note,
    ) -> None:
        self.settings = settings
        self.ladder = ladder
        self.request = request
        self.as_of = as_of
        self.expires_on = expires_on
        self.now = now
        self.note = note
        self.place = place
        self.topology = clickhouse.topology(settings)
        self.person = requests.subject_hashes(connection, request.code)
        self.format: FileFormat = request.file_format or "parquet"
        self.reading = {**cold.READING, **_FROM_TEXT, "log_queries": "0"}

    def write(self) -> dict[str, Any]:
        """Write files and manifest; what was done, in counts."""
        if self.request.is_of_subject != bool(self.person):
            raise TidemarkError("whom the request is of is no longer known: send it again")
        # A table that the policy does not know would be left out in silence.
        coverage.check(self.settings, self.ladder)
        standing = self._standing()
        self.place.remove_folder(self.request.code)
        places.make_folder(self.place.folder / self.request.code)
        files: list[dict[str, Any]] = []
        empty: list[str] = []
        with self._session() as session:
            for table, columns in standing.items():
                condition = self._condition(table, standing, session)
                if condition is None:
                    continue
                own = self._file(table, columns, condition, session)
                if own is None:
                    empty.append(table)
                else:
                    files.append(own)
                    self.note(f"{table}: {own['rows']} rows in {own['file']}")
        document = self._manifest(files, empty)
        self.place.put_json(document, f"{self.request.code}/{MANIFEST}")
        # Scratch space before an object store is empty now.
        with contextlib.suppress(OSError):
            (self.place.folder / self.request.code).rmdir()
        return {
            "format": self.format,
            "files": len(files),
            "rows": document["rows"],
            "bytes": document["bytes"],
            "tables": {own["table"]: own["rows"] for own in files},
            "manifest_sha256": hashlib.sha256(places.json_bytes(document)).hexdigest(),
            "expires_on": self.expires_on.isoformat(),
        }

    # -- which rows --------------------------------------------------------------------------------

    def _standing(self) -> dict[str, list[Column]]:
        """The tables that an export may have rows of, with their columns, by name."""
        wanted = {
            name
            for table in self.ladder.columns
            if table.partition(".")[0] in coverage.DATABASES
            for name in (table, recalled(table))
        }
        found: dict[str, list[Column]] = {}
        for row in clickhouse.rows(
            self.settings,
            "select concat(database, '.', table) as relation, name, type from system.columns"
            " where database in ('raw', 'anonymised', 'marts', 'recalled')"
            " order by database, table, position",
        ):
            if row["relation"] in wanted:
                found.setdefault(row["relation"], []).append(Column(row["name"], row["type"]))
        return found

    def _condition(
        self, table: str, standing: dict[str, list[Column]], session: dict[str, str]
    ) -> str | None:
        """SQL that holds for the rows of a table that go into the export; None: it has no people.

        A recall that is over counts as none, though its rows may still stand.
        """
        own = [f"workspace_id = {literal(self.request.workspace_id)}"]
        if table.startswith("recalled."):
            own.append(f"toDate(expires_at) > {literal(self.as_of)}")
        if self.request.is_of_subject:
            of_person = self._of_person(table, standing, session)
            if of_person is None:
                return None
            own.append(f"({of_person})")
        return " and ".join(own)

    def _of_person(
        self, table: str, standing: dict[str, list[Column]], session: dict[str, str]
    ) -> str | None:
        """SQL that holds for rows of the person: those that name them, else by what leads there."""
        raw = f"raw.{table.split('.')[1]}"
        for data_class in self.ladder.classes.values():
            if raw not in data_class.tables or not data_class.subjects:
                continue
            own = _of(data_class.subjects, standing[table])
            if own:
                return self._any_of(own, _PERSON)
            link = data_class.subject_links.get(raw)
            if link is None:
                return None
            keys = _of(link.columns, standing[table])
            self._run(f"create or replace temporary table {_LINKS} (link String)", session)
            # Rows that name people may have come back from the cold tier too.
            for people in dict.fromkeys((*link.tables, *map(recalled, link.tables))):
                self._follow(data_class, people, keys, standing.get(people, []), session)
            return self._any_of(keys, _LINKS)
        return None

    def _follow(
        self,
        data_class: DataClass,
        people: str,
        keys: Sequence[str],
        columns: Sequence[Column],
        session: dict[str, str],
    ) -> None:
        """Collect what leads from the person's rows of a table to rows that name nobody."""
        subjects = _of(data_class.subjects, columns)
        for key in _of(keys, columns) if subjects else ():
            self._run(
                f"insert into {_LINKS} select {identifier(key)} from {people}"
                f" where workspace_id = {literal(self.request.workspace_id)}"
                f" and {identifier(key)} != '' and ({self._any_of(subjects, _PERSON)})",
                session,
            )

    def _any_of(self, columns: Sequence[str], table: str) -> str:
        """SQL that holds where one of the columns is in the only column of a session's table."""
        wide = self.topology.broadcast
        return " or ".join(
            f"{identifier(column)} {wide}in (select * from {table})" for column in columns
        )

    @contextmanager
    def _session(self) -> Iterator[dict[str, str]]:
        """A session that knows the person; it ends with the export."""
        session = {"session_id": f"tidemark-export-{secrets.token_hex(16)}"}
        session |= {"session_timeout": "900", "log_queries": "0"}
        self._run(f"create temporary table {_PERSON} (subject_hash String)", session)
        try:
            hashes = [{"subject_hash": own} for own in self.person]
            clickhouse.insert_rows(self.settings, _PERSON, hashes, params=session)
            yield session
        finally:
            for name in (_PERSON, _LINKS):
                self._run(f"drop temporary table if exists {name}", session)

    # -- a file ------------------------------------------------------------------------------------

    def _file(
        self, table: str, columns: Sequence[Column], condition: str, session: dict[str, str]
    ) -> dict[str, Any] | None:
        """Write one table's rows, read them back, and say what the file is; None without a row."""
        values = ", ".join(f"{_written(own)} as {identifier(own.name)}" for own in columns)
        select = f"select {values} from {table} where {condition}"
        figures = cold.figures(columns)
        (stands,) = self._rows(f"select {figures} from ({select})", session)
        if not stands["rows"]:
            return None
        path = f"{self.request.code}/{table}.{self.format}"
        file = self.place.folder / path
        self._run(
            f"insert into function {self._function(str(file), columns)} {select}",
            {**session, **cold.WRITING, **_AS_TEXT},
        )
        described = {
            "table": table,
            "file": f"{table}.{self.format}",
            "rows": stands["rows"],
            "bytes": file.stat().st_size,
            "sha256": places.sha256(file),
            "columns": [{"name": own.name, "type": own.type} for own in columns],
        }
        self.place.put(file, path)
        with self.place.fetched([path]) as folder:
            relation = self._function(f"{folder}/{path}", columns)
            # Every column of every row: a count alone would come from a file's footer.
            (found,) = self._rows(f"select {figures} from {relation}", self.reading)
            if found != stands or places.sha256(folder / path) != described["sha256"]:
                raise TidemarkError(f"{described['file']} does not read back as {table} stands")
        return described

    def _function(self, path: str, columns: Sequence[Column]) -> str:
        structure = ", ".join(f"{identifier(own.name)} {own.stored_type}" for own in columns)
        return f"file({literal(path)}, '{_FORMATS[self.format]}', {literal(structure)})"

    def _manifest(self, files: Sequence[dict[str, Any]], empty: Sequence[str]) -> dict[str, Any]:
        return {
            "manifest": _MANIFEST_FORMAT,
            "code": self.request.code,
            "workspace_id": self.request.workspace_id,
            "is_of_subject": self.request.is_of_subject,
            "format": self.format,
            "as_of": self.as_of.isoformat(),
            "created_at": self.now.astimezone(UTC).isoformat(),
            "expires_on": self.expires_on.isoformat(),
            "policy_sha256": self.ladder.sha256,
            "rows": sum(own["rows"] for own in files),
            "bytes": sum(own["bytes"] for own in files),
            "files": list(files),
            "without_rows": list(empty),
        }

    def _run(self, statement: str, params: dict[str, str]) -> None:
        clickhouse.execute(self.settings, statement, params=params, timeout=3600)

    def _rows(self, query: str, params: dict[str, str]) -> list[dict[str, Any]]:
        return clickhouse.rows(self.settings, query, params=params)


def _written(column: Column) -> str:
    """SQL of a column's value in the files; a sketch is the bytes of its state, in hex."""
    return f"hex({column.flat})" if column.is_state else identifier(column.name)


def _of(names: Sequence[str], columns: Sequence[Column]) -> list[str]:
    """Those of the names that are columns."""
    known = {column.name for column in columns}
    return [name for name in names if name in known]


def _reason(settings: Settings, error: TidemarkError | OSError) -> str:
    """Why an export failed, without a value."""
    if isinstance(error, ClickHouseError):
        return f"the files cannot be written to {settings.exports} ({error.kind})"
    if isinstance(error, OSError):
        name = error.strerror or type(error).__name__
        return f"the files cannot be written to {settings.exports} ({name})"
    return str(error)


def _expiry(ladder: Policy, now: datetime) -> date:
    """The first day on which an export written now is due to go."""
    window = ladder.classes[CLASS].window
    if window is None:
        raise TidemarkError(f"class {CLASS} of include/policy.yml needs a window")
    return window.end(now.astimezone(UTC).date())


def _expire_on(connection: Connection, code: str, day: date | None) -> None:
    connection.execute(
        "update control.requests set expires_on = %s, deleted_at = null where code = %s",
        [day, code],
    )


def _place(settings: Settings) -> Place:
    return Place(settings.exports, settings.exports_folder, "TIDEMARK_EXPORTS")


# -- the end of an export ------------------------------------------------------------------------


def due(connection: Connection, ladder: Policy, as_of: date) -> tuple[Due, ...]:
    """Exports past their window, also what a killed run left half written."""
    holds = policy.holds(connection)
    return tuple(
        Due(
            data_class=CLASS,
            number=row["request_id"],
            of_class=CLASS,
            workspace_id=row["workspace_id"],
            month=row["expires_on"].replace(day=1),
            rows=(row["outcome"] or {}).get("rows", 0),
            sha256=(row["outcome"] or {}).get("manifest_sha256", ""),
            held_by=_held_by(holds, row["workspace_id"]),
        )
        for row in connection.execute(
            "select request_id, workspace_id, expires_on, outcome from control.requests"
            " where expires_on <= %s and deleted_at is null order by request_id",
            [as_of],
        )
    )


def delete(settings: Settings, connection: Connection, own: Due, now: datetime) -> None:
    """Destroy an export that is due; nothing happens where it is gone. Only the purge's door calls.

    Raises:
        Refused: a hold keeps it, or it was written again.
        TidemarkError: the location is away.
    """
    if _held_by(policy.holds(connection), own.workspace_id):
        raise Refused(f"export {own.number} of {own.workspace_id} came on hold after it was due")
    row = connection.execute(
        "select code, expires_on from control.requests"
        " where request_id = %s and expires_on is not null and deleted_at is null",
        [own.number],
    ).fetchone()
    if row is None:
        return
    if row["expires_on"] > now.astimezone(UTC).date():
        raise Refused(f"export {row['code']} was written again and stays until {row['expires_on']}")
    place = _place(settings)
    place.check_there()
    place.remove_folder(row["code"])
    connection.execute(
        "update control.requests set deleted_at = %s where request_id = %s", [now, own.number]
    )


def standing(settings: Settings) -> set[str]:
    """The codes whose folders stand where exports lie; raises TidemarkError if that is a file."""
    return set(filter(requests.is_code, _place(settings).folders()))


def unknown(settings: Settings, connection: Connection, codes: Iterable[str]) -> list[str]:
    """Those of these folders that still stand and that no request knows, so that none is deleted.

    Written after the backup, for example, from which the stores were restored.
    """
    known = connection.execute(
        "select code from control.requests where expires_on is not null and deleted_at is null"
    )
    place = _place(settings)
    return sorted(filter(place.exists, set(codes) - {row["code"] for row in known}))


def is_gone(settings: Settings, connection: Connection, own: Due) -> bool:
    """Whether no file of an export is left."""
    row = connection.execute(
        "select code, expires_on is null or deleted_at is not null as is_deleted"
        " from control.requests where request_id = %s",
        [own.number],
    ).fetchone()
    return row is not None and row["is_deleted"] and not _place(settings).exists(row["code"])


def _held_by(holds: Sequence[policy.Hold], workspace_id: str) -> tuple[int, ...]:
    """The holds that keep a workspace's exports.

    One on a person or on another class keeps rows where they stand, and no copy of them.
    """
    return tuple(
        hold.hold_id
        for hold in holds
        if hold.workspace_id == workspace_id
        and hold.data_class in (None, CLASS)
        and not hold.is_of_subject
    )
