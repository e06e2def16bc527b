"""What happens when a process is killed, a folder is taken, a client goes away."""

from __future__ import annotations

import gzip
import http.client
import json
import signal
import socket
import threading
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from chdb_http.testing import OWNER, Daemon

TOKEN = {"Authorization": "Basic " + b64encode(":".join(OWNER).encode()).decode()}


def wait_for(daemon: Daemon, query: str, answer: str) -> None:
    deadline = time.monotonic() + 20
    while (found := daemon.value(query)) != answer:
        assert time.monotonic() < deadline, f"{query} still gives {found}"
        time.sleep(0.02)


def test_acknowledged_inserts_survive_kill(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path).start()
    daemon.send("CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a")
    daemon.send("CREATE DATABASE raw")
    daemon.send("CREATE TABLE raw.lines (s String) ENGINE = MergeTree ORDER BY s")
    acknowledged: list[int] = []

    def insert() -> None:
        for n in range(100000):
            try:
                if daemon.send("INSERT INTO t FORMAT TSV", b"%d\n" % n).status != 200:
                    return
            except (OSError, http.client.HTTPException):
                return
            acknowledged.append(n)

    writer = threading.Thread(target=insert)
    writer.start()
    body = gzip.compress(b"".join(b"%d\n" % n for n in range(50000)))
    query = "INSERT INTO raw.lines SELECT line FROM input('line String') FORMAT LineAsString"
    assert daemon.send(query, body, headers={"Content-Encoding": "gzip"}).status == 200
    while len(acknowledged) < 50:
        time.sleep(0.01)
    daemon.stop(signal.SIGKILL)
    writer.join()
    daemon.start()
    present = {int(n) for n in daemon.value("SELECT a FROM t").split()}
    assert set(acknowledged) <= present
    assert len(present) <= len(acknowledged) + 1
    assert daemon.value("SELECT count() FROM raw.lines") == "50000"
    assert daemon.stop() == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_starts_again_whatever_stands_in_default(tmp_path: Path, how: signal.Signals) -> None:
    daemon = Daemon(tmp_path)
    for statements, tables in (
        ([], ""),
        (["CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a"], "t"),
        (["DROP TABLE t SYNC"], ""),
    ):
        daemon.start()
        for statement in statements:
            assert daemon.send(statement).status == 200
        daemon.stop(how)
        daemon.start()
        assert daemon.value("SHOW TABLES") == tables
        daemon.stop(how)


def refused(daemon: Daemon) -> str:
    process = daemon.spawn()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    return output


