"""Measure the HTTP endpoint against the engine called in process: `python -m bench.endpoint`.

Each figure compares the two in one run: the same engine, configuration and bytes, taking turns.
Nothing of it leaves a throwaway folder but the table, which goes to `bench/results/`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import mmap
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rich.console import Console

from bench.report import MIB, Figure, keep, timed
from chdb_http.config import load_config
from chdb_http.engine import Connection, Engine
from chdb_http.testing import OWNER, READER, Daemon, basic_auth

COLUMNS = "id UInt64, at DateTime64(3, 'UTC'), name LowCardinality(String), text String"
ROWS = """
select
    number as id,
    toDateTime64('2024-01-01', 3, 'UTC') + toIntervalMillisecond(number) as at,
    concat('name ', toString(number % 1000)) as name,
    hex(sipHash128(number)) as text
from numbers({rows:UInt64})
"""
LONG = "select number, toString(number) as text from numbers({rows:UInt64})"
FORMATS = ("JSONEachRow", "TabSeparated", "Native")
#: What else the machine does slows some: the quietest of many short ones counts.
ROUNDS = 15
#: This program once more, and where: the engine makes another folder its process's own.
THIS, ROOT = (sys.executable, "-m", "bench.endpoint"), Path(__file__).parents[1]


@contextlib.contextmanager
def served(root: Path) -> Iterator[Daemon]:
    """A daemon over a folder of its own."""
    root.mkdir()
    daemon = Daemon(root).start()
    try:
        yield daemon
    finally:
        daemon.stop()


@contextlib.contextmanager
def engine(root: Path) -> Iterator[Connection]:
    """The engine in this process, configured as the daemon's; once a process."""
    root.mkdir()
    opened = Engine(load_config(Daemon(root).config))
    opened.lock()
    opened.open()
    connection = opened.connect()
    try:
        yield connection
    finally:
        connection.close()
        opened.close()


def trivial(daemon: Daemon, connection: Connection, turns: int) -> dict[str, float]:
    """Median seconds of `select 1`, taking turns: in process, then over HTTP as each user."""
    spent: dict[str, list[float]] = {"engine": [], "owner": [], "reader": []}
    wires = {
        name: http.client.HTTPConnection("127.0.0.1", daemon.port) for name in ("owner", "reader")
    }

    def ask(name: str) -> None:
        user = OWNER if name == "owner" else READER
        wires[name].request("POST", "/", b"select 1", basic_auth(user))
        answer = wires[name].getresponse()
        if answer.read() != b"1\n":
            raise AssertionError(f"select 1 as {name}: {answer.status}")

    for _ in range(turns):
        spent["engine"].append(timed(lambda: connection.text("select 1")))
        for name in wires:
            spent[name].append(timed(partial(ask, name)))
    for wire in wires.values():
        wire.close()
    return {name: statistics.median(times) for name, times in spent.items()}


@contextlib.contextmanager
def in_memory(file: Path) -> Iterator[mmap.mmap]:
    """A file to be sent from memory, as a client would.

    Sent by the kernel from its cache it would come in single pages, as of no client.
    """
    with (
        file.open("rb") as source,
        mmap.mmap(source.fileno(), 0, prot=mmap.PROT_READ) as body,
    ):
        yield body


def post(daemon: Daemon, query: str, file: Path) -> None:
    """Insert a file as the body of a request."""
    head = "".join(f"{name}: {value}\r\n" for name, value in basic_auth(OWNER).items())
    with socket.create_connection(("127.0.0.1", daemon.port)) as wire, in_memory(file) as body:
        wire.sendall(
            f"POST /?{urlencode({'query': query})} HTTP/1.1\r\nHost: bench\r\n{head}"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
        )
        wire.sendall(body)
        answer = http.client.HTTPResponse(wire)
        answer.begin()
        said = answer.read()
        if answer.status != 200:
            raise AssertionError(said.decode())


def read(daemon: Daemon, query: str, **params: object) -> tuple[int, float]:
    """Read an answer to its end: its bytes, and the seconds to its first one."""
    wire = http.client.HTTPConnection("127.0.0.1", daemon.port)
    begin = time.perf_counter()
    wire.request("GET", f"/?{urlencode({'query': query, **params})}", headers=basic_auth(OWNER))
    answer = wire.getresponse()
    size = len(answer.read(1))
    first = time.perf_counter() - begin
    buffer = bytearray(MIB)
    while got := answer.readinto(buffer):
        size += got
    wire.close()
    return size, first


def feed(connection: Connection, name: str, file: Path) -> None:
    """Insert a file's bytes through the engine's own call for bytes that come in pieces."""
    raw: Any = connection._raw
    handle = raw.send_insert("insert into t", name)
    with file.open("rb") as body:
        while piece := body.read(MIB):
            raw.insert_append(handle, piece)
    raw.insert_done(handle)


