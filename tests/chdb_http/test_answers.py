"""How answers come: progress, held back, in ClickHouse's own blocks, broken off."""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
import time
from pathlib import Path
from urllib.parse import urlencode

import lz4.block  # type: ignore[import-untyped]
import pytest
import zstandard
from clickhouse_cityhash.cityhash import CityHash128  # type: ignore[import-untyped]

from chdb_http.testing import OWNER, READER, Daemon, basic_auth

LOGIN = basic_auth(OWNER)
SLOW = "SELECT sum(sipHash64(number)) FROM numbers(20000000) SETTINGS max_threads = 1"
METHODS = {"none": 0x02, "lz4": 0x82, "zstd": 0x90}


def converse(daemon: Daemon, query: str, **params: object) -> socket.socket:
    """Send a request and leave the connection open."""
    connection = socket.create_connection(("127.0.0.1", daemon.port), timeout=30)
    connection.sendall(
        f"POST /?{urlencode({'query': query, **params})} HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: {LOGIN['Authorization']}\r\nContent-Length: 0\r\n\r\n".encode()
    )
    return connection


def everything(connection: socket.socket, end: bytes = b"") -> bytes:
    """What comes until the end mark, or until the other side closes."""
    parts = bytearray()
    while piece := connection.recv(1 << 20):
        parts += piece
        if end and parts.endswith(end):
            break
    return bytes(parts)


def blocks(data: bytes, method: str = "lz4", size: int = 70000) -> bytes:
    """Bytes as ClickHouse's compressed blocks."""
    out = b""
    for at in range(0, len(data), size):
        raw = data[at : at + size]
        if method == "lz4":
            packed = lz4.block.compress(raw, store_size=False)
        else:
            packed = zstandard.compress(raw) if method == "zstd" else raw
        block = struct.pack("<BII", METHODS[method], len(packed) + 9, len(raw)) + packed
        number = CityHash128(block)
        out += struct.pack("<QQ", number >> 64, number & (2**64 - 1)) + block
    return out


def unpacked(data: bytes) -> bytes:
    """What stands in ClickHouse's compressed blocks; an error inside them ends them."""
    out = b""
    while data:
        method, size, raw = struct.unpack("<BII", data[16:25])
        number = CityHash128(data[16 : 16 + size])
        assert data[:16] == struct.pack("<QQ", number >> 64, number & (2**64 - 1))
        assert method == METHODS["lz4"]
        out += lz4.block.decompress(data[25 : 16 + size], uncompressed_size=raw)
        data = data[16 + size :]
    return out


