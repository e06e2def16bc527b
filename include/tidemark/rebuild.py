"""Figures of purged days, made again from recalled rows; the ledger says whether they are right.

When rows went, the ledger kept a hash of what the marts said of their days (`purge.aggregates`).
Figures take the place of those in a mart only where they give that hash: what was right stays to
the last digit, what was damaged since is mended, and recalled rows that lack somebody who was
erased, or what a figure hung on, change nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any, Literal

from tidemark import clickhouse, ledger, purge
from tidemark import plan as planning
from tidemark.clickhouse import identifier, identifiers, literal
from tidemark.config import Settings
from tidemark.keys import Keyring
from tidemark.plan import Step
from tidemark.policy import Policy
from tidemark.postgres import Connection
from tidemark.topology import WORK, Topology

_KEY = {
    "marts.summary_kpis_daily": ("workspace_id", "date_day", "platform", "campaign"),
}
#: The rollup that a mart adds up, by measure group. A rollup that recalled rows can make again has
#: its SQL in include/sql/recall.
_ROLLUPS = {
    "pixel": "intermediate.int_pixel_daily",
    "payments": "intermediate.int_orders_daily",
    "refunds": "intermediate.int_refunds_daily",
    "spend": "intermediate.int_spend_daily",
    "email": "intermediate.int_email_daily",
}
#: Of the mart, by other columns of it.
_COMPUTED = {"net_revenue": "sum(parts.revenue) - sum(parts.refunds)"}

#: equal: recalled rows give the figures that stand. rebuilt: those that stood were damaged.
#: kept: the figures are the ledger's, and recalled rows give others or none. lost: they are not,
#: and nothing that stands or was recalled gives those.
Outcome = Literal["equal", "rebuilt", "kept", "lost"]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of the figures of a recalled month in one mart."""

    data_class: str
    workspace_id: str
    #: First day of it.
    month: date
    first_day: date
    last_day: date
    mart: str
    outcome: Outcome
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.mart}, {self.data_class} of workspace {self.workspace_id} from"
            f" {self.first_day} to {self.last_day}: {self.reason}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        own = asdict(self)
        return {"class" if name == "data_class" else name: value for name, value in own.items()}


def rebuild(
    settings: Settings,
    connection: Connection,
    ladder: Policy,
    recalled: Sequence[tuple[str, str, date]],
    from_date: date | None,
    now: datetime,
) -> tuple[Rebuilt, ...]:
    """Make the figures of recalled purged days again.

    What one step closed of a workspace is made as a whole, for that is what the ledger speaks of.
    Safe to run again at any time. The caller holds the warehouse's lock and copies the ledger's
    head; what is rebuilt is in an entry of its own before it takes its place.

    Args:
        connection: commits by itself.
        recalled: the class, workspace and month of each; see `frozen.recalled`.
        from_date: leave alone what a step closed before this day; None for nothing.

    Raises:
        TidemarkError: a store does not answer.
    """
    found: list[Rebuilt] = []
    for data_class, workspace_id, month in recalled:
        tiered = _tiered(connection, workspace_id, month)
        for step, digests in _steps(connection, data_class, workspace_id, month):
            for mart, digest in sorted(digests.items()):
                own = _Figures(settings, connection, ladder, step, workspace_id, mart, digest)
                if from_date is not None and own.last_day < from_date:
                    continue
                found.append(own.moved() if mart in tiered else own.rebuild(now))
    return tuple(found)


def _steps(
    connection: Connection, data_class: str, workspace_id: str, month: date
) -> Iterator[tuple[Step, dict[str, str]]]:
    """The steps that closed days of a month, cut to one workspace, with its hash by mart."""
    for row in connection.execute(
        "select document from control.ledger as begun where kind = 'step_begun'"
        " and coalesce(document ->> 'month', document -> 'step' ->> 'month') = %s"
        " and document -> 'step' ->> 'data_class' = %s and exists (select from control.ledger"
        " as done where done.kind = 'step_done'"
        " and done.document -> 'step_id' = begun.document -> 'step' -> 'step_id')"
        " order by entry_id",
        [month.isoformat(), data_class],
    ):
        step = planning.step_from_dict(row["document"]["step"])
        ranges = tuple(own for own in step.ranges if own.workspace_id == workspace_id)
        digests = {
            mart: workspaces[workspace_id]
            for mart, workspaces in row["document"]["aggregates"].items()
            if workspace_id in workspaces
        }
        if ranges and digests:
            yield replace(step, ranges=ranges), digests


