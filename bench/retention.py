"""Measure plan, gate and purge: `python -m bench.retention`, a part of `make bench`.

200 workspaces with 25 months of every class, of which one month of pixel events is due. Rows are
made inside the engines. The table goes to the terminal and to `bench/results/retention.*`.
"""

import argparse
import contextlib
import json
import shutil
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

import psutil
from psycopg import sql
from rich.console import Console
from rich.table import Table

from bench.__main__ import RESULTS, Figure, Peaks, as_dict, clock, home, mark, timed
from tidemark import clickhouse, flows, gate, postgres, retention, workspaces
from tidemark.config import Settings

AS_OF = date(2026, 11, 20)
DUE = date(2025, 9, 1)
MONTHS = 25
WORKSPACES = 200
MIB = 1 << 20

_PIXEL = """
insert into raw.pixel_events
    (workspace_id, local_date, event_at, event_id, event_name, anonymous_id, session_id,
     url_host, source, medium, source_rule_id, source_confidence, country, device_type, browser,
     os, properties, delivery_date, load_id, line_number)
select
    'w' || leftPad(toString(number % {workspaces}), 3, '0') as workspace_id,
    toDate('{first}') + intDiv(number, {workspaces}) % {days} as local_date,
    toDateTime64(local_date, 6, 'UTC') + 36000 + number % 20000 as event_at,
    leftPad(hex(number), 16, '0') as event_id,
    if(number % 40 = 0, 'purchase', '$pageview') as event_name,
    'v' || toString(intDiv(number, {workspaces} * {days} * 5)) || workspace_id as anonymous_id,
    's' || toString(local_date) as session_id,
    'shop.example', 'google', 'cpc', 'r01', 'high', 'GB', 'mobile', 'Chrome', 'Android',
    '{{"n":' || toString(number % 97) || '}}', toDate('{first}'), 1, number
from numbers({rows})
"""
_OTHERS = {
    "raw.orders": "(workspace_id, source, order_id, order_key, local_date, created_at, updated_at,"
    " status, currency, total, load_id, line_number)"
    " select w, 'shopify_orders', toString(n), hex(n), day, day, day, 'paid', 'GBP', 10, 2, n",
    "raw.order_refunds": "(workspace_id, source, refund_id, order_id, order_key, local_date,"
    " refunded_at, order_local_date, currency, amount, load_id, line_number)"
    " select w, 'shopify_orders', toString(n), toString(n), hex(n), day, day, day, 'GBP', 1, 2, n",
    "raw.payments": "(workspace_id, payment_id, order_key, local_date, paid_at, status, currency,"
    " amount, load_id, line_number)"
    " select w, toString(n), hex(n), day, day, 'succeeded', 'GBP', 10, 2, n",
    "raw.ad_spend": "(workspace_id, source, platform, account_id, local_date, report_date, ad_id,"
    " currency, spend, load_id, line_number)"
    " select w, 'meta_ads', 'meta', '1', day, day, toString(n), 'GBP', 1, 2, n",
    "raw.email_events": "(workspace_id, event_id, local_date, event_at, metric, load_id,"
    " line_number) select w, toString(n), day, day, 'Opened Email', 2, n",
}


