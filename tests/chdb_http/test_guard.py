"""The guard against statements made to get round it: no file is read, no right is gained."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chdb_http import guard
from chdb_http.testing import OWNER, READER, Daemon, Reply

CANARY = "canary-of-a-file"


def fuzz(examples: int) -> settings:
    """The same examples every time; a database of them would lie beside the tests."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(scope="module")
def secret(daemon: Daemon) -> Iterator[Path]:
    """A file beside the owner's folder, and a link to it inside."""
    path = daemon.root / "secret.txt"
    path.write_text(f"{CANARY}\n")
    link = daemon.root / "files" / "link.txt"
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    (daemon.root / "files" / "inside.txt").write_text("inside\n")
    yield path
    link.unlink()


def _one(name: str, value: str) -> dict[str, Any]:
    return {name: value}


def closed(reply: Reply, *codes: int) -> None:
    assert CANARY.encode() not in reply.body, reply.body
    assert reply.status != 200, reply.body
    assert reply.code in codes, reply.body


# The guard's; the engine's for what it cannot parse, does not know or does not have.
REFUSALS = (164, 291, 62, 36, 46, 47, 48, 497)

# Where an expression may stand. Statements are wrong if anything at all: what is asked is that
# none runs.
PLACES = [
    "SELECT {e}",
    "SELECT 1 WHERE {e} != ''",
    "SELECT 1 FROM system.one PREWHERE {e} != '' WHERE 1",
    "SELECT count() FROM system.one GROUP BY {e}",
    "SELECT count() FROM system.one HAVING {e} != ''",
    "SELECT 1 QUALIFY {e} != ''",
    "SELECT 1 ORDER BY {e}",
    "SELECT number FROM numbers(3) ORDER BY number WITH FILL FROM length({e}) TO 9",
    "SELECT 1 LIMIT length({e})",
    "SELECT 1 LIMIT 1 OFFSET length({e})",
    "SELECT 1 LIMIT 1 BY {e}",
    "SELECT sum(1) OVER (PARTITION BY {e})",
    "SELECT sum(1) OVER w FROM system.one WINDOW w AS (ORDER BY {e})",
    "SELECT arrayMap(x -> {e}, [1])",
    "SELECT arrayFold((a, x) -> concat(a, {e}), [1], '')",
    "SELECT a FROM system.one ARRAY JOIN [{e}] AS a",
    "SELECT * REPLACE ({e} AS dummy) FROM system.one",
    "SELECT * APPLY (x -> {e}) FROM system.one",
    "SELECT COLUMNS('d') APPLY (x -> {e}) FROM system.one",
    "WITH {e} AS x SELECT x",
    "WITH x AS (SELECT {e} AS y) SELECT y FROM x",
    "WITH RECURSIVE x AS (SELECT {e} AS y UNION ALL SELECT y FROM x WHERE 0) SELECT y FROM x",
    "WITH f AS (y -> {e}) SELECT f(1)",
    "SELECT (SELECT {e})",
    "SELECT 1 IN (SELECT {e})",
    "SELECT EXISTS (SELECT {e})",
    "SELECT * FROM (SELECT {e})",
    "SELECT * FROM view(SELECT {e})",
    "SELECT * FROM viewExplain('EXPLAIN', '', (SELECT {e}))",
    "SELECT * FROM numbers(length({e}))",
    "SELECT * FROM generateSeries(1, length({e}))",
    "SELECT * FROM values('a String', ({e}))",
    "SELECT 1 FROM system.one AS a JOIN system.one AS b ON {e} = '' OR a.dummy = b.dummy",
    "SELECT 1 UNION ALL SELECT length({e})",
    "SELECT 1 EXCEPT SELECT length({e})",
    "SELECT if(1, {e}, '')",
    "SELECT CASE WHEN {e} = '' THEN 1 END",
    "SELECT multiIf({e} = '', 1, 2)",
    "SELECT CAST({e} AS String)",
    "SELECT {e}::String",
    "SELECT substring({e} FROM 1 FOR 5)",
    "SELECT throwIf(1, {e})",
    "SELECT [{e}][1]",
    "SELECT ({e}, 1).1",
    "SELECT map('a', {e})['a']",
    "SELECT {e} LIKE '%'",
    "SELECT {e} BETWEEN '' AND 'z'",
    "SELECT {e} IS NULL",
    "SELECT quantileIf(0.5)(1, {e} = '')",
    "SELECT columns('d') FROM (SELECT {e} AS d)",
    "FROM system.one SELECT {e}",
    "EXPLAIN SELECT {e}",
    "EXPLAIN SYNTAX SELECT {e}",
    "EXPLAIN QUERY TREE SELECT {e}",
    "EXPLAIN PLAN actions = 1 SELECT {e}",
    "EXPLAIN PIPELINE SELECT {e}",
    "EXPLAIN ESTIMATE SELECT {e}",
    "SHOW TABLES FROM system WHERE {e} != ''",
    "SHOW TABLES FROM system WHERE throwIf(1, {e})",
    "SHOW DATABASES WHERE {e} != ''",
    "SHOW COLUMNS FROM one FROM system WHERE {e} != ''",
    "SHOW INDEXES FROM one FROM system WHERE {e} != ''",
    "DESCRIBE (SELECT {e})",
    "SELECT 1 SETTINGS additional_result_filter = '{q}'",
    "SELECT 1 FROM system.one SETTINGS additional_table_filters = {{'system.one': '{q}'}}",
    "SELECT * FROM (SELECT 1 SETTINGS additional_result_filter = '{q}')",
    "SELECT * FROM format(JSONEachRow, 'a Int8, b String DEFAULT {q}', '{{\"a\": 1}}')",
    "SELECT * FROM values('a Int8, b String DEFAULT {q}', (1, ''))",
    "SELECT * FROM null('a Int8, b String DEFAULT {q}')",
    "SELECT * FROM viewIfPermitted(SELECT 1 ELSE null('b String DEFAULT {q}'))",
    "CREATE VIEW evil AS SELECT {e}",
    "CREATE OR REPLACE VIEW evil AS SELECT {e}",
    "CREATE MATERIALIZED VIEW evil ENGINE = Memory AS SELECT {e} AS x FROM system.one",
    "CREATE MATERIALIZED VIEW evil REFRESH EVERY 1 DAY ENGINE = Memory AS SELECT {e} AS x",
    "CREATE TABLE evil ENGINE = Memory AS SELECT {e} AS x",
    "CREATE TABLE evil (a Int8, b String DEFAULT {e}) ENGINE = Memory",
    "CREATE TABLE evil (a Int8, b String MATERIALIZED {e}) ENGINE = Memory",
    "CREATE TABLE evil (a Int8, b String ALIAS {e}) ENGINE = Memory",
    "CREATE TABLE evil (a Int8, CONSTRAINT c CHECK {e} = '') ENGINE = Memory",
    "CREATE TABLE evil (a Date TTL a + toIntervalDay(length({e}))) ENGINE = MergeTree ORDER BY a",
    "CREATE TABLE evil (a Int8) ENGINE = MergeTree ORDER BY (a, {e})",
    "CREATE TABLE evil (a Int8) ENGINE = MergeTree PARTITION BY {e} ORDER BY a",
    "CREATE TEMPORARY TABLE evil AS SELECT {e} AS x",
    "CREATE FUNCTION evil AS x -> {e}",
    "CREATE ROW POLICY evil ON fuzzed USING {e} = ''",
    "INSERT INTO fuzzed SELECT 1, {e}",
    "INSERT INTO fuzzed (a, s) VALUES (1, {e})",
    "INSERT INTO fuzzed (a, s) FORMAT Values (1, {e}), (2, 'x')",
    "INSERT INTO fuzzed (a, s) SETTINGS input_format_values_interpret_expressions = 1"
    " VALUES (1, {e})",
    "INSERT INTO fuzzed (a, s) VALUES (1, (SELECT {e}))",
    "INSERT INTO fuzzed SELECT 1, * FROM format(Values, 's String', '({q})')",
    "INSERT INTO fuzzed (a, s) SELECT * FROM input('a Int64, s String') FORMAT Values (1, {e})",
    "INSERT INTO fuzzed SELECT a, {e} FROM input('a Int64') FORMAT TSV",
    "ALTER TABLE fuzzed UPDATE s = {e} WHERE 1",
    "ALTER TABLE fuzzed DELETE WHERE {e} != ''",
    "ALTER TABLE fuzzed ADD COLUMN c String DEFAULT {e}",
    "ALTER TABLE fuzzed MODIFY COLUMN s String DEFAULT {e}",
    "ALTER TABLE fuzzed ADD CONSTRAINT c CHECK {e} = ''",
    "ALTER TABLE fuzzed ADD INDEX i {e} TYPE minmax",
    "ALTER TABLE fuzzed ADD PROJECTION p (SELECT {e} ORDER BY a)",
    "DELETE FROM fuzzed WHERE {e} != ''",
    "UPDATE fuzzed SET s = {e} WHERE 1",
    "KILL QUERY WHERE {e} != ''",
    "KILL MUTATION WHERE {e} != ''",
    "CREATE DICTIONARY evil (a UInt64, b String) PRIMARY KEY a SOURCE(CLICKHOUSE(QUERY"
    " 'SELECT 1 AS a, {q} AS b')) LAYOUT(FLAT()) LIFETIME(0)",
    "CREATE DICTIONARY evil (a UInt64, b String) PRIMARY KEY a SOURCE(CLICKHOUSE(TABLE 'one'"
    " DB 'system' WHERE '{q} != 1')) LAYOUT(FLAT()) LIFETIME(0)",
    "SELECT 1; SELECT {e}",
    "SELECT 1 PARALLEL WITH SELECT {e}",
    "EXECUTE AS default SELECT {e}",
]
TABLE_PLACES = [
    "SELECT * FROM {t}",
    "DESCRIBE {t}",
    "DESCRIBE TABLE {t}",
    "SELECT 1 IN (SELECT * FROM {t})",
    "SELECT * FROM (SELECT * FROM {t})",
    "SELECT * FROM system.one AS a, {t} AS b",
    "SELECT * FROM view(SELECT * FROM {t})",
    "SELECT * FROM loop({t})",
    "SELECT * FROM cluster('default', {t})",
    "SELECT * FROM remote('127.0.0.1', {t})",
    "SELECT * FROM viewIfPermitted(SELECT 1 ELSE {t})",
    "SELECT * FROM {t} FINAL",
    "EXPLAIN SELECT * FROM {t}",
    "EXPLAIN AST INSERT INTO FUNCTION {t} SELECT 1",
    "CREATE TABLE evil AS {t}",
    "CREATE TABLE evil ENGINE = Memory AS SELECT * FROM {t}",
    "CREATE VIEW evil AS SELECT * FROM {t}",
    "INSERT INTO fuzzed SELECT 1, * FROM {t}",
    "INSERT INTO FUNCTION {t} SELECT 'x'",
    "INSERT INTO TABLE FUNCTION {t} VALUES ('x')",
    "SELECT (SELECT groupArray(*) FROM {t})",
    "WITH x AS (SELECT * FROM {t}) SELECT * FROM x",
]