def test_a_second_daemon_and_a_taken_port(daemon: Daemon, tmp_path: Path) -> None:
    port = Daemon(tmp_path, port=daemon.port)
    assert f"cannot listen on 127.0.0.1:{daemon.port}" in refused(port)
    second = Daemon(tmp_path)
    second.config.write_text(
        json.dumps({**json.loads(second.config.read_text()), "data": str(daemon.root / "data")})
    )
    assert daemon.process is not None
    assert f"in use by another daemon (process {daemon.process.pid})" in refused(second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": "0.0.0.0"}, "not a loopback address"),
        ({"users": {}}, "at least one user"),
        ({"sizes": 1}, "unknown key sizes"),
        ({"port": "x"}, "port: a whole number"),
        ({"data": "/proc/nowhere"}, "cannot use"),
        ({"server": {"max_server_memory_usage": "plenty"}}, "did not open"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, change: object, message: str) -> None:
    daemon = Daemon(tmp_path)
    assert isinstance(change, dict)
    daemon.config.write_text(json.dumps({**json.loads(daemon.config.read_text()), **change}))
    assert message in refused(daemon)


def test_a_graceful_stop_finishes_what_runs(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path).start()
    daemon.send("CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a")
    query = "INSERT INTO t SELECT number + sleepEachRow(0.2) FROM numbers(5)"
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(daemon.send, query, max_block_size=1)
        wait_for(daemon, "SELECT count() FROM system.processes WHERE query_kind = 'Insert'", "1")
        assert daemon.stop() == 0
        assert slow.result().status == 200
    daemon.start()
    assert daemon.value("SELECT count() FROM t") == "5"
    assert daemon.stop() == 0


def test_a_read_stops_when_its_client_goes_away(daemon: Daemon) -> None:
    running = (
        "SELECT count() FROM system.processes"
        " WHERE query LIKE '%sipHash64(number)%' AND query NOT LIKE '%processes%'"
    )
    for query in (
        "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)",
        "SELECT sipHash64(number) FROM numbers(1000000000000)",
    ):
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
        connection.request("GET", "/?query=" + quote(query), headers=TOKEN)
        wait_for(daemon, running, "1")
        connection.close()
        wait_for(daemon, running, "0")


def test_kill_query_by_the_clients_id(daemon: Daemon) -> None:
    query = "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)"
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(daemon.send, query, query_id="kill-me")
        wait_for(
            daemon,
            "SELECT count() FROM system.processes WHERE query LIKE 'SELECT sum(sipHash64%'",
            "1",
        )
        killed = daemon.send("KILL QUERY WHERE query_id = 'kill-me' SYNC")
        assert killed.status == 200, killed.body
        assert killed.body
        assert slow.result().code == 394


def test_a_session_is_locked_while_it_works(daemon: Daemon) -> None:
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(daemon.send, "SELECT sleep(1)", session_id="busy")
        wait_for(
            daemon, "SELECT count() FROM system.processes WHERE query LIKE 'SELECT sleep%'", "1"
        )
        assert daemon.send("SELECT 1", session_id="busy").code == 373
        assert slow.result().status == 200
    assert daemon.send("SELECT 1", session_id="busy").status == 200


def test_sessions_time_out(daemon: Daemon) -> None:
    daemon.send("CREATE TEMPORARY TABLE x (a Int8)", session_id="short", session_timeout=1)
    deadline = time.monotonic() + 10
    while (
        daemon.send("SELECT 1", session_id="short", session_check=1, session_timeout=1).code != 372
    ):
        assert time.monotonic() < deadline
        time.sleep(1.5)


def test_many_clients_at_once(daemon: Daemon, table: str) -> None:
    def work(worker: int) -> None:
        for turn in range(6):
            n = worker * 100 + turn
            assert daemon.send("INSERT INTO t FORMAT TSV", b"%d\tx\n" % n).status == 200
            assert daemon.send("SELECT {n:Int64}", param_n=n).body == b"%d\n" % n
            reply = daemon.send("SELECT number FROM numbers(20000)", max_block_size=n + 1000)
            assert reply.body.endswith(b"19999\n")
            assert daemon.send(f"CREATE TABLE x{n} (a Int8) ENGINE = Memory").status == 200
            assert daemon.send(f"DROP TABLE x{n}").status == 200

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32)))
    assert daemon.value("SELECT count() FROM t") == str(32 * 6)


def test_first_byte_comes_before_the_end(daemon: Daemon) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
    connection.request(
        "GET", "/?query=" + quote("SELECT number FROM numbers(10000000000)"), headers=TOKEN
    )
    response = connection.getresponse()
    assert response.read(1 << 20)
    connection.close()


def test_memory_stays_bounded_while_streaming(daemon: Daemon) -> None:
    assert daemon.process is not None

    def resident() -> int:
        text = Path(f"/proc/{daemon.process.pid}/status").read_text() if daemon.process else ""
        return int(text.split("VmRSS:")[1].split()[0]) >> 10

    before, peak, total = resident(), 0, 0
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
    # Small blocks, so that it is the endpoint's memory which is measured.
    query = (
        "SELECT randomPrintableASCII(1000) FROM numbers(300000)"
        " FORMAT RowBinary SETTINGS max_block_size = 1000"
    )
    connection.request("GET", "/?query=" + quote(query), headers=TOKEN)
    response = connection.getresponse()
    while piece := response.read(1 << 20):
        total += len(piece)
        peak = max(peak, resident())
    connection.close()
    assert total > 300_000_000
    assert peak - before < 250


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_malformed_requests_are_survived(daemon: Daemon, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except OSError:
            pass
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert daemon.value("SELECT 1") == "1"


def test_no_statement_body_or_password_in_a_log(daemon: Daemon, table: str) -> None:
    daemon.send("INSERT INTO t FORMAT TSV", b"1\tcanary-in-a-body\n")
    for query, body in (
        ("INSERT INTO t (s, a) FORMAT CSV", b"canary-in-a-body,x\n"),
        ("INSERT INTO t (s, a) FORMAT JSONEachRow", b'{"s": "canary-in-a-body", "a": "x"}'),
        ("INSERT INTO t (s, a) VALUES", b"('canary-in-a-body', 'x')"),
        ("SELECT throwIf(1), 'canary-in-a-body'", None),
        (
            "INSERT INTO t SELECT toInt64(l), l FROM input('l String') FORMAT LineAsString",
            b"canary-in-a-body",
        ),
    ):
        assert daemon.send(query, body).status >= 400
    logs = list((daemon.root / "log").iterdir())
    assert logs
    for path in logs:
        content = path.read_bytes()
        assert b"canary-in" not in content
        assert OWNER[1].encode() not in content
