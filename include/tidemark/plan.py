"""What a purge would do: steps worked out from policy, overrides, holds and what stands.

`observe` reads the stores and `decide` is pure. Nothing here destroys.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any, Literal

from psycopg.types.json import Jsonb

from tidemark import clickhouse, load, overrides, policy
from tidemark.clickhouse import identifier, identifiers, literal
from tidemark.config import Settings
from tidemark.errors import TidemarkError
from tidemark.postgres import Connection
from tidemark.topology import ONE_MACHINE, Topology

Action = Literal["drop_partition", "delete_rows"]


@dataclass(frozen=True, slots=True)
class Range:
    """Days of one workspace, and of one source where its class tells sources apart."""

    workspace_id: str
    #: Empty: of every source.
    source: str
    #: The oldest day that stands.
    first_day: date
    #: The first day that stays.
    cutoff: date


@dataclass(frozen=True, slots=True)
class Target:
    """Rows of one table that a step destroys."""

    table: str
    #: Id of the partition; months are told as 202510.
    partition: str
    #: SQL over the table that holds for the rows to go, and within the partition for no other.
    predicate: str
    #: All rows of the partition go.
    whole_partition: bool
    rows: int
    #: Exact sums of its measures, as text.
    sums: dict[str, str]
    #: What the fingerprint is made of.
    columns: tuple[str, ...]
    #: Sum of a hash of these columns over the rows, as text.
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Step:
    """One class in one month."""

    #: SHA-256 of the rest and of the day that decides.
    step_id: str
    data_class: str
    #: First day of the month.
    month: date
    action: Action
    #: What happens first, as the policy says it.
    expiry: tuple[str, ...]
    ranges: tuple[Range, ...]
    targets: tuple[Target, ...]

    @property
    def workspaces(self) -> tuple[str, ...]:
        """The workspaces it takes rows of."""
        return tuple(sorted({own.workspace_id for own in self.ranges}))

    @property
    def rows(self) -> int:
        """Rows of the class itself, without those derived from it."""
        return sum(target.rows for target in self.targets if not _is_derived(target.table))

    @property
    def first_day(self) -> date:
        """The oldest day."""
        return min(own.first_day for own in self.ranges)

    @property
    def last_day(self) -> date:
        """The newest day that may go."""
        return min(
            max(own.cutoff for own in self.ranges) - timedelta(days=1), month_end(self.month)
        )

    @property
    def closing(self) -> dict[str, int]:
        """How many days of the month it closes, by workspace: the first ones, with rows or not."""
        days: dict[str, int] = {}
        for own in self.ranges:
            days[own.workspace_id] = max(
                days.get(own.workspace_id, 0), (own.cutoff - self.month).days
            )
        return days

    def takes_the_same(self, other: "Step") -> bool:
        """Whether another step would take the very same rows, in whatever way."""
        return _rows_of(self) == _rows_of(other)

    def predicate(self, day_column: str) -> str:
        """SQL that holds on its workspaces and days."""
        return due_predicate(self.month, self.ranges, day_column)


@dataclass(frozen=True, slots=True)
class Removal:
    """Rows of one class that a request takes out, on whatever days they lie."""

    step_id: str
    #: A class, or where the policy lists a table that belongs to none.
    data_class: str
    #: In the order they go in, each of a whole table.
    targets: tuple[Target, ...]

    @property
    def tables(self) -> dict[str, int]:
        """Rows by table."""
        return {target.table: target.rows for target in self.targets}


@dataclass(frozen=True, slots=True)
class Held:
    """Rows that are past their window and stay for now."""

    data_class: str
    month: date
    workspace_id: str
    reason: str
    rows: int
    first_day: date
    last_day: date


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a purge at a day would do. Equal inputs give an equal plan with the same id."""

    plan_id: str
    as_of: date
    #: Of the policy file it was made by.
    policy_sha256: str
    steps: tuple[Step, ...]
    held: tuple[Held, ...]
    #: It is over the size that a person has to approve.
    needs_approval: bool

    @property
    def rows(self) -> int:
        """Rows of all its classes."""
        return sum(step.rows for step in self.steps)

    @property
    def classes(self) -> tuple[str, ...]:
        """Its classes in the order they are purged in."""
        return tuple(dict.fromkeys(step.data_class for step in self.steps))

    def of(self, data_class: str) -> tuple[Step, ...]:
        """The steps of a class."""
        return tuple(step for step in self.steps if step.data_class == data_class)

    def as_dict(self) -> dict[str, Any]:
        """The plan as one JSON document, from which `from_dict` makes it again."""
        document: dict[str, Any] = json.loads(json.dumps(self, default=_json))
        for step, own in zip(document["steps"], self.steps, strict=True):
            step |= {
                "rows": own.rows,
                "first_day": own.first_day.isoformat(),
                "last_day": own.last_day.isoformat(),
                "workspaces": list(own.workspaces),
            }
        document["rows"] = self.rows
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Plan":
        """Read what `as_dict` wrote.

        Raises:
            TidemarkError: its id is not the hash of the rest.
        """
        steps = tuple(step_from_dict(step) for step in document["steps"])
        held = tuple(
            Held(
                **{
                    **own,
                    "month": date.fromisoformat(own["month"]),
                    "first_day": date.fromisoformat(own["first_day"]),
                    "last_day": date.fromisoformat(own["last_day"]),
                }
            )
            for own in document["held"]
        )
        plan = cls(
            document["plan_id"],
            date.fromisoformat(document["as_of"]),
            document["policy_sha256"],
            steps,
            held,
            document["needs_approval"],
        )
        if _hash(replace(plan, plan_id="")) != plan.plan_id:
            raise TidemarkError(f"plan {plan.plan_id} is not what its id says")
        return plan