def serve_bare(folder: str) -> None:
    """Run statements and feed inserts that come over a socket; prints its port."""
    with engine(Path(folder)) as connection, socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        raw: Any = connection._raw
        buffer = memoryview(bytearray(MIB))
        while True:
            wire, _ = listener.accept()
            with wire, wire.makefile("rb", buffering=0) as source:
                size, sql = json.loads(source.readline())
                if not size:
                    wire.sendall(connection.text(sql).encode())
                    continue
                handle = raw.send_insert(*sql)
                while size and (got := source.readinto(buffer[:size])):
                    raw.insert_append(handle, bytes(buffer[:got]))
                    size -= got
                raw.insert_done(handle)


class Bare:
    """The engine of another process, fed from a socket by the same call and by nothing else.

    What the client's and the kernel's copies take of the processors stands between it and the
    engine fed in process, and no server over TCP is without them.
    """

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            [*THIS, "--bare", str(root)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())

    def _ask(self, size: int, sql: object, body: bytes | mmap.mmap = b"") -> str:
        with socket.create_connection(("127.0.0.1", self._port)) as wire:
            wire.sendall(json.dumps([size, sql]).encode() + b"\n")
            wire.sendall(body)
            with wire.makefile("rb") as answer:
                return answer.read().decode()

    def text(self, sql: str) -> str:
        """A statement's result."""
        return self._ask(0, sql)

    def insert(self, name: str, file: Path) -> None:
        """Insert a file."""
        with in_memory(file) as body:
            self._ask(len(body), ["insert into t", name], body)

    def close(self) -> None:
        """End it; nobody needs its data."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def throughput(
    daemon: Daemon, bare: Bare, connection: Connection, files: dict[str, Path]
) -> dict[str, dict[str, float]]:
    """Best seconds of inserting each format's file: fed and read in process, bare, over HTTP."""
    spent: dict[str, dict[str, float]] = {}
    for name, file in files.items():
        from_file = f"insert into t from infile '{file}' format {name}"
        over_http = f"insert into t format {name}"
        ways: dict[str, tuple[Callable[[str], str], Callable[[], object]]] = {
            "fed": (connection.text, partial(feed, connection, name, file)),
            "read": (connection.text, partial(connection.text, from_file)),
            "bare": (bare.text, partial(bare.insert, name, file)),
            "http": (daemon.value, partial(post, daemon, over_http, file)),
        }
        best = spent[name] = dict.fromkeys(ways, float("inf"))
        for turn in range(ROUNDS):
            sums = set()
            # None is always the first after the pause of dropping another's table.
            for way, (run, insert) in sorted(ways.items(), reverse=bool(turn % 2)):
                run(f"create table t ({COLUMNS}) engine = MergeTree order by id")
                # They begin when they like, and the insert alone is to be timed.
                run("system stop merges t")
                best[way] = min(best[way], timed(insert))
                sums.add(run("select count(), sum(id) from t").strip())
                run("drop table t sync")
            if len(sums) > 1:
                raise AssertionError(f"{name}: the tables differ")
    return spent


class Peak:
    """The most memory a process holds beyond what it held at the start, in bytes."""

    def __init__(self, process: int) -> None:
        self._status = Path(f"/proc/{process}/status")
        Path(f"/proc/{process}/clear_refs").write_text("5")
        self._before = self._field("VmRSS")

    def _field(self, name: str) -> int:
        text = self._status.read_text()
        return int(text.split(f"{name}:")[1].split()[0]) << 10

    @property
    def bytes(self) -> int:
        """How much more it was."""
        return self._field("VmHWM") - self._before


