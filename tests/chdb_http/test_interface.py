"""The HTTP interface itself: where queries, settings, formats and errors go."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import zlib
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlencode

import lz4.frame  # type: ignore[import-untyped]
import pytest
import zstandard
from clickhouse_connect.driver.exceptions import DatabaseError
from clickhouse_connect.driver.external import ExternalData

from chdb_http.testing import OWNER, Daemon, basic_auth

LOGIN = f"Authorization: {basic_auth(OWNER)['Authorization']}\r\n".encode()
UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "lz4": lz4.frame.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "lz4": lz4.frame.compress,
    "zstd": zstandard.compress,
}


def test_ping_needs_no_password(daemon: Daemon) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
    connection.request("GET", "/ping")
    assert connection.getresponse().read() == b"Ok.\n"
    connection.close()


@pytest.mark.parametrize(
    ("query", "body", "answer"),
    [
        ("SELECT 1", None, b"1\n"),
        (None, b"SELECT 2", b"2\n"),
        ("SELECT", b"3", b"3\n"),
        ("SELECT 4 FORMAT JSONEachRow", None, b'{"4":4}\n'),
        ("SELECT 5 AS a FORMAT CSVWithNames SETTINGS max_threads = 1", None, b'"a"\n5\n'),
        ("SELECT 6 AS format ORDER BY format DESC;", None, b"6\n"),
        ("SELECT 7 -- FORMAT JSON", None, b"7\n"),
        ("(SELECT 8)", None, b"8\n"),
        ("WITH 9 AS x SELECT x /* INTO OUTFILE */", None, b"9\n"),
        ("EXISTS system.one", None, b"1\n"),
        ("SELECT 'it''s', \"x\" FROM (SELECT 1 AS x) FORMAT TSV", None, b"it\\'s\t1\n"),
    ],
)
def test_query_places(daemon: Daemon, query: str | None, body: bytes | None, answer: bytes) -> None:
    reply = daemon.send(query, body)
    assert (reply.status, reply.body) == (200, answer)


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("CHECK TABLE t SETTINGS check_query_single_value_result = 1", b"1\n"),
        ("CHECK TABLE t SETTINGS check_query_single_value_result = 1 FORMAT CSV", b"1\n"),
        ("CHECK TABLE t FORMAT CSV SETTINGS check_query_single_value_result = 1", b"1\n"),
        ("EXISTS t SETTINGS max_threads = 1", b"1\n"),
        ("SHOW TABLES LIKE 't' SETTINGS max_threads = 1 FORMAT CSV", b'"t"\n'),
        (
            "DESCRIBE t SETTINGS describe_compact_output = 1 FORMAT CSV",
            b'"a","Int64"\n"s","String"\n',
        ),
        ("SHOW SETTINGS LIKE 'max_threads' FORMAT JSONCompactColumns", b"max_threads"),
        ("EXPLAIN AST ALTER TABLE t ADD COLUMN b Int8", b"AlterQuery  t (children 2)\n"),
        ("EXPLAIN AST CREATE TABLE z (a Int8) ENGINE = Memory", b"CreateQuery z "),
        ("EXPLAIN AST INSERT INTO t VALUES (1, 'x')", b"InsertQuery   (children 1)\n"),
        ("EXPLAIN AST DROP TABLE t", b"DropQuery  t "),
        ("EXPLAIN AST CHECK TABLE t", b"CheckQuery  t "),
        ("EXPLAIN SYNTAX SELECT 1 SETTINGS max_threads = 1 FORMAT CSV", b'"SELECT 1'),
        ("EXPLAIN PIPELINE INSERT INTO t SELECT 1, ''", b"Sink"),
        (
            "EXPLAIN ESTIMATE SELECT * FROM t FORMAT JSONEachRow",
            b'{"database":"default","table":"t"',
        ),
    ],
)
def test_statements_other_than_select_answer_too(
    daemon: Daemon, table: str, query: str, answer: bytes
) -> None:
    assert daemon.send("INSERT INTO t VALUES (1, 'x')").status == 200
    reply = daemon.send(query)
    assert reply.status == 200, reply.body
    assert answer in reply.body
    assert b"/proc/" not in reply.body


def test_get_is_served(daemon: Daemon) -> None:
    assert daemon.send("SELECT 1", method="GET").body == b"1\n"


def test_default_format_and_headers(daemon: Daemon) -> None:
    reply = daemon.send("SELECT 1 AS x", default_format="JSON", query_id="my-query")
    assert json.loads(reply.body)["data"] == [{"x": 1}]
    assert reply.headers["X-ClickHouse-Format"] == "JSON"
    assert reply.headers["X-ClickHouse-Query-Id"] == "my-query"
    assert reply.headers["X-ClickHouse-Timezone"] == "UTC"
    assert reply.headers["X-ClickHouse-Server-Display-Name"]
    assert reply.headers["Content-Type"].startswith("application/json")
    assert daemon.send("SELECT 1 FORMAT CSV", default_format="JSON").body == b"1\n"


@pytest.mark.parametrize("name", ["JSON", "JSONCompact", "CSVWithNames", "XML", "Markdown"])
def test_a_large_result_is_one_document(daemon: Daemon, name: str) -> None:
    reply = daemon.send(f"SELECT number AS n FROM numbers(200000) FORMAT {name}")
    assert reply.status == 200
    if name.startswith("JSON"):
        assert json.loads(reply.body)["rows"] == 200000
    elif name == "CSVWithNames":
        assert reply.body.count(b'"n"') == 1
    assert reply.body.count(b"199999") == 1


def test_settings_hold_for_one_request(daemon: Daemon) -> None:
    read = "SELECT getSetting('max_block_size')"
    default = daemon.value(read)
    assert daemon.send(read, max_block_size=1234).body == b"1234\n"
    assert daemon.value(read) == default
    first: dict[str, Any] = {"session_id": "settings"}
    assert daemon.send(read, max_block_size=1234, **first).body == b"1234\n"
    assert daemon.send(read, **first).body.decode().strip() == default
    daemon.send("SET max_block_size = 77, max_threads = 3", **first)
    assert daemon.send(read, max_block_size=5, **first).body == b"5\n"
    assert daemon.send(read, **first).body == b"77\n"
    assert daemon.send(read, session_id="another").body.decode().strip() == default


def test_unknown_setting(daemon: Daemon) -> None:
    reply = daemon.send("SELECT 1", no_such_setting=1)
    assert (reply.status, reply.code) == (404, 115)
    reply = daemon.send("SELECT 1", **cast(dict[str, Any], {"max_threads=1, readonly": 1}))
    assert (reply.status, reply.code) == (404, 115)


def test_parameters_are_bound(daemon: Daemon) -> None:
    reply = daemon.send(
        "SELECT {a:Int32} + 1, {b:String}, {c:Array(String)}, {d:Nullable(String)} IS NULL",
        param_a=41,
        param_b="'; DROP TABLE x; --\\n",
        param_c="['x','y']",
        param_d="\\N",
    )
    assert reply.body == b"42\t\\'; DROP TABLE x; --\\n\t['x','y']\t1\n"
    assert daemon.send("SELECT {a:Int32}").code == 456


def test_database(daemon: Daemon) -> None:
    assert daemon.send("SELECT currentDatabase()", database="system").body == b"system\n"
    reply = daemon.send("SELECT 1", database="absent")
    assert (reply.status, reply.code) == (404, 81)
    assert (
        daemon.send("SELECT currentDatabase()", database="system", session_id="d").body
        == b"system\n"
    )
    assert daemon.send("SELECT currentDatabase()", session_id="d").body == b"default\n"


def test_sessions(daemon: Daemon) -> None:
    one: dict[str, Any] = {"session_id": "one"}
    assert daemon.send("SELECT 1", session_check=1, session_id="none").code == 372
    assert daemon.send("CREATE TEMPORARY TABLE tt (x Int32)", **one).status == 200
    assert daemon.send("INSERT INTO tt VALUES (1), (2)", **one).status == 200
    assert daemon.send("SELECT sum(x) FROM tt", session_check=1, **one).body == b"3\n"
    assert daemon.send("SELECT sum(x) FROM tt", session_id="two").code == 60
    assert daemon.send("SELECT sum(x) FROM tt").code == 60
    assert daemon.send("SELECT 1", session_timeout=99999, **one).code == 374


@pytest.mark.parametrize(
    ("query", "code", "status"),
    [
        ("SELECT * FROM absent", 60, 404),
        ("SELEC 1", 62, 400),
        ("SELECT 'it's'", 62, 400),
        ("SELECT `x", 62, 400),
        ("SELECT 1 /*", 62, 400),
        ("SELECT 1 FROM", 62, 400),
        ("SELECT nope", 47, 404),
        ("SELECT nofunction(1)", 46, 404),
        ("SELECT toInt32('x')", 6, 400),
        ("SELECT 1; SELECT 2", 62, 400),
        ("SELECT 1 INTO OUTFILE '/dev/null'", 48, 501),
        ("INSERT INTO t FROM INFILE '/etc/passwd' FORMAT CSV", 48, 501),
        ("SELECT 1 FORMAT Nope", 73, 404),
        ("SELECT throwIf(1)", 395, 500),
    ],
)
def test_errors(daemon: Daemon, query: str, code: int, status: int) -> None:
    reply = daemon.send(query)
    assert (reply.code, reply.status) == (code, status), reply.body
    assert reply.body.startswith(f"Code: {code}. DB::".encode())
    assert b"/proc/" not in reply.body
    assert b"OUTFILE '" not in reply.body
    assert b"the request's body" not in reply.body
    assert reply.body.count(b"Code:") == 1


def test_error_after_the_first_byte(daemon: Daemon) -> None:
    with pytest.raises(http.client.IncompleteRead) as broken:
        daemon.send(
            "SELECT throwIf(number = 4000000) FROM numbers(5000000) SETTINGS max_threads = 1"
        )
    tail = broken.value.partial[-600:]
    assert b"__exception__" in tail
    assert b"Code: 395" in tail


@pytest.mark.parametrize("name", sorted(UNPACK))
def test_answers_are_compressed(daemon: Daemon, name: str) -> None:
    query = "SELECT number FROM numbers(300000)"
    plain = daemon.send(query)
    assert "Content-Encoding" not in plain.headers
    reply = daemon.send(query, headers={"Accept-Encoding": name}, enable_http_compression=1)
    assert reply.headers["Content-Encoding"] == name
    assert len(reply.body) < len(plain.body)
    assert UNPACK[name](reply.body) == plain.body
    assert "Content-Encoding" not in daemon.send(query, headers={"Accept-Encoding": name}).headers


@pytest.mark.parametrize("name", sorted(PACK))
def test_requests_are_decompressed(daemon: Daemon, table: str, name: str) -> None:
    head = {"Content-Encoding": name}
    assert daemon.send(None, PACK[name](b"SELECT 7"), headers=head).body == b"7\n"
    rows = b"".join(b"%d\tx\n" % n for n in range(100000))
    assert daemon.send("INSERT INTO t FORMAT TSV", PACK[name](rows), headers=head).status == 200
    whole = b"INSERT INTO t (a) FORMAT CSV\n1\n2\n"
    assert daemon.send(None, PACK[name](whole), headers=head).status == 200
    assert daemon.value("SELECT count() FROM t") == "100002"


@pytest.mark.parametrize("name", sorted(PACK))
def test_a_truncated_body_commits_nothing(daemon: Daemon, table: str, name: str) -> None:
    rows = b"".join(b"%d\tx\n" % n for n in range(100000))
    packed = PACK[name](rows)
    for size in (len(packed) // 2, len(packed) - 1, 3):
        reply = daemon.send(
            "INSERT INTO t FORMAT TSV", packed[:size], headers={"Content-Encoding": name}
        )
        assert reply.status >= 400, size
    assert daemon.value("SELECT count() FROM t") == "0"


def test_unknown_encoding(daemon: Daemon) -> None:
    reply = daemon.send("INSERT INTO t FORMAT TSV", b"x", headers={"Content-Encoding": "rot13"})
    assert b"rot13" in reply.body
    assert reply.status == 501


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"X-ClickHouse-User": OWNER[0], "X-ClickHouse-Key": "wrong"},
        {"X-ClickHouse-User": "nobody", "X-ClickHouse-Key": OWNER[1]},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Bearer x"},
    ],
)
def test_wrong_password(daemon: Daemon, fields: dict[str, str]) -> None:
    reply = daemon.send("SELECT 1", user=None, headers=fields)
    assert (reply.status, reply.code) == (403, 516)
    assert OWNER[1].encode() not in reply.body


def test_three_ways_to_authenticate(daemon: Daemon) -> None:
    name, password = OWNER
    fields = {"X-ClickHouse-User": name, "X-ClickHouse-Key": password}
    assert daemon.send("SELECT 1", user=None, headers=fields).status == 200
    assert daemon.send("SELECT 1", user=None, user_=1, headers=fields).code == 115
    reply = daemon.send("SELECT 1", user=None, headers={"X-Unused": "1"}, password=password)
    assert reply.code == 516

    connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
    connection.request(
        "GET", "/?" + urlencode({"user": name, "password": password, "query": "SELECT 1"})
    )
    assert connection.getresponse().read() == b"1\n"
    connection.close()


def test_summary_has_real_figures(daemon: Daemon, table: str) -> None:
    wrote = daemon.send("INSERT INTO t SELECT number, 'x' FROM numbers(1000)").summary
    assert wrote["written_rows"] == 1000
    assert wrote["written_bytes"] > 8000
    wrote = daemon.send("INSERT INTO t FORMAT TSV", b"1\ta\n2\tb\n").summary
    assert (wrote["written_rows"], wrote["result_rows"]) == (2, 2)
    read = daemon.send("SELECT a FROM t WHERE a >= 0 LIMIT 5").summary
    assert read["read_rows"] == 1002
    assert read["read_bytes"] == 8016
    assert read["result_rows"] == 5
    assert read["elapsed_ns"] > 0


def test_native_insert_in_one_body(daemon: Daemon, table: str) -> None:
    block = daemon.send(
        "SELECT toInt64(number) AS a, toString(number) AS s FROM numbers(1000) FORMAT Native"
    ).body
    assert daemon.send(None, b"INSERT INTO t FORMAT Native\n" + block).status == 200
    assert (
        daemon.send("INSERT INTO t (a, s) SETTINGS max_threads = 1 FORMAT Native", block).status
        == 200
    )
    assert daemon.value("SELECT count(), sum(a) FROM t") == "2000\t999000"


def test_insert_values(daemon: Daemon, table: str) -> None:
    for query, body in (
        ("INSERT INTO t VALUES (1, 'a'), (2, concat('b', 'c'));", None),
        ("INSERT INTO t VALUES", b"(3, 'x')"),
        (None, b"INSERT INTO t (s, a) VALUES ({p:String}, 4)"),
        ("INSERT INTO TABLE default.t (a) VALUES (5)", None),
    ):
        assert daemon.send(query, body, param_p="it's").status == 200
    assert (
        daemon.value("SELECT groupArray(s) FROM (SELECT s FROM t ORDER BY a)")
        == "['a','bc','x','it\\'s','']"
    )


def test_multipart_external_data(daemon: Daemon) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="e"; filename="e"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n1,x\n2,y\n\r\n--b--\r\n"
    )
    reply = daemon.send(
        "SELECT count(), sum(a) FROM e",
        body,
        headers={"Content-Type": "multipart/form-data; boundary=b"},
        e_format="CSV",
        e_structure="a Int32, b String",
    )
    assert reply.body == b"2\t3\n"
    assert daemon.send("SELECT * FROM e").code == 60


def test_external_data_is_its_statements_alone(daemon: Daemon) -> None:
    client = daemon.client()
    data = ExternalData(
        file_name="ex", fmt="CSV", structure="a Map(String, Int32)", data=b"{'x':1}"
    )
    for _ in range(2):
        assert client.query("SELECT * FROM ex", external_data=data).result_rows == [({"x": 1},)]
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        client.query("SELECT * FROM ex")
    # The session's own of that name stays.
    client.command("CREATE TEMPORARY TABLE ex AS SELECT 7 AS a")
    with pytest.raises(DatabaseError, match="TABLE_ALREADY_EXISTS"):
        client.query("SELECT * FROM ex", external_data=data)
    assert client.query("SELECT * FROM ex").result_rows == [(7,)]
    client.close()
    types = ExternalData(
        file_name="t", fmt="TSV", types="Map(String,Array(Int8)),Int8", data=b"{}\t1"
    )
    assert daemon.client().query("SELECT * FROM t", external_data=types).result_rows == [({}, 1)]


@pytest.mark.parametrize(
    "first",
    [
        {"readonly": 1},
        {"readonly": 2},
        {"extremes": 1},
        {"limit": 1, "offset": 7},
        {"max_result_rows": 1},
        {"max_execution_time": 0.0001},
        {"max_rows_to_read": 1},
    ],
)
def test_a_requests_settings_rule_that_request_alone(daemon: Daemon, first: dict[str, Any]) -> None:
    one: dict[str, Any] = {"session_id": f"laid-{first}"}
    threads = "SELECT getSetting('max_threads'), getSetting('max_columns_to_read')"
    usual = daemon.send(threads).body
    daemon.send("SELECT 1", **one, **first)
    # Refused as a whole.
    assert daemon.send("SELECT 1", max_columns_to_read=98, no_such_thing=1, **one).code == 115
    assert daemon.send("SELECT 1", max_columns_to_read=98, max_block_size="x", **one).status != 200
    laid = daemon.send(threads, max_threads=7, max_columns_to_read=99, **one)
    assert laid.body == b"7\t99\n"
    assert daemon.send(threads, **one).body == usual
    assert daemon.send("CREATE TEMPORARY TABLE own (a Int8)", **one).status == 200


def test_a_session_keeps_what_it_has_set_itself(daemon: Daemon) -> None:
    one: dict[str, Any] = {"session_id": "its-own"}
    asked = (
        "SELECT getSetting('max_threads'), getSetting('format_csv_null_representation'), timezone()"
    )
    for text in (
        "SET max_threads = 3, format_csv_null_representation = ',;'",
        "SET `extremes` = 1, output_format_tsv_crlf_end_of_line = 1",
        "SET TIME ZONE 'Asia/Tokyo'",
        "USE system;",
    ):
        assert daemon.send(text, max_threads=9, **one).status == 200
    reply = daemon.send(
        asked, database="default", max_threads=5, format_csv_null_representation="x", **one
    )
    assert reply.body.startswith(b"5\tx\tAsia/Tokyo\r\n")
    reply = daemon.send(asked.replace("timezone", "currentDatabase"), **one)
    assert reply.body.startswith(b"3\t,;\tsystem\r\n")
    assert reply.headers["X-ClickHouse-Timezone"] == "Asia/Tokyo"
    assert daemon.send("SET session_timezone = DEFAULT", **one).status == 200
    assert daemon.send("SELECT 1", **one).headers["X-ClickHouse-Timezone"] == "UTC"
    # Named in the request itself, it is no other request's.
    assert daemon.send("USE default", database="system", **one).status == 200
    assert daemon.send("SELECT currentDatabase()", **one).body.startswith(b"default")


def test_an_insert_leaves_nothing_to_the_next_request(daemon: Daemon, table: str) -> None:
    ask = "SELECT getSetting('max_threads'), currentDatabase()"
    before = daemon.value(ask)
    insert = f"INSERT INTO {table} SETTINGS max_threads = 7 FORMAT TSV"
    for _ in range(10):
        assert daemon.send(insert, b"1\tx\n").status == 200
        assert daemon.value(ask) == before
    assert daemon.send(insert, b"no number\n").status == 400
    assert daemon.send("INSERT INTO t FORMAT TSV", b"2\ty\n", readonly=1).code == 164
    assert daemon.value(ask) == before
    assert daemon.value(f"SELECT count() FROM {table}") == "10"


@pytest.mark.parametrize("session", [{}, {"session_id": "got"}])
def test_get_does_not_write(daemon: Daemon, table: str, session: dict[str, Any]) -> None:
    for text in (
        f"INSERT INTO {table} VALUES (1, 'x')",
        f"INSERT INTO {table} SELECT 1, 'x'",
        f"INSERT INTO {table} FORMAT TSV 1\tx",
        f"TRUNCATE TABLE {table}",
        "CREATE TABLE got (a Int8) ENGINE = Memory",
        "SYSTEM FLUSH LOGS",
    ):
        reply = daemon.send(text, method="GET", **session)
        assert (reply.code, reply.status) == (164, 500), text
        assert daemon.send(text, readonly=2, **session).code == 164
    assert daemon.send("SHOW TABLES", method="GET", **session).body == b"t\n"
    assert daemon.send("SET max_threads = 1", method="GET", **session).status == 200
    assert daemon.send("SET max_threads = 1", readonly=1, **session).code == 164
    assert daemon.send(f"INSERT INTO {table} VALUES (1, 'x')", **session).status == 200


def test_every_formats_content_type(daemon: Daemon) -> None:
    wanted = json.loads(
        daemon.value(
            "SELECT name, content_type FROM system.formats WHERE is_output"
            " AND NOT has_external_schema AND name != 'PostgreSQLWire' FORMAT JSONCompact"
        )
    )["data"]
    assert len(wanted) > 60
    for name, content_type in wanted:
        reply = daemon.send(f"SELECT 1 AS a FORMAT {name}")
        if reply.status == 200:
            assert reply.headers["Content-Type"] == content_type, name
    reply = daemon.send("SET max_threads = 1")
    assert reply.headers["Content-Type"] == "text/plain; charset=UTF-8"
    assert "X-ClickHouse-Format" not in reply.headers


def test_the_timezone_of_the_request(daemon: Daemon) -> None:
    reply = daemon.send("SELECT timezone()", session_timezone="Asia/Tokyo")
    assert (reply.body, reply.headers["X-ClickHouse-Timezone"]) == (b"Asia/Tokyo\n", "Asia/Tokyo")


@pytest.mark.parametrize(
    "held",
    [
        {"http_wait_end_of_query": 1},
        {"buffer_size": 10_000_000},
        {"http_response_buffer_size": 10_000_000},
    ],
)
def test_an_answer_that_is_held_back_fails_as_a_whole(daemon: Daemon, held: dict[str, Any]) -> None:
    text = "SELECT throwIf(number = 1200000) FROM numbers(1300000) SETTINGS max_threads = 1"
    reply = daemon.send(text, **held)
    assert (reply.status, reply.code) == (500, 395)


def raw(daemon: Daemon, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_before_http_1_1_nothing_is_chunked(daemon: Daemon) -> None:
    head = b"GET /?query=SELECT+number+FROM+numbers(400000) HTTP/1.0\r\n"
    compressed = head.replace(b" HTTP", b"&enable_http_compression=1 HTTP")
    for line in (head, compressed + b"Accept-Encoding: gzip\r\n"):
        answer = raw(daemon, line + LOGIN + b"\r\n")
        headers, _, body = answer.partition(b"\r\n\r\n")
        assert b"chunked" not in headers
        assert body == b"".join(b"%d\n" % number for number in range(400_000))
    assert raw(daemon, b"GET /ping HTTP/1.0\r\n\r\n").endswith(b"Ok.\n")


def test_a_post_without_a_length_is_refused(daemon: Daemon) -> None:
    head = b"POST /?query=SELECT+1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    assert raw(daemon, head + LOGIN + b"\r\n").startswith(b"HTTP/1.1 411 ")


def test_whose_request_it_is_is_said_once(daemon: Daemon) -> None:
    assert raw(daemon, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").endswith(b"Ok.\n")
    both = {"X-ClickHouse-User": OWNER[0], "X-ClickHouse-Key": OWNER[1]}
    assert daemon.send("SELECT 1", headers=both).code == 516
    assert daemon.send("SELECT 1", headers=both, user=None).status == 200
    assert daemon.send("SELECT 1", user=OWNER, password="x").code == 516


def test_the_query_id_may_stand_in_a_header(daemon: Daemon) -> None:
    reply = daemon.send("SELECT 1", headers={"X-ClickHouse-Query-Id": "mine"})
    assert reply.headers["X-ClickHouse-Query-Id"] == "mine"


def test_a_query_id_is_free_as_soon_as_it_is_answered(daemon: Daemon) -> None:
    for text in ("SELECT 1", "SELECT nope") * 50:
        assert daemon.send(text, query_id="again").code == (47 if "nope" in text else 0)


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_an_insert_that_fails_is_answered_before_its_rows_end(
    daemon: Daemon, encoding: str
) -> None:
    rows = PACK["gzip"](b"1\n") if encoding else b"1\n"
    head = b"POST /?query=INSERT+INTO+nope+FORMAT+TSV HTTP/1.1\r\nHost: x\r\n" + LOGIN
    if encoding:
        head += b"Content-Encoding: gzip\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=20) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"%x\r\n%s\r\n" % (len(rows), rows))
        assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")


def test_nothing_stands_behind_the_rows_of_values(daemon: Daemon, table: str) -> None:
    for more in ("; DROP TABLE t", ";SELECT 1", "; garbage", ";;x"):
        assert daemon.send(f"INSERT INTO {table} VALUES (1, 'a;b'){more}").code == 62
    assert daemon.send(f"INSERT INTO {table} VALUES (1, 'a;b'), (2, ';') ; \n").status == 200
    assert daemon.value(f"SELECT groupArray(s) FROM {table}") == "['a;b',';']"


def test_strings_and_parameters_are_bytes(daemon: Daemon) -> None:
    text = b"SELECT hex('\xff\\'\xfe\xc3\xa4'), '\xc3\xa4' AS `\xc3\xa4`"
    assert daemon.send(None, text).body == b"FF27FEC3A4\t\xc3\xa4\n"
    query = "SELECT hex({a:String})"
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
    path = f"/?{urlencode({'query': query})}&param_a=%FF%C3%A4"
    connection.request("GET", path, headers=basic_auth(OWNER))
    assert connection.getresponse().read() == b"FFC3A4\n"
    connection.close()
    assert daemon.send(None, b"SELECT 1 AS `\xff`").code == 62
    assert daemon.send(None, b"SELECT $$\xff$$").code == 62


@pytest.mark.parametrize("end", [";", ";\n", "; "])
def test_a_semicolon_never_becomes_a_row(daemon: Daemon, table: str, end: str) -> None:
    for reply in (
        daemon.send(f"INSERT INTO t (s) FORMAT TSV{end}", b"hello\n"),
        daemon.send(None, f"INSERT INTO t (s) FORMAT CSV{end}\nhello\n".encode()),
    ):
        assert (reply.status, reply.code) == (400, 62)
    assert daemon.value("SELECT count() FROM t") == "0"


@pytest.mark.parametrize(
    ("query", "body", "code"),
    [
        ("SELECT toInt32(unhex('ff00'))", None, 6),
        ("INSERT INTO t (a) FORMAT TSV", b"M\xfcller\n", 27),
    ],
)
def test_an_error_quotes_bytes_as_they_are(
    daemon: Daemon, table: str, query: str, body: bytes | None, code: int
) -> None:
    reply = daemon.send(query, body)
    assert (reply.status, reply.code) == (400, code)
    assert reply.body.startswith(b"Code: %d. " % code)
    with pytest.raises(UnicodeDecodeError):
        reply.body.decode()


def test_an_error_of_other_bytes_after_the_first_byte(daemon: Daemon) -> None:
    with pytest.raises(http.client.IncompleteRead) as broken:
        daemon.send(r"SELECT throwIf(number = 900000, 'gr\xfc') FROM numbers(1000000)")
    tail = broken.value.partial[-600:]
    assert b"__exception__" in tail
    assert b"gr\xfc" in tail


def test_a_sessions_parameters_stay_beside_a_requests_own(daemon: Daemon) -> None:
    session: dict[str, Any] = {"session_id": "parameters"}
    assert daemon.send(r"SET param_a = '7', param_text = 'a\tb\\''c'", **session).status == 200
    assert daemon.send("SELECT {a:Int8} + {b:Int8}", param_b="8", **session).body == b"15\n"
    assert daemon.send("SELECT {a:Int8}", **session).body == b"7\n"
    assert daemon.send("SELECT {a:Int8}", param_a="9", **session).body == b"9\n"
    assert daemon.send("SELECT {a:Int8}", **session).body == b"7\n"
    text = daemon.send("SELECT {text:String} FORMAT TSVRaw", param_b="8", **session)
    assert text.body == b"a\tb\\'c\n"


def test_a_format_is_known_however_it_is_written(daemon: Daemon) -> None:
    assert (
        daemon.send("SELECT 1 FORMAT json").headers["Content-Type"].startswith("application/json")
    )
    reply = daemon.send("SELECT 1", default_format="parquet")
    assert reply.headers["Content-Type"] == "application/octet-stream"


def test_an_address_may_be_long(daemon: Daemon) -> None:
    query = f"SELECT length('{'a' * 250_000}')"
    assert daemon.send(query, method="GET").body == b"250000\n"


def test_a_get_may_have_a_body(daemon: Daemon) -> None:
    assert daemon.send("SELECT 1", b"+ 3", method="GET").body == b"4\n"


def test_there_are_no_roles(daemon: Daemon) -> None:
    reply = daemon.send("SELECT 1", role="analyst")
    assert (reply.status, reply.code) == (404, 511)