@st.composite
def spelled(draw: st.DrawFn, name: str) -> str:
    """A function's name, written as it may be."""
    text = "".join(draw(st.sampled_from([c.lower(), c.upper()])) for c in name)
    quote = draw(st.sampled_from(["", "", "`", '"']))
    if quote and draw(st.booleans()):
        at = draw(st.integers(0, len(text) - 1))
        text = f"{text[:at]}\\x{ord(text[at]):02x}{text[at + 1 :]}"
    after = draw(st.sampled_from(["", " ", "/* file */", "-- x\n", "\n", "\u00a0", "\t"]))
    return f"{quote}{text}{quote}{after}"


@pytest.fixture
def fuzzed(daemon: Daemon, secret: Path) -> Iterator[Path]:
    made = "CREATE TABLE fuzzed (a Int64, s String) ENGINE = MergeTree ORDER BY a"
    assert daemon.send(made).status == 200
    yield secret
    assert daemon.send("DROP TABLE fuzzed SYNC").status == 200
    for kind in ("VIEW", "DICTIONARY", "TABLE"):
        assert daemon.send(f"EXISTS {kind} evil").body == b"0\n"


@fuzz(200)
@given(data=st.data())
def test_no_function_reads_a_file(daemon: Daemon, fuzzed: Path, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(PLACES))
    name = data.draw(spelled("file"))
    call = f"{name}('{fuzzed}')"
    statement = place.format(e=call, q=call.replace("\\", "\\\\").replace("'", "\\'"))
    user = data.draw(st.sampled_from([READER, OWNER]))
    closed(daemon.send(statement, user=user), *REFUSALS)


