"""The read-only user reads the warehouse and nothing else; the owner stays in its folders."""

from __future__ import annotations

from typing import Any, cast

import pytest

from chdb_http.testing import OWNER, READER, Daemon

ALLOWED = [
    "SELECT count() FROM system.one",
    "SELECT version(), timezone()",
    "SELECT name, value, changed, description, type, readonly FROM system.settings LIMIT 1",
    "SELECT * FROM numbers(3)",
    "SELECT * FROM values('a Int8', 1)",
    "SELECT * FROM generateRandom('a Int8') LIMIT 1",
    "SELECT * FROM view(SELECT 1)",
    "SHOW TABLES FROM system",
    "SHOW DATABASES",
    "DESCRIBE TABLE system.one",
    "EXISTS system.one",
    "EXPLAIN SELECT 1",
    "SELECT path('http://x/y'), format('{}', 'x')",
    "WITH x AS (SELECT 1 AS a) SELECT * APPLY(sum) FROM x",
    "SELECT 'file(x)' AS `url` FROM (SELECT 1 AS file) WHERE file = 1",
    "SET max_threads = 1",
    "USE system",
]

REFUSED = [
    "SELECT * FROM file('/etc/passwd', 'LineAsString')",
    "SELECT * FROM `file`('/etc/passwd', 'LineAsString')",
    "SELECT * FROM FiLe('/etc/passwd', 'LineAsString')",
    "SELECT file('/etc/passwd')",
    "SELECT /* x */ file /* y */ ('/etc/passwd')",
    "SELECT arrayMap(x -> file(x), ['/etc/passwd'])",
    "SELECT * APPLY(file) FROM (SELECT '/etc/passwd' AS x)",
    "SELECT * APPLY(`f\\x69le`) FROM (SELECT '/etc/passwd' AS x)",
    "WITH (SELECT file('/etc/passwd')) AS x SELECT x",
    "SELECT 1 UNION ALL SELECT length(file('/etc/passwd'))",
    "SELECT * FROM view(SELECT file('/etc/passwd'))",
    "SELECT 1 WHERE 'x' IN (SELECT line FROM file('/etc/passwd', 'LineAsString'))",
    "EXPLAIN SELECT * FROM file('/etc/passwd', 'LineAsString')",
    "DESCRIBE file('/etc/passwd', 'LineAsString')",
    "DESCRIBE TABLE url('http://127.0.0.1:1/')",
    "DESCRIBE (SELECT file('/etc/passwd'))",
    "EXPLAIN QUERY TREE SELECT file('/etc/passwd')",
    "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')",
    "SELECT * FROM s3('http://127.0.0.1:1/b/a.csv')",
    "SELECT * FROM remote('127.0.0.1:1', system.one)",
    "SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "SELECT * FROM postgresql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "SELECT * FROM mongodb('127.0.0.1:1', 'a', 'b', 'c', 'd', 'x String')",
    "SELECT * FROM redis('127.0.0.1:1', 'k', 'k String, v String')",
    "SELECT * FROM sqlite('/etc/passwd', 'x')",
    "SELECT * FROM hdfs('hdfs://127.0.0.1:1/x', 'CSV', 'a String')",
    "SELECT * FROM azureBlobStorage('x', 'y', 'z')",
    "SELECT * FROM executable('x', 'CSV', 'a String')",
    "SELECT * FROM python(x)",
    "SELECT * FROM eval('SELECT 1')",
    "SELECT * FROM input('a String')",
    "SELECT * FROM dictionary('x')",
    "SELECT * FROM filesystem('/')",
    "SELECT * FROM cluster('default', file('/etc/passwd', 'LineAsString'))",
    "SELECT * FROM `/etc/passwd`",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM default.`/etc/passwd`",
    "DESCRIBE `/etc/passwd`",
    "SELECT * FROM url('file:///etc/passwd', 'LineAsString')",
    "SELECT 1 FORMAT Template SETTINGS format_template_row = '/etc/passwd'",
    "SELECT 1 IN system.processes",
    "SELECT * FROM system.processes",
    "SELECT * FROM `system`.`named_collections`",
    "SHOW PROCESSLIST",
    "SELECT * FROM merge('system', 'proc.*')",
    "SELECT * FROM merge(REGEXP('sys.*'), 'processes')",
    "SELECT 1 SETTINGS readonly = 0",
    "SELECT 1 INTO OUTFILE '/dev/null'",
    "CREATE TABLE x (a Int8) ENGINE = Memory",
    "CREATE TEMPORARY TABLE x (a Int8)",
    "INSERT INTO x VALUES (1)",
    "INSERT INTO FUNCTION file('x.csv', 'CSV', 'a Int8') VALUES (1)",
    "DROP TABLE IF EXISTS x",
    "ALTER TABLE x DELETE WHERE 1",
    "OPTIMIZE TABLE x",
    "KILL QUERY WHERE 1",
    "SYSTEM FLUSH LOGS",
    "GRANT ALL ON *.* TO analyst",
    "BACKUP TABLE x TO File('/tmp/x')",
    "SET readonly = 0",
    "SET max_threads = 1, allow_introspection_functions = 1",
    "SET additional_table_filters = {'system.one': 'file(dummy) != 1'}",
    "SELECT 1; DROP TABLE x",
    "SELECT 1 PARALLEL WITH SELECT file('/etc/passwd')",
    "EXECUTE AS default SELECT 1",
]


