"""`tidemark audit`: what was destroyed, on what proof, and whether the evidence still stands."""

from pathlib import Path
from typing import Annotated

import typer

from tidemark.cli_options import JsonOption
from tidemark.config import Settings
from tidemark.errors import UsageError
from tidemark.output import emit, note, print_rows


def audit(
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE", help="Write the ledger there as JSON lines."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Verify an export, without a database."),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(
            "--public-key",
            metavar="PEM",
            help="With --file: the key to verify with; by default this home's.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Verify the ledger's chain, signatures and copied heads; show what was destroyed; 1 if not."""
    from tidemark import audit as auditing
    from tidemark import ledger, postgres

    settings = Settings.from_env()
    if file is not None and export is not None:
        raise UsageError("--export writes a file and --file verifies one: give one of them")
    if public_key is not None and file is None:
        raise UsageError("--public-key goes with --file")
    if export is not None:
        with postgres.connect(settings) as connection:
            count = ledger.export(connection, export)
        emit(
            {"file": str(export), "entries": count},
            lambda: print(f"{count} entries in {export}"),
            as_json=as_json,
        )
        return 0
    if file is not None:
        report = auditing.audit_file(settings, file, public_key)
    else:
        report = auditing.audit(settings)
    for finding in report.findings:
        note(f"tidemark: {finding}")

    def human() -> None:
        if report.destroyed:
            print_rows(
                (
                    "class", "month", "days", "workspaces", "rows", "money", "begun", "done",
                    "plan", "verdict", "validation result",
                ),
                [
                    (
                        step.data_class, f"{step.month:%Y-%m}",
                        f"{step.first_day} to {step.last_day}", ", ".join(step.workspaces),
                        step.rows, step.money_text(), f"{step.begun_at:%Y-%m-%d %H:%M:%S}",
                        f"{step.done_at:%Y-%m-%d %H:%M:%S}" if step.done_at else "not yet",
                        step.plan_id[:12], step.verdict_id, step.validation_result_id,
                    )
                    for step in report.destroyed
                ],
            )  # fmt: skip
        if report.expired:
            print_rows(
                ("expired", "number", "class", "month", "workspace", "rows", "begun", "done"),
                [
                    (
                        own.data_class, own.number, own.of_class, f"{own.month:%Y-%m}",
                        own.workspace_id, own.rows, f"{own.begun_at:%Y-%m-%d %H:%M:%S}",
                        f"{own.done_at:%Y-%m-%d %H:%M:%S}" if own.done_at else "not yet",
                    )
                    for own in report.expired
                ],
            )  # fmt: skip
        if report.erased:
            print_rows(
                ("request", "class", "rows by table", "begun", "done"),
                [
                    (
                        own.code, own.data_class,
                        ", ".join(f"{table} {rows}" for table, rows in own.tables.items()),
                        f"{own.begun_at:%Y-%m-%d %H:%M:%S}",
                        f"{own.done_at:%Y-%m-%d %H:%M:%S}" if own.done_at else "not yet",
                    )
                    for own in report.erased
                ],
            )  # fmt: skip
        rows = sum(step.rows for step in report.destroyed)
        print(
            f"{report.entries} entries up to {report.head[:12]}; {len(report.destroyed)} steps"
            f" destroyed {rows} rows;"
            f" {len(report.findings) or 'no'} finding{'s' * (len(report.findings) != 1)}"
        )

    emit(report.as_dict(), human, as_json=as_json)
    return 1 if report.findings else 0
