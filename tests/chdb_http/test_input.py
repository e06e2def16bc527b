"""INSERT … SELECT … FROM input(…): the body is the table, and half a body is none."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chdb_http.errors import ClickHouseError, EngineError
from chdb_http.server import Run
from chdb_http.testing import OWNER, Daemon, basic_auth

LINES = b"".join(b'{"n": %d, "text": "line %d"}\n' % (n, n) for n in range(200000))
PACK: dict[str, Callable[[bytes], bytes]] = {
    # Without the time of day, which gzip notes: the same rows are the same bytes.
    "gzip": partial(gzip.compress, mtime=0),
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


@contextlib.contextmanager
def begun(daemon: Daemon, query: str, head: bytes, body: bytes, **params: str) -> Iterator[None]:
    """Send a request whose body breaks off, and then hang up."""
    login = basic_auth(OWNER)["Authorization"].encode()
    asked = urlencode({"query": query, **params}).encode()
    with socket.create_connection(("127.0.0.1", daemon.port)) as connection:
        connection.sendall(
            b"POST /?" + asked + b" HTTP/1.1\r\nHost: x\r\n"
            b"Authorization: " + login + b"\r\n" + head + b"\r\n" + body
        )
        yield


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
    with begun(daemon, INSERT, head, body):
        pass
    quiet(daemon)
    assert daemon.value("SELECT count() FROM t") == "0"
    deadline = time.monotonic() + 10
    while daemon.pipes() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert daemon.pipes() <= before


@pytest.fixture(scope="session")
def bodies(daemon: Daemon) -> dict[str, bytes]:
    """Rows in formats whose readers end in different ways, in several blocks."""
    rows = "SELECT number AS a, toString(number) AS s FROM numbers(120)"
    return {
        name: daemon.send(f"{rows} FORMAT {name}", max_block_size=50).body
        for name in ("TSV", "CSV", "JSONEachRow", "RowBinary", "MsgPack", "Native", "Parquet")
    }


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_row_of_a_body_that_breaks_off(
    daemon: Daemon, table: str, bodies: dict[str, bytes], data: st.DataObject
) -> None:
    name, body = data.draw(st.sampled_from(sorted(bodies.items())))
    packing = data.draw(st.sampled_from(sorted(PACK)))
    packed = PACK[packing](body)
    # Between two rows, or behind the last, what came is whole as far as the format can tell.
    lines = [at + 1 for at, byte in enumerate(packed) if byte == 10]
    cut = data.draw(st.integers(0, len(packed)) | st.sampled_from([*lines, len(packed)]))
    source = data.draw(
        st.sampled_from(
            ["", "SELECT a, s FROM input('a Int64, s String')", "SETTINGS max_threads=1"]
        )
    )
    head = f"Content-Length: {len(packed) + 1}\r\n".encode()
    if packing:
        head += f"Content-Encoding: {packing}\r\n".encode()
    query_id = uuid.uuid4().hex
    with begun(
        daemon, f"INSERT INTO t {source} FORMAT {name}", head, packed[:cut], query_id=query_id
    ):
        time.sleep(data.draw(st.sampled_from([0, 0.003, 0.02])))
        if data.draw(st.booleans()):
            daemon.send(f"KILL QUERY WHERE query_id = '{query_id}' ASYNC")
    quiet(daemon)
    assert daemon.value("SELECT count() FROM t") == "0"


class Slow:
    """An engine to which a statement is not known at once, and which has no room for a KILL."""

    def __init__(self) -> None:
        self.answers: list[bool | EngineError] = [False, EngineError("Memory limit"), True]

    def kill(self, thread_id: int) -> bool:
        assert thread_id == threading.get_native_id()
        answer = self.answers.pop(0)
        if isinstance(answer, EngineError):
            raise answer
        return answer


def test_an_insert_is_cut_off_for_certain() -> None:
    engine: Any = Slow()
    run = Run("id", "owner")
    run.begin()
    run.cut_off(engine)
    assert engine.answers == []
    run.end()
    # One that is over, or has not begun, is not asked for; and it does not begin any more.
    run.cut_off(engine)
    with pytest.raises(ClickHouseError):
        run.begin()


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
