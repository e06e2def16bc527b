"""The verbs that keep the stores safe and bring them back: `backup` and `restore`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from tidemark.cli_options import AsOfOption, JsonOption, as_of_date
from tidemark.config import Settings
from tidemark.output import emit, note, print_rows


def backup(
    as_of: AsOfOption = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Show the backups that there are, and make none.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Back both stores up, read every row back, and delete backups past their time.

    Makes the day's, and the month's where it has none: that one has no personal column.
    """
    from tidemark import backup as backups

    settings = Settings.from_env()
    if listed:
        found = [own.as_dict() for own in backups.stored(settings)]
        columns = ("name", "kind", "day", "verified_at", "tables", "rows", "bytes")

        def table() -> None:
            print_rows(columns, [[own[column] for column in columns] for own in found])

        emit(found, table, as_json=as_json)
        return
    report = backups.make(
        settings, as_of=as_of_date(as_of), clock=lambda: datetime.now(UTC), note=note
    )

    def human() -> None:
        for own in report.made:
            print(
                f"{own.name}: {own.rows} rows and {own.bytes} bytes in {settings.backups},"
                " every row read back"
            )
        for name in report.expired:
            print(f"{name}: past its time, deleted")

    emit(report.as_dict(), human, as_json=as_json)


def restore(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="As `backup --list` has it; the newest daily."),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(metavar="T", help="One table that is missing or empty, like raw.orders."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Restore into scratch space only, and compare.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring back both stores of an empty home, or one table; what has rows is not overwritten."""
    from tidemark import backup as backups
    from tidemark import restore as restoring
    from tidemark.errors import UsageError

    settings = Settings.from_env()

    def clock() -> datetime:
        return datetime.now(UTC)

    if check:
        if table is not None:
            raise UsageError("--check reads the whole backup: leave --table out")
        found = backups.check(settings, name, clock=clock, note=note)
        emit(
            {**found.as_dict(), "sound": True},
            lambda: print(f"{found.name}: every one of {found.rows} rows comes back as it was"),
            as_json=as_json,
        )
        return
    if table is None:
        done = restoring.everything(settings, name, clock=clock, note=note)
    else:
        done = restoring.table(settings, table, name, clock=clock, note=note)

    def human() -> None:
        print(f"{done.table or 'everything'}: {done.rows} rows as {done.backup} has them")
        if done.purged_rows:
            print(f"{done.purged_rows} rows stayed away: their days were purged since")
        for code in done.erased:
            print(f"request {code}: erased again")

    emit(done.as_dict(), human, as_json=as_json)
