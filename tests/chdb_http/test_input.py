"""INSERT … SELECT … FROM input(…): the body is the table, and half a body is none."""

from __future__ import annotations

import gzip
import http.client
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import zstandard

from chdb_http.testing import OWNER, Daemon, basic_auth

LINES = b"".join(b'{"n": %d, "text": "line %d"}\n' % (n, n) for n in range(200000))
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "": bytes,
}
INSERT = "INSERT INTO t SELECT length(line), line FROM input('line String') FORMAT LineAsString"


@pytest.mark.parametrize("name", ["gzip", "zstd", ""])
def test_every_line_arrives(daemon: Daemon, table: str, name: str) -> None:
    reply = daemon.send(
        INSERT, PACK[name](LINES), headers={"Content-Encoding": name} if name else {}
    )
    assert reply.status == 200, reply.body
    assert reply.summary["written_rows"] == 200000
    assert reply.summary["read_rows"] == 200000
    assert daemon.value("SELECT count(), sum(a), uniqExact(s) FROM t") == (
        f"200000\t{len(LINES) - 200000}\t200000"
    )


def test_input_in_a_cte_with_any_format(daemon: Daemon, table: str) -> None:
    query = (
        "INSERT INTO t (a, s) WITH rows AS (SELECT x * 2 AS y, s FROM (SELECT * FROM"
        " input('x Int64, s String') WHERE x > 1)) SELECT y, s FROM rows"
        " SETTINGS max_threads = 2 FORMAT JSONEachRow"
    )
    body = b'{"x": 1, "s": "a"}\n{"x": 2, "s": "input(\'x\')"}\n'
    assert daemon.send(query, body).status == 200
    assert daemon.send(None, query.encode() + b"\n" + body).status == 200
    assert daemon.value("SELECT * FROM t") == "4\tinput(\\'x\\')\n4\tinput(\\'x\\')"


def test_parameters_settings_and_sessions(daemon: Daemon, table: str) -> None:
    here: dict[str, Any] = {"session_id": "input"}
    daemon.send("CREATE TEMPORARY TABLE keys (k String)", **here)
    daemon.send("INSERT INTO keys FORMAT TSV", b"secret\n", **here)
    query = (
        "INSERT INTO t SELECT {n:Int64}, concat(line, (SELECT k FROM keys))"
        " FROM input('line String') FORMAT LineAsString"
    )
    assert daemon.send(query, b"x\ny", param_n=3, max_insert_threads=1, **here).status == 200
    assert daemon.value("SELECT a, s FROM t ORDER BY s") == "3\txsecret\n3\tysecret"


def test_input_needs_a_format(daemon: Daemon, table: str) -> None:
    reply = daemon.send("INSERT INTO t SELECT 1, line FROM input('line String')", b"x")
    assert reply.code == 36


def test_an_error_in_the_statement_is_answered(daemon: Daemon, table: str) -> None:
    for query in (
        INSERT.replace("length(line)", "throwIf(1)"),
        INSERT.replace("INTO t", "INTO nope"),
    ):
        assert (
            daemon.send(query, gzip.compress(LINES), headers={"Content-Encoding": "gzip"}).status
            >= 400
        )
    assert daemon.value("SELECT count() FROM t") == "0"


def corrupt(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


@pytest.mark.parametrize("name", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["half", "tail", "header", "corrupt"])
def test_damage_is_an_error(daemon: Daemon, table: str, name: str, damage: str) -> None:
    packed = (
        gzip.compress(LINES)
        if name == "gzip"
        else zstandard.ZstdCompressor(write_checksum=True).compress(LINES)
    )
    body = {
        "half": packed[: len(packed) // 2],
        "tail": packed[:-1],
        "header": packed[:6],
        "corrupt": corrupt(packed),
    }[damage]
    reply = daemon.send(INSERT, body, headers={"Content-Encoding": name})
    assert reply.status >= 400
    assert b"/proc/" not in reply.body
    assert daemon.value("SELECT count() FROM t") == "0"


def abandon(daemon: Daemon, head: bytes, body: bytes) -> None:
    """Send a request whose body breaks off, and hang up."""
    login = basic_auth(OWNER)["Authorization"].encode()
    with socket.create_connection(("127.0.0.1", daemon.port)) as connection:
        connection.sendall(
            b"POST /?query=" + quote(INSERT).encode() + b" HTTP/1.1\r\nHost: x\r\n"
            b"Authorization: " + login + b"\r\n" + head + b"\r\n" + body
        )


def quiet(daemon: Daemon) -> None:
    """Wait until no insert runs."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if daemon.value("SELECT count() FROM system.processes WHERE query_kind = 'Insert'") == "0":
            return
        time.sleep(0.02)
    raise AssertionError("an abandoned insert still runs")


@pytest.mark.parametrize("name", ["gzip", "zstd", ""])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_client_that_goes_away_commits_nothing(
    daemon: Daemon, table: str, name: str, chunked: bool, share: float
) -> None:
    packed = PACK[name](LINES)
    # With the whole stream sent, only the protocol can tell that the body broke off.
    part = packed[: int(len(packed) * share)]
    head = f"Content-Encoding: {name}\r\n".encode() if name else b""
    if chunked:
        head += b"Transfer-Encoding: chunked\r\n"
        body = b"%x\r\n%s\r\n" % (len(part), part) if part else b""
    else:
        head += b"Content-Length: %d\r\n" % (len(packed) + 10)
        body = part
    before = daemon.pipes()
    abandon(daemon, head, body)
    quiet(daemon)
    assert daemon.value("SELECT count() FROM t") == "0"
    deadline = time.monotonic() + 10
    while daemon.pipes() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert daemon.pipes() <= before


def test_a_slow_body_streams(daemon: Daemon, table: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)

    def pieces() -> Iterator[bytes]:
        for n in range(20):
            yield b"line %d\n" % n
            time.sleep(0.01)

    connection.request(
        "POST",
        "/?query=" + quote(INSERT),
        pieces(),
        basic_auth(OWNER),
        encode_chunked=True,
    )
    assert connection.getresponse().status == 200
    connection.close()
    assert daemon.value("SELECT count() FROM t") == "20"
