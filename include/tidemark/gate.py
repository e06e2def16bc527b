"""The gate: ledger, raw and marts are counted apart, and Great Expectations ties them out.

Three sides tell what there is of a measure on a day: what the loads wrote into the ledger, what
stands in raw, and what the facts behind the marts know of. The figures of the daily marts are held
against those facts and against a recount of raw. Only counts and sums leave the stores.
"""

import importlib.util
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from decimal import Context, Decimal
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from psycopg.types.json import Jsonb

from tidemark import backup, clickhouse, load, policy
from tidemark import plan as planning
from tidemark.build import ScopeDay
from tidemark.cold import ReadBack
from tidemark.config import Settings
from tidemark.errors import TidemarkError
from tidemark.postgres import Connection

#: Queries at once.
READERS = 2
#: More runs of days than this are joined over the gaps between them: a predicate must stay short.
RUNS = 100
#: Failures a verdict names.
SHOWN = 50

#: The figures of the daily marts by the groups of days they depend on.
FIGURES = {
    "pixel": ("sessions", "pageviews", "bot_pageviews", "conversions"),
    "sales": (
        "orders", "new_customer_orders", "gross_sales", "discounts", "shipping", "taxes",
        "revenue", "new_customer_revenue", "net_revenue_and_refunds",
    ),
    "refunds": ("refunds",),
    "spend": (
        "ad_spend", "impressions", "clicks", "platform_conversions", "platform_conversion_value",
    ),
    "email": (
        "email_revenue", "emails_received", "emails_opened", "emails_clicked", "email_orders",
        "email_order_revenue", "email_refunds",
    ),
}  # fmt: skip
#: Those that depend on more than a day's raw rows: only facts can tell them.
NOT_IN_RAW = frozenset(
    {
        "sessions", "new_customer_orders", "new_customer_revenue", "net_revenue_and_refunds",
        "email_revenue", "email_orders", "email_order_revenue",
    }
)  # fmt: skip

_SALES = ("orders", "payments")

WorkspaceDay = tuple[str, date]
#: Measure, workspace, day, currency.
Key = tuple[str, str, date, str]
#: Rows, distinct ids, exact money.
Totals = tuple[int, int, str]
_NOTHING: Totals = (0, 0, "0")
# Every digit of a sum of Decimal(38, 6).
_WIDE = Context(prec=76)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the days tied out, and where the proof lies."""

    success: bool
    checkpoint: str
    verdict_id: int
    validation_result_id: str
    #: Rows compared: of a measure, or of a mart's figure, each of one workspace and day.
    checked: int
    #: One line for each row that differs, up to `SHOWN`.
    failures: tuple[str, ...]
    statistics: dict[str, Any]
    #: The index page of the Data Docs.
    data_docs: str
    #: The plan and the class it speaks of; None where it speaks of a build.
    plan_id: str | None = None
    data_class: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON: counts and sums, no row of data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Condition:
    """What must not stand in a purge's way, and how much of it does."""

    name: str
    workspace_id: str
    #: How many things are open; 0 lets the purge pass.
    open: int
    #: What to do about it.
    advice: str
    #: What the verdict says although nothing is open.
    note: str = ""

    def __str__(self) -> str:
        where = f" of workspace {self.workspace_id}" if self.workspace_id else ""
        return f"{self.open} {self.name.replace('_', ' ')}{where}: {self.advice}"


def tie_out(
    settings: Settings,
    connection: Connection,
    days: frozenset[ScopeDay],
    as_of: date,
    now: datetime,
) -> Verdict:
    """Tie out every measure of these workspace days, and what the last build rewrote besides.

    Args:
        connection: commits by itself; the verdict is stored through it.
        now: the clock of this run; it dates the verdict and names the validation result.

    Raises:
        TidemarkError: a store does not answer.
    """
    ladder = policy.read(settings)
    asked = _asked(settings, ladder, days)
    comparison = _Comparison(settings, connection, ladder, asked)
    return _judge(settings, connection, comparison, (), as_of, now)


