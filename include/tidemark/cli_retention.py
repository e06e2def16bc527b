"""The verbs that change what a purge may take: `override` and `hold`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemark.cli_options import JsonOption
from tidemark.config import Settings
from tidemark.output import emit, print_rows

if TYPE_CHECKING:
    from tidemark.postgres import Connection

override_app = typer.Typer(help="Windows of a workspace that are shorter than the ladder's.")
hold_app = typer.Typer(help="Legal holds, which defer purge and erasure.")

WorkspaceArgument = Annotated[str, typer.Argument(metavar="WORKSPACE", help="Its id.")]
ClassArgument = Annotated[str, typer.Argument(metavar="CLASS", help="As the policy names it.")]


@contextmanager
def _on_record(settings: Settings) -> "Iterator[Connection]":
    """A transaction whose ledger entries stand outside the database too once it is committed."""
    from tidemark import ledger, postgres

    with (
        postgres.connect(settings, autocommit=True) as connection,
        ledger.kept_outside(settings, connection, lambda: datetime.now(UTC)),
        connection.transaction(),
    ):
        yield connection


def _note_holds(settings: Settings) -> None:
    """Beside the backups too; a hold that cannot be noted there stands all the same."""
    from tidemark import backup, postgres

    with postgres.connect(settings) as connection:
        backup.keep_holds(settings, connection)


@override_app.command("set")
def override_set(
    workspace_id: WorkspaceArgument,
    data_class: ClassArgument,
    window: Annotated[
        str, typer.Argument(metavar="WINDOW", help="Like '8 months', '200 days', 8m or 200d.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Shorten the window of a class for a workspace; the next purge obeys.

    `tidemark plan --with-override` shows first what would go and which figures would darken.
    """
    from tidemark import availability, keys, overrides, policy
    from tidemark.errors import UsageError

    settings = Settings.from_env()
    ladder = policy.read(settings)
    try:
        wanted = policy.Window.parse(window)
    except ValueError as error:
        raise UsageError(str(error)) from error
    with _on_record(settings) as connection:
        override, is_new = overrides.put(
            connection,
            keys.Keyring.from_settings(settings),
            ladder,
            workspace_id=workspace_id,
            data_class=data_class,
            window=wanted,
            now=datetime.now(UTC),
        )
        row = connection.execute(
            "select revenue_source from app.workspaces where workspace_id = %s", [workspace_id]
        ).fetchone()
        assert row is not None
    darkened = availability.darkened(ladder, data_class, wanted, row["revenue_source"])

    def human() -> None:
        print(
            f"{data_class} of {workspace_id} {'now stays' if is_new else 'stays already'}"
            f" {override.window}; the next purge obeys"
        )
        for figure in darkened:
            print(
                f"{figure.figure} darkens: it needs {figure.required_months} months of"
                f" {figure.data_class}"
            )

    document = {
        **override.as_dict(),
        "changed": is_new,
        "darkened": [figure.as_dict() for figure in darkened],
    }
    emit(document, human, as_json=as_json)


@override_app.command("withdraw")
def override_withdraw(
    workspace_id: WorkspaceArgument, data_class: ClassArgument, as_json: JsonOption = False
) -> None:
    """Go back to the ladder's window; what is purged stays purged."""
    from tidemark import keys, overrides, policy

    settings = Settings.from_env()
    with _on_record(settings) as connection:
        withdrawn = overrides.withdraw(
            connection,
            keys.Keyring.from_settings(settings),
            policy.read(settings),
            workspace_id=workspace_id,
            data_class=data_class,
            now=datetime.now(UTC),
        )

    def human() -> None:
        had = "back to the ladder's window" if withdrawn else "had no window of its own"
        print(f"{data_class} of {workspace_id}: {had}")

    document = {"workspace_id": workspace_id, "class": data_class, "changed": withdrawn}
    emit(document, human, as_json=as_json)


@override_app.command("list")
def override_list(
    withdrawn: Annotated[
        bool, typer.Option("--all", help="Those that no longer hold too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the windows that workspaces set for themselves; one with a fault is not obeyed."""
    from tidemark import overrides, policy, postgres

    settings = Settings.from_env()
    with postgres.connect(settings) as connection:
        found = overrides.list_all(connection, withdrawn=withdrawn)
        faults = overrides.faults(connection, policy.read(settings))
    rows = [
        {
            **own.as_dict(),
            "fault": None if own.withdrawn_at else faults.get((own.workspace_id, own.data_class)),
        }
        for own in found
    ]
    _print_documents(
        ("workspace_id", "class", "window", "set_at", "withdrawn_at", "fault"),
        rows,
        as_json=as_json,
    )


@hold_app.command("add")
def hold_add(
    workspace_id: Annotated[str, typer.Option("--workspace", metavar="W", help="Whose data.")],
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Shown in plans; it must name nobody.")
    ],
    data_class: Annotated[
        str | None, typer.Option("--class", metavar="C", help="By default every class.")
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            metavar="S",
            help="One person: e-mail, customer, user or profile id, or visitor:ID of the pixel;"
            " - reads it from stdin, which keeps it out of the shell's history.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Hold what a workspace, a class of it or a person has: it is neither purged nor erased."""
    from tidemark import holds, keys, policy

    settings = Settings.from_env()
    with _on_record(settings) as connection:
        hold, is_new = holds.add(
            connection,
            keys.Keyring.from_settings(settings),
            policy.read(settings),
            workspace_id=workspace_id,
            data_class=data_class,
            subject=sys.stdin.read() if subject == "-" else subject,
            reason=reason,
            now=datetime.now(UTC),
        )
    _note_holds(settings)

    def human() -> None:
        print(f"hold {hold.hold_id} {'stands' if is_new else 'stood already'}")

    emit({**hold.as_dict(), "created": is_new}, human, as_json=as_json)


@hold_app.command("release")
def hold_release(
    hold_id: Annotated[int, typer.Argument(metavar="ID", help="As `hold list` shows it.")],
    as_json: JsonOption = False,
) -> None:
    """End a hold; the next purge catches up with what was due."""
    from tidemark import holds, keys

    settings = Settings.from_env()
    with _on_record(settings) as connection:
        hold, released = holds.release(
            connection, keys.Keyring.from_settings(settings), hold_id, datetime.now(UTC)
        )
    _note_holds(settings)

    def human() -> None:
        print(f"hold {hold_id} {'is released' if released else 'was released before'}")

    emit({**hold.as_dict(), "changed": released}, human, as_json=as_json)


@hold_app.command("list")
def hold_list(
    released: Annotated[bool, typer.Option("--all", help="Those that are released too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the holds; of whom is not shown, for nothing here knows."""
    from tidemark import holds, postgres

    with postgres.connect(Settings.from_env()) as connection:
        rows = [own.as_dict() for own in holds.list_all(connection, released=released)]
    _print_documents(
        (
            "hold_id", "workspace_id", "class", "is_of_subject", "reason", "added_at",
            "released_at",
        ),
        rows,
        as_json=as_json,
    )  # fmt: skip


def _print_documents(
    columns: tuple[str, ...], rows: list[dict[str, Any]], *, as_json: bool
) -> None:
    def human() -> None:
        print_rows(columns, [[row[column] for column in columns] for row in rows])

    emit(rows, human, as_json=as_json)
