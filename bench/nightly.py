"""Measure a night on the real scheduler and the page *Retention*: `python -m bench.nightly`.

Between Airflow's tasks and ClickHouse stands a relay that notes when a statement is under way. What
a run takes while none is, is what Airflow, dbt and Great Expectations cost over the SQL itself, the
waits between tasks included. The tables go to the terminal and to `bench/results/nightly.*`.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from rich.console import Console

from bench.__main__ import clock, home
from bench.generate import generate_pixel
from bench.report import Figure, keep
from bench.retention import WORKSPACES, fill
from tidemark import airflow_engine, gate, overrides, policy, postgres, retention, workspaces
from tidemark.config import Settings
from tidemark.keys import Keyring
from tidemark.policy import Window

SHOP = workspaces.Workspace("shop", "Europe/London", "GBP", "enterprise", "orders")
PATIENCE = 900.0
ASKED = 50


class Relay:
    """Passes ClickHouse's traffic on and notes when a statement is under way."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._begun: dict[int, float] = {}
        #: From the first byte of a request to the last of its answer, of every connection.
        self._spans: list[tuple[float, float]] = []
        #: The loop itself would let a connection go that waits for both of its ends.
        self._serving: set[asyncio.Task[None]] = set()
        self.port = 0

    def __enter__(self) -> "Relay":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _end(self) -> None:
        # A statement whose client was killed is waited for by nobody.
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def busy(self, begin: float, end: float) -> float:
        """Seconds between two moments in which at least one statement was under way."""
        seconds, reached = 0.0, begin
        for first, last in sorted(self._spans):
            first, last = max(first, reached), min(last, end)
            if last > first:
                seconds += last - first
                reached = last
        return seconds

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = asyncio.current_task()
        assert own is not None
        self._serving.add(own)
        own.add_done_callback(self._serving.discard)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._to)
        asked = answered = 0.0

        def note() -> None:
            if answered > asked > 0.0:
                self._spans.append((asked, answered))

        async def requests() -> None:
            nonlocal asked
            while chunk := await reader.read(1 << 20):
                if asked <= answered:
                    note()
                    asked = time.monotonic()
                up_writer.write(chunk)
                await up_writer.drain()
            up_writer.write_eof()

        async def answers() -> None:
            nonlocal answered
            while chunk := await up_reader.read(1 << 20):
                answered = time.monotonic()
                writer.write(chunk)
                await writer.drain()
            writer.close()

        with contextlib.suppress(OSError):
            await asyncio.gather(requests(), answers())
        note()
        up_writer.close()


@dataclass
class Api:
    """Airflow's REST API and the page, asked as the administrator."""

    port: int
    token: str = field(default="", repr=False)

    def sign_in(self, user: str, password: str) -> None:
        """Take a token."""
        self.token = self.ask("POST", "/auth/token", {"username": user, "password": password})[
            "access_token"
        ]

    def ask(self, method: str, path: str, document: Any = None) -> Any:
        """A document for a document."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        body = None if document is None else json.dumps(document)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read()
            assert response.status < 300, (method, path, response.status, text[:300])
            return json.loads(text)

    def page(self) -> tuple[float, int]:
        """Seconds until the page *Retention* is there whole, and its bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            begin = time.perf_counter()
            connection.request("GET", "/retention/", headers={"cookie": f"_token={self.token}"})
            response = connection.getresponse()
            text = response.read()
            assert response.status == 200, response.status
            return time.perf_counter() - begin, len(text)

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """The runs of a DAG, newest first; none before it is known."""
        if dag_id not in self.dags():
            return []
        path = f"/api/v2/dags/{dag_id}/dagRuns?order_by=-id"
        found: list[dict[str, Any]] = self.ask("GET", path)["dag_runs"]
        return found

    def dags(self) -> set[str]:
        """The DAGs that it knows by now."""
        return {dag["dag_id"] for dag in self.ask("GET", "/api/v2/dags")["dags"]}

    def is_idle(self, dag_id: str) -> bool:
        """Whether every run of a DAG has ended."""
        return all(run["end_date"] for run in self.runs(dag_id))

    def trigger(self, dag_id: str, run_id: str) -> None:
        """Start a run by hand."""
        until(lambda: dag_id in self.dags())
        document = {"logical_date": None, "dag_run_id": run_id}
        self.ask("POST", f"/api/v2/dags/{dag_id}/dagRuns", document)

    def ended(self, dag_id: str, number: int) -> float:
        """Wait until the DAG has had so many runs and the last has succeeded; when it had."""

        def last() -> dict[str, Any] | None:
            found = self.runs(dag_id)
            return found[0] if len(found) >= number and found[0]["end_date"] else None

        run = until(last)
        assert run["state"] == "success", (dag_id, run)
        return moment(run["end_date"])