@fuzz(120)
@given(data=st.data())
def test_no_table_function_reads_a_file(daemon: Daemon, fuzzed: Path, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(TABLE_PLACES))
    name = data.draw(st.sampled_from(["file", "url", "executable", "sqlite", "fileCluster"]))
    scheme = "file://" if name == "url" else ""
    call = f"{data.draw(spelled(name))}('{scheme}{fuzzed}', 'LineAsString')"
    user = data.draw(st.sampled_from([READER, OWNER]))
    closed(daemon.send(place.format(t=call), user=user), *REFUSALS)


def test_places_hold_harmless_expressions(daemon: Daemon) -> None:
    """The places above are not refused for another reason."""
    runs = [p for p in PLACES if p.startswith(("SELECT", "WITH", "EXPLAIN", "SHOW", "DESC"))]
    passed = [
        place
        for place in runs
        if daemon.send(place.format(e="toString('x')", q="1"), user=READER).status == 200
    ]
    assert len(passed) > 45, sorted(set(runs) - set(passed))


def test_each_table_function_is_known_or_refused(daemon: Daemon, secret: Path) -> None:
    names = daemon.value("SELECT name FROM system.table_functions").split()
    assert len(names) > 80
    for name in names:
        for arguments in ("", f"'{secret}'", f"'{secret}', 'LineAsString', 'line String'"):
            reply = daemon.send(f"SELECT * FROM {name}({arguments}) LIMIT 1", user=READER)
            assert CANARY.encode() not in reply.body
            if name.lower() not in guard.READER_TABLE_FUNCTIONS:
                assert reply.code in (164, 62), (name, reply.body)


