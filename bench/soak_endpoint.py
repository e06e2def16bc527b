"""``python -m bench.soak_endpoint [SECONDS]``: 32 clients at once on the ClickHouse endpoint.

One asks for single rows by key; 15 read long results and aggregate, eight insert, four create and
drop tables, four work with temporary tables in sessions. Every answer is compared with what it must
be. Before, the single rows alone are timed: with the others beside, their 99th percentile has to
stay under ten times as long. Memory, threads, files and sessions are counted at the end, when all
is quiet again. The exit code is 1 if a goal is not met; what else the machine had to do stands
beside the figures. Ten minutes and more are kept in ``bench/results``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.managers import ListProxy
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
from rich.console import Console

from bench.report import Figure, keep
from chdb_http.testing import OWNER, Daemon, basic_auth

ROWS = 3_000_000
LONG = 400_000
LOGIN = basic_auth(OWNER)
QUIET_SECONDS = 8.0


class Client:
    """A client on one kept connection, as drivers have it."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)

    def ask(self, query: str, body: bytes = b"", **params: Any) -> bytes:
        """A result, whole. Raises AssertionError with the endpoint's error."""
        return b"".join(self.stream(query, body, **params))

    def stream(self, query: str, body: bytes = b"", **params: Any) -> Iterator[bytes]:
        """A result in pieces."""
        path = f"/?{urlencode({'query': query, **params})}"
        self._connection.request("POST", path, body, LOGIN)
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise AssertionError(answer.read()[:300].decode(errors="replace"))
        while piece := answer.read(1 << 18):
            yield piece


def _point(client: Client, source: random.Random) -> None:
    key = source.randrange(ROWS)
    expected = b"%d\t%d\n" % (key, key * 7 % 1000)
    found = client.ask("SELECT id, v FROM big WHERE id = {id:UInt64}", param_id=key)
    assert found == expected, (key, found)


