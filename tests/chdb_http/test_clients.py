"""Other people's clients, unchanged: clickhouse-connect, SQLAlchemy, Airflow, Great Expectations.

And the requests of a database browser, which come from outside Python.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any
from uuid import UUID

import clickhouse_connect
import great_expectations
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy
from clickhouse_connect import dbapi
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, ProgrammingError, StreamFailureError
from clickhouse_connect.driver.external import ExternalData
from clickhouse_connect.driver.tools import insert_file

from chdb_http.testing import OWNER, READER, Daemon

TYPES = {
    "Int8": -1,
    "UInt64": 2**64 - 1,
    "Int256": -(2**200),
    "Float64": 1.5,
    "Decimal(18, 4)": Decimal("12345.6789"),
    "Decimal(76, 10)": Decimal("1.0000000001"),
    "String": "naïve\n\t'x'",
    "FixedString(3)": b"abc",
    "Bool": True,
    "Date": dt.date(2024, 2, 29),
    "Date32": dt.date(1950, 1, 1),
    "DateTime": dt.datetime(2024, 2, 29, 1, 2, 3),  # noqa: DTZ001
    "DateTime64(6)": dt.datetime(2024, 2, 29, 1, 2, 3, 456789),  # noqa: DTZ001
    "UUID": UUID("61f0c404-5cb3-11e7-907b-a6006ad3dba0"),
    "IPv4": IPv4Address("10.0.0.1"),
    "Nullable(Int32)": None,
    "LowCardinality(String)": "low",
    "LowCardinality(Nullable(String))": None,
    "Array(Nullable(String))": ["a", None],
    "Map(String, UInt8)": {"a": 1},
    "Tuple(a Int8, b String)": {"a": 1, "b": "x"},
    "Enum8('x' = 1, 'y' = 2)": "y",
    "JSON": {"a": 1, "b": {"c": "d"}},
    "JSON(a Int8)": {"a": 1, "z": [1, 2]},
    "Int128": -(2**100),
    "UInt256": 2**255,
    "Float32": 0.5,
    "BFloat16": 1.5,
    "Decimal(9, 2)": Decimal("-1.23"),
    "Decimal(38, 5)": Decimal("1.00001"),
    "Time": dt.timedelta(seconds=3661),
    "Time64(3)": dt.timedelta(seconds=3661, milliseconds=5),
    "DateTime64(3, 'Asia/Tokyo')": dt.datetime(2024, 2, 29, 1, 2, 3, 456000, tzinfo=dt.UTC),
    "Enum16('a' = 1, 'b' = 1000)": "b",
    "IPv6": IPv6Address("::1"),
    "Array(Array(Int8))": [[1], [2, 3], []],
    "Map(String, Array(Nullable(Int64)))": {"a": [1, None]},
    "Map(LowCardinality(String), Tuple(a Int8, b Nullable(String)))": {"k": {"a": 1, "b": None}},
    "Tuple(Int8, String)": (1, "x"),
    "Nullable(UUID)": None,
    "Nullable(Decimal(18, 3))": None,
    "Nullable(DateTime64(9))": None,
    "LowCardinality(FixedString(2))": b"ab",
    "Array(LowCardinality(Nullable(String)))": ["x", None],
    "Point": (1.0, 2.0),
    "Polygon": [[(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]],
    "Variant(String, UInt64)": 5,
    "Dynamic": "x",
    "Nested(a Int8, b String)": [{"a": 1, "b": "x"}],
    "SimpleAggregateFunction(sum, UInt64)": 7,
    "QBit(Float32, 4)": [1.0, 2.0, 3.0, 4.0],
}


@pytest.mark.parametrize("compress", [False, "gzip", "lz4", "zstd"])
def test_every_type_both_ways(daemon: Daemon, compress: str | bool) -> None:
    client = daemon.client(compress=compress)
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(TYPES))
    client.command("DROP TABLE IF EXISTS types")
    client.command(
        f"CREATE TABLE types ({columns}) ENGINE = MergeTree ORDER BY tuple()",
        settings={"flatten_nested": 0, "enable_time_time64_type": 1},
    )
    row = list(TYPES.values())
    summary = client.insert("types", [row, row])
    assert summary.written_rows == 2
    for name, kind, sent, got in zip(
        range(len(row)), TYPES, row, client.query("SELECT * FROM types").result_rows[0], strict=True
    ):
        assert got == sent, (name, kind)
    client.command("DROP TABLE types")
    client.close()


def test_native_is_written_for_the_oldest_client(daemon: Daemon, client: Client) -> None:
    """A client that may be newer sees it, and reads it so."""
    reply = daemon.send("SELECT 1 AS check FORMAT Native", client_protocol_version=54405)
    assert reply.body == b"\x01\x01\x05check\x05UInt8\x01"
    assert client.protocol_version == 0
    result = client.query("SELECT toDateTime(0, 'Asia/Tokyo'), toDateTime64(0, 3, 'Asia/Tokyo')")
    assert [kind.name for kind in result.column_types] == [
        "DateTime",
        "DateTime64(3, 'Asia/Tokyo')",
    ]


def test_queries_contexts_and_streams(client: Client) -> None:
    assert client.ping()
    assert str(client.server_version).startswith("26.")
    result = client.query("SELECT number AS n FROM numbers({k:Int32})", parameters={"k": 3})
    assert result.result_columns == [[0, 1, 2]]
    assert int(result.summary["read_rows"]) == 3
    context = client.create_query_context("SELECT {x:String} AS x", parameters={"x": "a'b\\c\nd"})
    assert client.query(context=context).first_row == ("a'b\\c\nd",)
    with client.query_row_block_stream("SELECT number FROM numbers(500000)") as stream:
        assert sum(len(block) for block in stream) == 500000
    with client.query_df_stream("SELECT number FROM numbers(200000)") as frames:
        assert sum(len(frame) for frame in frames) == 200000
    assert client.query_arrow("SELECT number FROM numbers(10)").num_rows == 10
    assert client.query("SELECT 1 WHERE 0").result_rows == []
    assert client.raw_query("SELECT 1", fmt="CSV") == b"1\n"


def test_external_data(client: Client) -> None:
    data = ExternalData(
        file_name="people.csv",
        fmt="CSV",
        structure=["id UInt32", "name String"],
        data=b'1,"x"\n2,"y"\n',
    )
    rows = client.query("SELECT * FROM people ORDER BY id", external_data=data).result_rows
    assert rows == [(1, "x"), (2, "y")]


def test_errors_keep_their_code(client: Client) -> None:
    with pytest.raises(DatabaseError) as missing:
        client.query("SELECT * FROM absent")
    assert "code: 60" in str(missing.value)
    with pytest.raises(DatabaseError, match="code: 115"):
        client.query("SELECT 1", settings={"no_such_setting": 1})
    query = "SELECT throwIf(number = 3000000) FROM numbers(4000000) SETTINGS max_threads = 1"
    with (
        pytest.raises(StreamFailureError, match="Code: 395"),
        client.query_row_block_stream(query) as stream,
    ):
        list(stream)
    assert client.command("SELECT 1") == 1


@pytest.fixture
def made(client: Client) -> Iterator[str]:
    client.command(
        "CREATE TABLE made (a Int64, s Nullable(String) DEFAULT 'd', t DateTime)"
        " ENGINE = MergeTree ORDER BY a"
    )
    yield "made"
    client.command("DROP TABLE made")


def test_every_way_to_insert(client: Client, made: str, tmp_path: Path) -> None:
    times = pd.to_datetime(["2024-01-01", "2024-01-02"])
    frame = pd.DataFrame({"a": [1, 2], "s": ["x", None], "t": times})
    assert client.insert_df(made, frame).written_rows == 2
    assert client.insert_arrow(made, pa.table({"a": [3, 4], "s": ["q", "w"]})).written_rows == 2
    context = client.create_insert_context(made, column_names=["a", "s"], data=[[5, "five"]])
    client.insert(context=context)
    context.data = [[6, "six"]]
    client.insert(context=context)
    packed = gzip.compress(b"7,seven\n8,eight\n")
    names = ["a", "s"]
    assert client.raw_insert(made, names, packed, fmt="CSV", compression="gzip").written_rows == 2
    pieces = (b"%d,x\n" % n for n in (9, 10, 11))
    assert client.raw_insert(made, names, pieces, fmt="CSV").written_rows == 3
    path = tmp_path / "rows.csv"
    path.write_text("a,s\n12,x\n13,y\n")
    assert insert_file(client, made, str(path), fmt="CSVWithNames").written_rows == 2
    waits = {"async_insert": 1, "wait_for_async_insert": 1}
    client.insert(made, [[14]], column_names=["a"], settings=waits)
    client.command(f"INSERT INTO {made} (a) VALUES (15)", settings=waits)
    assert client.query(f"SELECT count(), sum(a), countIf(s = 'd') FROM {made}").first_row == (
        15,
        120,
        2,
    )
    assert client.query_df(f"SELECT a, t FROM {made} ORDER BY a LIMIT 2")["t"].tolist() == list(
        times
    )
    assert client.query_arrow(f"SELECT a FROM {made} ORDER BY a LIMIT 3").to_pydict() == {
        "a": [1, 2, 3]
    }


def test_a_bad_insert_leaves_nothing(client: Client, made: str) -> None:
    with pytest.raises(DatabaseError, match="code: 27"):
        client.raw_insert(made, ["a"], b"1\nx\n", fmt="TSV")
    with pytest.raises(DatabaseError, match="code: 16"):
        client.raw_insert(made, ["nope"], b"1\n", fmt="TSV")
    assert client.command(f"SELECT count() FROM {made}") == 0


def test_every_way_to_stream(client: Client) -> None:
    query = "SELECT number, toString(number) AS s FROM numbers(200000)"
    with client.query_rows_stream(query) as rows:
        assert sum(1 for _ in rows) == 200000
    with client.query_column_block_stream(query) as blocks:
        assert sum(len(columns[0]) for columns in blocks) == 200000
    with client.query_np_stream(query) as arrays:
        assert sum(len(array) for array in arrays) == 200000
    with client.query_arrow_stream(query) as batches:
        assert sum(batch.num_rows for batch in batches) == 200000
    with client.raw_stream(query, fmt="CSVWithNames") as raw:
        assert raw.read().count(b"\n") == 200001
    # One that is given up leaves the client usable.
    with client.query_row_block_stream("SELECT number FROM numbers(100000000)") as started:
        next(iter(started))
    assert client.command("SELECT 2") == 2


def test_sessions_are_the_clients_own(daemon: Daemon) -> None:
    client, same = daemon.client(session_id="cc"), daemon.client(session_id="cc")
    client.command("CREATE TEMPORARY TABLE mine (a Int8)")
    client.insert("mine", [[1], [2]])
    client.command("SET max_block_size = 77")
    assert same.query("SELECT sum(a), getSetting('max_block_size') FROM mine").first_row == (3, 77)
    other = daemon.client()
    with pytest.raises(DatabaseError, match="code: 60"):
        other.query("SELECT * FROM mine")
    for one in (client, same, other):
        one.close()


def test_parameters_in_a_form(daemon: Daemon) -> None:
    client = daemon.client(form_encode_query_params=True)
    long = "x" * 500000
    query = "SELECT {a:Int32}, {b:String}, {c:Array(String)}, length({d:String})"
    values = {"a": 1, "b": "it's\n", "c": ["p", "q'"], "d": long}
    assert client.query(query, parameters=values).first_row == (1, "it's\n", ["p", "q'"], 500000)
    client.close()


def test_zones(client: Client) -> None:
    query = "SELECT toDateTime64('2024-06-01 12:00:00', 3, 'Europe/Berlin') AS fine"
    fine = client.query(query).result_rows[0][0]
    assert fine.isoformat() == "2024-06-01T12:00:00+02:00"
    # The engine's Native format leaves a DateTime's zone out, as a server's does for old clients:
    # the moment is right, its zone is the client's to say.
    query = "SELECT toDateTime('2024-06-01 12:00:00', 'Europe/Berlin') AS coarse"
    coarse = client.query(query, query_tz="Europe/Berlin").result_rows[0][0]
    assert coarse == fine


def test_the_db_api(daemon: Daemon, made: str) -> None:
    connection = dbapi.connect(
        host="127.0.0.1", port=daemon.port, username=OWNER[0], password=OWNER[1]
    )
    cursor = connection.cursor()
    cursor.executemany(f"INSERT INTO {made} (a, s) VALUES (%s, %s)", [(1, "e"), (2, "f")])
    cursor.execute(f"SELECT a, s FROM {made} WHERE s = %(s)s", {"s": "f"})
    assert cursor.fetchall() == [(2, "f")]
    assert [column[0] for column in cursor.description or ()] == ["a", "s"]
    cursor.close()
    connection.close()


def test_the_reader_connects(daemon: Daemon) -> None:
    client = daemon.client(READER)
    assert str(client.command("SELECT version()")).startswith("26.")
    assert client.query("SELECT count() FROM system.one").first_row == (1,)
    with pytest.raises(ProgrammingError, match="readonly"):
        client.query("SELECT 1", settings={"max_threads": 2})
    client.close()


def test_the_async_client(daemon: Daemon) -> None:
    pytest.importorskip("aiohttp")

    async def work() -> tuple[list[int], int, int]:
        client = await clickhouse_connect.get_async_client(
            host="127.0.0.1",
            port=daemon.port,
            username=OWNER[0],
            password=OWNER[1],
            autogenerate_session_id=False,
        )
        try:
            results = await asyncio.gather(*(client.query(f"SELECT {n}") for n in range(20)))
            await client.command("CREATE TABLE apart (a Int64) ENGINE = Memory")
            await asyncio.gather(*(client.insert("apart", [[n]]) for n in range(10)))
            inserted = (await client.query("SELECT sum(a) FROM apart")).result_rows[0][0]
            await client.command("DROP TABLE apart")
            streamed = 0
            stream = await client.query_row_block_stream("SELECT number FROM numbers(200000)")
            async with stream:
                async for block in stream:
                    streamed += len(block)
            with pytest.raises(DatabaseError, match="code: 60"):
                await client.query("SELECT * FROM absent")
        finally:
            await client.close()
        return [result.result_rows[0][0] for result in results], inserted, streamed

    assert asyncio.run(work()) == (list(range(20)), 45, 200000)


def address(daemon: Daemon) -> str:
    return f"clickhousedb://{OWNER[0]}:{OWNER[1]}@127.0.0.1:{daemon.port}/default"


def test_sqlalchemy(daemon: Daemon) -> None:
    engine = sqlalchemy.create_engine(address(daemon))
    metadata = sqlalchemy.MetaData()
    with engine.begin() as connection:
        connection.execute(
            sqlalchemy.text(
                "CREATE TABLE shops (id Int64, name Nullable(String), taken Decimal(18, 2),"
                " tags Array(String), at DateTime64(3)) ENGINE = MergeTree ORDER BY id"
            )
        )
        shops = sqlalchemy.Table("shops", metadata, autoload_with=connection)
        assert [column.name for column in shops.columns] == ["id", "name", "taken", "tags", "at"]
        at = dt.datetime(2024, 1, 2, 3, 4, 5)  # noqa: DTZ001
        rows = [
            {
                "id": n,
                "name": None if n else "it's",
                "taken": Decimal("1.50"),
                "tags": ["x"],
                "at": at,
            }
            for n in range(3)
        ]
        connection.execute(sqlalchemy.insert(shops), rows)
        query = (
            sqlalchemy.select(shops.c.name, sqlalchemy.func.sum(shops.c.taken))
            .where(shops.c.id.in_([0, 1, 2]))
            .group_by(shops.c.name)
            .order_by(shops.c.name)
            .limit(5)
        )
        found = connection.execute(query).all()
        assert found == [("it's", Decimal("1.50")), (None, Decimal("3.00"))]
        other = shops.alias()
        joined = sqlalchemy.select(sqlalchemy.func.count()).select_from(
            shops.join(other, shops.c.id == other.c.id)
        )
        assert connection.execute(joined).scalar_one() == 3
        assert (
            connection.execute(sqlalchemy.text("SELECT :a AS a"), {"a": "b'c"}).scalar_one()
            == "b'c"
        )
    inspector = sqlalchemy.inspect(engine)
    assert inspector.has_table("shops")
    assert "shops" in inspector.get_table_names()
    assert "system" in inspector.get_schema_names()
    assert [column["nullable"] for column in inspector.get_columns("shops")][:2] == [False, True]
    with pytest.raises(sqlalchemy.exc.DatabaseError), engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT * FROM absent"))
    with engine.begin() as connection:
        metadata.drop_all(connection)
    assert not sqlalchemy.inspect(engine).has_table("shops")
    engine.dispose()


HOOK = """
import json
from airflow.providers.clickhousedb.hooks.clickhouse import ClickHouseHook