def _rows_of(step: Step) -> Step:
    # A table that classes share is whole for the last of them only.
    targets = tuple(replace(target, whole_partition=False) for target in step.targets)
    return replace(step, step_id="", action="delete_rows", targets=targets)


def step_from_dict(document: Mapping[str, Any]) -> Step:
    """Read a step from a plan's or the ledger's JSON."""
    return Step(
        step_id=document["step_id"],
        data_class=document["data_class"],
        month=date.fromisoformat(document["month"]),
        action=document["action"],
        expiry=tuple(document["expiry"]),
        ranges=tuple(
            Range(
                own["workspace_id"],
                own["source"],
                date.fromisoformat(own["first_day"]),
                date.fromisoformat(own["cutoff"]),
            )
            for own in document["ranges"]
        ),
        targets=_targets_from(document),
    )


def removal_from_dict(document: Mapping[str, Any]) -> Removal:
    """Read a removal from the ledger's JSON."""
    return Removal(document["step_id"], document["data_class"], _targets_from(document))


def _targets_from(document: Mapping[str, Any]) -> tuple[Target, ...]:
    return tuple(Target(**{**own, "columns": tuple(own["columns"])}) for own in document["targets"])


# -- what stands ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """Rows of one table, month, workspace and source that are past their window."""

    data_class: str
    table: str
    month: date
    workspace_id: str
    source: str
    #: Whether a hold keeps them.
    is_held: bool
    rows: int
    first_day: date
    last_day: date
    sums: dict[str, str]
    fingerprint: int


@dataclass(frozen=True, slots=True)
class Table:
    """What the plan has to know of a table."""

    name: str
    #: A partition is a month of the day column.
    is_monthly: bool
    columns: tuple[str, ...]
    #: Rows by partition.
    partitions: dict[str, int]


@dataclass(frozen=True, slots=True)
class State:
    """What the plan is made of, besides the policy."""

    windows: dict[tuple[str, str], policy.Window]
    holds: tuple[policy.Hold, ...]
    tables: dict[str, Table]
    standing: tuple[Standing, ...]
    topology: Topology = ONE_MACHINE


def observe(
    settings: Settings,
    connection: Connection,
    ladder: policy.Policy,
    as_of: date,
    *,
    windows: Mapping[tuple[str, str], policy.Window] | None = None,
) -> State:
    """Read what stands past its window: only months that have something due are read.

    Args:
        windows: of workspaces, instead of the overrides in force.
    """
    windows = dict(overrides.in_force(connection, ladder) if windows is None else windows)
    holds = policy.holds(connection)
    tables = _tables(settings, ladder)
    standing: list[Standing] = []
    for name in due_classes(ladder):
        for table in _tables_of(ladder.classes[name]):
            if table in tables:
                standing += _standing(settings, ladder, name, tables[table], as_of, windows, holds)
    return State(windows, holds, tables, tuple(standing), clickhouse.topology(settings))


