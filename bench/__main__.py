"""Measure load, build and gate: `make bench`, or `python -m bench --lines N`.

Every figure is a ratio, or a time, of one run in a home of its own that is thrown away. The table
goes to the terminal and to `bench/results/`.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import psutil
from rich.console import Console
from upath import UPath

from bench.generate import generate_pixel
from bench.report import MIB, Figure, at_most, keep, timed
from tidemark import clickhouse, engines, flows, gate, load, postgres, workspaces
from tidemark.config import Settings
from tidemark.landing import LandingFile

DAY = date(2026, 11, 19)
AS_OF = date(2026, 11, 20)
WORKSPACE = workspaces.Workspace("bench", "Europe/London", "GBP", "growth", "orders")
PEER_LINES = 20_000

_BARE = """
create table load.bare
(
    event_id String, event_name LowCardinality(String), timestamp DateTime64(6, 'UTC'),
    anonymous_id String, user_id String, session_id String, email String, ip String,
    user_agent String, url String, referrer String, viewport LowCardinality(String),
    language LowCardinality(String), timezone LowCardinality(String), consent String,
    properties String
)
engine = MergeTree
partition by toYYYYMM(timestamp)
order by (anonymous_id, timestamp, event_id)
"""


def clock() -> datetime:
    """The benchmark's own clock."""
    return datetime.now(UTC)


class Peaks:
    """The largest resident memory of each process of a home, in bytes.

    Args:
        pid: of the process that works on it; by default this one.
    """

    def __init__(self, settings: Settings, pid: int | None = None) -> None:
        self._home = str(settings.home)
        self._worker = psutil.Process(pid)
        self._stop = threading.Event()
        self.bytes: dict[str, int] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peaks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            totals = {"tidemark": 0}
            with contextlib.suppress(psutil.NoSuchProcess):
                totals["tidemark"] = self._worker.memory_info().rss
            for process in psutil.process_iter(["cmdline", "memory_info"]):
                command = " ".join(process.info["cmdline"] or [])
                if self._home in command and process.info["memory_info"]:
                    name = "clickhouse" if "chdb_http" in command else "postgres"
                    totals[name] = totals.get(name, 0) + process.info["memory_info"].rss
            for name, used in totals.items():
                self.bytes[name] = max(self.bytes.get(name, 0), used)


@contextlib.contextmanager
def home(base: Path) -> Iterator[Settings]:
    """A warehouse of its own, thrown away at the end."""
    ports = iter(_free_ports(3))
    settings = replace(
        Settings.from_env({"TIDEMARK_HOME": str(base / "home")}),
        clickhouse_port=next(ports),
        postgres_port=next(ports),
        airflow_port=next(ports),
        landing=str(base / "landing"),
    )
    engines.up(settings)
    try:
        with postgres.connect(settings) as connection:
            workspaces.add(connection, settings, WORKSPACE, clock())
        yield settings
    finally:
        engines.down(settings)


def _free_ports(count: int) -> list[int]:
    import socket

    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def deliver(settings: Settings, file: Path, delivered: date, name: str) -> None:
    """Put a pixel file into the landing folder."""
    folder = Path(settings.landing) / "pixel" / WORKSPACE.workspace_id / str(delivered)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, folder / name)


def run_load(settings: Settings, as_of: date = AS_OF) -> load.Report:
    """Load what stands in landing."""
    report = flows.load(settings, as_of=as_of, now=clock())
    assert not report.failed, report
    return report


def run_build(settings: Settings) -> flows.BuildReport:
    """Build and tie out."""
    return flows.build(settings, as_of=AS_OF, clock=clock, gate=gate.tie_out)


def bare_insert(settings: Settings, file: Path) -> float:
    """Seconds of a streamed `INSERT … FORMAT JSONEachRow` of the file, and nothing else."""
    clickhouse.execute(settings, "drop table if exists load.bare")
    clickhouse.execute(settings, _BARE)
    params = {
        "input_format_null_as_default": "1",
        "input_format_skip_unknown_fields": "1",
        "input_format_allow_errors_ratio": "0.05",
        "input_format_json_read_objects_as_strings": "1",
        "date_time_input_format": "best_effort",
        "max_insert_threads": "2",
    }
    with file.open("rb") as body:
        seconds = timed(
            lambda: clickhouse.stream_insert(
                settings,
                "insert into load.bare format JSONEachRow",
                body,
                content_encoding="gzip",
                params=params,
            )
        )
    clickhouse.execute(settings, "drop table load.bare")
    return seconds