def prove(
    settings: Settings,
    connection: Connection,
    plan: planning.Plan,
    data_class: str,
    now: datetime,
    *,
    copies: Sequence[ReadBack],
) -> Verdict:
    """Tie one class of a plan out, and ask for everything else that a purge of it needs.

    Args:
        connection: commits by itself; the verdict is stored through it, under the plan's id.
        copies: what reading the cold copies back found.
        now: the clock of this run; it dates the verdict and names the validation result.

    Raises:
        TidemarkError: a store does not answer, or the plan has nothing of this class.
    """
    ladder = policy.read(settings)
    steps = plan.of(data_class)
    if not steps:
        raise TidemarkError(f"plan {plan.plan_id} has no step of {data_class}")
    is_built = _is_built(settings)
    asked = _due(settings, connection, ladder, steps, data_class) if is_built else {}
    comparison = _Comparison(settings, connection, ladder, asked, data_class)
    found = [
        *conditions(settings, connection, ladder, plan, data_class, now),
        *_cold(steps, copies),
    ]
    return _judge(settings, connection, comparison, found, plan.as_of, now, plan, data_class)


def _judge(
    settings: Settings,
    connection: Connection,
    comparison: "_Comparison",
    conditions: Sequence[Condition],
    as_of: date,
    now: datetime,
    plan: planning.Plan | None = None,
    data_class: str | None = None,
) -> Verdict:
    rows = comparison.rows()
    rows += [_condition_row(condition) for condition in conditions]
    asked_rows = comparison.asked_rows + len(conditions)
    checkpoint = _expectations(settings)
    name = f"purge_{data_class}" if data_class else checkpoint.NAME
    outcome = checkpoint.run(settings.expectations, rows, asked_rows, now, name)
    shown = {(own.name, own.workspace_id): str(own) for own in conditions}
    failures = _failures(outcome.failures, rows, shown)
    every_day = comparison.all_days.pairs
    statistics = {
        "rows": len(rows),
        "asked_rows": asked_rows,
        "workspace_days": len(every_day),
        "first_day": min((day.isoformat() for _, day in every_day), default=None),
        "last_day": max((day.isoformat() for _, day in every_day), default=None),
        "not_recounted": sum(row["is_recounted"] is False for row in rows),
        "conditions": {
            f"{condition.name}:{condition.workspace_id}": condition.open for condition in conditions
        },
        "notes": sorted({condition.note for condition in conditions} - {""}),
        "expectations": outcome.evaluated,
        "failed_expectations": len(outcome.failures),
        "differences": max((failure.count for failure in outcome.failures), default=0),
    }
    with connection.transaction():
        stored = connection.execute(
            "insert into control.verdicts (checkpoint, plan_id, class, run_id,"
            " validation_result_id, success, as_of, created_at, statistics)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s, %s) returning verdict_id",
            [
                name, plan.plan_id if plan else None, data_class, outcome.run_name,
                outcome.validation_result_id, outcome.success, as_of, now, Jsonb(statistics),
            ],
        ).fetchone()  # fmt: skip
    assert stored is not None
    return Verdict(
        success=outcome.success,
        checkpoint=name,
        verdict_id=int(stored["verdict_id"]),
        validation_result_id=outcome.validation_result_id,
        checked=len(rows),
        failures=failures,
        statistics=statistics,
        data_docs=str(outcome.data_docs),
        plan_id=plan.plan_id if plan else None,
        data_class=data_class,
    )


def _due(
    settings: Settings,
    connection: Connection,
    ladder: policy.Policy,
    steps: Sequence[planning.Step],
    name: str,
) -> dict[str, set[WorkspaceDay]]:
    """The workspace days that a class of a plan closes.

    A day counts that the load ledger or raw knows of: what one of them has forgotten must differ.
    """
    data_class = ladder.classes[name]
    asked: dict[str, set[WorkspaceDay]] = {group: set() for group in data_class.measures.values()}
    bounds = _bounds(steps)
    known = connection.execute(
        f"select distinct days.measure, days.workspace_id, days.local_date"
        f" from control.load_days as days {_WITHIN} where days.measure = any(%s)",
        [*bounds, list(data_class.measures)],
    ).fetchall()
    for row in known:
        asked[data_class.measures[row["measure"]]].add((row["workspace_id"], row["local_date"]))
    for measure, select in planning.effects(settings, ladder, steps).items():
        for row in clickhouse.rows(
            settings, f"select distinct workspace_id, local_date from ({select})"
        ):
            day = date.fromisoformat(row["local_date"])
            asked[data_class.measures[measure]].add((row["workspace_id"], day))
    return asked


