"""What the demonstration prints: the marts, the accounting, the proof, and where to look next."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tidemark import clickhouse
from tidemark.config import Settings
from tidemark.flows import DemoReport

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
_BARS = " ▁▂▃▄▅▆▇█"


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
    console.print("\n[bold]Where to look next[/]")
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