def fill(settings: Settings, rows: int) -> None:
    """Put the history where a load would have put it, ledger included."""
    with postgres.connect(settings) as connection:
        for number in range(WORKSPACES):
            name = f"w{number:03}"
            tenant = workspaces.Workspace(name, "UTC", "GBP", "enterprise", "orders")
            workspaces.add(connection, settings, tenant, clock())
    month_days = (date(DUE.year, DUE.month + 1, 1) - DUE).days
    clickhouse.execute(
        settings,
        _PIXEL.format(workspaces=WORKSPACES, first=DUE, days=month_days, rows=rows),
        params={"max_partitions_per_insert_block": "0"},
    )
    days = MONTHS * 30
    for table, select in _OTHERS.items():
        clickhouse.execute(
            settings,
            f"insert into {table} {select} from (select"  # noqa: S608 - its own statements
            f" number as n, 'w' || leftPad(toString(number % {WORKSPACES}), 3, '0') as w,"
            f" toDate('{AS_OF}') - intDiv(number, {WORKSPACES}) % {days} as day"
            f" from numbers({WORKSPACES * days}))",
            params={"max_partitions_per_insert_block": "0"},
        )
    known = clickhouse.rows(
        settings,
        "select workspace_id, local_date, count() as n, uniqExact(event_id) as ids"
        " from raw.pixel_events group by all",
    )
    with postgres.connect(settings) as connection:
        connection.execute(
            "insert into control.loads (source, workspace_id, delivery_date, file_name_hash,"
            " file_sha256, bytes, status, lines, stored, duplicate, quarantined, refused, as_of,"
            " started_at, loaded_at) values ('pixel', 'w000', %s, '', '', 0, 'loaded', 0, 0, 0, 0,"
            " 0, %s, now(), now())",
            [DUE, AS_OF],
        )
        with connection.cursor() as cursor:
            copied = sql.SQL(
                "copy control.load_days (load_id, source, workspace_id, local_date, measure,"
                " currency, event_count, distinct_ids, money) from stdin"
            )
            with cursor.copy(copied) as copy:
                for row in known:
                    copy.write_row(
                        (1, "pixel", row["workspace_id"], row["local_date"], "pixel_events", "",
                         row["n"], row["ids"], 0)
                    )  # fmt: skip


def destroying(settings: Settings, rows: int) -> dict[str, float]:
    """Seconds of a statement that destroys this many rows, by how it does."""
    seconds = {}
    for name, statement in {
        "drop": f"alter table bench.events drop partition id '{DUE:%Y%m}'",
        "delete": f"alter table bench.events delete where local_date < '{DUE + timedelta(days=31)}'"
        " settings mutations_sync = 2",
    }.items():
        clickhouse.execute(settings, "create database if not exists bench")
        clickhouse.execute(settings, "create or replace table bench.events as raw.pixel_events")
        clickhouse.execute(
            settings,
            _PIXEL.format(workspaces=WORKSPACES, first=DUE, days=30, rows=rows).replace(
                "raw.pixel_events", "bench.events"
            ),
        )
        seconds[name] = timed(lambda statement=statement: clickhouse.execute(settings, statement))
    clickhouse.execute(settings, "drop database bench sync")
    return seconds


def peer_delete(settings: Settings, rows: int) -> float:
    """Seconds PostgreSQL takes to delete as many rows, and to give their space back."""
    with postgres.connect(settings, autocommit=True) as connection:
        connection.execute(
            "create table public.events as select lpad(to_hex(n), 16, '0') as event_id,"
            " 'w' || lpad((n %% 200)::text, 3, '0') as workspace_id,"
            " %s::date + (n / 200 %% 30)::int as local_date, repeat('x', 250) as rest"
            " from generate_series(1, %s) as n",
            [DUE, rows],
        )
        connection.execute("create index on public.events (workspace_id, local_date)")
        begin = time.perf_counter()
        connection.execute("delete from public.events where local_date < '2026-01-01'")
        connection.execute("vacuum public.events")
        seconds = time.perf_counter() - begin
        connection.execute("drop table public.events")
    return seconds