#: Days of the load ledger within the steps that `_bounds` tells.
_WITHIN = (
    "inner join unnest(%s::text[], %s::date[], %s::date[]) as due (workspace_id, month, cutoff)"
    " on days.workspace_id = due.workspace_id and days.local_date >= due.month"
    " and days.local_date < least(due.cutoff, (due.month + interval '1 month')::date)"
)


def _bounds(steps: Sequence[planning.Step]) -> list[list[Any]]:
    ranges = {(own.workspace_id, step.month, own.cutoff) for step in steps for own in step.ranges}
    return [list(column) for column in zip(*sorted(ranges), strict=True)]


def conditions(
    settings: Settings,
    connection: Connection,
    ladder: policy.Policy,
    plan: planning.Plan,
    data_class: str,
    now: datetime,
) -> list[Condition]:
    """What besides the figures a purge of a class asks for; those with something open block it.

    Args:
        now: the clock of the run, by which a backup's age goes.
    """
    steps = plan.of(data_class)
    own = ladder.classes[data_class]
    found = [_backed_up(settings, connection, ladder.gate.verified_backup, now)]
    if own.measures and not _is_built(settings):
        return [*found, Condition("build_missing", "", 1, "run `tidemark build`")]
    if "anonymise" in own.expiry:
        found += _small_cells(settings, steps, ladder.purge.k)
    if not own.measures:
        return found
    (touched,) = connection.execute(
        f"select count(*) as days from control.touched_days as days {_WITHIN}"
        " where days.measure = any(%s) and days.batch_id >"
        " coalesce((select max(last_batch_id) from control.builds where success), 0)",
        [*_bounds(steps), list(own.measures)],
    ).fetchall()
    unloaded = load.unloaded(settings, connection, ladder, ladder.sources_of(data_class))
    return [
        *found,
        Condition(
            "days_loaded_since_the_last_build",
            "",
            touched["days"],
            "run `tidemark build`, then plan again",
        ),
        Condition(
            "days_of_an_unfinished_build",
            "",
            _pending_days(settings, steps, own),
            "run `tidemark build` until it succeeds",
        ),
        *(
            Condition(
                "unloaded_landing_files",
                workspace_id,
                sum(file.workspace_id == workspace_id for file in unloaded),
                "run `tidemark load`, then `tidemark build`",
            )
            for workspace_id in sorted({name for step in steps for name in step.workspaces})
        ),
    ]


def _backed_up(
    settings: Settings, connection: Connection, wanted: policy.VerifiedBackup, now: datetime
) -> Condition:
    """Whether what goes could be brought back if its purge were a mistake."""
    name = "verified_backup_missing"
    last = backup.last_made(settings, connection)
    if last is None and wanted.required == "once_made":
        return Condition(name, "", 0, "", note="no backup was ever made; the policy lets it pass")
    is_fresh = last is not None and last.is_fresh(now, wanted.hours)
    return Condition(
        name,
        "",
        int(not is_fresh),
        f"none younger than {wanted.hours} hours: run `tidemark backup`",
    )


def _small_cells(settings: Settings, steps: Sequence[planning.Step], k: int) -> list[Condition]:
    """How many cohort cells of these months, which outlive the orders, stand for few customers.

    The exact mart is the workspace's own and may have them: the verdict says so. The one for
    readers elsewhere must have none.
    """
    cells = " or ".join(
        f"(workspace_id in ({', '.join(clickhouse.literal(name) for name in step.workspaces)})"
        f" and addMonths(cohort_month, months_since) = {clickhouse.literal(step.month)})"
        for step in steps
    )
    exact, shared = (
        int(
            clickhouse.rows(
                settings,
                f"select count() as cells from marts.{mart}"
                f" where customers < {k} and (customers, orders) != (0, 0) and ({cells})",
            )[0]["cells"]
        )
        for mart in ("customer_cohorts_monthly", "customer_cohorts_shareable")
    )
    small = (
        f"{exact} cohort cells of these months stand for fewer than {k} customers and outlive their"
        " orders: they are the workspace's own, share marts.customer_cohorts_shareable"
    )
    return [
        Condition("small_cells_of_own_cohorts", "", 0, "", note=small if exact else ""),
        Condition("small_cells_of_shared_cohorts", "", shared, "run `tidemark build`"),
    ]