def memory(base: Path, kind: str, file: Path, rows: int) -> tuple[int, int]:
    """Peaks of the engine in a process of its own and of a fresh daemon, in bytes."""
    done = subprocess.run(
        [*THIS, "--alone", kind, str(file), str(rows)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        raise AssertionError(f"the engine in process, 1 GB {kind}: {done.stderr}")
    with served(base / f"memory-{kind}") as daemon:
        assert daemon.process is not None
        daemon.value(f"create table t ({COLUMNS}) engine = MergeTree order by id")
        peak = Peak(daemon.process.pid)
        if kind == "insert":
            post(daemon, "insert into t format TabSeparated", file)
        else:
            read(daemon, LONG, param_rows=rows)
        return int(done.stdout), peak.bytes


def alone(kind: str, file: str, rows: int) -> None:
    """Do the same with the engine of this process and print its peak."""
    base = Path(tempfile.mkdtemp(prefix="bench-alone-"))
    try:
        with engine(base / "engine") as connection:
            connection.text(f"create table t ({COLUMNS}) engine = MergeTree order by id")
            peak = Peak(os.getpid())
            if kind == "insert":
                connection.text(f"insert into t from infile '{file}' format TabSeparated")
            else:
                out = "into outfile '/dev/null' truncate format TabSeparated"
                connection.text(f"{LONG} {out}", {"rows": str(rows)})
            print(peak.bytes)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def first_byte(connection: Connection, rows: int, base: Path) -> float:
    """Seconds until the engine in process writes the first byte of a long result."""
    pipe = base / "pipe"
    os.mkfifo(pipe)
    first: list[float] = []
    begin = time.perf_counter()

    def watch() -> None:
        with pipe.open("rb", buffering=0) as result:
            result.read(1)
            first.append(time.perf_counter() - begin)
            while result.read(MIB):
                pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    out = f"into outfile '{pipe}' append format TabSeparated"
    connection.text(f"{LONG} {out}", {"rows": str(rows)})
    watcher.join()
    return first[0]


def make_files(connection: Connection, base: Path, size: int) -> dict[str, Path]:
    """Files of about as many bytes, one a format."""
    files = {}
    for name in FORMATS:
        per_row = {"JSONEachRow": 120, "TabSeparated": 78, "Native": 51}[name]
        files[name] = base / f"rows.{name}"
        out = f"into outfile '{files[name]}' truncate format {name}"
        connection.text(f"{ROWS} {out}", {"rows": str(size // per_row)})
    return files


def measure(size: int, turns: int, console: Console) -> list[Figure]:
    """All figures."""
    base = Path(tempfile.mkdtemp(prefix="bench-endpoint-"))
    figures: list[Figure] = []

    def say(name: str, value: str, goal: str = "", met: bool | None = None) -> None:
        figures.append(Figure(name, value, goal, met))
        console.print(name, value, goal)

    try:
        with engine(base / "engine") as connection, served(base / "daemon") as daemon:
            # What else runs on the machine slows the engine too: the quietest round counts.
            rounds = [trivial(daemon, connection, turns // 20) for _ in range(20)]
            quiet = min(rounds, key=lambda medians: medians["engine"])
            middle = {name: seconds * 1000 for name, seconds in quiet.items()}
            say("select 1, engine in process", f"{middle['engine']:.2f} ms")
            for name in ("owner", "reader"):
                more = middle[name] - middle["engine"]
                say(f"select 1 over HTTP, {name}", f"{middle[name]:.2f} ms")
                say(f"more than in process, {name}", f"{more:.2f} ms", "at most 2 ms", more <= 2)
            files = make_files(connection, base, size)
            with contextlib.closing(Bare(base / "bare")) as bare:
                timings = throughput(daemon, bare, connection, files)
            for name, best in timings.items():
                mib = files[name].stat().st_size / MIB
                say(f"insert {name}, engine fed the bytes", f"{mib / best['fed']:,.0f} MiB/s")
                say(f"insert {name}, engine reads the file", f"{mib / best['read']:,.0f} MiB/s")
                say(f"insert {name}, engine fed from a socket", f"{mib / best['bare']:,.0f} MiB/s")
                say(f"insert {name} over HTTP", f"{mib / best['http']:,.0f} MiB/s")
                share = best["fed"] / best["http"]
                say(f"of the engine fed, {name}", f"{share:.2f}", "at least 0.9", share >= 0.9)
                say(f"of the engine reading, {name}", f"{best['read'] / best['http']:.2f}")
                say(
                    f"of the engine fed from a socket, {name}", f"{best['bare'] / best['http']:.2f}"
                )
            for _ in range(2):
                inside = first_byte(connection, 20_000_000, base)
                (base / "pipe").unlink()
                _, outside = read(daemon, LONG, param_rows=20_000_000)
            say("first byte of a long result, engine in process", f"{inside * 1000:.0f} ms")
            say("first byte of a long result over HTTP", f"{outside * 1000:.0f} ms")
            large = base / "large"
            out = f"into outfile '{large}' truncate format TabSeparated"
            connection.text(f"{ROWS} {out}", {"rows": str((1 << 30) // 78)})
        for kind in ("insert", "result"):
            inside_bytes, outside_bytes = memory(base, kind, large, 58_000_000)
            more = (outside_bytes - inside_bytes) / MIB
            say(f"memory of a 1 GB {kind}, engine in process", f"{inside_bytes / MIB:,.0f} MiB")
            say(f"memory of a 1 GB {kind} over HTTP", f"{outside_bytes / MIB:,.0f} MiB")
            say(f"more for a 1 GB {kind}", f"{more:,.0f} MiB", "at most 200 MiB", more <= 200)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return figures


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m bench.endpoint", description=__doc__)
    parser.add_argument("--size", type=int, default=100 * MIB, help="bytes of a timed insert")
    parser.add_argument("--turns", type=int, default=1000, help="how often `select 1` is asked")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        serve_bare(options.bare)
        return
    if options.alone:
        kind, file, rows = options.alone
        alone(kind, file, int(rows))
        return
    console = Console()
    figures = measure(options.size, options.turns, console)
    heading = "The HTTP endpoint against the engine in process"
    keep(console, "endpoint", heading, figures, size=options.size)


if __name__ == "__main__":
    main()