def peer(file: Path, base: Path) -> float:
    """Lines a second of dlt's default pipeline: read_jsonl into DuckDB, on the file's head."""
    head = base / "peer" / "head.jsonl"
    head.parent.mkdir()
    script = (
        "import sys, time, dlt\n"
        "from dlt.sources.filesystem import filesystem, read_jsonl\n"
        "begin = time.perf_counter()\n"
        "pipeline = dlt.pipeline('bench', destination='duckdb', dataset_name='raw')\n"
        "pipeline.run((filesystem(sys.argv[1], file_glob='*.jsonl') | read_jsonl())"
        ".with_name('pixel'))\n"
        "print(time.perf_counter() - begin)\n"
    )
    import gzip

    with gzip.open(file, "rb") as lines, head.open("wb") as out:
        written = 0
        for line in lines:
            # The bad lines would stop the peer.
            if line.startswith(b'{"event_id"') and line.rstrip().endswith(b"}"):
                try:
                    json.loads(line)
                except ValueError:
                    continue
                out.write(line)
                written += 1
                if written == PEER_LINES:
                    break
    environment = {
        **os.environ,
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "DLT_DATA_DIR": str(base / "peer" / "dlt"),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(head.parent)],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        cwd=base / "peer",
    )
    return written / float(done.stdout.split()[-1])


#: What each rule of the load produces. The profile leaves one out at a time.
RULES = (
    ("pseudonyms of e-mail and user", ["customer_key", "user_key"]),
    ("URL and referrer, redacted", ["url_path", "url_parameters", "referrer_path"]),
    ("click identifiers, hashed", ["click_id_kind", "click_id_hash"]),
    ("source rules", ["source", "medium", "campaign", "source_rule_id", "source_confidence"]),
    ("country of the IP", ["country"]),
    ("hash of the IP", ["ip_hash"]),
    ("hash of the user agent", ["ua_hash", "sealed_user_agent"]),
    ("properties, redacted and capped", ["properties", "order_id"]),
    ("checks of every field", ["reason", "line_hash"]),
    ("key of the row", ["row_key", "version_at"]),
)


def profile(settings: Settings, file: Path) -> list[tuple[str, float]]:
    """Seconds of the whole parse and what each rule adds to it.

    No row is written. A rule that shares work with another shows what it adds beside it alone.
    """
    landing = LandingFile(
        "pixel", WORKSPACE.workspace_id, AS_OF, file.name, UPath(file), file.stat().st_size
    )
    with (
        flows.warehouse(settings) as connection,
        load.trial(settings, connection, landing, as_of=AS_OF, now=clock()) as trial,
    ):
        reading = set(trial.columns) - {"load_id", "line_number"}
        variants: dict[str, Collection[str]] = {
            "all rules": (),
            "read, split into lines, number them": reading,
            **dict(RULES),
        }
        best = dict.fromkeys(variants, float("inf"))
        # In turns, so that what else the machine does falls on all of them.
        for _ in range(3):
            for name, left_out in variants.items():
                best[name] = min(best[name], timed(partial(trial.run, left_out)))
        everything = best["all rules"]
        for rule, _ in RULES:
            best[rule] = max(everything - best[rule], 0.0)
        return list(best.items())


def replay(settings: Settings, log: Path) -> float:
    """Seconds of a build's own SQL by hand: each statement of dbt's log, one after the other."""
    statements = _statements(log.read_text(encoding="utf-8"))
    assert statements
    return timed(lambda: [clickhouse.execute(settings, statement) for statement in statements])


