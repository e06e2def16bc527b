"""Requests as no client sends them: bounded, refused, and nobody else notices."""

from __future__ import annotations

import contextlib
import functools
import gzip
import random
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import pytest
import zstandard

from chdb_http.testing import OWNER, Daemon, basic_auth

LOGIN = f"Authorization: {basic_auth(OWNER)['Authorization']}\r\n".encode()
HEAD = b"POST /?query=SELECT+42 HTTP/1.1\r\nHost: x\r\n" + LOGIN


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that waits a second for a client, and for eight of them."""
    own = {"receive_timeout": 1, "send_timeout": 1, "max_connections": 8, "stop_timeout": 1}
    daemon = Daemon(tmp_path_factory.mktemp("strict"), **own).start()
    assert daemon.send("CREATE TABLE t (a Int64, s String) ENGINE = Memory").status == 200
    yield daemon
    assert daemon.stop() == 0


def connect(daemon: Daemon) -> socket.socket:
    return socket.create_connection(("127.0.0.1", daemon.port), timeout=20)


def answers(connection: socket.socket) -> bytes:
    """All that comes until the daemon closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            found += piece
    return found


def exchange(daemon: Daemon, *pieces: bytes) -> bytes:
    with connect(daemon) as connection:
        with contextlib.suppress(OSError):
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
        return answers(connection)


def resident(daemon: Daemon, what: str = "VmRSS") -> int:
    """Mebibytes."""
    assert daemon.process is not None
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(text.split(f"{what}:")[1].split()[0]) >> 10


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"Content-Length: 0\r\nContent-Length: 43\r\n\r\n",
        b"Content-Length: 0, 43\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: +0\r\n\r\n",
        b"Content-Length: 0x0\r\n\r\n",
        b"Content-Length: 99999999999999999999999\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nx",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b" Folded: x\r\n\r\n",
        b"X: a\x00b\r\n\r\n",
        b"X\r\n\r\n",
    ],
)
def test_a_request_of_unclear_length_is_one_request_or_none(daemon: Daemon, head: bytes) -> None:
    """What follows it may be read as a request of its own by no one."""
    smuggled = b"GET /?query=SELECT+31337 HTTP/1.1\r\nHost: x\r\n" + LOGIN + b"\r\n"
    found = exchange(daemon, HEAD + head + smuggled)
    assert b"31337" not in found
    assert found.count(b"HTTP/1.1 200") <= found.count(b"\n42\n") + found.count(b"\r\n42\n") <= 1
    assert daemon.value("SELECT 1") == "1"


def test_pipelined_requests_are_answered_in_order(daemon: Daemon) -> None:
    asked = [f"SELECT {n}" for n in range(20)]
    raw = b"".join(
        b"POST / HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b"
        % (LOGIN, len(query), query.encode())
        for query in asked
    )
    close = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connect(daemon) as connection:
        connection.sendall(raw + close)
        found = answers(connection)
    assert found.count(b"HTTP/1.1 200 OK") == 21
    places = [found.index(b"\n%d\n" % n) for n in range(20)]
    assert places == sorted(places)
    assert found.endswith(b"Ok.\n")


def insert(rows: bytes, head: bytes = b"") -> bytes:
    """A request that inserts rows, its body's length given."""
    first = b"POST /?query=INSERT+INTO+t+FORMAT+TSV HTTP/1.1\r\nHost: x\r\n" + LOGIN + head
    return first + b"Content-Length: %d\r\n\r\n" % len(rows) + rows


def numbered(count: int, begin: int = 0) -> bytes:
    return b"".join(b"%d\t%b\n" % (n, b"x" * 100) for n in range(begin, begin + count))


CLOSE = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("seed", range(3))
def test_large_bodies_behind_each_other_stay_apart(daemon: Daemon, table: str, seed: int) -> None:
    """However the pieces fall: the parser gives a body away, and goes on behind it."""
    source = random.Random(seed)
    counts = [1, 20000, 700, 31000, 0, 12000]
    requests = [insert(numbered(n, 100000 * at)) for at, n in enumerate(counts)]
    # The end of one and the beginning of the next in one piece.
    raw, at = b"".join(requests) + CLOSE, 0
    with connect(daemon) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while at < len(raw):
            size = source.choice([1, 900, 70000, 1 << 20, 3 << 20])
            connection.sendall(raw[at : at + size])
            at += size
            time.sleep(source.choice([0, 0, 0.02]))
        found = answers(connection)
    assert found.count(b"HTTP/1.1 200 OK") == len(counts) + 1, found[:2000]
    query = "SELECT intDiv(a, 100000) AS g, count(), sum(length(s)) FROM t GROUP BY g ORDER BY g"
    wanted = [f"{at}\t{n}\t{n * 100}" for at, n in enumerate(counts) if n]
    assert daemon.value(query) == "\n".join(wanted)


