"""Other people's clients, unchanged."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import subprocess
import sys
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path
from uuid import UUID

import clickhouse_connect
import pytest
import sqlalchemy
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from clickhouse_connect.driver.external import ExternalData

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
}


@pytest.mark.parametrize("compress", [False, "gzip", "lz4", "zstd"])
def test_every_type_both_ways(daemon: Daemon, compress: str | bool) -> None:
    client = daemon.client(compress=compress)
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(TYPES))
    client.command("DROP TABLE IF EXISTS types")
    client.command(f"CREATE TABLE types ({columns}) ENGINE = MergeTree ORDER BY tuple()")
    row = list(TYPES.values())
    summary = client.insert("types", [row, row])
    assert summary.written_rows == 2
    for name, kind, sent, got in zip(
        range(len(row)), TYPES, row, client.query("SELECT * FROM types").result_rows[0], strict=True
    ):
        assert got == sent, (name, kind)
    client.command("DROP TABLE types")
    client.close()


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
    with (
        pytest.raises(clickhouse_connect.driver.exceptions.Error),
        client.query_row_block_stream(
            "SELECT throwIf(number = 3000000) FROM numbers(4000000) SETTINGS max_threads = 1"
        ) as stream,
    ):
        list(stream)
    assert client.command("SELECT 1") == 1


def test_the_reader_connects(daemon: Daemon) -> None:
    client = daemon.client(READER)
    assert str(client.command("SELECT version()")).startswith("26.")
    assert client.query("SELECT count() FROM system.one").first_row == (1,)
    client.close()


def test_the_async_client(daemon: Daemon) -> None:
    pytest.importorskip("aiohttp")

    async def work() -> list[int]:
        client = await clickhouse_connect.get_async_client(
            host="127.0.0.1",
            port=daemon.port,
            username=OWNER[0],
            password=OWNER[1],
            autogenerate_session_id=False,
        )
        try:
            results = await asyncio.gather(*(client.query(f"SELECT {n}") for n in range(20)))
        finally:
            await client.close()
        return [result.result_rows[0][0] for result in results]

    assert asyncio.run(work()) == list(range(20))


def test_sqlalchemy(daemon: Daemon, table: str) -> None:
    engine = sqlalchemy.create_engine(
        f"clickhousedb://{OWNER[0]}:{OWNER[1]}@127.0.0.1:{daemon.port}/default"
    )
    with engine.begin() as connection:
        connection.execute(
            sqlalchemy.text("INSERT INTO t (a, s) VALUES (:a, :s)"), [{"a": 1, "s": "x"}]
        )
        assert connection.execute(sqlalchemy.text("SELECT a, s FROM t")).all() == [(1, "x")]
    inspector = sqlalchemy.inspect(engine)
    assert "t" in inspector.get_table_names()
    assert [column["name"] for column in inspector.get_columns("t")] == ["a", "s"]
    engine.dispose()


PROJECT = {
    "dbt_project.yml": """
name: shop
version: 1.0.0
profile: shop
models: {shop: {+materialized: table}}
""",
    "profiles.yml": """
shop:
  target: dev
  outputs:
    dev:
      {type: clickhouse, host: 127.0.0.1, port: %d, user: %s, password: %s,
       schema: shop, threads: 4}
""",
    "seeds/colours.csv": "id,colour\n1,red\n2,it's blue\n",
    "models/one.sql": "select toInt64(id) as id, colour from {{ ref('colours') }}",
    "models/two.sql": """
{{ config(materialized='view') }}
select id * 2 as id from {{ ref('one') }}
""",
    "models/three.sql": """
{{ config(materialized='incremental', unique_key='id', order_by='id',
          incremental_strategy='delete+insert') }}
select id, now64(6) as at from {{ ref('one') }}
{% if is_incremental() %} where id > 1 {% endif %}
""",
    "models/four.sql": """
{{ config(materialized='incremental', incremental_strategy='append') }}
select id from {{ ref('one') }}
""",
    "models/schema.yml": """
models:
  - name: one
    config: {contract: {enforced: true}}
    columns:
      - {name: id, data_type: Int64, data_tests: [unique, not_null]}
      - {name: colour, data_type: String}
unit_tests:
  - name: doubles
    model: two
    given: [{input: ref('one'), rows: [{id: 3}]}]
    expect: {rows: [{id: 6}]}
""",
    "snapshots/kept.sql": """
{% snapshot kept %}
{{ config(target_schema='shop', unique_key='id', strategy='check', check_cols='all') }}
select id, colour from {{ ref('one') }}
{% endsnapshot %}
""",
}


def test_dbt_builds_a_project(daemon: Daemon, tmp_path: Path) -> None:
    for name, content in PROJECT.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content % (daemon.port, *OWNER) if name == "profiles.yml" else content)

    def build() -> str:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("dbt")),
                "--no-use-colors",
                "build",
                "--profiles-dir",
                str(tmp_path),
                "--project-dir",
                str(tmp_path),
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "ERROR=0" in build()
    (tmp_path / "seeds" / "colours.csv").write_text("id,colour\n1,red\n2,green\n3,white\n")
    assert "ERROR=0" in build()
    assert (
        daemon.value("SELECT groupArray(id) FROM (SELECT id FROM shop.two ORDER BY id)")
        == "[2,4,6]"
    )
    assert daemon.value("SELECT count() FROM shop.three") == "3"
    assert daemon.value("SELECT count() FROM shop.four") == "5"
    assert daemon.value("SELECT count(), countIf(dbt_valid_to IS NULL) FROM shop.kept") == "4\t3"
    daemon.send("DROP DATABASE shop SYNC")