def _statements(log: str) -> list[str]:
    """What a build's models, tests and hooks sent, without what dbt asked for itself."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    found = re.findall(
        r"adapter: On (?:(?:model|test)\.[\w.]+|master): /\*.*?\*/(.*?)\n\d\d:\d\d:\d\d\.\d+ \[",
        plain,
        re.DOTALL,
    )
    # The log puts three dots behind each.
    statements = [statement.strip().removesuffix("...").rstrip() for statement in found]
    return [statement for statement in statements if statement]


def measure(lines: int, console: Console) -> list[Figure]:
    """Run everything and collect the figures."""
    base = Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    figures: list[Figure] = []
    try:
        file = base / "day.jsonl.gz"
        console.print(f"generating {lines:,} pixel lines")
        generate_pixel(file, lines=lines, day=DAY, timezone=WORKSPACE.timezone)
        small = base / "small.jsonl.gz"
        generate_pixel(small, lines=2_000, seed=2, day=DAY - timedelta(days=1))
        with home(base) as settings:
            # Seeds, IP database, dictionaries and dbt's parse are there before the clock starts,
            # and so is the salt of the day that will be measured.
            deliver(settings, small, DAY, "warm.jsonl.gz")
            run_load(settings, DAY)
            run_build(settings)
            console.print("bare insert, load, bare insert")
            before = bare_insert(settings, file)
            deliver(settings, file, AS_OF, "day.jsonl.gz")
            with Peaks(settings) as peaks:
                spent: dict[str, float] = {}
                spent["load"] = timed(lambda: run_load(settings))
                after = bare_insert(settings, file)
                log = settings.logs / "dbt" / "dbt.log"
                log.unlink(missing_ok=True)
                reports: list[flows.BuildReport] = []
                gate_seconds: list[float] = []

                def timed_gate(*arguments: object) -> flows.Verdict:
                    begin = time.perf_counter()
                    verdict = gate.tie_out(*arguments)  # type: ignore[arg-type]
                    gate_seconds.append(time.perf_counter() - begin)
                    return verdict

                spent["build"] = timed(
                    lambda: reports.append(
                        flows.build(settings, as_of=AS_OF, clock=clock, gate=timed_gate)
                    )
                )
                assert reports[0].verdict is not None
            assert reports[0].verdict.success
            built = spent["build"] - gate_seconds[0]
            by_hand = replay(settings, log)
            bare = (before + after) / 2
            rate = lines / spent["load"]
            figures += [
                Figure(
                    "bare insert, FORMAT JSONEachRow", f"{bare:.1f} s, {lines / bare:,.0f} lines/s"
                ),
                Figure("load, every rule", f"{spent['load']:.1f} s, {rate:,.0f} lines/s"),
                at_most("load / bare insert", spent["load"] / bare, 2.0),
            ]
            console.print("peer")
            peer_rate = peer(file, base)
            figures += [
                Figure("dlt, read_jsonl into DuckDB", f"{peer_rate:,.0f} lines/s"),
                Figure(
                    "load / dlt",
                    f"{rate / peer_rate:.0f} times",
                    "at least 60 times",
                    rate / peer_rate >= 60,
                ),
                Figure("build of the day, without the gate", f"{built:.1f} s"),
                Figure("the same SQL by hand", f"{by_hand:.1f} s"),
                at_most("build less SQL by hand", built - by_hand, 5.0, " s"),
                Figure("gate", f"{gate_seconds[0]:.1f} s"),
                at_most("load + build + gate", spent["load"] + spent["build"], 60.0, " s"),
            ]
            figures += [
                Figure(f"peak memory, {name}", f"{used / MIB:,.0f} MiB")
                for name, used in sorted(peaks.bytes.items())
            ]
            console.print("profile")
            rules = profile(settings, file)
            total = rules[0][1]
            figures += [
                Figure(f"rule: {name}", f"{seconds:.2f} s, {100 * seconds / total:.0f} %")
                for name, seconds in rules
            ]
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return figures


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    options = parser.parse_args()
    console = Console()
    figures = measure(options.lines, console)
    heading = f"Load, build and gate of {options.lines:,} pixel lines"
    keep(console, "load", heading, figures, lines=options.lines)


if __name__ == "__main__":
    main()