def measure(rows: int, large: int, console: Console) -> list[Figure]:
    """Run everything in a home of its own."""
    base = Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    figures: list[Figure] = []
    try:
        with home(base) as settings:
            console.print("filling")
            console.print(f"  {timed(lambda: fill(settings, rows)):.1f} s")
            console.print("building the month that is due")
            last = DUE + timedelta(days=30)
            begin = time.perf_counter()
            # Only the pixel's part of the load ledger is made: nothing ties the rest out.
            with contextlib.suppress(flows.GateFailed):
                flows.build(
                    settings, as_of=AS_OF, clock=clock, gate=gate.tie_out,
                    from_date=DUE, to_date=last,
                )  # fmt: skip
            built = time.perf_counter() - begin
            console.print(f"  {built:.1f} s")
            console.print("plan and gate")
            with Peaks(settings) as peaks:
                begin = time.perf_counter()
                report = retention.plan(settings, as_of=AS_OF, now=clock(), gate=gate)
                planned = time.perf_counter() - begin
                (step,) = report.plan.of("pixel_events")
                assert step.rows == rows
                ladder_verdict = flows_prove(settings, report)
                proven = time.perf_counter() - begin - planned
            assert ladder_verdict, "the gate has to pass"
            total = planned + proven
            memory = sum(peaks.bytes.values()) / MIB
            figures += [
                Figure("plan, seconds", f"{planned:.1f}"),
                Figure("gate, seconds", f"{proven:.1f}"),
                Figure("plan and gate, seconds", f"{total:.1f}", "at most 30", total <= 30),
                Figure("peak of all processes, MiB", f"{memory:.0f}", "at most 1024",
                       memory <= 1024),
                *(
                    Figure(f"  of {name}, MiB", f"{used / MIB:.0f}")
                    for name, used in peaks.bytes.items()
                ),
            ]  # fmt: skip
            console.print("purge")
            begin = time.perf_counter()
            purged = retention.purge(settings, as_of=AS_OF, clock=clock, gate=gate)
            figures.append(
                Figure(
                    f"purge of {rows:,} rows with tiering, gate and proof, seconds",
                    f"{time.perf_counter() - begin:.1f}",
                )
            )
            assert purged.rows >= rows
            console.print("destroying statements")
            small = destroying(settings, 1_000_000)
            big = destroying(settings, large)
            ratio = big["drop"] / small["drop"]
            deleted = peer_delete(settings, 1_000_000)
            figures += [
                Figure("drop of a partition of 1,000,000 rows, ms", f"{small['drop'] * 1e3:.0f}"),
                Figure(f"drop of a partition of {large:,} rows, ms", f"{big['drop'] * 1e3:.0f}"),
                Figure(f"drop of {large:,} rows / of 1,000,000", f"{ratio:.2f} times",
                       "at most 1.5 times", ratio <= 1.5),
                Figure("ALTER … DELETE of 1,000,000 rows, s", f"{small['delete']:.2f}"),
                Figure(f"ALTER … DELETE of {large:,} rows, s", f"{big['delete']:.2f}"),
                Figure("PostgreSQL DELETE and VACUUM of 1,000,000 rows, s", f"{deleted:.2f}"),
            ]  # fmt: skip
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return figures


def flows_prove(settings: Settings, report: retention.PlanReport) -> bool:
    """The gate alone, without cold copies: those are part of the purge's own figure."""
    with flows.warehouse(settings) as connection:
        verdict = gate.prove(settings, connection, report.plan, "pixel_events", clock(), copies=())
    # Without copies their condition is open; everything else has to tie out.
    return all("cold" in failure for failure in verdict.failures)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m bench.retention", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--large", type=int, default=50_000_000)
    options = parser.parse_args()
    console = Console()
    figures = measure(options.rows, options.large, console)
    table = Table("figure", "value", "goal", "met")
    for figure in figures:
        table.add_row(figure.name, figure.value, figure.goal, mark(figure.met))
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    cores = psutil.cpu_count()
    lines = [f"| {f.name} | {f.value} | {f.goal} | {mark(f.met)} |" for f in figures]
    heading = (
        f"# Plan, gate and purge\n\n{WORKSPACES} workspaces, {MONTHS} months of every class;"
        f" {options.rows:,} pixel events of one month are due. On {cores} cores, in one run.\n"
    )
    page = RESULTS / "retention.md"
    page.write_text(
        "\n".join([heading, "| figure | value | goal | met |", "|---|---|---|---|", *lines, ""]),
        encoding="utf-8",
    )
    document = {
        "rows": options.rows, "large": options.large, "cores": cores,
        "figures": [as_dict(figure) for figure in figures],
    }  # fmt: skip
    (RESULTS / "retention.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console.print(f"kept in {page}")


if __name__ == "__main__":
    main()
