"""dbt-clickhouse, unchanged: its materializations, incremental strategies, tests and contracts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chdb_http.testing import OWNER, Daemon

PROJECT = {
    "dbt_project.yml": """
name: shop
version: 1.0.0
profile: shop
models: {shop: {+materialized: table}}
seeds: {shop: {sales: {+column_types: {day: Date, amount: "Decimal(18, 2)"}}}}
""",
    "profiles.yml": """
shop:
  target: dev
  outputs:
    dev:
      {type: clickhouse, host: 127.0.0.1, port: %d, user: %s, password: %s,
       schema: shop, threads: 4, use_lw_deletes: true}
""",
    "seeds/colours.csv": "id,colour\n1,red\n2,blue\n",
    "seeds/sales.csv": "id,day,amount\n1,2024-01-01,1.10\n2,2024-01-01,2.20\n3,2024-01-02,3.30\n",
    "models/plain.sql": "select toInt64(id) as id, colour from {{ ref('colours') }}",
    "models/viewed.sql": """
{{ config(materialized='view') }}
select id * 2 as id from {{ ref('plain') }}
""",
    "models/inlined.sql": """
{{ config(materialized='ephemeral') }}
select id + 100 as id from {{ ref('plain') }}
""",
    "models/tuned.sql": """
{{ config(engine='ReplacingMergeTree()', order_by=['id'], partition_by='id % 2',
          ttl='at + interval 100 year', settings={'deduplicate_merge_projection_mode': 'rebuild'},
          query_settings={'max_threads': 1},
          projections=[{'name': 'by_at', 'query': 'select * order by at'}],
          indexes=[{'name': 'at_index', 'definition': 'at type minmax granularity 1'}],
          pre_hook='select 1', post_hook='optimize table {{ this }} final') }}
select id, now() as at from {{ ref('inlined') }}
""",
    "models/grown_append.sql": """
{{ config(materialized='incremental', incremental_strategy='append') }}
select id from {{ ref('plain') }}
""",
    "models/grown_default.sql": """
{{ config(materialized='incremental', unique_key='id', order_by='id',
          incremental_strategy='legacy') }}
select id, now64(6) as at from {{ ref('plain') }}
{% if is_incremental() %} where id > 1 {% endif %}
""",
    "models/grown_delete_insert.sql": """
{{ config(materialized='incremental', unique_key=['id'], order_by='id',
          incremental_strategy='delete+insert', incremental_predicates=['id > 0']) }}
select id, now64(6) as at from {{ ref('plain') }}
{% if is_incremental() %} where id > 1 {% endif %}
""",
    "models/grown_overwrite.sql": """
{{ config(materialized='incremental', partition_by='day', order_by='id',
          incremental_strategy='insert_overwrite') }}
select id, day, amount from {{ ref('sales') }}
{% if is_incremental() %} where day >= '2024-01-02' {% endif %}
""",
    "models/grown_microbatch.sql": """
{{ config(materialized='incremental', incremental_strategy='microbatch', unique_key='day',
          event_time='day', batch_size='day', begin='2024-01-01', lookback=1, order_by='day') }}
select day, sum(amount) as amount from {{ ref('timed_sales') }} group by day
""",
    "models/timed_sales.sql": """
{{ config(event_time='day') }}
select id, toDateTime(day) as day, amount from {{ ref('sales') }}
""",
    "models/grown_schema.sql": """
{{ config(materialized='incremental', incremental_strategy='delete+insert', unique_key='id',
          on_schema_change='append_new_columns') }}
select id from {{ ref('plain') }}
""",
    "models/triggered.sql": """
{{ config(materialized='materialized_view', engine='MergeTree()', order_by='id',
          catchup=True) }}
select id, count() as rows from {{ source('shop', 'feed') }} group by id
""",
    "models/refreshed.sql": """
{{ config(materialized='materialized_view', engine='MergeTree()', order_by='id',
          refreshable={'interval': 'every 1 day'}) }}
select id from {{ ref('plain') }}
""",
    "models/looked_up.sql": """
{{ config(materialized='dictionary', fields=[('id', 'Int64'), ('colour', 'String')],
          primary_key='id', layout='FLAT()', lifetime='0', table='plain',
          connection_overrides={'user': 'default', 'password': ''}) }}
-- depends_on: {{ ref('plain') }}
""",
    "models/reader_of_dictionary.sql": """
{% set looked_up = ref('looked_up') %}
select dictGet('{{ looked_up.schema }}.{{ looked_up.name }}', 'colour', toUInt64(1)) as colour
""",
    "models/schema.yml": """
sources:
  - name: shop
    schema: shop
    tables: [{name: feed}]
models:
  - name: plain
    description: One row per colour, it's said.
    config: {contract: {enforced: true}, persist_docs: {relation: true, columns: true}}
    columns:
      - {name: id, data_type: Int64, data_tests: [unique, not_null]}
      - name: colour
        data_type: String
        description: Its name.
        data_tests: [{accepted_values: {arguments: {values: [red, green, white, blue]}}}]
  - name: viewed
    columns:
      - name: id
        data_tests:
          - relationships: {arguments: {to: ref('doubled'), field: id}}