def due_classes(ladder: policy.Policy) -> tuple[str, ...]:
    """The classes whose rows in ClickHouse end: those that marts are made of before the marts."""
    names = [name for name, own in ladder.classes.items() if "drop" in own.expiry and own.tables]
    return tuple(sorted(names, key=lambda name: ladder.classes[name].is_mart))


def cutoffs(
    ladder: policy.Policy,
    name: str,
    as_of: date,
    windows: Mapping[tuple[str, str], policy.Window],
) -> Iterator[tuple[str, str, date]]:
    """Workspace (or empty), source (or empty) and the first day that stays.

    A window of the policy ends with whole months, so that partitions can be dropped: rows go up
    to 31 days after it. A workspace's own ends on its day.
    """
    for source, window_class in ladder.window_classes(name):
        oldest = ladder.classes[window_class].oldest_day(as_of)
        if oldest is None:
            continue
        default = oldest.replace(day=1)
        yield "", source, default
        for (workspace_id, own_class), window in sorted(windows.items()):
            if own_class == window_class and window.start(as_of) > default:
                yield workspace_id, source, window.start(as_of)


def _standing(
    settings: Settings,
    ladder: policy.Policy,
    name: str,
    table: Table,
    as_of: date,
    windows: Mapping[tuple[str, str], policy.Window],
    holds: Sequence[policy.Hold],
) -> Iterator[Standing]:
    data_class = ladder.classes[name]
    day = "date_day" if _is_derived(table.name) else data_class.day
    bounds = list(cutoffs(ladder, name, as_of, windows))
    if not bounds:
        return
    own_source = "source" if any(source for _, source, _ in bounds) else "''"
    conditions = []
    for workspace_id, source, cutoff in bounds:
        parts = [f"{day} < {literal(cutoff)}"]
        if workspace_id:
            parts.append(f"workspace_id = {literal(workspace_id)}")
        if source:
            parts.append(f"source = {literal(source)}")
        conditions.append(" and ".join(parts))
    measures = ladder.columns_of(table.name, "measure") if table.name in ladder.columns else ()
    summed = [column for column in measures if column in table.columns]
    statement = (
        f"select toString(toStartOfMonth({day})) as month, workspace_id,"
        f" {own_source} as own_source,"
        f" {held_condition(ladder, name, table.name, holds, clickhouse.topology(settings))}"
        " as is_held,"
        f" count() as rows, min({day}) as first_day, max({day}) as last_day,"
        f" {fingerprint(table.columns)} as fingerprint,"
        f" [{', '.join(f'toString(sum({identifier(column)}))' for column in summed)}] as sums"
        f" from {table.name}"
        f" where {day} < {literal(max(cutoff for _, _, cutoff in bounds))}"
        f" and {own_condition(ladder, name, table.name)}"
        f" and ({' or '.join(f'({condition})' for condition in conditions)})"
        " group by month, workspace_id, own_source, is_held"
        " order by month, workspace_id, own_source, is_held"
    )
    for row in clickhouse.rows(settings, statement):
        yield Standing(
            data_class=name,
            table=table.name,
            month=date.fromisoformat(row["month"]),
            workspace_id=row["workspace_id"],
            source=row["own_source"],
            is_held=bool(row["is_held"]),
            rows=int(row["rows"]),
            first_day=date.fromisoformat(row["first_day"]),
            last_day=date.fromisoformat(row["last_day"]),
            sums=dict(zip(summed, row["sums"], strict=True)),
            fingerprint=int(row["fingerprint"]),
        )


def held_condition(
    ladder: policy.Policy,
    name: str,
    table: str,
    holds: Sequence[policy.Hold],
    topology: Topology = ONE_MACHINE,
) -> str:
    """SQL that holds for the rows of a table that a hold keeps.

    A subject's rows stay in raw; what was derived from them can be derived again.

    Args:
        topology: tells each host's own part of another table, where linked rows lie together.
    """
    whole = sorted(
        {
            hold.workspace_id
            for hold in holds
            if not hold.is_of_subject and hold.data_class in (None, name)
        }
    )
    conditions = []
    if whole:
        conditions.append(f"workspace_id in ({', '.join(map(literal, whole))})")
    if not _is_derived(table):
        conditions += _subject_conditions(ladder, name, table, holds, topology)
    return f"({' or '.join(conditions)})" if conditions else "false"