def _pending_days(
    settings: Settings, steps: Sequence[planning.Step], data_class: policy.DataClass
) -> int:
    if not clickhouse.rows(
        settings,
        "select 1 from system.tables where database = 'intermediate' and name = 'pending_days'",
    ):
        return 0
    groups = ", ".join(map(clickhouse.literal, data_class.groups))
    due = " or ".join(f"({step.predicate('date_day')})" for step in steps)
    (row,) = clickhouse.rows(
        settings,
        "select count() as days from intermediate.pending_days final"
        f" where measure_group in ({groups}) and ({due})",
    )
    return int(row["days"])


def _is_built(settings: Settings) -> bool:
    """Whether there are marts to tie out at all."""
    needed = ("retention.coverage", "marts.summary_kpis_daily", "marts.email_revenue_daily")
    found = clickhouse.rows(
        settings,
        "select 1 from system.tables where concat(database, '.', name) in"
        f" ({', '.join(map(clickhouse.literal, needed))})",
    )
    return len(found) == len(needed)


def _cold(steps: Sequence[planning.Step], copies: Sequence[ReadBack]) -> list[Condition]:
    if not any("cold" in step.expiry for step in steps):
        return []
    failures = [failure for copy in copies for failure in copy.failures]
    unread = [
        step.month
        for step in steps
        if "cold" in step.expiry and not any(copy.month == step.month for copy in copies)
    ]
    failures += [f"no cold copy of {month:%Y-%m} was read back" for month in unread]
    return [Condition("faults_of_cold_copies", "", len(failures), "; ".join(failures[:SHOWN]))]


def _condition_row(condition: Condition) -> dict[str, Any]:
    return {
        "kind": "condition",
        "name": condition.name,
        "workspace_id": condition.workspace_id,
        "local_date": "",
        "currency": "",
        "is_recounted": None,
        "open": str(condition.open),
    }


