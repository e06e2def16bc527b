"""The verbs that decide and carry out what goes: `plan` and `purge`."""

import getpass
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from tidemark.cli_options import AsOfOption, JsonOption, as_of_date
from tidemark.config import Settings
from tidemark.errors import TidemarkError
from tidemark.output import emit, note, print_rows, to_json

if TYPE_CHECKING:
    from tidemark.policy import Window
    from tidemark.retention import PurgeReport


def plan(
    as_of: AsOfOption = None,
    with_override: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORKSPACE:CLASS:WINDOW",
            help="Try a window that is not set, like acme:orders:200d; may be given again.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a purge would do, why, and what is held or blocked; destroys nothing."""
    from tidemark import gate, retention

    report = retention.plan(
        Settings.from_env(),
        as_of=as_of_date(as_of),
        now=datetime.now(UTC),
        gate=gate,
        windows=_windows(with_override or []),
        note=note,
    )
    found = report.plan

    def human() -> None:
        if found.steps:
            print_rows(
                ("class", "month", "action", "workspaces", "rows", "days", "then"),
                [
                    (
                        step.data_class,
                        f"{step.month:%Y-%m}",
                        step.action,
                        _named(step.workspaces),
                        step.rows,
                        f"{step.first_day} to {step.last_day}",
                        ", ".join(step.expiry),
                    )
                    for step in found.steps
                ],
            )
        else:
            print("nothing is past its window")
        if found.held:
            print_rows(
                ("held", "month", "workspace", "rows", "reason"),
                [
                    (held.data_class, f"{held.month:%Y-%m}", held.workspace_id, held.rows,
                     held.reason)
                    for held in found.held
                ],
            )  # fmt: skip
        for name, reasons in report.blocked.items():
            for reason in reasons:
                print(f"blocked: {name}: {reason}")
        for line in report.unfinished:
            print(f"begun and not finished, the next purge goes on: {line}")
        for own in report.expiring:
            holds = f", kept by hold {', '.join(map(str, own.held_by))}" if own.held_by else ""
            print(
                f"{own.data_class}: {own.of_class} of {own.workspace_id} in {own.month:%Y-%m} is"
                f" due to go{holds}"
            )
        for figure in report.darkened:
            print(
                f"darkens for {figure['workspace_id']}: {figure['figure']} needs"
                f" {figure['required_months']} months of {figure['data_class']}"
            )
        approval = "; a person has to approve it" if found.needs_approval else ""
        print(f"plan {found.plan_id}: {found.rows} rows as of {found.as_of}{approval}")

    emit(report.as_dict(), human, as_json=as_json)


def purge(
    as_of: AsOfOption = None,
    approve: Annotated[
        bool,
        typer.Option(
            "--approve", help="Approve a plan over the policy's size; the ledger says who."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Plan, gate, purge and verify: nothing goes that does not tie out.

    Ends with 3 where a guard refuses; classes that it lets pass are done all the same. Run again
    after an interruption, it finishes what was begun.
    """
    from tidemark import gate, retention

    try:
        report = retention.purge(
            Settings.from_env(),
            as_of=as_of_date(as_of),
            clock=lambda: datetime.now(UTC),
            gate=gate,
            approved_by=getpass.getuser() if approve else None,
            note=note,
        )
        if report.problems:
            raise _Problems(report)
    except (retention.PurgeRefused, _Problems) as error:
        if not as_json:
            _print_report(error.report)
            raise
        # One document: what was done, and what is wrong with it.
        note(f"tidemark: {error}")
        print(
            to_json({**error.report.as_dict(), "error": str(error), "exit_code": error.exit_code})
        )
        return error.exit_code
    emit(report.as_dict(), lambda: _print_report(report), as_json=as_json)
    return 0


class _Problems(TidemarkError):
    """Verifying found something after a purge."""

    def __init__(self, report: "PurgeReport") -> None:
        self.report = report
        super().__init__("; ".join(report.problems))


def _print_report(report: "PurgeReport") -> None:
    if report.steps:
        print_rows(
            ("class", "month", "action", "rows", "status", "reason"),
            [
                (step.data_class, f"{step.month:%Y-%m}", step.action, step.rows, step.status,
                 step.reason)
                for step in report.steps
            ],
        )  # fmt: skip
    else:
        print("nothing is past its window")
    for held in report.held:
        print(f"held: {held.data_class} {held.month:%Y-%m} of {held.workspace_id}: {held.reason}")
    if not report.steps:
        return
    verdicts = [verdict.as_dict() for verdict in report.verdicts.values()]
    print(f"{report.rows} rows destroyed under plan {report.plan_id}")
    if verdicts:
        print(f"the proof: {verdicts[0]['data_docs']}; `tidemark audit` checks the ledger")


def _windows(texts: Sequence[str]) -> "dict[tuple[str, str], Window] | None":
    from tidemark.errors import UsageError
    from tidemark.policy import Window

    windows = {}
    for text in texts:
        parts = text.split(":")
        if len(parts) != 3:
            raise UsageError(f"--with-override {text}: must be WORKSPACE:CLASS:WINDOW")
        try:
            windows[parts[0], parts[1]] = Window.parse(parts[2])
        except ValueError as error:
            raise UsageError(f"--with-override {text}: {error}") from error
    return windows or None


def _named(workspaces: Sequence[str]) -> str:
    shown = ", ".join(workspaces[:3])
    return shown if len(workspaces) <= 3 else f"{shown} and {len(workspaces) - 3} more"