def _subject_conditions(
    ladder: policy.Policy,
    name: str,
    table: str,
    holds: Sequence[policy.Hold],
    topology: Topology,
) -> Iterator[str]:
    if not any(hold.is_of_subject and hold.data_class in (None, name) for hold in holds):
        return
    data_class = ladder.classes[name]
    held = (
        "(select workspace_id, subject from retention.held_subjects"
        f" where class in ({literal(name)}, ''))"
    )

    def people(of: str) -> Iterator[str]:
        for column in data_class.subjects:
            if column in ladder.columns.get(of, {}):
                yield f"(workspace_id, {identifier(column)}) in {held}"

    yield from people(table)
    link = data_class.subject_links.get(table)
    if link is not None:
        keys = ", ".join(identifier(column) for column in ("workspace_id", *link.columns))
        for other in link.tables:
            yield (
                f"({keys}) in (select {keys} from {topology.local(other)}"
                f" where {' or '.join(people(other))})"
            )


def _tables(settings: Settings, ladder: policy.Policy) -> dict[str, Table]:
    wanted = {table for name in due_classes(ladder) for table in _tables_of(ladder.classes[name])}
    topology = clickhouse.topology(settings)
    # Of tables that are cut, what holds the rows tells their keys.
    named = {topology.local(table): table for table in wanted}
    keys = {
        named[row["name"]]: row["partition_key"]
        for row in clickhouse.rows(
            settings,
            "select concat(database, '.', name) as name, partition_key from system.tables"
            " where database in ('raw', 'intermediate', 'marts')",
        )
        if row["name"] in named
    }
    columns: dict[str, list[str]] = defaultdict(list)
    for row in clickhouse.rows(
        settings,
        "select concat(database, '.', table) as table, name, is_in_sorting_key, type"
        " from system.columns where database in ('raw', 'intermediate', 'marts')"
        " order by table, position",
    ):
        table = named.get(row["table"])
        if table in keys and not row["type"].startswith("AggregateFunction"):
            known = ladder.columns.get(table, {}).get(row["name"])
            is_measure = known is not None and known.kind == "measure"
            if row["is_in_sorting_key"] or is_measure or row["name"] in ("load_id", "line_number"):
                columns[table].append(row["name"])
    partitions: dict[str, dict[str, int]] = defaultdict(dict)
    for row in clickhouse.rows(
        settings,
        "select concat(database, '.', table) as table, partition_id, sum(rows) as rows"
        f" from {topology.each_shard('system.parts')}"
        " where active and database in ('raw', 'intermediate', 'marts')"
        " group by table, partition_id",
    ):
        partitions[topology.logical(row["table"])][row["partition_id"]] = int(row["rows"])
    return {
        name: Table(
            name,
            key.strip("()").startswith("toYYYYMM("),
            tuple(columns[name]),
            partitions[name],
        )
        for name, key in keys.items()
    }


def _tables_of(data_class: policy.DataClass) -> tuple[str, ...]:
    return (*data_class.tables, *data_class.derived)


def own_condition(ladder: policy.Policy, name: str, table: str) -> str:
    """SQL that holds for a class's own rows of a table that is derived from several classes."""
    if sum(table in other.derived for other in ladder.classes.values()) < 2:
        return "true"
    own = [source for source, told in ladder.sources.items() if told.data_class == name]
    return f"source in ({', '.join(map(literal, sorted(own)))})"


def _is_derived(table: str) -> bool:
    return table.startswith("intermediate.")


# -- the decision --------------------------------------------------------------------------------


def decide(ladder: policy.Policy, state: State, as_of: date) -> Plan:
    """The plan that follows: pure, and the same for the same arguments."""
    steps: list[Step] = []
    held: list[Held] = []
    by_class: dict[str, dict[date, list[Standing]]] = defaultdict(lambda: defaultdict(list))
    for own in state.standing:
        by_class[own.data_class][own.month].append(own)
    for name in due_classes(ladder):
        for month, standing in sorted(by_class[name].items()):
            held += _held(name, month, standing, state.holds)
            waits = _waits_for_raw(ladder, name, standing, held)
            held += waits
            waiting = {own.workspace_id for own in waits}
            due = [own for own in standing if not own.is_held and own.workspace_id not in waiting]
            if due:
                steps.append(_step(ladder, state, name, month, standing, due, as_of))
    rows = sum(step.rows for step in steps)
    plan = Plan(
        plan_id="",
        as_of=as_of,
        policy_sha256=ladder.sha256,
        steps=tuple(steps),
        held=tuple(held),
        needs_approval=rows > ladder.purge.approval_rows,
    )
    return replace(plan, plan_id=_hash(plan))