def test_each_function_is_known_or_refused(daemon: Daemon) -> None:
    """By the engine's own word on what a function is about: a new one of no known kind is out."""
    suspicious = daemon.value(
        "SELECT name FROM system.functions WHERE alias_to = '' AND NOT is_aggregate AND categories"
        " IN ('AI', 'Introspection', 'Embedded Dictionary', 'Other', '') ORDER BY name"
    ).split()
    assert {"file", "showCertificate", "getServerSetting", "aiGenerate"} <= set(suspicious)
    refused = {
        name
        for name in suspicious
        if daemon.send(f"SELECT {name}('{OWNER[0]}', '1')", user=READER).code == 164
    }
    for name in ("file", "getMacro", "getServerSetting", "showCertificate", "hasColumnInTable"):
        assert name in refused
    assert not refused & {"version", "currentDatabase", "throwIf", "materialize", "toTypeName"}
    kinds = daemon.value(
        "SELECT DISTINCT name FROM system.functions WHERE alias_to = ''"
        " AND categories IN ('AI', 'Introspection', 'Embedded Dictionary')"
    ).split()
    assert set(kinds) <= refused


def test_each_system_table_is_known_or_refused(daemon: Daemon) -> None:
    tables = daemon.value("SELECT name FROM system.tables WHERE database = 'system'").split()
    assert len(tables) > 80
    for table in tables:
        spellings: tuple[dict[str, Any], ...] = (
            {"query": f"SELECT * FROM system.{table} LIMIT 0"},
            {"query": f"SELECT (1, 2, 3) IN {table}", "database": "system"},
            {"query": "SELECT * FROM {t:Identifier} LIMIT 0", "param_t": f"system.{table}"},
            {"query": "SELECT * FROM system.{t:Identifier} LIMIT 0", "param_t": table},
        )
        for parameters in spellings:
            reply = daemon.send(user=READER, **parameters)
            if table not in guard.READER_SYSTEM_TABLES:
                assert reply.code == 164, (parameters, reply.body)
            elif parameters is spellings[0]:
                assert reply.status == 200, (parameters, reply.body)


def test_each_setting_of_text_is_known_or_refused(daemon: Daemon, secret: Path) -> None:
    for user, code in ((READER, 164), (OWNER, 291)):
        reply = daemon.send("SELECT 1", user=user, input_format_values_interpret_expressions="1")
        assert reply.code == code
    named = daemon.value(
        "SELECT name FROM system.settings WHERE type IN ('String', 'Map', 'URI', 'Dialect')"
    ).split()
    assert {"additional_result_filter", "format_schema", "dialect"} <= set(named)
    own = {"database", "default_format", "compression", "query"}
    for name in set(named) - own:
        for user, code in ((READER, 164), (OWNER, 291)):
            value = f"file('{secret}')"
            reply = daemon.send(user=user, query="SELECT 1", **_one(name, value))
            assert CANARY.encode() not in reply.body
            if name not in guard._TEXT_SETTINGS:
                assert reply.code == code, (name, reply.body)
                inner = f"SELECT * FROM (SELECT 1 SETTINGS {name} = 'x')"
                assert daemon.send(inner, user=user).code == code, name


def test_the_reader_lifts_no_limit(daemon: Daemon) -> None:
    limits = ("max_ast_depth", "max_query_size", "max_subquery_depth", "max_parser_depth")
    for name in limits:
        now = int(daemon.value(f"SELECT value FROM system.settings WHERE name = '{name}'"))
        for value, code in ((now + 1, 164), (0, 164), (now - 1, 0)):
            assert daemon.send("SELECT 1", user=READER, **_one(name, str(value))).code == code
        inner = f"SELECT * FROM (SELECT 1 SETTINGS {name} = {now + 1})"
        assert daemon.send(inner, user=READER).code == 164
    assert daemon.send("SELECT 1", user=READER, max_memory_usage=10**9).status == 200
    for name in ("compatibility", "os_threads_nice_value_query", "send_logs_level", "workload"):
        assert daemon.send("SELECT 1", user=READER, **_one(name, "1")).code in (164, 36, 72), name


