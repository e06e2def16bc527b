"""The demonstration: three invented shops from landing to purge, and what it prints of them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from types import ModuleType
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tidemark import clickhouse, flows, postgres, retention, workspaces
from tidemark import demo as invented
from tidemark import load as loading
from tidemark.config import Settings

_DAYS = """
select
    k.workspace_id as workspace,
    w.currency as cur,
    formatDateTime(date_day, '%b %d') as day,
    k.visitors as visitors,
    k.orders as orders,
    toDecimalString(k.revenue, 2) as revenue,
    toDecimalString(k.refunds, 2) as refunds,
    toDecimalString(k.ad_spend, 2) as ad_spend,
    toDecimalString(k.mer, 2) as mer
from marts.kpis_daily as k
inner join reference.workspaces as w final on k.workspace_id = w.workspace_id
where platform = 'all' and date_day > {as_of:Date} - 4 and date_day < {as_of:Date}
order by workspace, date_day
"""
_PLATFORMS = """
select
    platform,
    sum(k.sessions) as sessions,
    sum(k.orders) as orders,
    toDecimalString(sum(k.revenue), 2) as revenue,
    toDecimalString(sum(k.ad_spend), 2) as ad_spend,
    if(sum(k.ad_spend) = 0, null, toDecimalString(sum(k.revenue) / sum(k.ad_spend), 2)) as roas
from marts.kpis_daily as k
where workspace_id = {workspace:String} and platform != 'all' and date_day > {as_of:Date} - 31
group by platform
order by sum(k.revenue) desc
"""
_MONTHS = """
select
    toStartOfMonth(date_day) as month,
    workspace_id,
    sum(k.revenue) as revenue
from marts.kpis_daily as k
where platform = 'all'
group by month, workspace_id
order by workspace_id, month
"""
_PURGED = """
select
    begun.document -> 'step' ->> 'data_class' as class,
    left(begun.document -> 'step' ->> 'month', 7) as month,
    begun.document -> 'step' ->> 'action' as action,
    (begun.document ->> 'rows')::bigint as rows,
    left(begun.document ->> 'plan_id', 12) as plan,
    begun.document -> 'verdict' ->> 'verdict_id' as verdict
from control.ledger as begun
where
    begun.kind = 'step_begun'
    and exists (
        select from control.ledger as done
        where
            done.kind = 'step_done'
            and done.document ->> 'step_id' = begun.document -> 'step' ->> 'step_id'
    )