def _held(
    name: str, month: date, standing: Sequence[Standing], holds: Sequence[policy.Hold]
) -> Iterator[Held]:
    raw = [own for own in standing if own.is_held and not _is_derived(own.table)]
    for workspace_id, own_rows in _by_workspace(raw):
        ids = sorted(
            hold.hold_id
            for hold in holds
            if hold.workspace_id == workspace_id and hold.data_class in (None, name)
        )
        yield Held(
            data_class=name,
            month=month,
            workspace_id=workspace_id,
            reason=f"hold {', '.join(map(str, ids))}",
            rows=sum(own.rows for own in own_rows),
            first_day=min(own.first_day for own in own_rows),
            last_day=max(own.last_day for own in own_rows),
        )


def _waits_for_raw(
    ladder: policy.Policy, name: str, standing: Sequence[Standing], held: Sequence[Held]
) -> list[Held]:
    """Marts stay as long as raw rows of their days do: there is nothing else to tie those to."""
    if not ladder.classes[name].is_mart:
        return []
    raw: dict[tuple[str, date], set[str]] = defaultdict(set)
    for own in held:
        if ladder.classes[own.data_class].measures:
            raw[own.workspace_id, own.month].add(own.data_class)
    waits = []
    for workspace_id, own_rows in _by_workspace(standing):
        month = own_rows[0].month
        staying = raw.get((workspace_id, month))
        if staying and not all(own.is_held for own in own_rows):
            waits.append(
                Held(
                    data_class=name,
                    month=month,
                    workspace_id=workspace_id,
                    reason=f"raw rows of {', '.join(sorted(staying))} stay",
                    rows=sum(own.rows for own in own_rows if not _is_derived(own.table)),
                    first_day=min(own.first_day for own in own_rows),
                    last_day=max(own.last_day for own in own_rows),
                )
            )
    return waits


def _by_workspace(standing: Iterable[Standing]) -> list[tuple[str, list[Standing]]]:
    found: dict[str, list[Standing]] = defaultdict(list)
    for own in standing:
        found[own.workspace_id].append(own)
    return sorted(found.items())


def _step(
    ladder: policy.Policy,
    state: State,
    name: str,
    month: date,
    standing: Sequence[Standing],
    due: Sequence[Standing],
    as_of: date,
) -> Step:
    data_class = ladder.classes[name]
    bounds = {
        (workspace_id, source): cutoff
        for workspace_id, source, cutoff in cutoffs(ladder, name, as_of, state.windows)
    }
    after = month_end(month) + timedelta(days=1)
    # Rows derived from sources tell none apart: a class has sources or derived tables, not both.
    first_days: dict[tuple[str, str], date] = {}
    for own in due:
        key = (own.workspace_id, own.source)
        first_days[key] = min(own.first_day, first_days.get(key, own.first_day))
    ranges = tuple(
        Range(
            workspace_id,
            source,
            first_day,
            min(after, bounds.get((workspace_id, source), bounds[("", source)])),
        )
        for (workspace_id, source), first_day in sorted(first_days.items())
    )
    # Of a source whose month is past everyone's window, all that stands is known.
    staying = {
        source: {own.workspace_id for own in standing if own.source == source}
        - {own.workspace_id for own in ranges if own.source == source}
        for source in {own.source for own in ranges}
        if bounds[("", source)] >= after
    }
    targets = []
    for table in _tables_of(data_class):
        rows = [own for own in due if own.table == table]
        if not rows:
            continue
        known = state.tables[table]
        partition = f"{month:%Y%m}" if known.is_monthly else "all"
        count = sum(own.rows for own in rows)
        day = "date_day" if _is_derived(table) else data_class.day
        predicate = due_predicate(month, ranges, day, staying)
        own_rows = own_condition(ladder, name, table)
        if own_rows != "true":
            predicate += f" and {own_rows}"
        held = held_condition(ladder, name, table, state.holds, state.topology)
        if held != "false":
            predicate += f" and not {held}"
        targets.append(
            Target(
                table=table,
                partition=partition,
                predicate=predicate,
                whole_partition=known.is_monthly and known.partitions.get(partition) == count,
                rows=count,
                sums=_added(own.sums for own in rows),
                columns=known.columns,
                fingerprint=str(sum(own.fingerprint for own in rows) % 2**128),
            )
        )
    step = Step(
        step_id="",
        data_class=name,
        month=month,
        action="drop_partition"
        if all(own.whole_partition for own in targets if not _is_derived(own.table))
        else "delete_rows",
        expiry=data_class.expiry,
        ranges=ranges,
        targets=tuple(targets),
    )
    return replace(step, step_id=_hash({"as_of": as_of, "step": step}))