PIECES = ["files", "..", ".", "link.txt", "inside.txt", "secret.txt", "*", "**", "?ecret.txt"]
PIECES += ["{..,files}", "{link,inside}.txt", "{a,b}", "[s]ecret.txt", "file://", "%2e%2e", "..."]


@fuzz(120)
@given(pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5), absolute=st.booleans())
def test_the_owner_leaves_its_folder_by_no_path(
    daemon: Daemon, secret: Path, pieces: list[str], absolute: bool
) -> None:
    path = "/".join(pieces)
    if absolute:
        path = f"{daemon.root}/{path}"
    for call in (f"file('{path}', 'LineAsString')", f"url('file://{path}', 'LineAsString')"):
        assert CANARY.encode() not in daemon.send(f"SELECT * FROM {call}").body


def test_the_owner_reads_its_folder(daemon: Daemon) -> None:
    deep = daemon.root / "files" / "deep"
    deep.mkdir()
    (deep / "inside.txt").write_text("inside\n")
    for path in (
        "deep/inside.txt",
        f"{deep}/inside.txt",
        f"{deep}/in*.txt",
        "deep/{in,out}side.txt",
        "deep",
    ):
        found = daemon.send(f"SELECT * FROM file('{path}', 'LineAsString')")
        assert (found.status, found.body) == (200, b"inside\n"), (path, found.body)
    query = "SELECT * FROM file({p:String}, 'LineAsString')"
    assert daemon.send(query, param_p="deep/inside.txt").body == b"inside\n"
    assert (
        daemon.value(f"SELECT * FROM url('file://{deep}/inside.txt', 'LineAsString')") == "inside"
    )
    assert daemon.value(f"DESCRIBE file('{deep}/inside.txt', 'LineAsString')").startswith("line\t")
    made = "INSERT INTO FUNCTION file('deep/made.txt', 'LineAsString', 'line String') SELECT 'x'"
    assert daemon.send(made).status == 200
    assert (deep / "made.txt").read_text() == "x\n"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE evil (a Int8) ENGINE = MergeTree ORDER BY a"
        " SETTINGS disk = disk(type = 'local', path = '/tmp/evil/')",
        "ALTER TABLE fuzzed MODIFY SETTING disk = disk(type = 'local', path = '/tmp/evil/')",
        "ATTACH TABLE evil FROM '/etc' (a Int8) ENGINE = MergeTree ORDER BY a",
        "CREATE NAMED COLLECTION evil AS url = 'file:///etc/passwd'",
        "CREATE TABLE evil (line String) ENGINE = URL(evil)",
        "CREATE TABLE evil (line String) ENGINE = File(LineAsString, 0)",
        "CREATE TABLE evil (line String) ENGINE = QueryRunner",
        "CREATE TABLE evil (line String) ENGINE = IcebergLocal('/etc')",
        "CREATE DATABASE evil ENGINE = Backup('default', File('/etc'))",
        "CREATE DATABASE evil ENGINE = URL('file:///etc')",
        "CREATE DATABASE evil ENGINE = SQLite('/etc/passwd')",
        "CREATE DATABASE evil ENGINE = DataLakeCatalog('file:///etc')",
        "SNAPSHOT TABLE fuzzed TO File('/tmp/evil')",
        "SELECT * FROM file('stdin', 'LineAsString')",
        "INSERT INTO FUNCTION file('stdout', 'LineAsString', 'line String') SELECT 'x'",
        "SET dialect = 'kusto'",
        "SET format_schema = '/etc/passwd:X'",
        "SET input_format_record_errors_file_path = '/tmp/evil'",
        "SELECT 1 SETTINGS rename_files_after_processing = 'x'",
        "DESCRIBE fuzzed SETTINGS format_schema = '/etc/passwd:X'",
        "DESCRIBE fuzzed FORMAT CSV SETTINGS format_schema = '/etc/passwd:X'",
        "EXISTS fuzzed SETTINGS max_threads = 1, additional_result_filter = 'file(1)'",
        "SHOW TABLES SETTINGS additional_result_filter = 'file(1)' FORMAT CSV",
        "CHECK TABLE fuzzed SETTINGS additional_result_filter = 'file(1)'",
    ],
)
def test_the_owner_makes_no_way_out(daemon: Daemon, fuzzed: Path, statement: str) -> None:
    closed(daemon.send(statement), 291)
    closed(daemon.send(statement, user=READER), 164, 291)


