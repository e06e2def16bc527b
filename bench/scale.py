"""Measure what grows: `python -m bench.scale`. `docs/scale.md` reckons with these figures.

The cost of an event, in CPU seconds and bytes, is taken from a load, build and gate of one day. The
cost of a workspace is taken from a warehouse of many with their whole history and little in it:
a plan over all of them, and what is known of every one of their days. Rows are made inside the
engine. The table goes to the terminal and to `bench/results/scale.*`.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from bench.__main__ import AS_OF, DAY, WORKSPACE, Peaks, clock, deliver, home, run_build, run_load
from bench.generate import generate_pixel
from bench.report import MIB, Figure, keep, timed
from tidemark import clickhouse, flows, gate, plan, policy, postgres, workspaces
from tidemark.config import Settings
from tidemark.workspaces import Workspace

MONTHS = 25
MICRO = 1e6


def cpu_seconds(settings: Settings) -> float:
    """CPU seconds that this process and the home's engines have used until now."""
    total: float = sum(psutil.Process().cpu_times()[:4])
    for process in psutil.process_iter(["cmdline", "cpu_times"]):
        if str(settings.home) in " ".join(process.info["cmdline"] or []):
            total += sum(process.info["cpu_times"][:2])
    return total


def spent(settings: Settings, work: Callable[[], object]) -> float:
    """CPU seconds of some work, in whichever process."""
    before = cpu_seconds(settings)
    work()
    return cpu_seconds(settings) - before


def stages(settings: Settings) -> tuple[float, float, float]:
    """CPU seconds of the load of what stands in landing, of its build, and of the gate."""
    load = spent(settings, lambda: run_load(settings))
    gated: list[float] = []

    def measured(*arguments: Any) -> flows.Verdict:
        found: list[flows.Verdict] = []
        gated.append(spent(settings, lambda: found.append(gate.tie_out(*arguments))))
        return found[0]

    build = spent(settings, lambda: flows.build(settings, as_of=AS_OF, clock=clock, gate=measured))
    return load, build - gated[0], gated[0]


def of_an_event(lines: int, base: Path, console: Console) -> list[Figure]:
    """What one pixel event costs on its way from landing to the marts."""
    file, small = base / "day.jsonl.gz", base / "small.jsonl.gz"
    text = generate_pixel(file, lines=lines, day=DAY, timezone=WORKSPACE.timezone)
    generate_pixel(small, lines=2_000, seed=2, day=DAY - timedelta(days=1))
    with home(base / "events") as settings:
        deliver(settings, small, DAY, "warm.jsonl.gz")
        run_load(settings, DAY)
        run_build(settings)
        deliver(settings, file, AS_OF, "day.jsonl.gz")
        console.print(f"one day of {lines:,} events")
        load, build, gated = stages(settings)
        stored = {
            row["database"]: row
            for row in clickhouse.rows(
                settings,
                "select database, sum(bytes_on_disk) as bytes, count() as parts"
                " from system.parts where active group by database",
            )
        }
    figures = [
        Figure("line in landing, as text", f"{text / lines:.0f} bytes"),
        Figure("line in landing, gzip", f"{file.stat().st_size / lines:.0f} bytes"),
        Figure("load of an event", f"{load / lines * MICRO:.1f} µs of CPU"),
        Figure("build of an event", f"{build / lines * MICRO:.1f} µs of CPU"),
        Figure("gate of an event", f"{gated / lines * MICRO:.1f} µs of CPU"),
    ]
    figures += [
        Figure(f"event in {name}", f"{int(stored[name]['bytes']) / lines:.1f} bytes")
        for name in ("raw", "intermediate")
    ]
    return [
        *figures,
        Figure("marts of a workspace's day", f"{int(stored['marts']['bytes']) / 1024:.0f} KiB"),
    ]


def of_a_tenant(count: int, base: Path, console: Console) -> list[Figure]:
    """What a workspace's file and day cost besides their events: there are a few in each."""
    file = base / "few.jsonl.gz"
    with home(base / "tenants") as settings:
        generate_pixel(file, lines=100, day=DAY, timezone="UTC")
        names = [f"tenant-{number:04}" for number in range(count)]
        with postgres.connect(settings) as connection:
            for name in names:
                tenant = Workspace(name, "UTC", "GBP", "growth", "orders")
                workspaces.add(connection, settings, tenant, clock())
        generate_pixel(base / "small.jsonl.gz", lines=100, seed=2, day=DAY - timedelta(days=1))
        deliver(settings, base / "small.jsonl.gz", DAY, "warm.jsonl.gz")
        run_load(settings, DAY)
        run_build(settings)
        for name in names:
            folder = Path(settings.landing) / "pixel" / name / str(AS_OF)
            folder.mkdir(parents=True)
            shutil.copy(file, folder / "few.jsonl.gz")
        console.print(f"one day of {count:,} workspaces")
        load, build, gated = stages(settings)
        (parts,) = clickhouse.rows(
            settings,
            "select max(parts) as parts from (select count() as parts from system.parts"
            " where active and database = 'raw' group by table, partition_id)",
        )
    return [
        Figure("load of a workspace's file", f"{load / count * 1e3:.0f} ms of CPU"),
        Figure("build of a workspace's day", f"{build / count * 1e3:.0f} ms of CPU"),
        Figure("gate of a workspace's day", f"{gated / count * 1e3:.0f} ms of CPU"),
        Figure("most parts of a month in raw after a load", f"{parts['parts']}"),
    ]