def _tiered(connection: Connection, workspace_id: str, month: date) -> set[str]:
    """The marts whose own rows of a month have gone to the cold tier."""
    return {
        row["table_name"]
        for row in connection.execute(
            "select distinct table_name from control.cold_files where workspace_id = %s"
            " and month = %s and sealed_at is not null and table_name like 'marts.%%'",
            [workspace_id, month],
        )
    }


class _Figures:
    """The figures of one step and workspace in one mart."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        ladder: Policy,
        step: Step,
        workspace_id: str,
        mart: str,
        digest: str,
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.ladder = ladder
        self.step = step
        self.workspace_id = workspace_id
        self.mart = mart
        self.wanted = digest
        self.groups = tuple(dict.fromkeys(ladder.classes[step.data_class].measures.values()))
        self.last_day = step.month + timedelta(days=step.closing[workspace_id] - 1)
        self.days = (
            f"workspace_id = {literal(workspace_id)}"
            f" and date_day between {literal(step.month)} and {literal(self.last_day)}"
        )

    def moved(self) -> Rebuilt:
        """The mart's own rows have gone: their copy is held against the ledger by `audit`."""
        return self._told(
            "kept",
            f"its rows lie in the cold tier: tidemark recall {self.mart.split('.')[1]}"
            f" --workspace {self.workspace_id} --month {self.step.month:%Y-%m}",
        )

    def rebuild(self, now: datetime) -> Rebuilt:
        """Hold what stands and what recalled rows give against the ledger; mend what differs."""
        is_right = self._digest(self.mart) == self.wanted
        without = "cold rows do not have what its figures are attributed by"
        if self.mart not in _KEY:
            if is_right:
                return self._told("kept", f"it is as the ledger has it; {without}")
            return self._told("lost", f"it is not as the ledger has it, and {without}")
        rollups = [_ROLLUPS[group] for group in self.groups]
        queries = {name: query for name in rollups if (query := self._query(name))}
        with self._work(*queries, self.mart) as work:
            for name, query in queries.items():
                self._insert(work[name], name, query)
            from_rollups = self._made(work[self.mart], {name: name for name in rollups})
            from_recalled = bool(queries) and self._made(
                work[self.mart], {name: work.get(name, name) for name in rollups}
            )
            if from_recalled and from_rollups and is_right:
                return self._told("equal", "recalled rows give the figures that stand")
            if from_recalled:
                result = self._entered("made again from recalled rows, as the ledger has it", now)
                for name in queries:
                    self._swap(name, work[name], self._own_rows(name))
                self._swap(self.mart, work[self.mart], self.days)
                return result
            why = "recalled rows give other figures" if queries else without
            if is_right:
                return self._told("kept", f"it is as the ledger has it; {why}")
            if from_rollups:
                self._made(work[self.mart], {name: name for name in rollups})
                result = self._entered("made again from its rollups, as the ledger has it", now)
                self._swap(self.mart, work[self.mart], self.days)
                return result
            return self._told("lost", f"it is not as the ledger has it, and {why}")

    def _entered(self, reason: str, now: datetime) -> Rebuilt:
        """Put on the ledger what is about to take its place: a killed run does it all again."""
        result = self._told("rebuilt", reason)
        with self.connection.transaction():
            ledger.append(
                self.connection,
                Keyring.from_settings(self.settings),
                "figures_rebuilt",
                {"step_id": self.step.step_id, **result.as_dict()},
                now,
            )
        return result

    def _told(self, outcome: Outcome, reason: str) -> Rebuilt:
        return Rebuilt(
            self.step.data_class, self.workspace_id, self.step.month, self.step.month,
            self.last_day, self.mart, outcome, reason,
        )  # fmt: skip

    def _digest(self, relation: str) -> str | None:
        found = purge.aggregates(
            self.settings, self.connection, self.ladder, self.step, {self.mart: relation}
        )
        return found.get(self.mart, {}).get(self.workspace_id)

    # -- making them again -------------------------------------------------------------------------

    def _query(self, rollup: str) -> str:
        """SQL of the rollup from recalled rows; empty where those cannot tell it."""
        path = self.settings.sql / "recall" / f"{rollup.split('.')[1]}.sql"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def _own_rows(self, rollup: str) -> str:
        """SQL that holds for the rows of a rollup that are of this class."""
        if rollup == _ROLLUPS["payments"]:
            return f"{self.days} and measure_group = {literal(self.step.data_class)}"
        return self.days

    def _made(self, work: str, rollups: Mapping[str, str]) -> bool:
        """Fill the mart's work table from these relations; whether that is what the ledger has."""
        clickhouse.execute(self.settings, f"truncate table {self._topology.local(work)}")
        key, types = _KEY[self.mart], self._types(self.mart)
        by_rollup = {
            _ROLLUPS[group]: self.ladder.mart_measures(group).get(self.mart, ())
            for group in self.groups
        }
        own = {name for names in by_rollup.values() for name in names}
        measures = [name for name in types if name not in key]
        parts = [self._part(self.mart, self.days, set(measures) - own, measures, types)]
        parts += [
            self._part(relation, self._own_rows(rollup), set(by_rollup[rollup]), measures, types)
            for rollup, relation in rollups.items()
        ]
        values = {name: _COMPUTED.get(name, _added(name, types[name])) for name in measures}
        keys = ", ".join(f"parts.{identifier(name)} as {identifier(name)}" for name in key)
        has_figures = " or ".join(
            f"finalizeAggregation({value}) != 0" if _is_state(types[name]) else f"{value} != 0"
            for name, value in values.items()
        )
        self._insert(
            work,
            self.mart,
            f"select {keys},"
            f" {', '.join(f'{value} as {identifier(name)}' for name, value in values.items())}"
            f" from ({' union all '.join(parts)}) as parts"
            f" group by {', '.join(f'parts.{identifier(name)}' for name in key)}"
            f" having {has_figures}",
        )
        return self._digest(work) == self.wanted

    def _part(
        self,
        relation: str,
        days: str,
        own: set[str],
        measures: Sequence[str],
        types: Mapping[str, str],
    ) -> str:
        """SELECT of a relation's own measures, with nothing in the place of the others."""
        values = [
            f"{identifier(name) if name in own else _nothing(types[name])} as {identifier(name)}"
            for name in measures
        ]
        keys = identifiers(_KEY[self.mart])
        return f"select {keys}, {', '.join(values)} from {relation} where {days}"

    def _types(self, table: str) -> dict[str, str]:
        return {
            row["name"]: row["type"]
            for row in clickhouse.rows(
                self.settings,
                "select name, type from system.columns where concat(database, '.', table) ="
                f" {literal(self._topology.local(table))} order by position",
            )
        }

    # -- taking their place ------------------------------------------------------------------------

    @property
    def _topology(self) -> Topology:
        return clickhouse.topology(self.settings)

    @contextmanager
    def _work(self, *tables: str) -> Iterator[dict[str, str]]:
        """An empty table beside each, under a name that the next build sweeps after a kill."""
        work = {table: f"{table}{WORK}" for table in tables}
        self._drop(*work.values())
        try:
            for table, own in work.items():
                for statement in self._topology.made_like(own, table):
                    clickhouse.execute(self.settings, statement)
            yield work
        finally:
            self._drop(*work.values())

    def _drop(self, *tables: str) -> None:
        for table in tables:
            for name in dict.fromkeys((table, self._topology.local(table))):
                clickhouse.execute(
                    self.settings, f"drop table if exists {name}{self._topology.on_cluster} sync"
                )

    def _insert(self, work: str, table: str, query: str) -> None:
        columns = identifiers(self._types(table))
        clickhouse.execute(
            self.settings,
            f"insert into {work} ({columns}) select {columns} from ({query})",
            params={
                "param_workspace": self.workspace_id,
                "param_first": self.step.month.isoformat(),
                "param_last": self.last_day.isoformat(),
            },
        )

    def _swap(self, table: str, work: str, replaced: str) -> None:
        """Put the work table's rows in the place of those, with the rest of the month, at once."""
        month = f"{self.step.month:%Y%m}"
        self._insert(
            work,
            table,
            f"select * from {table} where toYYYYMM(date_day) = {month} and not ({replaced})",
        )
        topology = self._topology
        clickhouse.execute(
            self.settings,
            f"alter table {topology.local(table)}{topology.on_cluster} replace partition id"
            f" {literal(month)} from {topology.local(work)}"
            # What a damaged day gave may have been all there was of the month.
            " settings allow_replace_partition_from_empty_source = 1",
        )


def _is_state(type_: str) -> bool:
    return type_.startswith("AggregateFunction(")


def _added(name: str, type_: str) -> str:
    """SQL of the sum of a measure over the parts."""
    column = f"parts.{identifier(name)}"
    if _is_state(type_):
        function = type_.removeprefix("AggregateFunction(").partition(",")[0]
        return f"{function}MergeState({column})"
    return f"sum({column})"


def _nothing(type_: str) -> str:
    return f"defaultValueOfTypeName({literal(type_)})"