hook = ClickHouseHook(clickhouse_conn_id="endpoint")
hook.run("CREATE TABLE hooked (a Int64, s String) ENGINE = MergeTree ORDER BY a")
hook.insert_rows("hooked", [(1, "x"), (2, "it's")], target_fields=["a", "s"])
hook.bulk_insert_rows("hooked", [(3, "z")], column_names=["a", "s"])
answer = {
    "rows": hook.get_records("SELECT a, s FROM hooked WHERE a > %(a)s ORDER BY a", {"a": 1}),
    "first": hook.get_first("SELECT count() FROM hooked"),
    "frame": hook.get_df("SELECT a FROM hooked ORDER BY a")["a"].tolist(),
    "test": hook.test_connection()[0],
}
hook.run(["DROP TABLE hooked", "SELECT 1"])
print(json.dumps(answer))
"""


def test_airflows_hook(daemon: Daemon, tmp_path: Path) -> None:
    # In a process of its own: importing Airflow makes its home.
    connection = {
        "conn_type": "clickhouse",
        "host": "127.0.0.1",
        "port": daemon.port,
        "login": OWNER[0],
        "password": OWNER[1],
        "extra": {"secure": False},
    }
    done = subprocess.run(
        [sys.executable, "-c", HOOK],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "AIRFLOW_HOME": str(tmp_path),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            "AIRFLOW_CONN_ENDPOINT": json.dumps(connection),
        },
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "rows": [[2, "it's"], [3, "z"]],
        "first": [3],
        "frame": [1, 2, 3],
        "test": True,
    }


def test_great_expectations(daemon: Daemon, client: Client, made: str) -> None:
    client.command(f"INSERT INTO {made} (a, s) SELECT number, toString(number) FROM numbers(100)")
    context = great_expectations.get_context(mode="ephemeral")
    asset = context.data_sources.add_sql("shop", connection_string=address(daemon)).add_table_asset(
        "made", table_name=made
    )
    batch = asset.add_batch_definition_whole_table("whole").get_batch()
    expect = great_expectations.expectations
    for expectation, holds in (
        (expect.ExpectTableRowCountToEqual(value=100), True),
        (expect.ExpectColumnValuesToNotBeNull(column="s"), True),
        (expect.ExpectColumnValuesToBeUnique(column="a"), True),
        (expect.ExpectColumnSumToBeBetween(column="a", min_value=4950, max_value=4950), True),
        (expect.ExpectColumnValuesToBeBetween(column="a", min_value=1, max_value=99), False),
        (expect.ExpectColumnValuesToBeInSet(column="s", value_set=["1"]), False),
    ):
        result = batch.validate(expectation)
        assert result.exception_info.get("raised_exception") in (False, None), result
        assert result.success is holds, result


# What a JDBC driver and the browser above it ask when they connect and open a tree.
METADATA = (
    "SELECT timezone(), version(), currentUser() FORMAT RowBinaryWithNamesAndTypes",
    "SELECT name, value, changed, readonly, type FROM system.settings",
    "SELECT name, engine, comment, uuid FROM system.databases ORDER BY name",
    "SELECT database AS TABLE_SCHEM, name AS TABLE_NAME, engine AS TABLE_TYPE, comment,"
    " create_table_query, sorting_key, partition_key, total_rows, total_bytes, as_select"
    " FROM system.tables WHERE database NOT IN ('none') ORDER BY 1, 2",
    "SELECT database, table, name, type, default_kind, default_expression, position, comment,"
    " is_in_primary_key, numeric_precision, numeric_scale FROM system.columns",
    "SELECT name, is_aggregate, create_query, origin FROM system.functions",
    "SELECT name, case_insensitive, alias_to FROM system.data_type_families",
    "SELECT name FROM system.table_engines UNION ALL SELECT name FROM system.table_functions",
    "SELECT database, table, name, type, expr FROM system.data_skipping_indices",
    "SELECT database, table, partition, name, rows, bytes_on_disk FROM system.parts WHERE active",
    "SELECT database, name, status, type FROM system.dictionaries",
    "SELECT * FROM system.disks",
    "SELECT query_id, query, elapsed FROM system.processes",
    "SELECT table_schema, table_name, table_type FROM information_schema.tables",
    "SELECT column_name, data_type, is_nullable FROM information_schema.columns",
    "SHOW DATABASES",
    "SHOW TABLES FROM system",
    "SHOW CREATE TABLE made",
    "SHOW PROCESSLIST",
    "SHOW SETTINGS LIKE 'max_block%'",
    "DESCRIBE TABLE (SELECT * FROM made)",
    "EXISTS TABLE made",
    "EXPLAIN SELECT * FROM made",
    "EXPLAIN PIPELINE SELECT * FROM made",
    "USE system",
    "SET max_threads = 1",
)


@pytest.mark.parametrize("name", ["TabSeparatedWithNamesAndTypes", "RowBinaryWithNamesAndTypes"])
def test_a_database_browser_opens_its_tree(daemon: Daemon, made: str, name: str) -> None:
    here: dict[str, Any] = {"session_id": f"browser-{name}", "default_format": name}
    for query in METADATA:
        reply = daemon.send(query, compress=1, **here)
        assert reply.status == 200, (query, reply.body)
        # What has no result has none.
        no_format = name if query[:3] in ("USE", "SET") else ""
        assert reply.headers.get("X-ClickHouse-Format", no_format) in query + name
    table = daemon.send("SELECT a, t FROM default.made", **here)
    heads = {
        "TabSeparatedWithNamesAndTypes": b"a\tt\nInt64\tDateTime\n",
        "RowBinaryWithNamesAndTypes": b"\x02\x01a\x01t\x05Int64\x08DateTime",
    }
    assert table.body == heads[name]


# The engine keeps no users, has no Keeper, and shows nothing of its own memory and symbols.
WITHOUT = {
    497: """grants masking_policies quota_limits quota_usage quotas quotas_usage role_grants roles
        row_policies settings_profile_elements settings_profiles users""",
    139: "distributed_ddl_queue",
    107: "jemalloc_profile_text jemalloc_sampled_allocations",
    446: "symbols",
}


def test_every_system_table_answers(daemon: Daemon) -> None:
    names = daemon.value("SELECT name FROM system.tables WHERE database = 'system'").split()
    assert len(names) > 100
    refused: dict[str, int] = {}
    for name in names:
        reply = daemon.send(f"SELECT * FROM system.{name} LIMIT 2")
        if reply.status != 200:
            refused[name] = reply.code
    expected = {name: code for code, text in WITHOUT.items() for name in text.split()}
    assert refused == expected