def fill(settings: Settings, ladder: policy.Policy, count: int) -> int:
    """A row of every class for each workspace and month, one month of it past its window."""
    rows = 0
    for name in plan.due_classes(ladder):
        own = ladder.classes[name]
        ((_, source, cutoff), *_) = plan.cutoffs(ladder, name, AS_OF, {})
        first = (cutoff - timedelta(days=1)).replace(day=1)
        months = min(MONTHS, (AS_OF.year - first.year) * 12 + AS_OF.month - first.month + 1)
        for table in (*own.tables, *own.derived):
            day = "date_day" if table in own.derived else own.day
            clickhouse.execute(
                settings,
                f"insert into {table} (workspace_id, {day}{', source' if source else ''})"  # noqa: S608
                f" select 'workspace-' || leftPad(toString(number % {count}), 6, '0'),"
                f" addMonths({clickhouse.literal(first)}, intDiv(number, {count}))"
                f"{f', {clickhouse.literal(source)}' if source else ''}"
                f" from numbers({count * months})",
                params={"max_partitions_per_insert_block": "0"},
            )
            rows += count * months
    return rows


def of_workspaces(count: int, base: Path, console: Console) -> list[Figure]:
    """What a plan over many workspaces costs, and what is known of each of their days."""
    figures: list[Figure] = []
    with home(base / "workspaces") as settings:
        small = base / "small.jsonl.gz"
        deliver(settings, small, DAY, "warm.jsonl.gz")
        run_load(settings, DAY)
        run_build(settings)
        ladder = policy.read(settings)
        console.print(f"{MONTHS} months of {count:,} workspaces")
        rows = fill(settings, ladder, count)
        console.print("plan")
        found: list[plan.Plan] = []
        states: list[plan.State] = []
        with flows.warehouse(settings) as connection, Peaks(settings) as peaks:
            observed = timed(
                lambda: states.append(plan.observe(settings, connection, ladder, AS_OF))
            )
            decided = timed(lambda: found.append(plan.decide(ladder, states[0], AS_OF)))
            document = found[0].as_dict()
            stored = timed(lambda: plan.store(connection, found[0], clock()))
        (made,) = found
        assert all(len(step.workspaces) >= count for step in made.steps)
        predicates = [target.predicate for step in made.steps for target in step.targets]
        figures += [
            Figure("workspaces", f"{count:,}"),
            Figure("rows that stand", f"{rows:,}"),
            Figure("steps of the plan", f"{len(made.steps)}"),
            Figure("ranges of the plan", f"{sum(len(step.ranges) for step in made.steps):,}"),
            Figure("plan: reading the stores", f"{observed:.1f} s"),
            Figure("plan: deciding", f"{decided:.1f} s"),
            Figure("plan: keeping it in PostgreSQL", f"{stored:.1f} s"),
            Figure("plan as JSON", f"{len(json.dumps(document)) / MIB:.0f} MiB"),
            Figure("longest predicate", f"{max(map(len, predicates)):,} characters"),
            Figure("peak of tidemark in the plan", f"{peaks.bytes['tidemark'] / MIB:.0f} MiB"),
            Figure("peak of clickhouse in the plan", f"{peaks.bytes['clickhouse'] / MIB:.0f} MiB"),
        ]
        console.print("coverage")
        days = (AS_OF - date(AS_OF.year - 2, AS_OF.month - 1, 1)).days
        written = timed(
            lambda: clickhouse.execute(
                settings,
                "insert into retention.purged_coverage select"  # noqa: S608 - its own statement
                f" 'workspace-' || leftPad(toString(intDiv(number, {days})), 6, '0'),"
                f" 'pixel_events', {clickhouse.literal(AS_OF)} - number % {days}, '',"
                f" number % 1000, number % 997, 0, '' from numbers({count * days})",
                params={"max_partitions_per_insert_block": "0"},
                timeout=3600,
            )
        )
        with Peaks(settings) as peaks:
            read = timed(
                lambda: clickhouse.execute(
                    settings,
                    "select workspace_id, sum(row_count)"  # noqa: S608 - its own statement
                    " from retention.coverage"
                    f" where class = 'pixel_events' and local_date >= toDate('{AS_OF}') - 30"
                    " group by workspace_id format Null",
                    timeout=3600,
                )
            )
        (size,) = clickhouse.rows(
            settings,
            "select sum(bytes_on_disk) as bytes, sum(rows) as rows, count() as parts"
            " from system.parts where active and table = 'purged_coverage'",
        )
        peak = peaks.bytes["clickhouse"] / MIB
        figures += [
            Figure("coverage of one class, days", f"{count * days:,}"),
            Figure("coverage: writing it", f"{written:.1f} s"),
            Figure("coverage of a day", f"{int(size['bytes']) / int(size['rows']):.2f} bytes"),
            Figure("coverage: a month of all", f"{read:.1f} s"),
            Figure("peak of clickhouse in that", f"{peak:.0f} MiB"),
        ]
    return figures


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--lines", type=int, default=500_000)
    parser.add_argument("--tenants", type=int, default=300)
    parser.add_argument("--workspaces", type=int, default=100_000)
    options = parser.parse_args()
    console = Console()
    base = Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    try:
        figures = of_an_event(options.lines, base, console)
        figures += of_a_tenant(options.tenants, base, console)
        figures += of_workspaces(options.workspaces, base, console)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    keep(
        console, "scale", "What grows with events, and with workspaces", figures,
        lines=options.lines, tenants=options.tenants, workspaces=options.workspaces,
    )  # fmt: skip


if __name__ == "__main__":
    main()