def test_progress_comes_while_the_statement_runs(daemon: Daemon) -> None:
    with converse(
        daemon, SLOW, send_progress_in_http_headers=1, http_headers_progress_interval_ms=1
    ) as connection:
        first = connection.recv(65536)
        while first.count(b"\r\n") < 2:
            first += connection.recv(65536)
        # The answer isn't there yet: only the status and how far the statement is.
        assert first.startswith(b"HTTP/1.1 200 OK\r\nX-ClickHouse-Progress: {")
        assert b"\r\n\r\n" not in first
        answer = first + everything(connection, b"0\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
        seen = [json.loads(value) for name, _, value in lines if name == b"X-ClickHouse-Progress"]
        assert len(seen) > 1
        rows = [int(figures["read_rows"]) for figures in seen]
        assert rows == sorted(rows)
        assert {int(figures["total_rows_to_read"]) for figures in seen} == {20000000}
        assert body.endswith(b"\n\r\n0\r\n\r\n")
        # The connection is as good as before.
        login = LOGIN["Authorization"].encode()
        connection.sendall(b"GET /?query=SELECT+7 HTTP/1.1\r\nHost: x\r\nAuthorization: " + login)
        connection.sendall(b"\r\n\r\n")
        answer = everything(connection, b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\nx-clickhouse-summary")
        assert b"\r\n7\n\r\n" in answer
    assert "X-ClickHouse-Progress" not in daemon.send(SLOW).headers


def test_an_error_after_progress_stands_in_the_answer(daemon: Daemon) -> None:
    query = SLOW.replace("sum(sipHash64(number))", "throwIf(max(sipHash64(number)) > 0)")
    with converse(daemon, query, send_progress_in_http_headers=1) as connection:
        answer = everything(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nX-ClickHouse-Progress")
    assert b"x-clickhouse-exception-code: 395" in head
    assert b"__exception__\r\n" in body
    assert not body.endswith(b"0\r\n\r\n")


def test_an_early_answer_has_the_figures_so_far(daemon: Daemon) -> None:
    # Work enough for each row that there is progress to tell of before the first of them leaves.
    query = (
        "SELECT number FROM numbers(3000000)"
        " WHERE cityHash64(repeat(toString(number), 400)) % 2 = 0 SETTINGS max_threads = 1"
    )
    reply = daemon.send(query)
    assert len(reply.body) > 10_000_000
    assert reply.summary["total_rows_to_read"] == 3000000
    assert 0 < reply.summary["read_rows"] < 3000000


def test_waiting_for_the_end_keeps_status_and_summary_final(daemon: Daemon) -> None:
    query = "SELECT number, throwIf(number = {n:UInt64}) FROM numbers(4000000)"
    reply = daemon.send(query, wait_end_of_query=1, param_n=3999999)
    assert (reply.status, reply.code) == (500, 395)
    assert b"__exception__" not in reply.body
    reply = daemon.send(query, wait_end_of_query=1, param_n=4000000)
    assert reply.status == 200
    assert reply.summary["result_rows"] == 4000000
    assert reply.body.endswith(b"\n3999999\t0\n")
    assert reply.body.count(b"\n") == 4000000


def test_a_held_answer_lies_on_the_disk_and_goes(daemon: Daemon) -> None:
    assert daemon.process is not None

    def spooled() -> list[str]:
        descriptors = Path(f"/proc/{daemon.process.pid}/fd") if daemon.process else Path()
        found = []
        for entry in descriptors.iterdir():
            try:
                target = str(entry.readlink())
            except OSError:
                continue
            if target.startswith(str(daemon.root / "tmp")):
                found.append(target)
        return found

    query = "SELECT number FROM numbers(100000000)"
    with converse(daemon, query, wait_end_of_query=1):
        deadline = time.monotonic() + 20
        while not spooled():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    while spooled():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list((daemon.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("held", [0, 1])
def test_answers_in_blocks(daemon: Daemon, held: int) -> None:
    query = "SELECT number FROM numbers(600000)"
    reply = daemon.send(query, compress=1, wait_end_of_query=held)
    assert "Content-Encoding" not in reply.headers
    assert unpacked(reply.body) == daemon.send(query).body
    both = daemon.send(
        query, compress=1, enable_http_compression=1, headers={"Accept-Encoding": "zstd"}
    )
    assert both.headers["Content-Encoding"] == "zstd"
    inner = zstandard.ZstdDecompressor().decompressobj().decompress(both.body)
    assert unpacked(inner) == unpacked(reply.body)


def test_errors_in_blocks(daemon: Daemon) -> None:
    reply = daemon.send("SELECT nope", compress=1)
    assert (reply.status, reply.code) == (404, 47)
    assert unpacked(reply.body).startswith(b"Code: 47.")
    # A client that may not come in has not said yet how it reads.
    reply = daemon.send("SELECT 1", compress=1, user=("owner", "wrong"))
    assert reply.body.startswith(b"Code: 516.")
    with pytest.raises(http.client.IncompleteRead) as broken:
        daemon.send(
            "SELECT throwIf(number = 4000000) FROM numbers(5000000) SETTINGS max_threads = 1",
            compress=1,
        )
    assert b"__exception__" in unpacked(broken.value.partial)[-600:]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_bodies_in_blocks(daemon: Daemon, table: str, method: str) -> None:
    rows = b"".join(b"%d\tx%d\n" % (n, n) for n in range(100000))
    assert daemon.send("INSERT INTO t FORMAT TSV", blocks(rows, method), decompress=1).status == 200
    whole = b"INSERT INTO t FORMAT TSV\n" + rows
    assert daemon.send(None, blocks(whole, method), decompress=1).status == 200
    outer = {"Content-Encoding": "zstd"}
    body = zstandard.compress(blocks(rows, method))
    assert daemon.send("INSERT INTO t FORMAT TSV", body, decompress=1, headers=outer).status == 200
    assert daemon.value("SELECT count(), uniqExact(s) FROM t") == "300000\t100000"
    assert daemon.send(None, blocks(b"SELECT 5"), decompress=1).body == b"5\n"


@pytest.mark.parametrize(
    ("damage", "code"),
    [("half", 33), ("checksum", 40), ("size", 39), ("method", 432), ("content", 271)],
)
def test_damaged_blocks_commit_nothing(daemon: Daemon, table: str, damage: str, code: int) -> None:
    body = blocks(b"1\tx\n" * 100000)
    if damage == "half":
        body = body[:-1]
    elif damage == "checksum":
        body = bytes([body[0] ^ 1]) + body[1:]
    elif damage == "size":
        body = body[:17] + b"\xff\xff\xff\x7f" + body[21:]
    else:
        block = bytearray(body[16 : 16 + struct.unpack("<I", body[17:21])[0]])
        if damage == "method":
            block[0] = 0x91
        else:
            block[5:9] = struct.pack("<I", 5)
        number = CityHash128(bytes(block))
        body = struct.pack("<QQ", number >> 64, number & (2**64 - 1)) + bytes(block)
    reply = daemon.send("INSERT INTO t FORMAT TSV", body, decompress=1)
    assert reply.code == code, reply.body
    assert daemon.value("SELECT count() FROM t") == "0"


def test_head_and_options(daemon: Daemon) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
    for method, path, status, body in (
        ("HEAD", "/?query=SELECT+1", 200, b""),
        ("HEAD", "/ping", 200, b""),
        ("HEAD", "/?query=SELECT+nope", 404, b""),
        ("OPTIONS", "/", 204, b""),
        ("GET", "/replicas_status", 200, b"Ok.\n"),
        ("GET", "/nowhere", 404, None),
        ("PUT", "/", 501, None),
        ("GET", "/query?query=SELECT+2", 200, b"2\n"),
    ):
        connection.request(method, path, headers=LOGIN)
        response = connection.getresponse()
        content = response.read()
        assert response.status == status, (method, path)
        assert body is None or content == body, (method, path)
        allowed = [name for name in response.headers if name.lower().startswith("access-control")]
        assert allowed == []
    connection.close()


@pytest.mark.parametrize("user", [OWNER, READER])
def test_who_asks_is_told_in_three_ways(daemon: Daemon, user: tuple[str, str]) -> None:
    name, password = user
    ways: list[tuple[dict[str, str], dict[str, str]]] = [
        (basic_auth(user), {}),
        ({"X-ClickHouse-User": name, "X-ClickHouse-Key": password}, {}),
        ({}, {"user": name, "password": password}),
    ]
    create = "CREATE TABLE IF NOT EXISTS told (a Int8) ENGINE = Memory"
    for fields, params in ways:
        path = "/?" + urlencode({"query": create, **params})
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
        connection.request("POST", path, headers=fields)
        response = connection.getresponse()
        response.read()
        connection.close()
        expected = (200, None) if user == OWNER else (500, "164")
        assert (response.status, response.headers["X-ClickHouse-Exception-Code"]) == expected
    daemon.send("DROP TABLE IF EXISTS told")


def test_no_room_to_hold_an_answer(tmp_path: Path) -> None:
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=2m tmpfs {tmp}"):
        pytest.skip("needs the right to mount")
    daemon = Daemon(tmp_path)
    try:
        daemon.start()
        reply = daemon.send("SELECT number FROM numbers(10000000)", wait_end_of_query=1)
        assert (reply.status, reply.code) == (500, 243)
        assert daemon.value("SELECT 1") == "1"
        assert daemon.stop() == 0
    finally:
        os.system(f"umount {tmp}")