order by begun.entry_id desc
limit 12
"""
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demonstration loaded, built and purged."""

    as_of: date
    loads: tuple[loading.Report, ...]
    build: flows.BuildReport
    purge: retention.PurgeReport

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON document."""
        return {
            "as_of": self.as_of,
            "loads": [load.as_dict() for load in self.loads],
            "build": self.build.as_dict(),
            "purge": self.purge.as_dict(),
        }


def run(
    settings: Settings,
    *,
    as_of: date,
    clock: Callable[[], datetime],
    gate: ModuleType,
    note: flows.Note = lambda _: None,
    track: loading.Track = lambda _total: lambda _bytes: None,
) -> DemoReport:
    """Make 14 months of three invented shops, load, build, tie out and purge. Safe to run again.

    Args:
        gate: the module `tidemark.gate`.

    Raises:
        UsageError: landing is a URL: the demonstration writes to a folder.
        TidemarkError: a store does not answer, dbt failed, or the gate found a difference.
        Refused: the purge was stopped by a guard.
    """
    landing = settings.landing_path
    with postgres.connect(settings) as connection:
        for tenant in invented.WORKSPACES:
            workspaces.add(
                connection,
                settings,
                workspaces.Workspace(
                    tenant.workspace_id,
                    tenant.timezone,
                    tenant.currency,
                    tenant.plan,
                    tenant.revenue_source,
                ),
                clock(),
            )
    note("inventing 14 months of three shops")
    recent = settings.tmp / "demo"
    shutil.rmtree(recent, ignore_errors=True)
    summary = invented.write_landing(landing, as_of, recent=recent)
    # The past is loaded as of its own last day: seen from today its first month has already left
    # the pixel's window, and would be refused instead of purged.
    note(f"loading the history up to {summary.history_as_of}")
    history = flows.load(settings, as_of=summary.history_as_of, now=clock(), note=note, track=track)
    for file in sorted(path for path in recent.rglob("*") if path.is_file()):
        target = landing / file.relative_to(recent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
    note(f"loading the daily deliveries up to {as_of}")
    daily = flows.load(settings, as_of=as_of, now=clock(), note=note, track=track)
    note("building the marts and tying them out")
    build = flows.build(settings, as_of=as_of, clock=clock, gate=gate.tie_out, note=note)
    note("purging what is past its window")
    purge = retention.purge(settings, as_of=as_of, clock=clock, gate=gate, note=note)
    return DemoReport(as_of, (history, daily), build, purge)


def show(settings: Settings, report: DemoReport, console: Console | None = None) -> None:
    """Print the demonstration's result for a person."""
    console = console or Console()
    as_of = {"param_as_of": report.as_of.isoformat()}
    days = clickhouse.rows(settings, _DAYS, params=as_of)
    console.print()
    console.print(
        _table(
            "marts.kpis_daily: the last days, all platforms",
            days,
            ("workspace", "cur", "day"),
        )
    )
    first = days[-1]["workspace"] if days else ""
    console.print(
        _table(
            f"marts.kpis_daily: {first} by platform, 30 days",
            clickhouse.rows(settings, _PLATFORMS, params={**as_of, "param_workspace": first}),
            ("platform",),
        )
    )
    console.print(_sparklines(clickhouse.rows(settings, _MONTHS)))
    if any(load.files for load in report.loads):
        console.print(_accounting(report))
    verdict = report.build.verdict
    if verdict is not None:
        proof = verdict.as_dict()
        console.print(
            f"[bold green]Tied out:[/] load ledger, raw and marts agree on"
            f" {proof.get('checked', 0):,} figures of {report.build.days:,} workspace days."
            f" Proof: {proof.get('data_docs', '')}",
            soft_wrap=True,
        )
    else:
        console.print("Nothing new to load or build since the last time.")
    with postgres.connect(settings) as connection:
        purged = connection.execute(_PURGED).fetchall()
    if purged:
        console.print(
            _table(
                "purged for good, from the signed ledger",
                purged,
                ("class", "month", "action", "plan", "verdict"),
            )
        )
    console.print("[bold]Where to look next[/]")
    console.print("  .venv/bin/tidemark audit        the proof of what was destroyed")
    console.print("  .venv/bin/tidemark plan         what the next purge would do")
    console.print('  .venv/bin/tidemark sql "select * from marts.kpis_daily limit 10"')
    console.print('  .venv/bin/tidemark sql "select * from raw.quarantine"')
    console.print('  .venv/bin/tidemark sql --store postgres "select * from control.loads"')
    console.print("  make docs      the lineage of every column, in a browser")
    console.print("  make down      stop the engines; the data stay")


def _plain_table(title: str) -> Table:
    # Few lines, so that the widest table fits a terminal of 80 columns.
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="cyan",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _table(title: str, rows: list[dict[str, Any]], labels: tuple[str, ...]) -> Table:
    table = _plain_table(title)
    for column in rows[0] if rows else ():
        table.add_column(column, justify="left" if column in labels else "right")
    previous = None
    for row in rows:
        if previous not in (None, row.get("workspace")):
            table.add_section()
        previous = row.get("workspace")
        table.add_row(*("" if value is None else _figure(value) for value in row.values()))
    return table


def _figure(value: Any) -> str:
    # Decimals arrive as text, so that no digit is lost on the way.
    return f"{value:,}" if isinstance(value, int) else str(value)


def _sparklines(rows: list[dict[str, Any]]) -> Table:
    table = _plain_table("revenue by month")
    for column in ("workspace_id", "from", "to", "revenue"):
        table.add_column(column)
    by_workspace: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_workspace.setdefault(row["workspace_id"], []).append(row)
    for workspace_id, months in by_workspace.items():
        amounts = [float(month["revenue"]) for month in months]
        top = max(amounts) or 1.0
        bars = "".join(
            _BARS[round(max(amount, 0.0) / top * (len(_BARS) - 1))] for amount in amounts
        )
        table.add_row(workspace_id, months[0]["month"][:7], months[-1]["month"][:7], bars)
    return table


def _accounting(report: DemoReport) -> Table:
    names = ("lines", "stored", "duplicate", "quarantined", "refused")
    totals: dict[str, list[int]] = {}
    for load in report.loads:
        for file in load.files:
            total = totals.setdefault(file.file.split("/")[0], [0] * len(names))
            for position, name in enumerate(names):
                total[position] += getattr(file.counts, name)
    table = _plain_table("every line = stored + duplicate + quarantined + refused")
    table.add_column("source")
    for name in names:
        table.add_column(name, justify="right")
    for source, total in totals.items():
        table.add_row(source, *(f"{value:,}" for value in total))
    return table
