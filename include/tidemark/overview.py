"""What the Retention page shows: the ladder as it stands, in a handful of queries."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

from tidemark import clickhouse, freshness, overrides, policy
from tidemark import plan as planning
from tidemark.backup import LastBackup, last_made
from tidemark.config import Settings
from tidemark.policy import Policy, Window
from tidemark.postgres import Connection, Row

#: When `retention_nightly` runs, UTC.
NIGHTLY = time(3, 30)
#: Lines of a kind that are shown.
SHOWN = 50
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Span:
    """From the first to the last day of something, both included."""

    first: date
    last: date


@dataclass(frozen=True, slots=True)
class LastPurge:
    """The last step of a class that was done, and where its proof lies."""

    at: datetime
    month: date
    rows: int
    approved_by: str | None
    #: The page of the Data Docs, below their folder.
    proof: str | None


@dataclass(frozen=True, slots=True)
class ClassState:
    """One class of the ladder as it stands in the warehouse."""

    name: str
    window: str
    basis: str
    expiry: tuple[str, ...]
    #: Workspaces with a shorter window of their own.
    overrides: int
    #: The oldest day inside the window.
    edge: date | None
    #: The first day that the next purge leaves where no workspace has its own window.
    next_edge: date | None
    hot: Span | None
    rows: int
    #: Bytes on the disk.
    size: int
    cold: Span | None
    #: Days of the marts that rest on this class.
    aggregate: Span | None
    #: Up to this day every load is in the marts.
    watermark: date | None
    #: Rows past their window at the next purge, those under a hold included.
    due: int
    holds: int
    last_purge: LastPurge | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Rows past their window that did not go, and why."""

    data_class: str
    #: held or refused.
    kind: str
    reason: str
    workspaces: int
    rows: int | None
    first_month: date
    last_month: date


@dataclass(frozen=True, slots=True)
class RequestState:
    """A request of a subject or a workspace that is not done."""

    code: str
    kind: str
    status: str
    received_at: datetime
    due_at: datetime
    is_late: bool


@dataclass(frozen=True, slots=True)
class ModelState:
    """What became of a model in the last build."""

    name: str
    layer: str
    status: str
    #: Seconds.
    seconds: float
    rows: int | None