def moment(text: str) -> float:
    """A time of the API on the clock of `time.monotonic`."""
    return datetime.fromisoformat(text).timestamp() - time.time() + time.monotonic()


def until(done: Callable[[], Any]) -> Any:
    """Ask until it is so; seldom, for each answer takes a processor from what is measured."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := done()):
        assert time.monotonic() < deadline, "it never is"
        time.sleep(2)
    return answer


@contextmanager
def airflow(settings: Settings) -> Iterator[Api]:
    """Airflow of a home, stopped at the end."""
    airflow_engine.up(settings)
    try:
        api = Api(settings.airflow_port)
        api.sign_in(*airflow_engine.credentials(settings))
        yield api
    finally:
        airflow_engine.down(settings)


def deliver(settings: Settings, name: str, lines: int, days_ago: int) -> None:
    """A file of page views of a day, delivered the day after."""
    day = datetime.now(UTC).date() - timedelta(days=days_ago)
    folder = Path(settings.landing) / "pixel" / SHOP.workspace_id / str(day + timedelta(days=1))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.parent.parent.parent.parent / name
    generate_pixel(file, lines=lines, seed=days_ago, day=day, timezone=SHOP.timezone)
    file.rename(folder / name)


def shorten(settings: Settings, names: Iterable[str]) -> None:
    """Give workspaces a window of six months for their pixel events."""
    with postgres.connect(settings) as connection:
        for name in names:
            overrides.put(
                connection,
                Keyring.from_settings(settings),
                policy.read(settings),
                workspace_id=name,
                data_class="pixel_events",
                window=Window.parse("6 months"),
                now=clock(),
            )


def night(lines: int, console: Console) -> list[Figure]:
    """A night of a shop whose first night is over: load, transform, and a purge of an old month."""
    base = Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    figures: list[Figure] = []
    try:
        with home(base) as settings, Relay(settings.clickhouse_port) as relay:
            with postgres.connect(settings) as connection:
                workspaces.add(connection, settings, SHOP, clock())
            with airflow(replace(settings, clickhouse_port=relay.port)) as api:
                console.print("the first night")
                deliver(settings, "old.jsonl.gz", lines, 240)
                deliver(settings, "small.jsonl.gz", 2_000, 2)
                api.trigger("load", "first")
                api.ended("load", 1)
                api.ended("transform", 1)
                api.trigger("retention_nightly", "first")
                api.ended("retention_nightly", 1)
                shorten(settings, [SHOP.workspace_id])
                # A new DAG may make its last scheduled run at once, and a backup keeps others out.
                for dag_id in ("backup_nightly", "restore_smoke_weekly", "subject_request"):
                    until(partial(api.is_idle, dag_id))
                console.print("the night")
                deliver(settings, "day.jsonl.gz", lines, 1)
                begin, worked = time.monotonic(), processor_seconds(settings)
                over = 0.0
                for dag_id in ("load", "transform", "retention_nightly"):
                    # The asset starts the second.
                    if dag_id != "transform":
                        begin = time.monotonic()
                        api.trigger(dag_id, "night")
                    end = api.ended(dag_id, 2)
                    seconds, sql = end - begin, relay.busy(begin, end)
                    over += seconds - sql
                    figures.append(Figure(dag_id, f"{seconds:.1f} s", f"of it SQL {sql:.1f} s"))
                    figures += list(tasks(api, relay, dag_id))
                    begin = end
                worked = processor_seconds(settings) - worked
        figures += [
            Figure("Airflow, dbt, Great Expectations over the SQL", f"{over:.1f} s",
                   "at most 15 s", over <= 15),
            Figure("processor time of Airflow and its tasks", f"{worked:.1f} s"),
        ]  # fmt: skip
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return figures


def tasks(api: Api, relay: Relay, dag_id: str) -> Iterator[Figure]:
    """The tasks of a DAG's last run that ran, as they began."""
    run = quote(api.runs(dag_id)[0]["dag_run_id"], safe="")
    found = api.ask("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run}/taskInstances")["task_instances"]
    ran = [own for own in found if own["start_date"] and own["state"] == "success"]
    for own in sorted(ran, key=lambda own: str(own["start_date"])):
        first, last = moment(own["start_date"]), moment(own["end_date"])
        sql = relay.busy(first, last)
        yield Figure(f"  {own['task_id']}", f"{last - first:.1f} s", f"of it SQL {sql:.1f} s")