def test_a_large_body_after_an_error_is_thrown_away(daemon: Daemon, table: str) -> None:
    bad = b"no number\tx\n" + numbered(100000)
    with connect(daemon) as connection:
        connection.sendall(insert(bad) + insert(numbered(30000)) + insert(bad) + CLOSE)
        found = answers(connection)
    assert re.findall(rb"HTTP/1.1 (\d+) ", found) == [b"400", b"200", b"400", b"200"], found
    assert daemon.value("SELECT count() FROM t") == "30000"


def test_a_large_body_waits_for_a_go(daemon: Daemon, table: str) -> None:
    head, _, rows = insert(numbered(30000), b"Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with connect(daemon) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(rows + CLOSE)
        assert answers(connection).count(b"HTTP/1.1 200 OK") == 2
    assert daemon.value("SELECT count() FROM t") == "30000"


@pytest.mark.parametrize(
    "line",
    [
        b"GET /?query=" + b"x" * (3 << 20) + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * (3 << 20) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (1 << 19) + b"\r\n",
        b"x" * (3 << 20),
    ],
)
def test_a_large_head_is_refused(daemon: Daemon, line: bytes) -> None:
    before = resident(daemon)
    with connect(daemon) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(line)
        found = answers(connection)
    assert b" 200 " not in found.split(b"\r\n")[0]
    assert resident(daemon) - before < 50
    assert daemon.value("SELECT 1") == "1"


def test_endless_trailers_are_not_kept(daemon: Daemon) -> None:
    before = resident(daemon)
    with connect(daemon) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        with contextlib.suppress(OSError):
            for _ in range(300):
                connection.sendall(b"X-Trailer: " + b"y" * 1000 + b"\r\n" + b"Y: z\r\n" * 10000)
    assert resident(daemon) - before < 50


def test_a_client_may_send_little_at_a_time(strict: Daemon) -> None:
    request = insert(numbered(3_000))
    pieces = [request[at : at + 30_000] for at in range(0, len(request), 30_000)]
    # All of it takes longer than the daemon waits for a client, and each piece does not.
    assert len(pieces) >= 6
    with connect(strict) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.4)
        assert b" 200 " in connection.recv(65536)
        # The same connection answers to a short request.
        connection.sendall(CLOSE)
        assert answers(connection).endswith(b"Ok.\n")
    assert strict.value("SELECT count() FROM t") == "3000"
    assert strict.send("TRUNCATE TABLE t").status == 200


def test_a_slow_client_is_sent_away(strict: Daemon) -> None:
    # Made before: a connection on which nothing comes is closed too.
    unfinished = insert(numbered(100000))[:-1000]
    with (
        connect(strict) as head,
        connect(strict) as silent,
        connect(strict) as body,
        connect(strict) as large,
    ):
        body.sendall(
            b"POST /?query=INSERT+INTO+t+FORMAT+TSV HTTP/1.1\r\nHost: x\r\n"
            + LOGIN
            + b"Content-Length: 1000\r\n\r\n1\tx\n"
        )
        large.sendall(unfinished)
        head.sendall(b"GET /?query=SEL")
        # One byte at a time does not keep a head open.
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.2):
                    head.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert b" 200 " not in answers(head)
        stop.set()
        dripping.join()
        assert answers(silent).startswith(b"HTTP/1.1 408 ")
        assert b"x-clickhouse-exception-code: 209" in answers(body)
        assert b"x-clickhouse-exception-code: 209" in answers(large)
    assert strict.value("SELECT count() FROM t") == "0"