def _read(client: Client, source: random.Random) -> None:
    start = source.randrange(ROWS - LONG)
    query = f"SELECT id, v FROM big WHERE id >= {start} ORDER BY id LIMIT {LONG}"  # noqa: S608
    kind = source.randrange(3)
    if kind == 0:
        count = sum(piece.count(b"\n") for piece in client.stream(query))
        assert count == LONG, count
    elif kind == 1:
        asked = f"SELECT count(), sum(id), sum(v) FROM ({query})"  # noqa: S608
        total = sum(n * 7 % 1000 for n in range(start, start + 1000)) * (LONG // 1000)
        ids = LONG * (2 * start + LONG - 1) // 2
        assert client.ask(asked) == b"%d\t%d\t%d\n" % (LONG, ids, total), asked
    else:
        asked = (
            "SELECT v, count(), uniqExact(id), sum(sipHash64(id)) FROM big GROUP BY v ORDER BY v"
        )
        lines = client.ask(asked).splitlines()
        assert len(lines) == 1000, len(lines)
        assert all(b"\t%d\t%d\t" % (ROWS // 1000, ROWS // 1000) in line for line in lines)


def _insert(client: Client, source: random.Random, table: str, sent: list[int]) -> None:
    batch = source.getrandbits(60)
    rows = b"".join(b"%d\t%d\n" % (batch, n) for n in range(1000))
    client.ask(f"INSERT INTO {table} FORMAT TSV", rows)
    sent.append(batch)
    found = client.ask(f"SELECT count(), sum(n) FROM {table} WHERE batch = {batch}")  # noqa: S608
    assert found == b"1000\t499500\n", found


def _define(client: Client, source: random.Random) -> None:
    table = f"made_{source.getrandbits(60)}"
    client.ask(f"CREATE TABLE {table} (a UInt64) ENGINE = MergeTree ORDER BY a")
    client.ask(f"INSERT INTO {table} SELECT number FROM numbers(1000)")  # noqa: S608
    client.ask(f"ALTER TABLE {table} ADD COLUMN b UInt64 DEFAULT a * 2")
    found = client.ask(f"SELECT sum(a), sum(b) FROM {table}")  # noqa: S608
    assert found == b"499500\t999000\n", found
    client.ask(f"DROP TABLE {table} SYNC")
    assert client.ask(f"EXISTS {table}") == b"0\n"


def _session(client: Client, source: random.Random) -> None:
    name: dict[str, Any] = {"session_id": f"soak-{source.getrandbits(60)}", "session_timeout": 10}
    wanted = source.randrange(1, 100_000)
    client.ask("CREATE TEMPORARY TABLE own (a UInt64)", **name)
    client.ask(f"INSERT INTO own SELECT number FROM numbers({wanted})", **name)  # noqa: S608
    client.ask("SET max_block_size = 777", **name)
    found = client.ask("SELECT count(), getSetting('max_block_size') FROM own", **name)
    assert found == b"%d\t777\n" % wanted, found
    client.ask("SELECT 1", close_session=1, **name)


@dataclass
class Tally:
    """What one process of clients did."""

    done: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    batches: dict[str, list[int]] = field(default_factory=dict)


def _clients(port: int, kinds: list[str], seed: int, over: Event, out: ListProxy[Any]) -> None:
    """A process of clients, each a thread."""
    tally = Tally()

    def work(kind: str, number: int) -> None:
        source = random.Random(seed * 1000 + number)  # noqa: S311
        client = Client(port)
        sent: list[int] = []
        steps: dict[str, Callable[[], None]] = {
            "read": lambda: _read(client, source),
            "insert": lambda: _insert(client, source, "inserted", sent),
            "define": lambda: _define(client, source),
            "session": lambda: _session(client, source),
        }
        while not over.is_set():
            try:
                steps[kind]()
                tally.done[kind] = tally.done.get(kind, 0) + 1
            except Exception as error:
                tally.wrong.append(f"{kind}: {type(error).__name__}: {error}"[:400])
                client = Client(port)
        tally.batches[f"{seed}.{number}"] = sent

    threads = [threading.Thread(target=work, args=(kind, n)) for n, kind in enumerate(kinds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.append(tally)


def _probe(port: int, seed: int, over: Event, out: ListProxy[Any]) -> None:
    """The client of single rows: how long each took, in seconds."""
    source = random.Random(seed)  # noqa: S311
    client = Client(port)
    took = []
    while not over.wait(0.005):
        begun = time.perf_counter()
        _point(client, source)
        took.append(time.perf_counter() - begun)
    out.append(took)


def _together(works: list[tuple[Any, ...]], meanwhile: Callable[[], None]) -> list[Any]:
    """Run processes of clients while something else is done, and give what they found."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        out = manager.list()
        over = context.Event()
        processes = [
            context.Process(target=target, args=(*arguments, over, out))
            for target, *arguments in works
        ]
        for process in processes:
            process.start()
        try:
            meanwhile()
        finally:
            over.set()
            for process in processes:
                process.join()
        return list(out)


def percentile(values: list[float], part: float) -> float:
    """A percentile of some seconds, in milliseconds."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000


def _resources(process: psutil.Process) -> dict[str, int]:
    files = 0
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        # Each thread of the engine's pool keeps three of these about itself.
        with contextlib.suppress(OSError):
            files += not re.match(r"/proc/\d+/task/", str(link.readlink()))
    return {
        "memory_mib": process.memory_info().rss >> 20,
        "threads": process.num_threads(),
        "files": files,
    }


def _settled(process: psutil.Process, before: dict[str, int]) -> dict[str, int]:
    """What the daemon holds once sessions have timed out and pools have shrunk."""
    deadline = time.monotonic() + 60
    while True:
        now = _resources(process)
        if now["files"] <= before["files"] + 20 or time.monotonic() > deadline:
            return now
        time.sleep(0.5)


def run(seconds: float) -> tuple[dict[str, Any], list[str]]:
    """Soak a daemon of its own; the figures, and what was wrong."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="soak-endpoint-") as folder:
        daemon = Daemon(Path(folder)).start(patience=900)
        assert daemon.process is not None
        process = psutil.Process(daemon.process.pid)
        for statement in (
            "CREATE TABLE big (id UInt64, v UInt64) ENGINE = MergeTree ORDER BY id"
            " SETTINGS index_granularity = 1024",
            f"INSERT INTO big SELECT number, number * 7 % 1000 FROM numbers({ROWS})",  # noqa: S608
            "OPTIMIZE TABLE big FINAL",
            "CREATE TABLE inserted (batch UInt64, n UInt64) ENGINE = MergeTree ORDER BY batch",
        ):
            reply = daemon.send(statement)
            assert reply.status == 200, reply.body
        port = daemon.port
        _together([(_clients, port, ["read", "define", "session"], 9)], lambda: time.sleep(3))
        quiet = _together([(_probe, port, 1)], lambda: time.sleep(min(QUIET_SECONDS, seconds)))[0]
        before = _resources(process)
        memory: list[int] = []

        def watch() -> None:
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                memory.append(process.memory_info().rss >> 20)
                time.sleep(0.5)

        mixed = ["read"] * 15 + ["insert"] * 8 + ["define"] * 4 + ["session"] * 4
        groups = [(_clients, port, mixed[at::3], at) for at in range(3)]
        found = _together([*groups, (_probe, port, 2)], watch)
        tallies = [item for item in found if isinstance(item, Tally)]
        busy = next(item for item in found if not isinstance(item, Tally))
        wrong = [what for tally in tallies for what in tally.wrong]
        sent = [b for tally in tallies for batches in tally.batches.values() for b in batches]
        counted = daemon.value("SELECT count(), uniqExact(batch) FROM inserted")
        if counted != f"{1000 * len(sent)}\t{len(sent)}":
            wrong.append(f"{len(sent)} batches of 1000 were inserted, and {counted} are there")
        left = daemon.value("SHOW TABLES").split()
        if left != ["big", "inserted"]:
            wrong.append(f"tables are left: {left[:5]}")
        after = _settled(process, before)
        stopped = daemon.stop()
        if stopped:
            wrong.append(f"the stop gave {stopped}")
    done: dict[str, int] = {}
    for tally in tallies:
        for kind, count in tally.done.items():
            done[kind] = done.get(kind, 0) + count
    half = len(memory) // 2
    figures = {
        "seconds": seconds,
        # Of the minute before: well below the number of cores if the machine was quiet.
        "load_before": round(load, 1),
        "clients": len(mixed) + 1,
        "wrong_answers": len(wrong),
        "requests_done": {"point": len(busy), **dict(sorted(done.items()))},
        "point_quiet_ms": {"p50": percentile(quiet, 0.5), "p99": percentile(quiet, 0.99)},
        "point_busy_ms": {"p50": percentile(busy, 0.5), "p99": percentile(busy, 0.99)},
        "p99_ratio": percentile(busy, 0.99) / percentile(quiet, 0.99),
        "memory_mib": {
            "before": before["memory_mib"],
            "highest_of_first_half": max(memory[:half], default=0),
            "highest_of_second_half": max(memory[half:], default=0),
            "after": after["memory_mib"],
        },
        "threads": {"before": before["threads"], "after": after["threads"]},
        "files": {"before": before["files"], "after": after["files"]},
    }
    return figures, wrong


def goals(figures: dict[str, Any]) -> list[Figure]:
    """The figures as lines of a table, and whether those that have a goal meet it."""
    memory, threads, files = (figures[name] for name in ("memory_mib", "threads", "files"))
    wrong, ratio = figures["wrong_answers"], figures["p99_ratio"]
    quiet, busy = figures["point_quiet_ms"], figures["point_busy_ms"]
    first, second = memory["highest_of_first_half"], memory["highest_of_second_half"]
    done = sum(figures["requests_done"].values())
    # The engine's pool keeps idle threads, a few for each of the clients there were at once.
    most = threads["before"] + 8 * figures["clients"]
    return [
        Figure(f"wrong answers in {done:,} steps", str(wrong), "0", wrong == 0),
        Figure(
            "p99 of a point query, busy / quiet",
            f"{busy['p99']:.0f} ms / {quiet['p99']:.0f} ms = {ratio:.1f}",
            "under 10",
            ratio < 10,
        ),
        Figure(
            "median of a point query, busy / quiet", f"{busy['p50']:.0f} ms / {quiet['p50']:.0f} ms"
        ),
        Figure(
            "memory, highest of the first and second half",
            f"{first}, {second} MiB",
            "the second at most 1.2 of the first",
            second <= 1.2 * first,
        ),
        Figure(
            "threads before and after",
            f"{threads['before']}, {threads['after']}",
            f"at most {most}",
            threads["after"] <= most,
        ),
        Figure(
            "open files before and after",
            f"{files['before']}, {files['after']}",
            f"at most {files['before'] + 50}",
            files["after"] <= files["before"] + 50,
        ),
        Figure("the machine's load before", f"{figures['load_before']}"),
    ]


def main() -> int:
    """Soak as long as the command line says; keep the figures of ten minutes and more."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    figures, wrong = run(seconds)
    judged = goals(figures)
    print(json.dumps(figures, indent=2))
    for what in wrong[:20]:
        print(what)
    for figure in judged:
        print(" | ".join(figure.cells))
    if seconds >= 600:
        heading = f"{figures['clients']} clients at once on the ClickHouse endpoint"
        keep(Console(), "soak_endpoint", heading, judged, seconds=int(seconds))
    return 0 if all(figure.met is not False for figure in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
