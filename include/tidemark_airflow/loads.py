"""What the load DAG runs: a load, or for a run of a backfill what `tidemark backfill` does."""

from datetime import UTC
from typing import Any

from airflow.sdk import get_current_context

from tidemark import flows, gate, output
from tidemark.load import Report
from tidemark_airflow import defaults, runs


def load_files() -> runs.Message:
    """Load what is due, and tell of rows that the marts do not show yet.

    Returns:
        The counts of all files, and a line for each file that could not be loaded.

    Raises:
        AirflowFailException: the day lies in the future, or a backfill's day is purged.
    """
    context = get_current_context()
    with runs.refusal_is_final():
        report = _backfill(context) if _is_backfill(context) else _load(context)
    columns, rows = output.load_table(report)
    runs.log_table(columns, rows)
    # What is due and not what was loaded now: a try that was killed after its load counts too.
    if flows.is_due(runs.settings()):
        context["outlet_events"][defaults.LOADED].add(defaults.RAW)
    failed = [f"{file.file}: {file.error}" for file in report.files if file.error]
    return {"all": dict(zip(columns[1:], rows[-1][1:], strict=True)), "failed": failed}


def _is_backfill(context: Any) -> bool:
    return bool(context["dag_run"].run_type == "backfill")


def _load(context: Any) -> Report:
    return flows.load(
        runs.settings(), as_of=runs.as_of(context), now=runs.clock(), note=runs.log.info
    )


def _backfill(context: Any) -> Report:
    run = context["dag_run"]
    day = run.logical_date.astimezone(UTC).date()
    report = flows.backfill(
        runs.settings(),
        from_date=day,
        to_date=day,
        reason=f"Airflow's backfill of {day}",
        # The windows of today decide what may come back, not those of the day itself.
        as_of=run.start_date.astimezone(UTC).date(),
        clock=runs.clock,
        gate=gate.tie_out,
        note=runs.log.info,
    )
    return report.load
