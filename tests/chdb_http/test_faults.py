"""What happens when a process is killed, a folder is taken, a client goes away."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from bench import faults_endpoint
from chdb_http.testing import OWNER, READER, Daemon, basic_auth

LOGIN = basic_auth(OWNER)


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
    for tables, statement in (
        ("", ""),
        ("", "CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a"),
        ("t", "DROP TABLE t SYNC"),
        ("", ""),
    ):
        daemon.start()
        assert daemon.value("SHOW TABLES") == tables
        assert not statement or daemon.send(statement).status == 200
        daemon.stop(how)


def refused(daemon: Daemon) -> str:
    process = daemon.spawn()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    return output


def test_a_second_daemon_and_a_taken_port(daemon: Daemon, tmp_path: Path) -> None:
    port = Daemon(tmp_path, port=daemon.port)
    assert f"cannot listen on 127.0.0.1:{daemon.port}" in refused(port)
    second = Daemon(tmp_path, data=str(daemon.root / "data"))
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


def test_a_few_kills_lose_nothing() -> None:
    assert faults_endpoint.run(3) == 0


def test_a_stale_lock_file_is_taken_over(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    (tmp_path / "data").mkdir()
    # A process that is alive, but does not hold the lock.
    (tmp_path / "data" / "chdb_http.lock").write_text("1\n")
    daemon.start()
    assert daemon.stop(signal.SIGKILL) != 0
    assert daemon.start().value("SELECT 1") == "1"
    assert daemon.stop() == 0


def test_a_data_folder_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path).start()
    daemon.send("CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a AS SELECT 1")
    assert daemon.stop() == 0
    mark = tmp_path / "data" / "chdb_http.version"
    ours = mark.read_text()
    mark.write_text("99.1.0\n")
    assert "was written by chdb-core 99.1.0, and " in refused(daemon)
    mark.write_text("1.1.0\n")
    assert daemon.start().value("SELECT a FROM t") == "1"
    assert daemon.stop() == 0
    assert mark.read_text() == ours


def test_a_damaged_part_is_an_error(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path).start()
    for table in ("flipped", "missing", "whole"):
        assert daemon.send(
            f"CREATE TABLE {table} (a Int64, s String) ENGINE = MergeTree ORDER BY a"
            " SETTINGS min_bytes_for_wide_part = 0"
        ).status == 200  # fmt: skip
        for _ in range(2):
            daemon.send(f"INSERT INTO {table} SELECT number, 'x' || number FROM numbers(1000)")
    where = "SELECT min(path) FROM system.parts WHERE active AND table = "
    flipped, missing = (Path(daemon.value(f"{where}'{t}'")) for t in ("flipped", "missing"))
    assert daemon.stop() == 0
    data = bytearray((flipped / "s.bin").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (flipped / "s.bin").write_bytes(data)
    (missing / "s.bin").unlink()
    daemon.start()
    assert daemon.send("SELECT max(s) FROM flipped").code == 40
    assert daemon.value("SELECT count(), max(a) FROM whole") == "2000\t999"
    # The engine sets such a part aside and goes on without its rows.
    assert daemon.value("SELECT count() FROM missing") == "1000"
    told = (tmp_path / "log" / "engine.http.log").read_text()
    assert "table default.missing misses the rows of a damaged part" in told
    assert f"detached/broken-on-start_{missing.name}" in told
    assert "flipped" not in told
    assert "whole" not in told
    assert daemon.stop() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("no right to mount")
    yield folder
    # At once even where a failed test has left its daemon on it.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    daemon = Daemon(small_disk).start()
    assert daemon.send(
        "CREATE TABLE t (batch Int64, s String) ENGINE = MergeTree ORDER BY batch"
    ).status == 200  # fmt: skip
    kept = []
    for batch in range(100):
        query = f"INSERT INTO t SELECT {batch}, randomString(1000000) FROM numbers(2)"
        reply = daemon.send(query)
        if reply.status != 200:
            assert reply.code == 243, reply.body
            assert b"space" in reply.body
            break
        kept.append(batch)
    assert 3 < len(kept) < 100
    whole = "\n".join(f"{batch}\t2\t2000000" for batch in kept)
    found = "SELECT batch, count(), sum(length(s)) FROM t GROUP BY batch ORDER BY batch"
    assert daemon.value(found) == whole
    assert daemon.stop(signal.SIGKILL) != 0
    assert daemon.start().value(found) == whole
    assert daemon.send("DROP TABLE t SYNC").status == 200
    made = "CREATE TABLE t ENGINE = MergeTree ORDER BY s AS SELECT randomString(9000000) AS s"
    assert daemon.send(made).status == 200
    assert daemon.stop() == 0


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
        connection.request("GET", "/?query=" + quote(query), headers=LOGIN)
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


def test_kill_waits_for_no_turn(tmp_path: Path) -> None:
    daemon, count = Daemon(tmp_path, writing_statements=1).start(), 40
    daemon.value("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")
    running = "SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO t%'"
    with ThreadPoolExecutor(count) as pool:
        writes = [pool.submit(daemon.send, "INSERT INTO t SELECT sleep(3)") for _ in range(count)]
        wait_for(daemon, f"SELECT ({running}) > 0", "1")
        assert daemon.send("KILL QUERY WHERE query_id = 'nobody' SYNC").status == 200
        begun = sum(write.done() for write in writes) + int(daemon.value(running))
        assert daemon.stop(signal.SIGKILL) != 0
    # All of them came before it.
    assert 0 < begun < count / 2


def test_kill_finds_by_parameter_and_pattern(daemon: Daemon) -> None:
    query = "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)"
    running = "SELECT count() FROM system.processes WHERE query LIKE 'SELECT sum(sipHash64%'"
    asked: list[tuple[str, dict[str, Any]]] = [
        ("query_id = {id:String}", {"param_id": "it's me"}),
        ("query_id LIKE 'it%'", {}),
        ("query_id IN ('a', 'it\\'s me')", {}),
    ]
    for where, bound in asked:
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(daemon.send, query, query_id="it's me")
            wait_for(daemon, running, "1")
            assert daemon.send("SELECT 1", query_id="it's me").code == 216
            killed = daemon.send(f"KILL QUERY WHERE {where} SYNC", None, **bound)
            assert killed.body, where
            assert slow.result().code == 394


def test_kill_reaches_what_waits_for_its_turn_or_its_client(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, long_statements=1, max_workers=2, stop_timeout=1).start()
    daemon.value("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")
    query = "SELECT count() FROM numbers(300000) WHERE sleepEachRow(0.00001) = 0"
    assert daemon.send(query).status == 200
    running = "SELECT count() FROM system.processes WHERE query LIKE 'SELECT count() FROM numbers%'"
    with ThreadPoolExecutor() as pool:
        first = pool.submit(daemon.send, query, query_id="runs")
        wait_for(daemon, running, "1")
        second = pool.submit(daemon.send, query, query_id="waits")
        while not first.done():
            assert daemon.send("KILL QUERY WHERE query_id = 'waits' ASYNC").status == 200
        assert first.result().status == 200
        assert second.result().code == 394
    # All workers wait for clients that send no more.
    stalled = []
    for number in range(2):
        connection = socket.create_connection(("127.0.0.1", daemon.port), timeout=20)
        connection.sendall(
            f"POST /?query=INSERT+INTO+t+FORMAT+TSV&query_id=s{number} HTTP/1.1\r\n"
            f"Host: x\r\nAuthorization: {LOGIN['Authorization']}\r\n"
            "Content-Length: 9999999\r\n\r\n1\n".encode()
        )
        stalled.append(connection)
    answer, deadline = b"", time.monotonic() + 20
    stalled[0].settimeout(0.3)
    while b"QUERY_WAS_CANCELLED" not in answer:
        assert time.monotonic() < deadline, answer
        assert daemon.send("KILL QUERY WHERE query_id = 's0' ASYNC").status == 200
        # The head of the answer may come before its body.
        with contextlib.suppress(TimeoutError):
            answer += stalled[0].recv(65536)
    # A graceful stop does not wait for the other for ever.
    assert daemon.stop() == 0
    for connection in stalled:
        connection.close()


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
        "GET", "/?query=" + quote("SELECT number FROM numbers(10000000000)"), headers=LOGIN
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
    connection.request("GET", "/?query=" + quote(query), headers=LOGIN)
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
        b"GET /?query=SELECT+1 HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 200000 + b"\r\n\r\n",
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


def test_a_crash_leaves_no_rows_behind(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path).start()
    daemon.send("CREATE TABLE t (s String) ENGINE = Memory")
    assert daemon.send("INSERT INTO t FORMAT TSV", b"canary-in-a-row\n" * 1000).status == 200
    assert daemon.stop(signal.SIGSEGV) != 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert not path.name.startswith("core")
        assert b"canary-in-a-row" not in path.read_bytes(), path


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
    for password in (OWNER[1], "wrong-canary-in-a-password"):
        keys = {"X-ClickHouse-User": OWNER[0], "X-ClickHouse-Key": password}
        assert daemon.send("SELECT throwIf(1)", user=None, headers=keys).status >= 400
        assert daemon.send("SELECT throwIf(1)", user=(OWNER[0], password)).status >= 400
    logged = daemon.value("SELECT name FROM system.tables WHERE name LIKE '%\\_log'").split()
    for name in logged:
        assert "canary-in" not in daemon.value(f"SELECT * FROM system.{name} FORMAT TSVRaw")
    logs = list((daemon.root / "log").iterdir())
    assert logs
    for path in logs:
        content = path.read_bytes()
        assert b"canary-in" not in content
        assert OWNER[1].encode() not in content


@pytest.mark.parametrize(
    ("statement", "kept"),
    [
        ("DROP DATABASE default", "0"),
        ("RENAME DATABASE default TO other", "0"),
        ("DETACH DATABASE default", "1"),
    ],
)
def test_nobody_is_locked_out_without_the_database_default(
    tmp_path: Path, statement: str, kept: str
) -> None:
    daemon = Daemon(tmp_path).start()
    daemon.value("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")
    assert daemon.send(statement).status == 200
    sessions: list[dict[str, Any]] = [{}, {"session_id": "new"}]
    for user in (OWNER, READER):
        for session in sessions:
            reply = daemon.send("SELECT currentDatabase()", user=user, **session)
            assert reply.body == b"default\n"
    assert daemon.value("SELECT count() FROM system.tables WHERE database = 'default'") == kept
    table = "CREATE TABLE IF NOT EXISTS t (a UInt8) ENGINE = MergeTree ORDER BY a"
    assert daemon.send(table).status == 200
    # It is an ordinary one again after a restart too.
    assert daemon.stop() == 0
    daemon.start()
    assert daemon.value("SELECT count() FROM t") == "0"
    assert daemon.stop() == 0


def test_a_statement_may_replace_one_of_its_id(daemon: Daemon) -> None:
    with ThreadPoolExecutor() as pool:
        query = "SELECT sleepEachRow(1) FROM numbers(60) SETTINGS max_block_size = 1"
        old = pool.submit(daemon.send, query, query_id="again")
        running = "SELECT count() FROM system.processes WHERE query LIKE 'SELECT sleepEachRow(1)%'"
        wait_for(daemon, running, "1")
        assert daemon.send("SELECT 2", query_id="again").code == 216
        # Another user's is not replaced.
        reply = daemon.send("SELECT 2", user=READER, query_id="again", replace_running_query=1)
        assert reply.code == 216
        reply = daemon.send("SELECT 2", query_id="again", replace_running_query=1)
        assert reply.body == b"2\n"
        assert old.result().code == 394