PASSWORD = "canary-of-a-password"
DEFINED = [
    "VIEW {n} (a Int8) AS SELECT * FROM s3('http://127.0.0.1:1/bkt/a', 'key', '{p}', 'CSV')",
    "VIEW {n} (a Int8) AS SELECT * FROM s3('http://127.0.0.1:1/bkt/a', 'CSV', 'a Int8',"
    " headers('Authorization' = '{p}'))",
    "VIEW {n} (a Int8) AS SELECT * FROM mysql('127.0.0.1:1', 'd', 't', 'u', '{p}')",
    "VIEW {n} (a Int8) AS SELECT * FROM postgresql('127.0.0.1:1', 'd', 't', 'u', '{p}')",
    "VIEW {n} (a Int8) AS SELECT * FROM remote('127.0.0.1:1', 'd', 't', 'u', '{p}')",
    "VIEW {n} (a Int8) AS SELECT * FROM redis('127.0.0.1:1', 'a', 'a Int8', 0, '{p}')",
    "VIEW {n} (a Int8) AS SELECT * FROM url('http://u:{p}@127.0.0.1:1/', 'CSV', 'a Int8')",
    "VIEW {n} (a Int8) AS SELECT * FROM mongodb('127.0.0.1:1', 'd', 'c', 'u', '{p}', 'a Int8')",
    "VIEW {n} (a Int8) AS SELECT * FROM mongodb('mongodb://u:{p}@127.0.0.1:1/d', 'c', 'a Int8')",
    "VIEW {n} (a Int8) AS SELECT * FROM iceberg('http://127.0.0.1:1/bkt/', 'key', '{p}')",
    "VIEW {n} (a Int8) AS SELECT * FROM azureBlobStorage('http://127.0.0.1:1/x?sig={p}', 'c', 'b')",
    "VIEW {n} (a Int8) AS SELECT * FROM azureBlobStorage('http://127.0.0.1:1/x', 'c', 'b', 'u',"
    " '{p}', 'CSV')",
    "VIEW {n} (a String) AS SELECT encrypt('aes-128-ecb', 'x', '{p}') AS a",
    "TABLE {n} (a Int8) ENGINE = MySQL('127.0.0.1:1', 'd', 't', 'u', '{p}')",
    "TABLE {n} (a Int8) ENGINE = PostgreSQL('127.0.0.1:1', 'd', 't', 'u', '{p}')",
    "TABLE {n} (a Int8) ENGINE = URL('http://u:{p}@127.0.0.1:1/', 'CSV')",
    "TABLE {n} (a Int8) ENGINE = URL('http://127.0.0.1:1/', 'CSV',"
    " headers('Authorization' = '{p}'))",
    "TABLE {n} (a Int8) ENGINE = MongoDB('mongodb://u:{p}@127.0.0.1:1/d', 'c')",
    "TABLE {n} (a Int8) ENGINE = Redis('127.0.0.1:1', 0, '{p}') PRIMARY KEY a",
    "TABLE {n} (a String, b String DEFAULT encrypt('aes-128-ecb', a, '{p}'))"
    " ENGINE = MergeTree ORDER BY a",
    "DICTIONARY {n} (a UInt64, b String) PRIMARY KEY a SOURCE(MYSQL(HOST '127.0.0.1' PORT 1"
    " USER 'u' PASSWORD '{p}' DB 'd' TABLE 't')) LAYOUT(FLAT()) LIFETIME(0)",
    "DICTIONARY {n} (a UInt64, b String) PRIMARY KEY a SOURCE(HTTP(URL 'http://127.0.0.1:1/'"
    " FORMAT 'CSV' CREDENTIALS(USER 'u' PASSWORD '{p}'))) LAYOUT(FLAT()) LIFETIME(0)",
    "DICTIONARY {n} (a UInt64, b String) PRIMARY KEY a SOURCE(HTTP(URL 'http://127.0.0.1:1/'"
    " FORMAT 'CSV' HEADERS(HEADER(NAME 'x' VALUE '{p}')))) LAYOUT(FLAT()) LIFETIME(0)",
    "DICTIONARY {n} (a UInt64, b String) PRIMARY KEY a SOURCE(MONGODB(URI"
    " 'mongodb://u:{p}@127.0.0.1:1/d' COLLECTION 'c')) LAYOUT(FLAT()) LIFETIME(0)",
]  # fmt: skip


def test_no_reader_sees_a_password_of_a_definition(daemon: Daemon) -> None:
    """The engine hides it, or the definition is refused."""
    assert daemon.send("CREATE DATABASE defined").status == 200
    refused = []
    for at, definition in enumerate(DEFINED):
        name = f"defined.d{at}"
        reply = daemon.send(f"CREATE {definition.format(n=name, p=PASSWORD)}")
        if reply.status != 200:
            assert (reply.code, b"is shown to every reader" in reply.body) == (291, True), (
                reply.body
            )
            refused.append(at)
            continue
        for query in (
            f"SHOW CREATE TABLE {name}",
            f"SELECT * FROM system.tables WHERE name = 'd{at}'",
            f"SELECT * FROM system.columns WHERE table = 'd{at}'",
            f"EXPLAIN SYNTAX SELECT * FROM {name}",
            f"EXPLAIN QUERY TREE dump_ast = 1 SELECT * FROM {name}",
        ):
            seen = daemon.send(query, user=READER, format_display_secrets_in_show_and_select=1)
            assert PASSWORD.encode() not in seen.body, query
    assert len(refused) == 3
    assert daemon.send("DROP DATABASE defined SYNC").status == 200