unit_tests:
  - name: doubles
    model: viewed
    given: [{input: ref('plain'), rows: [{id: 3}]}]
    expect: {rows: [{id: 6}]}
""",
    "models/doubled.sql": "select id * 2 as id from {{ ref('plain') }}",
    "tests/none_is_black.sql": "select * from {{ ref('plain') }} where colour = 'black'",
    "snapshots/kept.sql": """
{% snapshot kept %}
{{ config(target_schema='shop', unique_key='id', strategy='check', check_cols='all',
          hard_deletes='invalidate') }}
select id, colour from {{ ref('plain') }}
{% endsnapshot %}
{% snapshot kept_by_time %}
{{ config(target_schema='shop', unique_key='id', strategy='timestamp', updated_at='day') }}
select id, day, amount from {{ ref('timed_sales') }}
{% endsnapshot %}
""",
}


@dataclass
class Dbt:
    """A throwaway project against the daemon."""

    folder: Path

    def write(self, files: dict[str, str]) -> None:
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)

    def run(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("dbt")),
                "--no-use-colors",
                *arguments,
                "--profiles-dir",
                str(self.folder),
                "--project-dir",
                str(self.folder),
            ],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"},
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def results(self) -> dict[str, str]:
        found: Any = json.loads((self.folder / "target" / "run_results.json").read_text())
        return {row["unique_id"].split(".", 2)[2]: row["status"] for row in found["results"]}


@pytest.fixture
def dbt(daemon: Daemon, tmp_path: Path) -> Iterator[Dbt]:
    project = Dbt(tmp_path)
    profile = PROJECT["profiles.yml"] % (daemon.port, *OWNER)
    project.write({**PROJECT, "profiles.yml": profile})
    daemon.value("CREATE DATABASE shop")
    daemon.value("CREATE TABLE shop.feed (id Int64) ENGINE = MergeTree ORDER BY id")
    daemon.value("INSERT INTO shop.feed VALUES (1), (1), (2)")
    yield project
    daemon.value("DROP DATABASE shop SYNC")


def test_every_materialization_twice(daemon: Daemon, dbt: Dbt) -> None:
    range_ = ("--event-time-start", "2024-01-01", "--event-time-end", "2024-01-04")
    dbt.run("build", *range_)
    first = dbt.results()
    assert len(first) == 25
    assert set(first.values()) <= {"success", "pass"}
    daemon.value("INSERT INTO shop.feed VALUES (3)")
    dbt.write(
        {
            "models/grown_schema.sql": PROJECT["models/grown_schema.sql"].replace(
                "select id", "select id, colour"
            ),
            "seeds/colours.csv": "id,colour\n1,red\n2,green\n3,white\n",
            "seeds/sales.csv": "id,day,amount\n1,2024-01-01,100\n3,2024-01-02,4.40\n"
            "4,2024-01-03,5.50\n",
        }
    )
    dbt.run("build", *range_)
    assert set(dbt.results().values()) <= {"success", "pass"}

    def value(query: str) -> str:
        return daemon.value(query)

    assert value("SELECT arraySort(groupArray(id)) FROM shop.viewed") == "[2,4,6]"
    assert value("SELECT arraySort(groupArray(id)) FROM shop.tuned") == "[101,102,103]"
    assert value("SELECT count() FROM shop.grown_append") == "5"
    # The second run replaced what it found again and kept the rest.
    for name in ("grown_default", "grown_delete_insert"):
        assert value(f"SELECT count(), uniqExact(id), uniqExact(at) FROM shop.{name}") == "3\t3\t2"
    assert (
        value(
            "SELECT groupArray((id, amount)) FROM (SELECT * FROM shop.grown_overwrite ORDER BY id)"
        )
        == "[(1,1.1),(2,2.2),(3,4.4),(4,5.5)]"
    )
    assert value("SELECT count(), countIf(colour != '') FROM shop.grown_schema") == "3\t3"
    assert value("SELECT arraySort(groupArray((id, rows))) FROM shop.triggered") == (
        "[(1,2),(2,1),(3,1)]"
    )
    assert value(
        "SELECT groupArray((toString(toDate(day)), amount)) FROM (SELECT * FROM"
        " shop.grown_microbatch ORDER BY day)"
    ) == ("[('2024-01-01',100),('2024-01-02',4.4),('2024-01-03',5.5)]")
    assert value("SELECT count(), countIf(dbt_valid_to IS NULL) FROM shop.kept") == "4\t3"
    assert value("SELECT colour FROM shop.reader_of_dictionary") == "red"
    assert value(
        "SELECT comment FROM system.tables WHERE database = 'shop' AND name = 'plain'"
    ) == ("One row per colour, it\\'s said.")
    assert (
        value(
            "SELECT comment FROM system.columns WHERE database = 'shop' AND table = 'plain'"
            " AND name = 'colour'"
        )
        == "Its name."
    )


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT access_type, user_name FROM system.grants WHERE table = 't'",
        "GRANT SELECT ON t TO reader",
        "CREATE ROLE analyst",
    ],
)
def test_grants_are_refused(daemon: Daemon, table: str, statement: str) -> None:
    # The engine keeps no users; dbt asks for grants only where a model has some.
    reply = daemon.send(statement)
    assert reply.code in (497, 511), reply.body
