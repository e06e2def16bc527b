"""The flows of the retention ladder: plan, prove, purge, verify; each takes the warehouse's lock.

The gate comes in as an argument: the module `tidemark.gate`, or what stands in for it in a test.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any, Protocol

from tidemark import availability, backup, clickhouse, cold, exports, ledger, overrides, policy
from tidemark import build as building
from tidemark import plan as planning
from tidemark import purge as purging
from tidemark.config import Settings
from tidemark.errors import Refused
from tidemark.flows import Note, warehouse
from tidemark.keys import Keyring
from tidemark.plan import Plan
from tidemark.policy import Policy
from tidemark.postgres import Connection

Clock = Callable[[], datetime]

# What holds copies that go at the end of a window of their own.
_SHELVES: tuple[purging.Shelf, ...] = (cold, exports)
_COPIES = frozenset(name for shelf in _SHELVES for name in shelf.CLASSES)


class Verdict(Protocol):
    """What a gate answers about one class of a plan."""

    @property
    def success(self) -> bool:
        """Whether everything tied out and nothing is open."""
        ...

    @property
    def verdict_id(self) -> int:
        """Its number in `control.verdicts`."""
        ...

    @property
    def failures(self) -> tuple[str, ...]:
        """A line for each thing that differs or is open."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON, without a row of data."""
        ...


class Condition(Protocol):
    """What must not stand in a purge's way."""

    @property
    def open(self) -> int:
        """How many things are open."""
        ...

    def __str__(self) -> str: ...


