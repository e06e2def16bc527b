"""What the load and dbt rely on: streamed inserts, sessions, error codes, both clients."""

import gzip
import io
import json
from collections.abc import Iterator
from itertools import pairwise
from uuid import uuid4

import pytest

from homes import Warehouse
from tidemark import clickhouse
from tidemark.config import Settings


@pytest.fixture
def table(warehouse: Warehouse) -> Iterator[str]:
    name = f"default.t_{uuid4().hex}"
    clickhouse.execute(
        warehouse.settings, f"create table {name} (x Int64, s String) engine MergeTree order by x"
    )
    yield name
    clickhouse.execute(warehouse.settings, f"drop table {name}")


def rows_of(settings: Settings, table: str) -> tuple[int, int]:
    response = clickhouse.execute(
        settings, f"select count(), sum(x) from {table} format JSONCompact"
    )
    count, total = json.loads(response.body)["data"][0]
    return int(count), int(total)


def lines(count: int) -> bytes:
    return b"".join(b'{"x": %d, "s": "%s"}\n' % (i, b"v" * 40) for i in range(count))


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_a_stream_is_inserted_whole(warehouse: Warehouse, table: str, encoding: str | None) -> None:
    body = lines(100_000)
    summary = clickhouse.stream_insert(
        warehouse.settings,
        f"insert into {table} format JSONEachRow",
        io.BytesIO(gzip.compress(body, 1) if encoding else body),
        content_encoding="gzip" if encoding else None,
    )
    assert rows_of(warehouse.settings, table) == (100_000, sum(range(100_000)))
    assert int(summary["written_rows"]) == 100_000


def test_chunks_may_be_of_any_size(warehouse: Warehouse, table: str) -> None:
    body = lines(1000)
    cuts = [0, 1, 1, 50, 51, 20_000, len(body)]
    clickhouse.stream_insert(
        warehouse.settings,
        f"insert into {table} format JSONEachRow",
        (body[start:end] for start, end in pairwise(cuts)),
    )
    assert rows_of(warehouse.settings, table) == (1000, sum(range(1000)))


def test_an_insert_may_be_as_long_as_the_load_sql(warehouse: Warehouse, table: str) -> None:
    # Quoted for the URL it becomes three times as long.
    literal = "'" + "%" * 20_000 + "'"
    clickhouse.stream_insert(
        warehouse.settings,
        f"insert into {table} select x + length({literal}), s"
        " from input('x Int64, s String') format JSONEachRow",
        io.BytesIO(gzip.compress(lines(10))),
        content_encoding="gzip",
    )
    assert rows_of(warehouse.settings, table) == (10, 45 + 10 * 20_000)


def test_an_error_has_its_code_and_inserts_nothing(warehouse: Warehouse, table: str) -> None:
    with pytest.raises(clickhouse.ClickHouseError) as error:
        clickhouse.stream_insert(
            warehouse.settings,
            f"insert into {table} format JSONEachRow",
            [lines(10), b"not json at all\n", lines(10)],
        )
    assert error.value.code in (26, 27, 117)
    assert rows_of(warehouse.settings, table) == (0, 0)
    with pytest.raises(clickhouse.ClickHouseError) as error:
        clickhouse.stream_insert(
            warehouse.settings,
            "insert into default.nosuch format JSONEachRow",
            (lines(10_000) for _ in range(20)),
        )
    assert error.value.code == 60


def test_a_session_keeps_its_temporary_table(warehouse: Warehouse) -> None:
    session = {"session_id": uuid4().hex}
    settings = warehouse.settings
    clickhouse.execute(settings, "create temporary table k (x Int64)", params=session)
    clickhouse.stream_insert(
        settings, "insert into k format JSONEachRow", [b'{"x": 5}\n'], params=session
    )
    response = clickhouse.execute(settings, "select x from k", params=session)
    assert response.body == b"5\n"
    with pytest.raises(clickhouse.ClickHouseError) as error:
        clickhouse.execute(settings, "select x from k")
    assert error.value.code == 60


def test_settings_and_parameters_go_with_a_statement(warehouse: Warehouse) -> None:
    response = clickhouse.execute(
        warehouse.settings,
        "select {x:Int64} + 1, getSetting('max_threads')",
        params={"param_x": "41", "max_threads": "1"},
    )
    assert response.body == b"42\t1\n"


def test_both_roles_have_a_client(warehouse: Warehouse, table: str) -> None:
    client = clickhouse.client(warehouse.settings, session=True, max_threads=1)
    client.insert(table, [[1, "a"], [2, "b"]], column_names=["x", "s"])
    assert client.query(f"select sum(x) from {table}").result_rows == [(3,)]
    client.command("create temporary table k (x Int64)")
    assert client.command("select count() from k") == 0
    client.close()
    analyst = clickhouse.client(warehouse.settings, "analyst")
    assert analyst.query("select 1").result_rows == [(1,)]
    with pytest.raises(Exception, match=r"(?i)readonly|ACCESS_DENIED|not enough privileges"):
        analyst.command(f"insert into {table} values (3, 'c')")
    analyst.close()


def test_the_schema_can_be_applied_again(warehouse: Warehouse) -> None:
    clickhouse.apply_schema(warehouse.settings)
    response = clickhouse.execute(
        warehouse.settings, "select count() from system.tables where database = 'raw'"
    )
    assert int(response.body) > 0
