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
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rich.console import Console

from bench.report import MIB, Figure, keep, timed
from chdb_http.config import load_config
from chdb_http.engine import Connection, Engine, keep_memory
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
#: How rows come to the engine; the last is what all others are compared with.
WAYS = {
    "fed": "fed in process",
    "read": "read from a file",
    "kept": "fed in process, memory kept",
    "bare": "fed from a socket, memory kept",
    "http": "over HTTP",
}
#: What else the machine does slows some, and all ways alike: they take turns, and medians count.
ROUNDS = 21
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
def connected(port: int) -> Iterator[socket.socket]:
    """A connection that is kept, as drivers have it."""
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield wire


def post(wire: socket.socket, query: str, body: bytes | mmap.mmap) -> None:
    """Insert the body of a request."""
    head = "".join(f"{name}: {value}\r\n" for name, value in basic_auth(OWNER).items())
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


def feed(connection: Connection, name: str, pieces: Iterable[bytes]) -> None:
    """Insert through the engine's own call for bytes that come in pieces."""
    raw: Any = connection._raw
    handle = raw.send_insert("insert into t", name)
    for piece in pieces:
        raw.insert_append(handle, piece)
    raw.insert_done(handle)


def feed_file(connection: Connection, name: str, file: Path) -> None:
    """Insert a file so."""
    with file.open("rb", buffering=0) as source:
        feed(connection, name, iter(partial(source.read, MIB), b""))


def received(wire: socket.socket, size: int) -> Iterator[bytes]:
    """So many bytes, as they come."""
    while size:
        piece = wire.recv(min(size, MIB))
        yield piece
        size -= len(piece)


def serve_bare(folder: str) -> None:
    """Do what comes over a socket: run a statement, feed a file, feed what follows."""
    keep_memory()
    with engine(Path(folder)) as connection, socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        wire, _ = listener.accept()
        with wire, wire.makefile("rb", buffering=0) as asked:
            for line in asked:
                ask = json.loads(line)
                said = ""
                if "sql" in ask:
                    said = connection.text(ask["sql"])
                elif "file" in ask:
                    feed_file(connection, ask["format"], Path(ask["file"]))
                else:
                    feed(connection, ask["format"], received(wire, ask["size"]))
                wire.sendall(json.dumps(said).encode() + b"\n")


class Bare:
    """The engine of another process, which keeps its memory as the daemon does.

    Fed from a socket by the same call and by nothing else, it shows what the client's and the
    kernel's copies take of the processors: no server over TCP is without them.
    """

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            [*THIS, "--bare", str(root)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline())
        self._open = contextlib.ExitStack()
        self._wire = self._open.enter_context(connected(port))
        self._answers = self._open.enter_context(self._wire.makefile("rb"))

    def _ask(self, ask: dict[str, object], body: bytes = b"") -> str:
        self._wire.sendall(json.dumps(ask).encode() + b"\n")
        self._wire.sendall(body)
        return str(json.loads(self._answers.readline()))

    def text(self, sql: str) -> str:
        """A statement's result."""
        return self._ask({"sql": sql})

    def insert(self, name: str, body: bytes) -> None:
        """Have it insert what comes over the socket."""
        self._ask({"format": name, "size": len(body)}, body)

    def read(self, name: str, file: Path) -> None:
        """Have it insert a file that it reads itself."""
        self._ask({"format": name, "file": str(file)})

    def close(self) -> None:
        """End it; nobody needs its data."""
        self._open.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def throughput(
    daemon: Daemon, wire: socket.socket, bare: Bare, connection: Connection, files: dict[str, Path]
) -> dict[str, dict[str, float]]:
    """Median seconds of inserting each format's file, by the way it comes to the engine."""
    spent: dict[str, dict[str, float]] = {}
    for name, file in files.items():
        body = file.read_bytes()
        from_file = f"insert into t from infile '{file}' format {name}"
        over_http = f"insert into t format {name}"
        ways: dict[str, tuple[Callable[[str], str], Callable[[], object]]] = {
            "fed": (connection.text, partial(feed_file, connection, name, file)),
            "read": (connection.text, partial(connection.text, from_file)),
            "kept": (bare.text, partial(bare.read, name, file)),
            "bare": (bare.text, partial(bare.insert, name, body)),
            "http": (daemon.value, partial(post, wire, over_http, body)),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(ROUNDS):
            sums = set()
            # None is always the first after the pause of dropping another's table.
            for way, (run, insert) in sorted(ways.items(), reverse=bool(turn % 2)):
                run(f"create table t ({COLUMNS}) engine = MergeTree order by id")
                # They begin when they like, and the insert alone is to be timed.
                run("system stop merges t")
                times[way].append(timed(insert))
                sums.add(run("select count(), sum(id) from t").strip())
                run("drop table t sync")
            if len(sums) > 1:
                raise AssertionError(f"{name}: the tables differ")
        spent[name] = {way: statistics.median(some) for way, some in times.items()}
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
            with (
                connected(daemon.port) as wire,
                file.open("rb") as source,
                mmap.mmap(source.fileno(), 0, prot=mmap.PROT_READ) as body,
            ):
                post(wire, "insert into t format TabSeparated", body)
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
            with contextlib.closing(Bare(base / "bare")) as bare, connected(daemon.port) as wire:
                timings = throughput(daemon, wire, bare, connection, files)
            for name, took in timings.items():
                mib = files[name].stat().st_size / MIB
                for way, of in WAYS.items():
                    say(f"insert {name} {of}", f"{mib / took[way]:,.0f} MiB/s")
                for way, of in WAYS.items():
                    share = took[way] / took["http"]
                    goal, met = ("at least 0.9", share >= 0.9) if way == "fed" else ("", None)
                    if way != "http":
                        say(f"{name} over HTTP, of what is {of}", f"{share:.2f}", goal, met)
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