class Gate(Protocol):
    """What proves a class of a plan."""

    def prove(
        self,
        settings: Settings,
        connection: Connection,
        plan: Plan,
        data_class: str,
        now: datetime,
        *,
        copies: Sequence[cold.ReadBack],
    ) -> Verdict:
        """Tie it out and store the verdict."""
        ...

    def conditions(
        self,
        settings: Settings,
        connection: Connection,
        ladder: Policy,
        plan: Plan,
        data_class: str,
        now: datetime,
    ) -> Sequence[Condition]:
        """What besides the figures has to be in order."""
        ...


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A plan, and what the gate would stop it for today."""

    plan: Plan
    #: By class, a line for each thing that is open.
    blocked: dict[str, tuple[str, ...]]
    #: Steps that an interrupted run began and the next one finishes.
    unfinished: tuple[str, ...]
    #: Cold files, recalled rows and exports whose time is over.
    expiring: tuple[cold.Due, ...] = ()
    #: Figures that the windows asked about would darken; empty without such a question.
    darkened: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON document."""
        return {
            **self.plan.as_dict(),
            "blocked": [
                {"data_class": name, "reason": reason}
                for name, reasons in self.blocked.items()
                for reason in reasons
            ],
            "unfinished": list(self.unfinished),
            "expiring": [asdict(own) for own in self.expiring],
            "darkened": list(self.darkened),
        }


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """What a purge did."""

    as_of: date
    plan_id: str
    steps: tuple[purging.StepReport, ...]
    verdicts: dict[str, Verdict]
    held: tuple[planning.Held, ...]
    #: What verifying found; nothing where all is as it has to be.
    problems: tuple[str, ...]

    @property
    def refused(self) -> tuple[purging.StepReport, ...]:
        """The steps that a guard stopped."""
        return tuple(step for step in self.steps if step.status == "refused")

    @property
    def rows(self) -> int:
        """Rows destroyed, without copies of rows that went before."""
        return sum(step.rows for step in self.steps if step.data_class not in _COPIES)

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON document."""
        return {
            "as_of": self.as_of,
            "plan_id": self.plan_id,
            "rows": self.rows,
            "steps": [asdict(step) for step in self.steps],
            "verdicts": {name: verdict.as_dict() for name, verdict in self.verdicts.items()},
            "held": [asdict(held) for held in self.held],
            "problems": list(self.problems),
        }


class PurgeRefused(Refused):
    """A guard stopped part of a purge; `report` says what went and what did not."""

    def __init__(self, report: PurgeReport) -> None:
        self.report = report
        reasons: dict[str, list[str]] = {}
        for step in report.refused:
            reasons.setdefault(step.reason, []).append(step.data_class)
        lines = [f"{', '.join(dict.fromkeys(names))}: {why}" for why, names in reasons.items()]
        for verdict in report.verdicts.values():
            lines += verdict.failures[:3]
        super().__init__(f"the purge was refused: {'; '.join(lines)}")


def plan(
    settings: Settings,
    *,
    as_of: date,
    now: datetime,
    gate: Gate,
    windows: Mapping[tuple[str, str], policy.Window] | None = None,
    note: Note = lambda _: None,
) -> PlanReport:
    """Work out what a purge on a day would do; destroys nothing.

    Args:
        windows: windows to try, by workspace and class, besides the overrides in force.

    Raises:
        UsageError, Refused: such a window could not be set.
        TidemarkError: a store does not answer.
    """
    ladder = policy.read(settings)
    with warehouse(settings, note) as connection:
        darkened = _darkened(connection, ladder, windows or {})
        found = _plan(settings, connection, ladder, as_of, windows)
        if windows is None:
            policy.record(connection, ladder, now)
            planning.store(connection, found, now)
        blocked = {}
        for name in found.classes:
            conditions = gate.conditions(settings, connection, ladder, found, name, now)
            blocked[name] = tuple(str(own) for own in conditions if own.open)
        door = _door(settings, connection, ladder, lambda: now, note)
        return PlanReport(
            found,
            {name: lines for name, lines in blocked.items() if lines},
            door.unfinished(),
            tuple(own for shelf in _SHELVES for own in shelf.due(connection, ladder, as_of)),
            darkened,
        )


def begin(settings: Settings, found: Plan, *, note: Note = lambda _: None) -> None:
    """What goes before the first class of a plan that is carried out step by step.

    Raises:
        TidemarkError: a store does not answer.
    """
    ladder = policy.read(settings)
    with warehouse(settings, note) as connection:
        _begin(settings, connection, ladder, found)


def prove(
    settings: Settings,
    found: Plan,
    data_class: str,
    *,
    clock: Clock,
    gate: Gate,
    note: Note = lambda _: None,
) -> Verdict:
    """Write the cold copies of a class of a plan, read them back, and let the gate decide.

    Raises:
        TidemarkError: a store does not answer, or a copy cannot be written.
    """
    ladder = policy.read(settings)
    with warehouse(settings, note) as connection:
        return _prove(settings, connection, ladder, found, data_class, clock, gate, note)


def purge_plan(
    settings: Settings,
    found: Plan,
    verdicts: Mapping[str, purging.Verdict | None],
    *,
    as_of: date,
    clock: Clock,
    approved_by: str | None = None,
    only: str | None = None,
    note: Note = lambda _: None,
) -> tuple[purging.StepReport, ...]:
    """Carry a plan, or one class of it, out as far as its verdicts let it; see `Door.purge`."""
    ladder = policy.read(settings)
    with warehouse(settings, note) as connection:
        door = _door(settings, connection, ladder, clock, note)
        with ledger.kept_outside(settings, connection, clock):
            resumed = door.resume()
            return resumed + door.purge(
                found,
                verdicts,
                as_of=as_of,
                current=_plan(settings, connection, ladder, as_of),
                approved_by=approved_by,
                only=only,
            )


def resume(
    settings: Settings, *, clock: Clock, note: Note = lambda _: None
) -> tuple[purging.StepReport, ...]:
    """Finish what an interrupted run began; see `purge.Door.resume`."""
    ladder = policy.read(settings)
    with warehouse(settings, note) as connection:
        door = _door(settings, connection, ladder, clock, note)
        if not door.unfinished():
            return ()
        with ledger.kept_outside(settings, connection, clock):
            return door.resume()


def expire(
    settings: Settings, *, as_of: date, clock: Clock, note: Note = lambda _: None
) -> tuple[purging.StepReport, ...]:
    """Destroy copies whose time is over; see `purge.Door.expire`."""
    ladder = policy.read(settings)
    with warehouse(settings, note) as connection:
        door = _door(settings, connection, ladder, clock, note)
        with ledger.kept_outside(settings, connection, clock):
            return door.expire(as_of)


def verify(
    settings: Settings, found: Plan, *, clock: Clock, note: Note = lambda _: None
) -> tuple[str, ...]:
    """Read the stores again for what a plan has destroyed; a line for each thing that is wrong."""
    ladder = policy.read(settings)
    with warehouse(settings, note) as connection:
        return _door(settings, connection, ladder, clock, note).verify(found)


def purge(
    settings: Settings,
    *,
    as_of: date,
    clock: Clock,
    gate: Gate,
    approved_by: str | None = None,
    note: Note = lambda _: None,
) -> PurgeReport:
    """Plan, gate, purge and verify in one go, after finishing what an earlier run began.

    Raises:
        PurgeRefused: a guard stopped a class; the others are done.
        Refused: the day lies in the future, or the plan is so large that a person must approve it.
        TidemarkError: a store does not answer, or a figure of a closed day changed.
    """
    policy.refuse_future(as_of, clock())
    ladder = policy.read(settings)
    with warehouse(settings, note) as connection:
        door = _door(settings, connection, ladder, clock, note)
        with ledger.kept_outside(settings, connection, clock):
            steps = door.resume()
            found = _plan(settings, connection, ladder, as_of)
            policy.record(connection, ladder, clock())
            planning.store(connection, found, clock())
            _begin(settings, connection, ladder, found)
            if found.needs_approval and not approved_by:
                # Before the work of proving it.
                door.purge(found, {}, as_of=as_of, current=found)
            verdicts: dict[str, Verdict] = {}
            for name in found.classes:
                # A class at a time: the marts go after the raw rows that prove them.
                verdicts[name] = _prove(
                    settings, connection, ladder, found, name, clock, gate, note
                )
                steps += door.purge(
                    found, verdicts, as_of=as_of, current=found, approved_by=approved_by, only=name
                )
            steps += door.expire(as_of)
            problems = door.verify(found)
    report = PurgeReport(as_of, found.plan_id, steps, verdicts, found.held, problems)
    if report.refused:
        raise PurgeRefused(report)
    return report


def stored_plan(settings: Settings, plan_id: str) -> Plan:
    """Read a plan by its id.

    Raises:
        TidemarkError: there is none, or it was altered.
    """
    with warehouse(settings) as connection:
        return planning.stored(connection, plan_id)


def _begin(settings: Settings, connection: Connection, ladder: Policy, found: Plan) -> None:
    # From now on these windows are what the marts can answer for.
    building.publish_windows(settings, connection, ladder)
    cold.sweep(settings, connection, found.steps)
    # Nor may rows that are about to go stand on in what a killed backup left.
    if settings.profile == "laptop":
        backup.drop_scratch(settings)


def _plan(
    settings: Settings,
    connection: Connection,
    ladder: Policy,
    as_of: date,
    windows: Mapping[tuple[str, str], policy.Window] | None = None,
) -> Plan:
    publish_holds(settings, connection)
    wanted = {**overrides.in_force(connection, ladder), **(windows or {})}
    state = planning.observe(settings, connection, ladder, as_of, windows=wanted)
    return planning.decide(ladder, state, as_of)


def _darkened(
    connection: Connection, ladder: Policy, windows: Mapping[tuple[str, str], policy.Window]
) -> tuple[dict[str, Any], ...]:
    found = []
    for (workspace_id, data_class), window in windows.items():
        overrides.check(connection, ladder, workspace_id, data_class, window)
        row = connection.execute(
            "select revenue_source from app.workspaces where workspace_id = %s", [workspace_id]
        ).fetchone()
        assert row is not None
        found += [
            {"workspace_id": workspace_id, **figure.as_dict()}
            for figure in availability.darkened(ladder, data_class, window, row["revenue_source"])
        ]
    return tuple(found)


def publish_holds(settings: Settings, connection: Connection) -> None:
    """Bring the pseudonyms that holds name to where the rows are."""
    rows = [
        {**row, "class": row["class"] or ""}
        for row in connection.execute(
            "select hold_id, workspace_id, class, subject from control.holds,"
            " unnest(subject_hashes) as subject"
            ' where released_at is null order by hold_id, subject collate "C"'
        )
    ]
    known = clickhouse.rows(
        settings,
        "select hold_id, workspace_id, class, subject from retention.held_subjects"
        " order by hold_id, subject",
    )
    if known != rows:
        clickhouse.execute(settings, "truncate table retention.held_subjects")
        clickhouse.insert_rows(settings, "retention.held_subjects", rows)


def _prove(
    settings: Settings,
    connection: Connection,
    ladder: Policy,
    found: Plan,
    data_class: str,
    clock: Clock,
    gate: Gate,
    note: Note,
) -> Verdict:
    copies: list[cold.ReadBack] = []
    for step in found.of(data_class):
        if "cold" in step.expiry:
            note(f"{data_class} {step.month:%Y-%m}: writing the cold copy")
            cold.tier(settings, connection, ladder, step, found.plan_id, clock())
            note(f"{data_class} {step.month:%Y-%m}: reading the cold copy back")
            copies += cold.read_back(settings, connection, step, found.plan_id, clock())
    note(f"{data_class}: at the gate")
    return gate.prove(settings, connection, found, data_class, clock(), copies=copies)


def _door(
    settings: Settings, connection: Connection, ladder: Policy, clock: Clock, note: Note
) -> purging.Door:
    keyring = Keyring.from_settings(settings)
    return purging.Door(settings, connection, ladder, keyring, clock, _SHELVES, note)
