"""What tasks ask of their run, and how they tell what they did."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

if TYPE_CHECKING:
    from tidemark.config import Settings
    from tidemark.layers import Layer

Value = TypeVar("Value")
#: What a task passes on. Of a dictionary by its type Airflow makes a message a key, and one of all.
Message = Any

log = logging.getLogger("airflow.task")

#: The day that decides, for a run started by hand; by default the day of the run.
AS_OF = Param(
    None,
    type=["null", "string"],
    format="date",
    description="The day that decides, YYYY-MM-DD; by default the day of the run.",
)
#: Whose data, for a run started by hand.
WORKSPACE = Param(type="string", pattern="^[a-z0-9][a-z0-9_-]{0,62}$", description="Its id.")


def as_of(context: Any) -> date:
    """The day that decides in this run: never the clock, so that a retry decides the same."""
    given = context["params"].get("as_of")
    if given:
        return date.fromisoformat(given)
    run = context["dag_run"]
    moment: datetime = run.logical_date or run.run_after
    return moment.astimezone(UTC).date()


def settings() -> "Settings":
    """Where this warehouse lies."""
    from tidemark.config import Settings

    return Settings.from_env()


def clock() -> datetime:
    """The clock of the run."""
    return datetime.now(UTC)


def or_skip(value: Value | None, reason: str) -> Value:
    """The value; where there is none, the task and what follows it are skipped."""
    if value is None:
        raise AirflowSkipException(reason)
    return value


@contextmanager
def refusal_is_final() -> Iterator[None]:
    """What a guard refused, another try would not change."""
    from tidemark.errors import Refused

    try:
        yield
    except Refused as error:
        raise AirflowFailException(str(error)) from error


@contextmanager
def verdict_is_final() -> Iterator[None]:
    """What does not tie out, another try would not change; the log names each difference."""
    from tidemark.flows import GateFailed

    try:
        yield
    except GateFailed as error:
        verdict = error.report.verdict
        for line in verdict.as_dict()["failures"] if verdict else ():
            log.error("%s", line)
        raise AirflowFailException(str(error)) from error


@contextmanager
def superseded_is_skipped() -> Iterator[None]:
    """A build that a newer one took over is no failure: nothing is left to do."""
    from tidemark.layers import Superseded

    try:
        yield
    except Superseded as error:
        raise AirflowSkipException(str(error)) from error


@contextmanager
def nodes_told(build_id: int, layer: "Layer") -> Iterator[None]:
    """Write what became of each model and test into the log, also when one failed."""
    from tidemark import flows

    try:
        yield
    finally:
        nodes = flows.layer_nodes(settings(), build_id, layer)
        log_table(
            ("model or test", "outcome", "seconds", "rows"),
            [(node.name, node.status, f"{node.seconds:.2f}", node.rows) for node in nodes],
        )


def plain(document: Any) -> Message:
    """The document as values that a message between tasks can hold."""
    from tidemark.output import to_json

    return json.loads(to_json(document))


def log_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table into the task's log."""
    lines = [tuple(str(cell) if cell is not None else "" for cell in row) for row in rows]
    widths = [max(len(line[i]) for line in (tuple(columns), *lines)) for i in range(len(columns))]
    for line in (tuple(columns), *lines):
        log.info(
            "%s", "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        )
