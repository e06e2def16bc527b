"""The steps of a purge as the DAG passes them on: by id, so that only what is on file counts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import get_current_context
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    DownstreamTasksSkipped,
)

from tidemark import gate, policy, retention
from tidemark.plan import Plan, due_classes
from tidemark.purge import StepReport
from tidemark.retention import PlanReport
from tidemark_airflow import runs

APPROVAL = "approve"
#: A plan that nobody answers is let go before the next night's.
ANSWER_WITHIN = timedelta(hours=20)


@dataclass(frozen=True, slots=True)
class FiledVerdict:
    """A verdict by its number; the door reads what the gate stored under it."""

    verdict_id: int


class PlanApproval(ApprovalOperator):
    """Shows a plan to a person and waits for the answer; `responded_by_user` says whose it was.

    The answer names the plan: where a run is cleared, Airflow 3.3 shows what was asked first, and
    that must not let another plan go. An answer given before the process that asked has ended can
    fail the task (apache/airflow#72716): its next try asks again.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            subject="A purge over the policy's size waits for you",
            body="{{ ti.xcom_pull(task_ids='plan', key='plan')['text'] }}",
            response_timeout=ANSWER_WITHIN,
            execution_timeout=None,
            **kwargs,
        )

    def execute(self, context: Any) -> None:
        """Ask about the plan of this run."""
        self._offer(_plan_id())
        super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """Take the answer.

        Raises:
            AirflowFailException: nobody answered in time, or the answer is about another plan.
        """
        self._offer(_plan_id())
        if "error" in event:
            raise AirflowFailException(f"nobody answered: {event['error']}")
        if not set(event["chosen_options"]) <= set(self.options):
            raise AirflowFailException(
                f"{', '.join(event['chosen_options'])}: this run has another plan now; trigger a"
                " new run"
            )
        return super().execute_complete(context, event)

    def _offer(self, plan_id: str) -> None:
        self.APPROVE = _approval(plan_id)
        self.options = [self.APPROVE, self.REJECT]


def classes() -> tuple[str, ...]:
    """The classes that a purge may have steps of, in the order in which they go."""
    return due_classes(policy.read(runs.settings()))


def _approval(plan_id: str) -> str:
    """What a person chooses to let a plan go."""
    return f"Approve plan {plan_id[:12]}"


def _answered_by(answer: Mapping[str, Any] | None, plan_id: str) -> str | None:
    """Who approved the plan, by what the approval task returned; None where nobody did."""
    if not answer or answer.get("chosen_options") != [_approval(plan_id)]:
        return None
    user = answer.get("responded_by_user") or {}
    return str(user.get("name") or user.get("id") or "") or None


def plan() -> None:
    """Work the plan of this run out and pass its id on; what it has no use for is skipped.

    What an interrupted purge began is finished first. A branch would skip nothing: each gate comes
    after the approval and the class before it.
    """
    context = get_current_context()
    _told(retention.resume(runs.settings(), clock=runs.clock, note=runs.log.info))
    with runs.refusal_is_final():
        report = retention.plan(
            runs.settings(), as_of=runs.as_of(context), now=runs.clock(), gate=gate
        )
        retention.begin(runs.settings(), report.plan, note=runs.log.info)
    context["ti"].xcom_push("plan", _message(report))
    idle = [f"{name}.gate" for name in classes() if name not in report.plan.classes]
    if not report.plan.needs_approval:
        idle.append(APPROVAL)
    if idle:
        # Airflow 3.3 leaves its constructor untyped.
        raise DownstreamTasksSkipped(tasks=idle)  # type: ignore[no-untyped-call]


def prove(name: str) -> runs.Message:
    """Let the gate decide about a class of this run's plan.

    Raises:
        AirflowFailException: it said no; the message names the first differences.
    """
    found = _current()
    if name not in found.classes:
        raise AirflowSkipException(f"the plan has nothing of {name}")
    with runs.refusal_is_final():
        verdict = retention.prove(
            runs.settings(), found, name, clock=runs.clock, gate=gate, note=runs.log.info
        )
    for line in verdict.failures:
        runs.log.error("%s", line)
    if not verdict.success:
        raise AirflowFailException(f"the gate refused: {'; '.join(verdict.failures[:3])}")
    return {"verdict_id": verdict.verdict_id}