class _Days:
    """Workspace days, and how a query is bounded to them."""

    def __init__(self, pairs: Iterable[WorkspaceDay] = ()) -> None:
        self.pairs = frozenset(pairs)

    def predicate(self, column: str) -> str:
        """Literal bounds by workspace and day, which the engine prunes partitions and keys by.

        They may let other days pass where workspaces have different ones: `keep` drops those.
        """
        if not self.pairs:
            return "false"
        workspaces = ", ".join(
            sorted({clickhouse.literal(workspace) for workspace, _ in self.pairs})
        )
        runs = " or ".join(f"{column} between '{start}' and '{end}'" for start, end in self.runs)
        return f"(workspace_id in ({workspaces}) and ({runs}))"

    @cached_property
    def runs(self) -> list[tuple[date, date]]:
        """The days as few runs, first and last day each."""
        days = sorted({day for _, day in self.pairs})
        gaps = sorted(later - earlier for earlier, later in pairwise(days))
        widest = max(timedelta(days=1), gaps[-RUNS] if len(gaps) >= RUNS else timedelta(0))
        runs = [(days[0], days[0])]
        for day in days[1:]:
            start, end = runs[-1]
            if day - end <= widest:
                runs[-1] = (start, day)
            else:
                runs.append((day, day))
        return runs

    def keep(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of these workspace days, with the day as a date."""
        dated = [{**row, "local_date": date.fromisoformat(row["local_date"])} for row in rows]
        return [row for row in dated if (row["workspace_id"], row["local_date"]) in self.pairs]


class _Comparison:
    """Reads all sides of the days asked and lays them next to each other."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        ladder: policy.Policy,
        asked: Mapping[str, Collection[WorkspaceDay]],
        only: str | None = None,
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.ladder = ladder
        self.asked = {group: _Days(pairs) for group, pairs in asked.items()}
        self.all_days = _Days(pair for pairs in asked.values() for pair in pairs)
        self.measures = {
            measure: (class_name, group)
            for class_name, data_class in ladder.classes.items()
            for measure, group in data_class.measures.items()
            if group in asked and only in (None, class_name)
        }
        self.frozen = {
            (row["workspace_id"], row["measure_group"], row["local_date"])
            for row in self.all_days.keep(
                self._rows(
                    "select distinct workspace_id, measure_group, local_date"
                    f" from retention.frozen_days where {self.all_days.predicate('local_date')}"
                )
            )
        }
        self.purged = self._purged()
        self.sales_group = {
            row["workspace_id"]: row["revenue_source"]
            for row in connection.execute("select workspace_id, revenue_source from app.workspaces")
        }

    @property
    def asked_rows(self) -> int:
        """How many rows there must be at least: a day that every side has forgotten is zeros."""
        measures = sum(len(self.asked[group].pairs) for _, group in self.measures.values())
        figures = sum(
            len(names) * len(self._figure_days(group).pairs) for group, names in FIGURES.items()
        )
        # A class of marts alone has nothing here: its proof is its raw rows' and the cold copy.
        return max(1 if self.measures else 0, measures + figures)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the frame: every measure, then every figure."""
        ledger = self._ledger()
        figure_queries = self._figure_queries()
        with ThreadPoolExecutor(READERS) as pool:
            marts = pool.submit(self._marts)
            raw = pool.map(self._raw, self.measures)
            figures = pool.map(self._figures, figure_queries)
            measures = self._measure_rows(
                {
                    "ledger": ledger,
                    "raw": _sum([*(pair for side in raw for pair in side), *self.purged.items()]),
                    "marts": marts.result(),
                }
            )
            told: dict[tuple[str, str, str, date], Mapping[str, Any]] = {}
            for side, group, found in figures:
                for row in found:
                    key = (side, group, row["workspace_id"], row["local_date"])
                    told[key] = {**told.get(key, {}), **row}
        return measures + self._figure_rows(told)

    # -- measures ------------------------------------------------------------------------------

    def _ledger(self) -> dict[Key, Totals]:
        pairs = sorted(self.all_days.pairs)
        rows = self.connection.execute(
            "select days.workspace_id, days.measure, days.local_date, days.currency,"
            " sum(days.event_count) as events, sum(days.distinct_ids) as ids,"
            " sum(days.money) as money"
            " from control.load_days as days inner join control.loads using (load_id)"
            " where loads.status = 'loaded' and days.measure = any(%s)"
            " and (days.workspace_id, days.local_date) in"
            " (select * from unnest(%s::text[], %s::date[]))"
            " group by 1, 2, 3, 4",
            [list(self.measures), [pair[0] for pair in pairs], [pair[1] for pair in pairs]],
        ).fetchall()
        return _totals(filter(self._is_asked, rows))

    def _raw_query(self, measure: str) -> str:
        """Its count of raw: what the class says a load of it adds."""
        class_name, group = self.measures[measure]
        bounds = self.asked[group].predicate("local_date")
        effects = load.effects(self.settings, class_name, lambda _table: bounds)[measure]
        return load.counted(effects)

    def _purged(self) -> dict[Key, Totals]:
        """What has gone, purged or erased, as it was counted when it went."""
        pairs = sorted(self.all_days.pairs)
        rows = self.connection.execute(
            "select workspace_id, measure, local_date, currency, sum(event_count) as events,"
            " sum(distinct_ids) as ids, sum(money) as money from control.purged_rows"
            " where measure = any(%s) and (workspace_id, local_date) in"
            " (select * from unnest(%s::text[], %s::date[])) group by 1, 2, 3, 4",
            [list(self.measures), [pair[0] for pair in pairs], [pair[1] for pair in pairs]],
        ).fetchall()
        return _totals(filter(self._is_asked, rows))

    def _raw(self, measure: str) -> list[tuple[Key, Totals]]:
        days = self.asked[self.measures[measure][1]]
        found = days.keep(self._rows(self._raw_query(measure)))
        return list(_totals({**row, "measure": measure} for row in found).items())

    def _marts(self) -> dict[Key, Totals]:
        rows = self.all_days.keep(
            self._rows(
                "select workspace_id, class as measure, local_date, currency, row_count as events,"
                " distinct_ids as ids, money from retention.coverage"
                f" where {self.all_days.predicate('local_date')}"
            )
        )
        return _totals(filter(self._is_asked, rows))

    def _is_asked(self, row: Mapping[str, Any]) -> bool:
        if row["measure"] not in self.measures:
            # A measure that the policy does not know is compared too, and fails.
            return all(row["measure"] not in own.measures for own in self.ladder.classes.values())
        group = self.measures[row["measure"]][1]
        return (row["workspace_id"], row["local_date"]) in self.asked[group].pairs

    def _measure_rows(self, sides: Mapping[str, Mapping[Key, Totals]]) -> list[dict[str, Any]]:
        keys = {
            key for side in sides.values() for key, totals in side.items() if totals != _NOTHING
        }
        present = {key[:3] for key in keys}
        purged = {key[:3] for key in self.purged}
        keys |= {
            (measure, workspace_id, day, "")
            for measure, (_, group) in self.measures.items()
            for workspace_id, day in self.asked[group].pairs
            if (measure, workspace_id, day) not in present
        }
        rows = []
        for key in sorted(keys):
            measure, workspace_id, day, currency = key
            group = self.measures[measure][1] if measure in self.measures else ""
            row: dict[str, Any] = {
                "kind": "measure",
                "name": measure,
                "workspace_id": workspace_id,
                "local_date": day.isoformat(),
                "currency": currency,
                "is_recounted": (workspace_id, group, day) not in self.frozen
                or (measure, workspace_id, day) in purged,
            }
            for side, totals in sides.items():
                events, ids, money = totals.get(key, _NOTHING)
                row[side] = f"{events} rows of {ids} ids {money}"
            rows.append(row)
        return rows

    # -- figures -------------------------------------------------------------------------------

    def _figure_days(self, group: str) -> _Days:
        """The days whose figures can be told: on a closed one the facts behind them are gone."""
        groups = _SALES if group == "sales" else (group,)
        return _Days(
            (workspace_id, day)
            for own in groups
            for workspace_id, day in self.asked.get(own, _Days()).pairs
            if (workspace_id, self._own_group(workspace_id, group), day) not in self.frozen
        )

    def _own_group(self, workspace_id: str, group: str) -> str:
        return self.sales_group.get(workspace_id, "") if group == "sales" else group

    def _figure_queries(self) -> list[tuple[str, str, str, _Days]]:
        """Side, group, statement and days of each query."""
        folder = self.settings.sql / "gate"
        queries = []
        for group in FIGURES:
            days = self._figure_days(group)
            if days.pairs:
                for side in ("recount", "facts"):
                    statement = _block(folder / f"{side}.sql", group)
                    queries.append((side, group, _bounded(statement, days), days))
        for mart in ("summary_kpis_daily", "email_revenue_daily"):
            statement = _bounded(_block(folder / "marts.sql", mart), self.all_days)
            queries.append(("mart", "", statement, self.all_days))
        return queries

    def _figures(self, query: tuple[str, str, str, _Days]) -> tuple[str, str, list[dict[str, Any]]]:
        side, group, statement, days = query
        return side, group, days.keep(self._rows(statement))

    def _figure_rows(
        self, told: Mapping[tuple[str, str, str, date], Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        rows = []
        for group, names in FIGURES.items():
            for workspace_id, day in sorted(self._figure_days(group).pairs):
                mart = told.get(("mart", "", workspace_id, day), {})
                facts = told.get(("facts", group, workspace_id, day), {})
                recount = told.get(("recount", group, workspace_id, day), {})
                for name in names:
                    value = recount.get(name, 0)
                    is_recounted = not (name in NOT_IN_RAW or value is None)
                    rows.append(
                        {
                            "kind": "figure",
                            "name": name,
                            "workspace_id": workspace_id,
                            "local_date": day.isoformat(),
                            "currency": "",
                            "is_recounted": is_recounted,
                            "recount": exact(value) if is_recounted else None,
                            "facts": exact(facts.get(name, 0)),
                            "mart": exact(mart.get(name, 0)),
                        }
                    )
        return rows

    def _rows(self, query: str) -> list[dict[str, Any]]:
        return clickhouse.rows(self.settings, query)


def _totals(rows: Iterable[Mapping[str, Any]]) -> dict[Key, Totals]:
    return _sum(
        (
            (
                row["measure"],
                row["workspace_id"],
                row["local_date"],
                shown_currency(row["currency"]),
            ),
            (int(row["events"]), int(row["ids"]), str(row["money"])),
        )
        for row in rows
    )


def _sum(pairs: Iterable[tuple[Key, Totals]]) -> dict[Key, Totals]:
    totals: dict[Key, Totals] = {}
    for key, (events, ids, money) in pairs:
        before = totals.get(key, _NOTHING)
        totals[key] = (
            before[0] + events,
            before[1] + ids,
            exact(_WIDE.add(Decimal(before[2]), Decimal(money))),
        )
    return totals


def exact(value: Decimal | int | str) -> str:
    """A number as text in one form, digit for digit: no sign on zero, no trailing zeros."""
    text = f"{value:f}" if isinstance(value, Decimal) else str(value)
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def shown_currency(text: str) -> str:
    """A currency code as it is; anything else could be any text and is not shown."""
    return text if re.fullmatch(r"([A-Z]{3})?", text) else "not a currency"


def _asked(
    settings: Settings, ladder: policy.Policy, days: frozenset[ScopeDay]
) -> dict[str, set[WorkspaceDay]]:
    """The workspace days to compare, by measure group."""
    groups = set(ladder.groups)
    unknown = {day.measure_group for day in days} - groups
    if unknown:
        raise TidemarkError(
            f"measure group {min(unknown)} is in no class of {policy.path(settings)}"
        )
    asked: dict[str, set[WorkspaceDay]] = defaultdict(set)
    for day in days:
        for group in groups:
            asked[group].add((day.workspace_id, day.local_date))
    # A build also rewrites days that nothing was loaded for, such as those of later orders.
    for row in clickhouse.rows(
        settings,
        "select distinct workspace_id, measure_group, date_day as local_date"
        " from intermediate.int_dirty_days",
    ):
        if row["measure_group"] in groups:
            pair = (row["workspace_id"], date.fromisoformat(row["local_date"]))
            asked[row["measure_group"]].add(pair)
    return asked


def read_ahead(settings: Settings) -> None:
    """Load the checkpoint and what its pages need, for this process and each forked from it."""
    _expectations(settings).read_ahead()


def _expectations(settings: Settings) -> ModuleType:
    """The checkpoint, from the repository's `expectations`: found by its folder, as dbt's project.

    Great Expectations takes seconds to import, so only a gate that runs loads it.
    """
    package = "expectations"
    if package not in sys.modules:
        folder = settings.root / package
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[package] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"{package}.tie_out")


def _failures(
    failures: Iterable[Any],
    rows: Iterable[Mapping[str, Any]],
    conditions: Mapping[tuple[str, str], str],
) -> tuple[str, ...]:
    """A line for each row that breaks an expectation, then for what breaks none by itself."""
    broken = {key: None for failure in failures for key in failure.keys}
    by_key = {
        (row["kind"], row["name"], row["workspace_id"], row["local_date"], row["currency"]): row
        for row in rows
    }
    lines = [_line(by_key[key], conditions) for key in broken if key in by_key]
    lines += [
        f"{failure.expectation} does not hold{' of ' if failure.columns else ''}"
        f"{', '.join(failure.columns)}"
        for failure in failures
        if not failure.keys
    ]
    return tuple(lines[:SHOWN])


def _line(row: Mapping[str, Any], conditions: Mapping[tuple[str, str], str]) -> str:
    if row["kind"] == "condition":
        return conditions[row["name"], row["workspace_id"]]
    where = f"{row['name']}, workspace {row['workspace_id']}, {row['local_date']}"
    if row["kind"] == "figure":
        raw = f"raw {row['recount']}, " if row["is_recounted"] else ""
        return f"{where}: {raw}facts {row['facts']}, mart {row['mart']}"
    if row["currency"]:
        where += f", {row['currency']}"
    sides = [side for side in ("ledger", "raw", "marts") if side != "raw" or row["is_recounted"]]
    return f"{where}: " + ", ".join(f"{side} {row[side]}" for side in sides)


def _block(path: Path, name: str) -> str:
    """One block of an SQL file.

    Raises:
        TidemarkError: the file has no such block; the message names both.
    """
    parts = re.split(r"^-- block: (.+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    try:
        return parts[parts.index(name, 1) + 1].strip()
    except ValueError as error:
        raise TidemarkError(f"{path} has no block {name}") from error


def _bounded(statement: str, days: _Days) -> str:
    """The statement with `{{ asked column }}` replaced by the days' bounds of that column."""
    return re.sub(r"\{\{ asked (\w+) \}\}", lambda found: days.predicate(found[1]), statement)