def processor_seconds(settings: Settings) -> float:
    """What Airflow's processes, and the tasks that have ended, took of the processors."""
    found = [psutil.Process(own.pid) for own in airflow_engine.status(settings) if own.pid]
    found += [child for own in found for child in own.children(recursive=True)]
    seconds = 0.0
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def page(rows: int, console: Console) -> list[Figure]:
    """The page over the history of the benchmark of the purge, with a load a day and source."""
    base = Path(tempfile.mkdtemp(prefix="tidemark-bench-"))
    try:
        with home(base) as settings:
            console.print(f"{WORKSPACES} workspaces")
            fill(settings, rows)
            with postgres.connect(settings) as connection:
                connection.execute(
                    "insert into control.loads (source, workspace_id, delivery_date,"
                    " file_name_hash, file_sha256, bytes, status, lines, stored, duplicate,"
                    " quarantined, refused, as_of, started_at, loaded_at)"
                    " select source, workspace_id, day::date, '', '', 0, 'loaded', 0, 0, 0, 0, 0,"
                    " day::date, day, day from app.workspaces,"
                    " unnest(%s::text[]) as source, generate_series(now() - interval '2 years',"
                    " now(), interval '1 day') as day"
                    " where hashtext(workspace_id || day) %% 50 > 0 on conflict do nothing",
                    [["klaviyo_events", "meta_ads", "pixel", "shopify_orders"]],
                )
            shorten(settings, (f"w{number:03}" for number in range(0, WORKSPACES, 4)))
            retention.plan(settings, as_of=datetime.now(UTC).date(), now=clock(), gate=gate)
            with airflow(settings) as api:
                first, size = api.page()
                seconds = sorted(api.page()[0] for _ in range(ASKED))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    median, worst = statistics.median(seconds), seconds[-1]
    return [
        Figure(f"page, {WORKSPACES} workspaces, median of {ASKED}", f"{median * 1e3:.0f} ms",
               "at most 300 ms", median <= 0.3),
        Figure("the slowest of them", f"{worst * 1e3:.0f} ms", "at most 300 ms", worst <= 0.3),
        Figure("the first after the start", f"{first * 1e3:.0f} ms"),
        Figure("its size", f"{size / 1024:.0f} KiB"),
    ]  # fmt: skip


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m bench.nightly", description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=2_000_000)
    options = parser.parse_args()
    console = Console()
    figures = night(options.lines, console) + page(options.rows, console)
    heading = (
        f"A night on the scheduler, and the page: a shop with {options.lines:,} new pixel lines and"
        " as many of an old day that goes"
    )
    keep(console, "nightly", heading, figures, lines=options.lines, rows=options.rows)


if __name__ == "__main__":
    main()