@pytest.mark.parametrize("query", ALLOWED)
def test_the_reader_reads(daemon: Daemon, query: str) -> None:
    reply = daemon.send(query, user=READER)
    assert reply.status == 200, reply.body


@pytest.mark.parametrize("query", REFUSED)
def test_the_reader_does_nothing_else(daemon: Daemon, query: str) -> None:
    reply = daemon.send(query, user=READER)
    assert reply.status >= 400, query
    assert b"root:" not in reply.body
    assert reply.code in (164, 62, 48, 46, 47, 60, 291, 374), reply.body


def test_the_reader_sets_no_right_by_parameter(daemon: Daemon) -> None:
    for name in (
        "readonly",
        "allow_introspection_functions",
        "additional_table_filters",
        "dialect",
    ):
        assert daemon.send("SELECT 1", user=READER, **cast(dict[str, Any], {name: "0"})).code == 164
    assert (
        daemon.send("SELECT getSetting('max_threads')", user=READER, max_threads=1).body == b"1\n"
    )


def test_the_reader_sees_no_password(daemon: Daemon) -> None:
    for query in ("SELECT * FROM system.server_settings", "SELECT getServerSetting('x')"):
        assert daemon.send(query, user=READER).code == 164
    log = (daemon.root / "log").glob("*")
    for path in log:
        content = path.read_bytes()
        assert OWNER[1].encode() not in content
        assert READER[1].encode() not in content


def test_the_owner_stays_in_its_folders(daemon: Daemon) -> None:
    (daemon.root / "files" / "mine.csv").write_text("1\n")
    mine = str(daemon.root / "files" / "mine.csv")
    assert daemon.value(f"SELECT * FROM file('{mine}', 'CSV', 'a Int8')") == "1"
    assert daemon.value(f"SELECT file('{mine}')") == "1\\n"
    (daemon.root / "files" / "link.csv").symlink_to("/etc/passwd")
    for query in (
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        f"SELECT * FROM file('{daemon.root}/files/../owner', 'LineAsString')",
        f"SELECT * FROM file('{daemon.root}/files/link.csv', 'LineAsString')",
        f"SELECT * FROM file('{daemon.root}/{{files/mine.csv,owner}}', 'LineAsString')",
        "SELECT * FROM file(concat('/etc', '/passwd'), 'LineAsString')",
        "SELECT file('/etc/passwd')",
        "SELECT file(materialize('/etc/passwd'))",
        "SELECT * FROM executable('x', 'CSV', 'a String')",
        "INSERT INTO FUNCTION file('/tmp/evil.csv', 'CSV', 'a Int8') SELECT 1",
        "SELECT * APPLY(file) FROM (SELECT '/etc/passwd' AS x)",
        "SELECT * FROM url('file:///etc/passwd', 'LineAsString')",
        "CREATE TABLE evil (line String) ENGINE = File(LineAsString, '/etc/passwd')",
        "CREATE TABLE evil (line String) ENGINE = URL('file:///etc/passwd', LineAsString)",
        "CREATE DATABASE evil ENGINE = Filesystem('/etc')",
        "CREATE TABLE evil (k String) ENGINE = EmbeddedRocksDB(0, '/tmp/evil') PRIMARY KEY k",
        "CREATE FUNCTION evil AS x -> file(x)",
        "SELECT 1 FORMAT Template SETTINGS format_template_row = '/etc/passwd'",
        "CREATE VIEW evil AS SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "CREATE DICTIONARY evil (a String, b String) PRIMARY KEY a"
        " SOURCE(FILE(PATH '/etc/passwd' FORMAT 'CSV'))"
        " LAYOUT(COMPLEX_KEY_HASHED()) LIFETIME(0)",
        "CREATE DICTIONARY evil (a String, b String) PRIMARY KEY a"
        " SOURCE(EXECUTABLE(COMMAND 'id' FORMAT 'CSV'))"
        " LAYOUT(COMPLEX_KEY_HASHED()) LIFETIME(0)",
    ):
        reply = daemon.send(query)
        assert reply.code == 291, (query, reply.body)
    reply = daemon.send("BACKUP DATABASE default TO File('/tmp/evil')")
    assert reply.status >= 400