@dataclass(frozen=True, slots=True)
class BuildState:
    """The last build."""

    build_id: int
    started_at: datetime
    finished_at: datetime | None
    #: None while it runs, or where it was given up.
    success: bool | None
    models: tuple[ModelState, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything the page shows; counts and days, nothing of a person."""

    as_of: date
    now: datetime
    next_purge_at: datetime
    workspaces: int
    classes: tuple[ClassState, ...]
    #: When the plan was made that `waiting` speaks of.
    planned_at: datetime | None
    #: It is over the policy's size, and nothing of it has gone.
    needs_approval: bool
    waiting: tuple[Waiting, ...]
    sources: tuple[freshness.SourceState, ...]
    requests: tuple[RequestState, ...]
    build: BuildState | None
    #: The newest daily backup, and whether a purge may rely on it.
    backup: LastBackup | None
    is_backed_up: bool

    @property
    def span(self) -> Span:
        """From the oldest day that anything is kept of to today."""
        days = [
            span.first
            for own in self.classes
            for span in (own.hot, own.cold, own.aggregate)
            if span is not None
        ]
        days += [own.edge for own in self.classes if own.edge is not None]
        return Span(min(days, default=self.as_of - timedelta(days=365)), self.as_of)


def overview(settings: Settings, connection: Connection, as_of: date, now: datetime) -> Overview:
    """Read how the ladder stands.

    Args:
        as_of: the day that decides the windows; the next purge's is that of its night.
        now: the clock.

    Raises:
        TidemarkError: a store does not answer, or the policy cannot be read.
    """
    ladder = policy.read(settings)
    tonight = datetime.combine(now.date(), NIGHTLY, now.tzinfo)
    next_purge_at = tonight if tonight > now else tonight + timedelta(days=1)
    plan = _last_plan(connection)
    backup = last_made(settings, connection)
    hours = ladder.gate.verified_backup.hours
    return Overview(
        as_of=as_of,
        now=now,
        next_purge_at=next_purge_at,
        workspaces=_count_workspaces(connection),
        classes=_classes(settings, connection, ladder, as_of, next_purge_at.date()),
        planned_at=plan["created_at"] if plan else None,
        needs_approval=bool(plan and plan["needs_approval"]),
        waiting=tuple(_waiting(connection, plan)) if plan else (),
        sources=freshness.sources(connection, ladder, as_of),
        requests=_requests(connection, now),
        build=_build(connection),
        backup=backup,
        is_backed_up=backup is not None and backup.is_fresh(now, hours),
    )


def _count_workspaces(connection: Connection) -> int:
    row = connection.execute(
        "select count(*) as n from app.workspaces where deleted_at is null"
    ).fetchone()
    return int(row["n"]) if row else 0


def _last_plan(connection: Connection) -> Row | None:
    return connection.execute(
        "select plan_id, created_at, document -> 'held' as held,"
        " coalesce((document ->> 'needs_approval')::boolean, false) and not exists ("
        "  select from control.ledger where kind = 'step_begun'"
        "  and ledger.document ->> 'plan_id' = plans.plan_id) as needs_approval"
        " from control.plans order by created_at desc limit 1"
    ).fetchone()


def _classes(
    settings: Settings, connection: Connection, ladder: Policy, as_of: date, next_as_of: date
) -> tuple[ClassState, ...]:
    windows = overrides.in_force(connection, ladder)
    standing = _standing(settings)
    due = _due(settings, ladder, next_as_of, windows, standing)
    cold = {
        row["class"]: Span(row["first"], planning.month_end(row["last"]))
        for row in connection.execute(
            "select class, min(month) as first, max(month) as last from control.cold_files"
            " where sealed_at is not null and deleted_at is null group by class"
        )
    }
    unbuilt = {
        row["measure"]: row["first"]
        for row in connection.execute(
            "select measure, min(local_date) as first from control.touched_days where batch_id >"
            " coalesce((select max(last_batch_id) from control.builds where success), 0)"
            " group by measure"
        )
    }
    purges = _last_purges(connection)
    holds = policy.holds(connection)
    found = []
    for name in planning.due_classes(ladder):
        own = ladder.classes[name]
        tables = [standing[table] for table in own.tables if table in standing]
        hot = _around(table.span for table in tables)
        edges = [
            ladder.classes[window_class].oldest_day(as_of)
            for _, window_class in ladder.window_classes(name)
        ]
        edge = min((day for day in edges if day), default=None)
        cutoffs = planning.cutoffs(ladder, name, next_as_of, {})
        marts = {mart for group in own.measures.values() for mart in ladder.mart_measures(group)}
        open_days = [unbuilt[measure] for measure in own.measures if measure in unbuilt]
        watermark = min(open_days) - timedelta(days=1) if open_days else hot.last if hot else None
        found.append(
            ClassState(
                name=name,
                window=str(own.window) if own.window else "as its source",
                basis=own.basis,
                expiry=own.expiry,
                overrides=len({who for who, which in windows if which == name}),
                edge=edge,
                next_edge=min((cutoff for _, _, cutoff in cutoffs), default=None),
                hot=hot,
                rows=sum(table.rows for table in tables),
                size=sum(table.size for table in tables),
                cold=cold.get(name),
                aggregate=_around(standing[mart].span for mart in marts if mart in standing),
                watermark=watermark if own.measures else None,
                due=due.get(name, 0),
                holds=sum(hold.data_class in (None, name) for hold in holds),
                last_purge=purges.get(name),
            )
        )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Standing:
    span: Span
    rows: int
    size: int


def _standing(settings: Settings) -> dict[str, _Standing]:
    """From what the parts say of themselves: no row is read."""
    topology = clickhouse.topology(settings)
    return {
        topology.logical(row["name"]): _Standing(
            Span(date.fromisoformat(row["first"]), date.fromisoformat(row["last"])),
            int(row["row_count"]),
            int(row["size"]),
        )
        for row in clickhouse.rows(
            settings,
            "select concat(database, '.', table) as name, min(min_date) as first,"
            " max(max_date) as last, sum(rows) as row_count, sum(bytes_on_disk) as size"
            f" from {topology.each_shard('system.parts')}"
            " where active and rows > 0 and database in ('raw', 'marts')"
            " and min_date > '1970-01-01' group by name",
        )
    }


def _due(
    settings: Settings,
    ladder: Policy,
    as_of: date,
    windows: Mapping[tuple[str, str], Window],
    standing: Mapping[str, _Standing],
) -> dict[str, int]:
    counts = []
    for name in planning.due_classes(ladder):
        own = ladder.classes[name]
        day = clickhouse.identifier(own.day)
        bounds = list(planning.cutoffs(ladder, name, as_of, windows))
        for source in dict.fromkeys(source for _, source, _ in bounds):
            of_source = f"source = {clickhouse.literal(source)} and " if source else ""
            for past in _past(day, [bound for bound in bounds if bound[1] == source]):
                counts += [
                    f"select {clickhouse.literal(name)} as name, count() as row_count"
                    f" from {table} where {of_source}{past}"
                    for table in own.tables
                    # What has no part may not even be made yet.
                    if table in standing
                ]
    found: dict[str, int] = {}
    if counts:
        for row in clickhouse.rows(settings, " union all ".join(counts)):
            found[row["name"]] = found.get(row["name"], 0) + int(row["row_count"])
    return found


def _past(day: str, bounds: Sequence[tuple[str, str, date]]) -> Iterator[str]:
    """Predicates, none of which meets another's rows, for what is past its window."""
    default = next(cutoff for workspace_id, _, cutoff in bounds if not workspace_id)
    # Whole months: the parts know their own number of rows.
    yield f"{day} < {clickhouse.literal(default)}"
    own = {workspace_id: cutoff for workspace_id, _, cutoff in bounds if workspace_id}
    if own:
        names = ", ".join(clickhouse.literal(workspace_id) for workspace_id in own)
        days = ", ".join(f"'{cutoff}'" for cutoff in own.values())
        # Tables are sorted by workspace and day; one look-up, however many windows there are.
        yield (
            f"{day} >= {clickhouse.literal(default)}"
            f" and {day} < {clickhouse.literal(max(own.values()))} and workspace_id in ({names})"
            f" and {day} < transform(workspace_id, [{names}], cast([{days}] as Array(Date)),"
            f" {clickhouse.literal(default)})"
        )


def _last_purges(connection: Connection) -> dict[str, LastPurge]:
    return {
        row["class"]: LastPurge(
            row["at"],
            date.fromisoformat(row["month"][:10]),
            int(row["rows"]),
            row["approved_by"],
            f"validations/{row['proof']}.html" if row["proof"] else None,
        )
        for row in connection.execute(
            "select distinct on (done.document ->> 'class') done.document ->> 'class' as class,"
            " done.at, done.document ->> 'month' as month, done.document ->> 'rows' as rows,"
            " begun.document ->> 'approved_by' as approved_by,"
            " begun.document -> 'verdict' ->> 'validation_result_id' as proof"
            " from control.ledger as done left join control.ledger as begun"
            " on begun.kind = 'step_begun'"
            " and begun.document -> 'step' ->> 'step_id' = done.document ->> 'step_id'"
            " where done.kind = 'step_done'"
            " order by done.document ->> 'class', done.entry_id desc"
        )
    }


def _waiting(connection: Connection, plan: Row) -> Iterator[Waiting]:
    held: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for own in plan["held"] or []:
        held.setdefault((own["data_class"], own["reason"]), []).append(own)
    shown = list(held.items())[:SHOWN]
    # A plan names holds by their numbers alone: "hold 3, 7".
    numbers = {reason: [int(number) for number in _NUMBER.findall(reason)] for _, reason in held}
    given = {
        row["hold_id"]: row["reason"]
        for row in connection.execute(
            "select hold_id, reason from control.holds where hold_id = any(%s)",
            [sorted({number for (_, reason), _ in shown for number in numbers[reason]})],
        )
    }
    for (name, reason), rows in shown:
        months = [date.fromisoformat(row["month"][:10]) for row in rows]
        why = "; ".join(given[number] for number in numbers[reason] if number in given)
        yield Waiting(
            name,
            "held",
            f"{reason}: {why}" if why else reason,
            len({row["workspace_id"] for row in rows}),
            sum(int(row["rows"]) for row in rows),
            min(months),
            max(months),
        )
    steps = connection.execute(
        "select step ->> 'data_class' as class, refused.document ->> 'reason' as reason,"
        " min(left(step ->> 'month', 10)::date) as first,"
        " max(left(step ->> 'month', 10)::date) as last"
        " from control.ledger as refused, control.plans"
        " cross join lateral jsonb_array_elements(plans.document -> 'steps') as step"
        " where refused.kind = 'step_refused' and refused.document ->> 'plan_id' = %s"
        " and plans.plan_id = %s and step ->> 'step_id' = refused.document ->> 'step_id'"
        " group by 1, 2 order by 1, 2 limit %s",
        [plan["plan_id"], plan["plan_id"], SHOWN],
    )
    for row in steps:
        yield Waiting(row["class"], "refused", row["reason"], 0, None, row["first"], row["last"])


def _requests(connection: Connection, now: datetime) -> tuple[RequestState, ...]:
    return tuple(
        RequestState(
            row["code"],
            row["kind"],
            row["status"],
            row["received_at"],
            row["due_at"],
            row["due_at"] < now,
        )
        for row in connection.execute(
            "select code, kind, status, received_at, due_at from control.requests"
            " where status <> 'done' order by due_at limit %s",
            [SHOWN],
        )
    )


def _build(connection: Connection) -> BuildState | None:
    row = connection.execute(
        "select build_id, started_at, finished_at, success from control.builds"
        " order by build_id desc limit 1"
    ).fetchone()
    if row is None:
        return None
    models = connection.execute(
        "select name, layer, status, seconds, rows from control.build_models"
        " where build_id = %s and (node like 'model.%%' or status not in ('pass', 'success'))"
        " order by finished_at, name",
        [row["build_id"]],
    )
    return BuildState(**row, models=tuple(ModelState(**model) for model in models))


def _around(spans: Iterator[Span]) -> Span | None:
    found: Sequence[Span] = list(spans)
    if not found:
        return None
    return Span(min(span.first for span in found), max(span.last for span in found))
