"""Measure plan, gate and purge: a part of `make bench`, or `python -m bench.retention`.

200 workspaces with 25 months of every class, of which one month of pixel events is due. Rows are
made inside the engines. The table goes to the terminal and to `bench/results/retention.*`.
"""

import argparse
import contextlib
import multiprocessing
import shutil
import statistics
import tempfile
import time
from datetime import date, timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from psycopg import sql
from rich.console import Console

from bench.__main__ import Peaks, clock, home
from bench.report import MIB, Figure, at_most, keep, timed
from tidemark import clickhouse, engines, flows, gate, postgres, retention, workspaces
from tidemark.config import Settings

AS_OF = date(2026, 11, 20)
DUE = date(2025, 9, 1)
MONTHS = 25
WORKSPACES = 200
ROUNDS = 5

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
    """Seconds, the median, of a statement that destroys this many rows, by how it does."""

    def run(statement: str) -> None:
        clickhouse.execute(settings, statement)

    run("create database bench")
    run("create table bench.month as raw.pixel_events")
    filled = _PIXEL.format(workspaces=WORKSPACES, first=DUE, days=30, rows=rows)
    run(filled.replace("raw.pixel_events", "bench.month"))
    # A month that is due was merged long ago.
    run("optimize table bench.month final")
    seconds = {}
    for name, statement in {
        "drop": f"alter table bench.events drop partition id '{DUE:%Y%m}'",
        "delete": f"alter table bench.events delete where local_date < '{DUE + timedelta(days=31)}'"
        " settings mutations_sync = 2",
    }.items():
        taken = []
        for _ in range(ROUNDS):
            run("create or replace table bench.events as raw.pixel_events")
            run(f"alter table bench.events attach partition id '{DUE:%Y%m}' from bench.month")
            settle(settings)
            taken.append(timed(partial(run, statement)))
        seconds[name] = statistics.median(taken)
    run("drop database bench sync")
    return seconds


def settle(settings: Settings) -> None:
    """Wait until nothing is merged and no old part lies on the disk."""
    while clickhouse.rows(
        settings,
        "select 1 from system.merges union all select 1 from system.parts where not active"
        " and database in ('bench', 'raw', 'intermediate', 'marts')",
    ):
        time.sleep(0.5)


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
            settle(settings)
            # What the build left in the engine's caches and allocator is not the purge's.
            engines.down(settings)
            engines.up(settings)
            console.print("plan and gate")
            # In a process of its own, as the nightly run's task is.
            context = multiprocessing.get_context("spawn")
            here, there = context.Pipe()
            task = context.Process(target=plan_and_prove, args=(settings, rows, there))
            task.start()
            with Peaks(settings, task.pid) as peaks:
                task.join()
            assert task.exitcode == 0, "the gate has to pass"
            planned, proven = here.recv()
            memory = sum(peaks.bytes.values()) / MIB
            figures += [
                Figure("plan", f"{planned:.1f} s"),
                Figure("gate", f"{proven:.1f} s"),
                at_most("plan and gate", planned + proven, 30, " s"),
                at_most("peak of all processes", memory, 1024, " MiB"),
                *(
                    Figure(f"  of {name}", f"{used / MIB:.0f} MiB")
                    for name, used in peaks.bytes.items()
                ),
            ]
            console.print("purge")
            begin = time.perf_counter()
            purged = retention.purge(settings, as_of=AS_OF, clock=clock, gate=gate)
            taken = time.perf_counter() - begin
            assert purged.rows >= rows
            copied = sum(file.stat().st_size for file in Path(settings.cold).rglob("*.parquet"))
            console.print("destroying statements")
            small = destroying(settings, 1_000_000)
            big = destroying(settings, large)
            deleted = peer_delete(settings, 1_000_000)
            figures += [
                Figure(f"purge of {rows:,} rows, with cold copy, gate and proof", f"{taken:.1f} s"),
                Figure("cold copy of an event", f"{copied / rows:.1f} bytes"),
                Figure("drop of a partition of 1,000,000 rows", f"{small['drop'] * 1e3:.0f} ms"),
                Figure(f"drop of a partition of {large:,} rows", f"{big['drop'] * 1e3:.0f} ms"),
                at_most(f"drop of {large:,} rows / of 1,000,000", big["drop"] / small["drop"], 1.5),
                Figure("ALTER … DELETE of 1,000,000 rows", f"{small['delete'] * 1e3:.0f} ms"),
                Figure(f"ALTER … DELETE of {large:,} rows", f"{big['delete'] * 1e3:.0f} ms"),
                Figure("PostgreSQL DELETE and VACUUM of 1,000,000 rows", f"{deleted * 1e3:.0f} ms"),
            ]
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return figures


def plan_and_prove(settings: Settings, rows: int, answer: Connection) -> None:
    """Send the seconds of the plan, and of the gate alone.

    The gate goes without cold copies: those are part of the purge's own figure.
    """
    begin = time.perf_counter()
    report = retention.plan(settings, as_of=AS_OF, now=clock(), gate=gate)
    planned = time.perf_counter()
    (step,) = report.plan.of("pixel_events")
    assert step.rows == rows
    with flows.warehouse(settings) as connection:
        verdict = gate.prove(settings, connection, report.plan, "pixel_events", clock(), copies=())
    # Without copies their condition is open; everything else has to tie out.
    assert all("cold" in failure for failure in verdict.failures), verdict.failures
    answer.send((planned - begin, time.perf_counter() - planned))


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m bench.retention", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--large", type=int, default=50_000_000)
    options = parser.parse_args()
    console = Console()
    figures = measure(options.rows, options.large, console)
    heading = (
        f"Plan, gate and purge of {options.rows:,} pixel events of one month, among {WORKSPACES}"
        f" workspaces with {MONTHS} months of every class"
    )
    keep(console, "retention", heading, figures, rows=options.rows, large=options.large)


if __name__ == "__main__":
    main()