STATEMENTS = [
    "BACKUP TABLE fuzzed TO File('{f}')",
    "BACKUP TABLE fuzzed TO File('{b}/../evil')",
    "BACKUP TABLE fuzzed TO Disk('default', 'evil')",
    "BACKUP TABLE fuzzed TO Memory('evil')",
    "RESTORE TABLE fuzzed FROM File('/etc')",
    "SNAPSHOT TABLE fuzzed TO File('{f}')",
    "SELECT 1 INTO OUTFILE '{f}'",
    "SELECT 1 INTO/**/OUTFILE '{f}'",
    "(SELECT 1 INTO OUTFILE '{f}')",
    "SELECT 1 UNION ALL (SELECT 1 INTO OUTFILE '{f}')",
    "SELECT * FROM (SELECT 1 INTO OUTFILE '{f}')",
    "SELECT 1 FORMAT CSV INTO OUTFILE '{f}'",
    "EXPLAIN SELECT 1 INTO OUTFILE '{f}'",
    "EXPLAIN (SELECT 1 INTO OUTFILE '{f}')",
    "EXPLAIN AST ALTER TABLE fuzzed DROP COLUMN s INTO OUTFILE '{f}'",
    "CHECK TABLE fuzzed INTO OUTFILE '{f}'",
    "EXISTS fuzzed INTO OUTFILE '{f}' AND STDOUT",
    "INSERT INTO fuzzed (s) FROM/**/INFILE '/etc/passwd' FORMAT LineAsString",
    "INSERT INTO fuzzed (s) `FROM` INFILE '/etc/passwd' FORMAT LineAsString",
    "EXPLAIN AST INSERT INTO fuzzed FROM INFILE '/etc/passwd' FORMAT LineAsString",
    "CREATE TABLE evil (a Int8) ENGINE = File(CSV, '{f}')",
    "CREATE TABLE evil (a Int8) ENGINE = File(CSV)",
    "CREATE TABLE evil (a Int8) ENGINE = Executable('id', 'CSV')",
    "CREATE DATABASE evil ENGINE = Atomic SETTINGS disk = disk(type = local, path = '{f}/')",
    *map(
        "SYSTEM {}".format,
        ("RELOAD CONFIG", "FLUSH LOGS", "STOP MERGES", "DROP MARK CACHE", "SHUTDOWN", "KILL",
         "ENABLE FAILPOINT x", "START LISTEN HTTP", "UNFREEZE WITH NAME 'x'", "SYNC FILE CACHE",
         "RELOAD DICTIONARIES", "RESTART DISK default"),
    ),
    *map(
        "SHOW {}".format,
        ("GRANTS", "USERS", "ACCESS", "PRIVILEGES", "PROCESSLIST", "CREATE USER default"),
    ),
    "CREATE USER evil", "SET ROLE DEFAULT", "BEGIN TRANSACTION", "CREATE WORKLOAD evil",
    "CHECK TABLE fuzzed", "TRUNCATE TABLE fuzzed", "DETACH TABLE fuzzed",
    "ALTER TABLE fuzzed FREEZE", "RENAME TABLE fuzzed TO evil", "DELETE FROM fuzzed WHERE 1",
    "KILL QUERY WHERE 1", "CREATE NAMED COLLECTION evil AS a = 'x'",
    "EXPLAIN AST DROP TABLE fuzzed",
]  # fmt: skip


@pytest.mark.parametrize("statement", STATEMENTS)
def test_the_reader_runs_no_other_statement(daemon: Daemon, fuzzed: Path, statement: str) -> None:
    evil = daemon.root / "evil"
    query = statement.format(f=evil, b=daemon.root / "backups")
    closed(daemon.send(query, user=READER), 164, 62, 48)
    if "{" in statement or "INFILE" in statement:
        closed(daemon.send(query), 291, 62, 48, 36, 497)
    assert not evil.exists()
    assert daemon.value("SELECT count() FROM fuzzed") == "0"