def purge(name: str, verdict: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Destroy what the plan says of a class, as far as what is on file lets it.

    Args:
        verdict: what the gate's task passed on; None where it left nothing.

    Raises:
        AirflowFailException: a guard stopped it.
    """
    found = _current()
    filed = FiledVerdict(int(verdict["verdict_id"])) if verdict else None
    answer = get_current_context()["ti"].xcom_pull(task_ids=APPROVAL)
    with runs.refusal_is_final():
        steps = retention.purge_plan(
            runs.settings(),
            found,
            {name: filed},
            as_of=found.as_of,
            clock=runs.clock,
            approved_by=_answered_by(answer, found.plan_id),
            only=name,
            note=runs.log.info,
        )
    return _told(steps)


def expire() -> list[dict[str, Any]]:
    """Destroy cold files, recalled rows and exports whose time is over."""
    as_of = runs.as_of(get_current_context())
    with runs.refusal_is_final():
        return _told(
            retention.expire(runs.settings(), as_of=as_of, clock=runs.clock, note=runs.log.info)
        )


def verify() -> None:
    """Read the stores again for what this run's plan has destroyed.

    Raises:
        AirflowFailException: something is not as it has to be; the message names it.
    """
    problems = retention.verify(runs.settings(), _current(), clock=runs.clock)
    if problems:
        raise AirflowFailException(f"the store is not as it has to be: {'; '.join(problems)}")


def _message(report: PlanReport) -> dict[str, Any]:
    """What the plan's task passes on: its id, and the table that a person is shown."""
    plan = report.plan
    columns = ("class", "steps", "first day", "last day", "workspaces", "rows")
    rows = [
        (
            name,
            len(steps),
            min(step.first_day for step in steps),
            max(step.last_day for step in steps),
            len({workspace for step in steps for workspace in step.workspaces}),
            sum(step.rows for step in steps),
        )
        for name in plan.classes
        for steps in [plan.of(name)]
    ]
    runs.log_table(columns, rows)
    for held in plan.held:
        runs.log.info(
            "held: %s %s of %s: %s", held.data_class, held.month, held.workspace_id, held.reason
        )
    for name, reasons in report.blocked.items():
        for reason in reasons:
            runs.log.warning("the gate would stop %s: %s", name, reason)
    text = f"Plan `{plan.plan_id}` of {plan.as_of} destroys {plan.rows} rows.\n\n"
    return {"plan_id": plan.plan_id, "rows": plan.rows, "text": text + _markdown(columns, rows)}


def _current() -> Plan:
    """The plan of this run, read from where it is kept.

    Raises:
        AirflowFailException: the run has none: nothing is destroyed without a plan.
    """
    return retention.stored_plan(runs.settings(), _plan_id())


def _plan_id() -> str:
    found = get_current_context()["ti"].xcom_pull(task_ids="plan", key="plan")
    if not found:
        raise AirflowFailException("this run has no plan: clear its task `plan`")
    return str(found["plan_id"])


def _told(steps: Sequence[StepReport]) -> list[dict[str, Any]]:
    """The steps of a purge as a table in the log and a message.

    Raises:
        AirflowFailException: a guard stopped one of them.
    """
    rows = [
        (step.data_class, step.month, step.action, step.rows, step.status, step.reason)
        for step in steps
    ]
    runs.log_table(("class", "month", "action", "rows", "outcome", "reason"), rows)
    refused = sorted({step.reason for step in steps if step.failed})
    if refused:
        raise AirflowFailException(f"the purge was refused: {'; '.join(refused)}")
    return [
        {"class": step.data_class, "month": str(step.month), "rows": step.rows} for step in steps
    ]


def _markdown(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table for the page that asks for approval."""
    lines = [tuple(columns), *(tuple(row) for row in rows)]
    text = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    return "\n".join([text[0], "|" + " --- |" * len(lines[0]), *text[1:]])
