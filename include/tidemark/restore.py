"""Restores: of everything into an empty home, or of one table that is missing or empty.

What stands is never overwritten: a home with rows refuses. A restore that was killed keeps every
other run out until it is run again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tidemark import backup as backups
from tidemark import (
    clickhouse,
    engines,
    erasure,
    holds,
    ledger,
    policy,
    postgres_dump,
    recall,
    requests,
    retention,
)
from tidemark import plan as planning
from tidemark.backup import Backup, Table
from tidemark.clickhouse import identifier, literal
from tidemark.config import Settings
from tidemark.errors import Refused, TidemarkError, UsageError
from tidemark.flows import Note, warehouse
from tidemark.keys import Keyring
from tidemark.postgres import Connection


@dataclass(frozen=True, slots=True)
class Restored:
    """What was brought back."""

    backup: str
    #: None where it was everything.
    table: str | None
    rows: int
    #: Rows left out because their days were purged since.
    purged_rows: int
    #: Codes of the requests whose persons were erased, or are as far as no hold keeps them.
    erased: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def everything(
    settings: Settings,
    name: str | None,
    *,
    clock: Callable[[], datetime],
    note: Note = lambda _: None,
) -> Restored:
    """Bring both stores of an empty home to where they were when a backup was made.

    Safe to run again after a kill.

    Args:
        name: the newest daily without one.

    Raises:
        UsageError: there is no such backup.
        Refused: the home has rows, or another backup's restore is not finished.
        TidemarkError: the backup is damaged, or the home's master key is not the one that the
            backup's keys are wrapped by.
    """
    backups.refuse_cluster(settings)
    found = backups.find(settings, name)
    marker = ledger.restore_marker(settings)
    with warehouse(settings, note, is_restore=True) as connection:
        begun = marker.read_text(encoding="utf-8") if marker.exists() else None
        if begun is None:
            _refuse_rows(settings, connection)
        elif begun != found.name:
            raise Refused(f"the restore of {begun} is not finished: run `tidemark restore {begun}`")
        _check_master_key(settings, found)
        with backups.fetched(settings, found) as folder:
            note(f"checking the files of {found.name}")
            backups.check_files(folder, found.manifest)
            marker.write_text(found.name, encoding="utf-8")
            note("restoring PostgreSQL")
            _restore_postgres(settings, connection, folder, found)
            note("restoring ClickHouse")
            _restore_clickhouse(settings, folder, found)
        note("comparing every row")
        for table in found.tables:
            backups.compare(settings, table, table.name)
        engines.apply_schemas(settings)
        with ledger.kept_outside(settings, connection, clock, is_restore=True):
            _hold_again(settings, connection, clock, note)
            # Before the home is anybody's: none of them may be read again.
            erased = tuple(_erase_again(settings, connection, found, clock, note))
            result = Restored(found.name, None, found.rows, 0, erased)
            _enter(settings, connection, result, clock)
        marker.unlink()
    return result


def table(
    settings: Settings,
    wanted: str,
    name: str | None,
    *,
    clock: Callable[[], datetime],
    note: Note = lambda _: None,
) -> Restored:
    """Bring one table back that is missing or empty: of ClickHouse, or of PostgreSQL's schema app.

    Rows of days that were purged stay away unless a hold keeps them, and so do rows of recalls that
    are over. A table of people is not brought back alone where somebody was erased since.

    Args:
        wanted: as `database.table`.
        name: the newest daily without one.

    Raises:
        UsageError: there is no such backup, or it does not have the table.
        Refused: the table has rows, or may have those of a person who was erased since.
        TidemarkError: the backup is damaged.
    """
    backups.refuse_cluster(settings)
    found = backups.find(settings, name)
    with warehouse(settings, note) as connection, backups.fetched(settings, found) as folder:
        if wanted in found.manifest["postgres"]["tables"]:
            if not wanted.startswith("app."):
                raise Refused(
                    f"{wanted} goes with everything else: a part of the control tables would"
                    " contradict the rest"
                )
            note(f"restoring {wanted}")
            result = _restore_app(settings, connection, folder, found, wanted)
        else:
            tables = {own.name: own for own in found.tables}
            if wanted not in tables:
                raise UsageError(f"{found.name} has no table {wanted}")
            note(f"restoring {wanted}")
            result = _restore_table(settings, connection, folder, found, tables[wanted], clock)
        with ledger.kept_outside(settings, connection, clock):
            _enter(settings, connection, result, clock)
    return result


def _enter(
    settings: Settings, connection: Connection, result: Restored, clock: Callable[[], datetime]
) -> None:
    keyring = Keyring.from_settings(settings)
    with connection.transaction():
        ledger.append(connection, keyring, backups.RESTORED, result.as_dict(), clock())


def _hold_again(
    settings: Settings, connection: Connection, clock: Callable[[], datetime], note: Note
) -> None:
    """Bring back the holds that the backup is older than: what they keep is not erased again."""
    keyring = Keyring.from_settings(settings)
    for own in backups.noted_holds(settings):
        with connection.transaction():
            hold, is_new = holds.put(connection, keyring, **own, now=clock())
        if is_new:
            note(f"hold {hold.hold_id} stands again")


def _erase_again(
    settings: Settings,
    connection: Connection,
    found: Backup,
    clock: Callable[[], datetime],
    note: Note,
) -> Iterator[str]:
    """Carry out the erasures that the backup is older than, and those that wait in it."""
    ladder, keyring = policy.read(settings), Keyring.from_settings(settings)
    with connection.transaction():
        for own in backups.erased_since(settings, connection, found):
            requests.reopen(connection, keyring, ladder, **own, now=clock())
    for request in requests.waiting(connection, "erase"):
        note(f"carrying request {request.code} out")
        erasure.carry_out_within(settings, connection, request.code, clock=clock, note=note)
        yield request.code


def _refuse_rows(settings: Settings, connection: Connection) -> None:
    deciding = postgres_dump.figures(connection, _DECIDING).values()
    in_postgres = sum(int(own["rows"]) for own in deciding)
    (row,) = clickhouse.rows(
        settings,
        "select sum(total_rows) as rows from system.tables where database in"
        f" ({', '.join(map(literal, _DATABASES))})",
    )
    if in_postgres or row["rows"]:
        raise Refused(
            f"{settings.home} has data, and a restore overwrites nothing: restore into an empty"
            " home (docs/backups.md), or bring one table back with --table"
        )


#: Whoever has a row there is no empty home.
_DECIDING = ("app.workspaces", "control.loads", "control.ledger")
_DATABASES = ("raw", "marts", "anonymised", "recalled")


def _check_master_key(settings: Settings, found: Backup) -> None:
    try:
        Keyring.from_settings(settings).unwrap(
            bytes.fromhex(found.manifest["master_key"]), found.name
        )
    except TidemarkError:
        raise TidemarkError(
            f"the keys in {found.name} are wrapped by another master key: put that home's"
            f" secrets/master.key into {settings.secrets} first"
        ) from None


def _restore_postgres(
    settings: Settings, connection: Connection, folder: Path, found: Backup
) -> None:
    for schema in postgres_dump.SCHEMAS:
        connection.execute(f"drop schema if exists {schema} cascade")
    postgres_dump.restore(settings, folder / backups.DUMP, "tidemark")
    backups.compare_postgres(connection, found.manifest)
    # Rights are not in the dump: each file of the schema is applied again.
    connection.execute("truncate control.migrations")


def _restore_clickhouse(settings: Settings, folder: Path, found: Backup) -> None:
    archive = literal(str(folder / backups.ARCHIVE))
    for database in found.manifest["clickhouse"]["databases"]:
        backups.run(settings, f"drop database if exists {identifier(database)} sync")
    reduced = [own for own in found.tables if own.is_reduced]
    but = f" except tables {', '.join(own.quoted for own in reduced)}" if reduced else ""
    backups.run(settings, f"restore all{but} from File({archive})")
    for own in reduced:
        backups.run(settings, own.create)
        with backups.beside(settings, folder, [own]) as (relation,):
            columns = clickhouse.identifiers(column.name for column in own.columns)
            backups.run(
                settings, f"insert into {own.quoted} ({columns}) select {columns} from {relation}"
            )


def _restore_app(
    settings: Settings, connection: Connection, folder: Path, found: Backup, wanted: str
) -> Restored:
    if wanted not in postgres_dump.tables(connection):
        raise Refused(f"there is no table {wanted}: run `tidemark up`, which makes it")
    if postgres_dump.figures(connection, [wanted])[wanted]["rows"]:
        raise _has_rows(wanted)
    postgres_dump.restore(settings, folder / backups.DUMP, "tidemark", wanted)
    own = postgres_dump.figures(connection, [wanted])[wanted]
    if own != found.manifest["postgres"]["tables"][wanted]:
        raise TidemarkError(f"{wanted} did not come back as it was: {own['rows']} rows")
    return Restored(found.name, wanted, int(own["rows"]), 0)


def _restore_table(
    settings: Settings,
    connection: Connection,
    folder: Path,
    found: Backup,
    own: Table,
    clock: Callable[[], datetime],
) -> Restored:
    standing = clickhouse.rows(
        settings,
        f"select total_rows as rows from system.tables where concat(database, '.', name) ="
        f" {literal(own.name)}",
    )
    if standing and standing[0]["rows"]:
        raise _has_rows(own.name)
    _refuse_erased(settings, connection, found, own.name)
    with backups.beside(settings, folder, [own]) as (relation,):
        backups.compare(settings, own, relation)
        if not standing:
            backups.run(settings, own.create)
        columns = clickhouse.identifiers(column.name for column in own.columns)
        purged = _purged(settings, connection, own, clock())
        backups.run(
            settings,
            f"insert into {own.quoted} ({columns}) select {columns} from {relation}"
            f" where not ({purged})",
        )
        (kept,) = clickhouse.rows(
            settings,
            f"select countIf(not ({purged})) as kept, countIf({purged}) as purged from {relation}",
        )
        (now,) = clickhouse.rows(settings, f"select count() as rows from {own.quoted}")
    if now["rows"] != kept["kept"]:
        raise TidemarkError(f"{own.name} did not come back as it was: {now['rows']} rows")
    return Restored(found.name, own.name, kept["kept"], kept["purged"])


def _refuse_erased(settings: Settings, connection: Connection, found: Backup, table: str) -> None:
    ladder = policy.read(settings)
    of_people = {
        name
        for own in ladder.classes.values()
        if own.subjects
        for name in (*own.tables, *own.derived)
    } | ladder.kept.keys()
    if table not in of_people and table.split(".")[0] not in ("anonymised", "recalled"):
        return
    since = [own["code"] for own in backups.erased_since(settings, connection, found)]
    if since:
        raise Refused(
            f"{len(since)} persons were erased since {found.name}, and {table} alone would bring"
            " them back: take a later backup, restore everything into an empty home, which erases"
            " them again, or run `tidemark build` for what is made of raw"
        )


def _purged(settings: Settings, connection: Connection, own: Table, now: datetime) -> str:
    """SQL that holds for rows that went, or would have: of closed days and no hold, or of recalls.

    What was derived of several classes goes by each for its own rows.
    """
    if own.name.startswith("recalled."):
        # What they were recalled for is over.
        return f"toDate({recall.EXPIRES}) <= {literal(now.astimezone(UTC).date())}"
    ladder = policy.read(settings)
    retention.publish_holds(settings, connection)
    standing = policy.holds(connection)
    gone = []
    for name, data_class in ladder.classes.items():
        if own.name not in (*data_class.tables, *data_class.derived):
            continue
        day = identifier(data_class.day if own.name in data_class.tables else "date_day")
        ranges = [
            f"(workspace_id = {literal(workspace_id)}"
            f" and {day} in ({', '.join(map(literal, days))}))"
            for workspace_id, days in _closed(connection, name).items()
        ]
        if ranges:
            held = planning.held_condition(ladder, name, own.name, standing)
            of_class = planning.own_condition(ladder, name, own.name)
            gone.append(f"({of_class} and not {held} and ({' or '.join(ranges)}))")
    return " or ".join(gone) or "false"


def _closed(connection: Connection, data_class: str) -> dict[str, Sequence[Any]]:
    return {
        row["workspace_id"]: row["days"]
        for row in connection.execute(
            "select workspace_id, array_agg(local_date) as days from control.purge_ledger"
            " where class = %s group by 1",
            [data_class],
        )
    }


def _has_rows(table: str) -> Refused:
    return Refused(
        f"{table} has rows, and a restore overwrites nothing: where they are wrong, empty it with"
        " `tidemark sql --write` first, which the ledger then says"
    )