def test_external_data_holds_no_expression(daemon: Daemon, secret: Path) -> None:
    for structure in (
        f"a Int8, b String DEFAULT file('{secret}')",
        f"a Int8, b String) ENGINE = File(LineAsString, '{secret}') AS SELECT (1",
    ):
        boundary = "x" * 20
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="e"; filename="e"\r\n\r\n'
            f'{{"a":1}}\r\n--{boundary}--\r\n'
        ).encode()
        reply = daemon.send(
            "SELECT * FROM e",
            body,
            headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
            e_structure=structure,
            e_format="JSONEachRow",
        )
        closed(reply, 291, 62)


def test_values_are_evaluated_where_they_are_harmless(daemon: Daemon, fuzzed: Path) -> None:
    rows = "(1, 'file(x)'), (2, concat('a', toString(1 + 1))), (3, 'it\\'s'), (4, upper('set'))"
    assert daemon.send(f"INSERT INTO fuzzed (a, s) VALUES {rows};").status == 200
    assert daemon.send("INSERT INTO fuzzed VALUES", b"(5, lower('B'))").status == 200
    found = daemon.value("SELECT groupArray(s) FROM (SELECT s FROM fuzzed ORDER BY a)")
    assert found == r"['file(x)','a2','it\'s','SET','b']"
    # Too many to look through: literals only.
    many = b",".join(b"(%d, 'file(x)')" % n for n in range(100000))
    assert len(many) > 1 << 20
    assert daemon.send("INSERT INTO fuzzed VALUES", many).status == 200
    closed(daemon.send("INSERT INTO fuzzed VALUES", many + f",(1, file('{fuzzed}'))".encode()), 344)
    assert daemon.value("SELECT countIf(s LIKE '%canary%'), count() > 100000 FROM fuzzed") == "0\t1"


def test_a_session_keeps_nothing_that_misleads(daemon: Daemon, secret: Path) -> None:
    """A parameter of the session, of which this request knows nothing, names no file."""
    session: dict[str, Any] = {"session_id": "misleading"}
    assert daemon.send(f"SET param_p = '{secret}'", **session).status == 200
    closed(daemon.send("SELECT file({p:String})", **session), 291)
    closed(daemon.send("SELECT * FROM file({p:String}, 'LineAsString')", **session), 291)
    for name in ("offset", "limit", "max_result_rows", "max_ast_depth"):
        daemon.send(f"SET {name} = 1", **session)
    closed(daemon.send(f"SELECT file('{secret}')", **session), 291)


def test_random_bytes_are_survived(daemon: Daemon, secret: Path) -> None:
    source = random.Random(7)
    for _ in range(150):
        raw = bytes(
            source.choice(b"SELECTfile(){}'`\"\\;,.:$/*- \n\t#@\x00\xff") for _ in range(60)
        )
        for user in (READER, OWNER):
            reply = daemon.send(None, raw, user=user)
            assert CANARY.encode() not in reply.body
            assert json.dumps(reply.code)
    assert daemon.value("SELECT 1") == "1"


@pytest.mark.parametrize("user", [OWNER, READER])
def test_any_bytes_may_stand_in_a_literal_that_is_looked_at(
    daemon: Daemon, user: tuple[str, str]
) -> None:
    for query, answer in (
        (r"SELECT hex('\xff'), 'engine'", b"FF\tengine\n"),
        ("SELECT hex(x'ff'), 'engine'", b"FF\tengine\n"),
        (r"SELECT match('a', '[\x80-\xff]'), 'engine'", b"0\tengine\n"),
    ):
        reply = daemon.send(query, user=user)
        assert reply.body == answer, query
    if user == OWNER:
        daemon.send("CREATE TABLE anyway (a String DEFAULT '\\xff', b String) ENGINE = Memory")
        assert daemon.send(r"INSERT INTO anyway VALUES (upper('a'), '\xff')").status == 200
        assert daemon.value("SELECT a, hex(b) FROM anyway") == "A\tFF"
        daemon.send("DROP TABLE anyway")


def test_a_setting_may_be_a_parameter_as_far_as_any_value_may(daemon: Daemon) -> None:
    query = "SELECT getSetting('max_threads') SETTINGS max_threads = {x:UInt64}"
    assert daemon.send(query, param_x="1").body == b"1\n"
    assert daemon.send(query, param_x="1", user=READER).code == 164
    refused = "SELECT 1 SETTINGS additional_result_filter = {x:String}"
    assert daemon.send(refused, param_x="file('x')").code == 291
    disk = "CREATE TABLE d (a Int8) ENGINE = MergeTree ORDER BY a SETTINGS disk = {x:String}"
    assert daemon.send(disk, param_x="disk(type = local, path = '/tmp/')").code == 479


def test_what_is_too_deep_to_look_into_is_refused(daemon: Daemon) -> None:
    query = f"SELECT {'[' * 900}1{']' * 900}"
    assert daemon.send(query).status == 200
    assert daemon.send(query, user=READER).code == 306