def test_a_client_that_reads_nothing_is_sent_away(strict: Daemon) -> None:
    running = "SELECT count() FROM system.processes WHERE query LIKE '%randomPrintable%numbers%'"
    with connect(strict) as connection:
        query = b"SELECT+randomPrintableASCII(1000)+FROM+numbers(1000000000)"
        connection.sendall(b"GET /?query=" + query + b" HTTP/1.1\r\nHost: x\r\n" + LOGIN + b"\r\n")
        # Its own text is one.
        deadline = time.monotonic() + 20
        while strict.value(running) != "2":
            assert time.monotonic() < deadline
        while strict.value(running) != "1":
            assert time.monotonic() < deadline


def test_too_many_connections(strict: Daemon) -> None:
    connections = [connect(strict) for _ in range(12)]
    found = [answers(connection).split(b"\r\n")[0] for connection in connections]
    for connection in connections:
        connection.close()
    assert found.count(b"HTTP/1.1 503 Service Unavailable") == 4
    assert strict.value("SELECT 1") == "1"


def test_a_stop_does_not_wait_for_ever(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, stop_timeout=1).start()
    endless = threading.Thread(
        target=lambda: daemon.send("SELECT sum(sipHash64(number)) FROM numbers(1000000000000)")
    )
    endless.start()
    while daemon.value("SELECT count() FROM system.processes") != "2":
        pass
    assert daemon.stop() == 0
    endless.join()


ZEROS = b"\0" * (1 << 20)


@functools.cache
def bomb(encoding: str) -> bytes:
    """Hundreds of MiB, packed."""
    if encoding == "gzip":
        return gzip.compress(ZEROS * 64) * 9
    if encoding == "deflate":
        packer = zlib.compressobj(9)
        return b"".join(packer.compress(ZEROS) for _ in range(350)) + packer.flush()
    if encoding == "lz4":
        return bytes(lz4.frame.compress(ZEROS * 64) * 9)
    return zstandard.compress(ZEROS * 64) * 9


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "lz4", "zstd"])
@pytest.mark.parametrize("kind", ["query", "values", "form", "rows"])
def test_a_compression_bomb_costs_no_memory(daemon: Daemon, encoding: str, kind: str) -> None:
    assert daemon.process is not None
    Path(f"/proc/{daemon.process.pid}/clear_refs").write_text("5")
    before = resident(daemon, "VmHWM")
    headers = {"Content-Encoding": encoding}
    query = None
    if kind == "values":
        query = "INSERT INTO FUNCTION null('s String') VALUES"
    elif kind == "rows":
        query = "INSERT INTO FUNCTION null('s FixedString(64)') FORMAT RowBinary"
    elif kind == "form":
        headers["Content-Type"] = "multipart/form-data; boundary=x"
    # Small blocks, so that it is the endpoint's memory which is measured.
    small: dict[str, Any] = {"max_insert_block_size": 65536, "min_insert_block_size_rows": 65536}
    reply = daemon.send(query, bomb(encoding), headers=headers, **small)
    # Zeros are rows; they are no statement, no form and no rows of values.
    assert (reply.status == 200) == (kind == "rows"), reply.body[:300]
    assert resident(daemon, "VmHWM") - before < 300
    assert daemon.value("SELECT 1") == "1"


@pytest.mark.parametrize("more", [b"1", b"\r\n"])
@pytest.mark.parametrize("login", [b"", LOGIN])
def test_the_rest_of_an_answered_request_is_not_waited_for(
    strict: Daemon, login: bytes, more: bytes
) -> None:
    head = b"POST /?query=INSERT+INTO+nope+FORMAT+TSV HTTP/1.1\r\nHost: x\r\n" + login
    with connect(strict) as connection:
        connection.sendall(head + b"Content-Length: 100000\r\n\r\n1\n")
        begun = time.monotonic()
        connection.settimeout(0.2)
        found = b""
        while time.monotonic() < begun + 20:
            with contextlib.suppress(TimeoutError):
                piece = connection.recv(65536)
                found += piece
                if not piece:
                    break
            with contextlib.suppress(OSError):
                connection.sendall(more)
    assert time.monotonic() < begun + 20
    assert found.startswith(b"HTTP/1.1 404 " if login else b"HTTP/1.1 403 ")


def test_who_asks_before_the_body_and_is_refused_is_told_to_go(daemon: Daemon) -> None:
    head = b"POST /?query=SELECT+1 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    with connect(daemon) as connection:
        connection.sendall(head + b"Content-Length: 100\r\n\r\n")
        answer = answers(connection)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"connection: close\r\n" in answer.lower()