def due_predicate(
    month: date, ranges: Sequence[Range], day: str, staying: Mapping[str, set[str]] | None = None
) -> str:
    """SQL that holds on the days of these ranges within a month.

    Args:
        staying: by source, the workspaces that stay of all that stand in the month. Where they are
            fewer than those that go they are named instead: a mutation's text must stay short.
    """
    by_bound: dict[tuple[str, date], list[str]] = defaultdict(list)
    for own in ranges:
        by_bound[own.source, own.cutoff].append(own.workspace_id)
    conditions = []
    for (source, cutoff), workspaces in sorted(by_bound.items()):
        parts = [f"{day} < {literal(cutoff)}"]
        others = None if staying is None else staying.get(source)
        if others is None or len(workspaces) < len(others):
            parts.append(f"workspace_id in ({', '.join(map(literal, sorted(workspaces)))})")
        elif others:
            parts.append(f"workspace_id not in ({', '.join(map(literal, sorted(others)))})")
        if source:
            parts.append(f"source = {literal(source)}")
        conditions.append(" and ".join(parts))
    return (
        f"{day} >= {literal(month)} and"
        f" ({' or '.join(f'({condition})' for condition in conditions)})"
    )


def fingerprint(columns: Sequence[str], predicate: str = "true") -> str:
    """SQL of a sum over rows that does not depend on their order, their parts or merges."""
    return f"toString(sumIf(reinterpretAsUInt128(sipHash128({identifiers(columns)})), {predicate}))"


def effects(
    settings: Settings, ladder: policy.Policy, steps: Sequence[Step | Removal]
) -> dict[str, str]:
    """Per measure of these steps' one class, what the load ledger counts of the rows to go."""
    (name,) = {step.data_class for step in steps}
    if name not in ladder.classes or not ladder.classes[name].measures:
        return {}
    going: dict[str, list[str]] = defaultdict(list)
    for step in steps:
        for target in step.targets:
            going[target.table].append(f"({target.predicate})")
    return load.effects(settings, name, lambda table: " or ".join(going[table]) or "false")


# -- keeping plans -------------------------------------------------------------------------------


def store(connection: Connection, plan: Plan, now: datetime) -> None:
    """Keep a plan under its id; the same plan again changes nothing."""
    connection.execute(
        "insert into control.plans (plan_id, as_of, created_at, document) values (%s, %s, %s, %s)"
        " on conflict (plan_id) do nothing",
        [plan.plan_id, plan.as_of, now, Jsonb(plan.as_dict())],
    )


def stored(connection: Connection, plan_id: str) -> Plan:
    """Read a plan that was kept.

    Raises:
        TidemarkError: there is none with this id, or it was altered.
    """
    row = connection.execute(
        "select document from control.plans where plan_id = %s", [plan_id]
    ).fetchone()
    if row is None:
        raise TidemarkError(f"there is no plan {plan_id}: make one with `tidemark plan`")
    return Plan.from_dict(row["document"])


# -- small things --------------------------------------------------------------------------------


def month_end(month: date) -> date:
    """The last day of a month."""
    following = (month.replace(day=28) + timedelta(days=4)).replace(day=1)
    return following - timedelta(days=1)


def _added(sums: Iterable[Mapping[str, str]]) -> dict[str, str]:
    from decimal import Context, Decimal

    exact = Context(prec=100)
    totals: dict[str, Decimal] = {}
    for own in sums:
        for column, value in own.items():
            totals[column] = exact.add(totals.get(column, Decimal(0)), Decimal(value))
    return {column: f"{total:f}" for column, total in totals.items()}


def _hash(value: Any) -> str:
    text = json.dumps(value, default=_json, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _json(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Plan | Step | Range | Target | Held):
        # As `asdict` does, which copies each of a hundred thousand ranges on its way.
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    raise TypeError(f"{type(value).__name__} has no place in a plan")
