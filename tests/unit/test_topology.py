"""Where tables lie: nothing on one machine, and on a cluster everything that has to be said."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tidemark import clickhouse, policy, roles, topology
from tidemark.config import Settings
from tidemark.errors import TidemarkError, UsageError
from tidemark.topology import ONE_MACHINE, WORK, Host, Topology, sharding_key

ROOT = Path(__file__).parents[2]
FOUR = Topology(
    "tidemark",
    tuple(Host(shard, replica, f"ch-{shard}-{replica}") for shard in (1, 2) for replica in (1, 2)),
)


def schema() -> Iterator[str]:
    files = sorted((ROOT / "include" / "sql" / "clickhouse").glob("*.sql"))
    assert len(files) > 5
    for path in files:
        yield from clickhouse.split_statements(path.read_text())


def test_one_machine_says_nothing() -> None:
    for statement in schema():
        assert ONE_MACHINE.made(statement) == (statement,)
    assert ONE_MACHINE.made_like("load.next_orders", "raw.orders") == (
        "create table load.next_orders as raw.orders",
    )
    assert ONE_MACHINE.drops("load.next_orders") == ("drop table if exists load.next_orders",)
    assert ONE_MACHINE.local("raw.orders") == ONE_MACHINE.logical("raw.orders") == "raw.orders"
    assert ONE_MACHINE.on_cluster == ONE_MACHINE.broadcast == ""
    assert ONE_MACHINE.each_shard("system.parts") == "system.parts"
    assert ONE_MACHINE.each_host("system.parts") == "system.parts"
    assert ONE_MACHINE.settings == ONE_MACHINE.written("reference.windows") == {}
    assert ONE_MACHINE.synced("reference.windows") == ONE_MACHINE.caught_up("raw.orders") == ()
    assert ONE_MACHINE.engine("MergeTree", "raw.orders") == "MergeTree"
    words = ONE_MACHINE.words
    assert (words["TIDEMARK_DBT_TARGET"], words["TIDEMARK_DBT_TABLE"]) == ("clickhouse", "table")


def test_a_cut_table_is_local_and_distributed() -> None:
    statement = next(text for text in schema() if "raw.pixel_events" in text)
    own, distributed = FOUR.made(statement)
    assert own.count("create table if not exists raw.pixel_events_local on cluster `tidemark`") == 1
    assert (
        "engine = ReplicatedMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}')\n"
        "partition by toYYYYMM(local_date)" in own
    )
    assert distributed == (
        "create table if not exists raw.pixel_events on cluster `tidemark` as"
        " raw.pixel_events_local engine = Distributed('tidemark', 'raw', 'pixel_events_local',"
        " sipHash64(workspace_id, anonymous_id))"
    )
    assert FOUR.made_like("load.next_orders", "raw.orders") == (
        "create table load.next_orders_local on cluster `tidemark` as raw.orders_local",
        "create table load.next_orders on cluster `tidemark` as load.next_orders_local engine ="
        " Distributed('tidemark', 'load', 'next_orders_local',"
        " sipHash64(workspace_id, order_key))",
    )
    assert FOUR.logical("load.next_orders_local") == "load.next_orders"
    mart = "marts.summary_kpis_daily"
    assert len(FOUR.made_like(mart + WORK, mart)) == 2
    assert sharding_key(mart + WORK) == sharding_key(mart)


def test_a_whole_table_is_a_replica_on_every_host() -> None:
    statement = next(text for text in schema() if "retention.frozen_days" in text)
    (own,) = FOUR.made(statement)
    assert "create table if not exists retention.frozen_days on cluster `tidemark`" in own
    assert (
        "engine = ReplicatedReplacingMergeTree("
        "'/clickhouse/tables/{uuid}/all', '{shard}-{replica}')" in own
    )
    assert FOUR.written("retention.frozen_days") == {"insert_quorum": "4"}
    assert FOUR.settings["insert_quorum"] == "2"
    versions = FOUR.engine("ReplacingMergeTree(version, is_deleted)", "intermediate.int_customers")
    assert versions == (
        "ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}',"
        " version, is_deleted)"
    )


def test_every_statement_of_the_schema_has_a_place() -> None:
    kinds = set()
    for statement in schema():
        for made in FOUR.made(statement):
            assert made.count(" on cluster `tidemark`") == 1
            kinds.add(made.split("create ")[1].split()[0])
    assert kinds == {"database", "table", "or", "dictionary"}


def test_what_has_no_place_is_refused() -> None:
    with pytest.raises(TidemarkError, match=r"cannot place: optimize table"):
        FOUR.made("optimize table raw.orders")
    with pytest.raises(TidemarkError, match=r"knows no engine for raw\.scans"):
        FOUR.made("create table raw.scans (a String) engine = Log")
    with pytest.raises(TidemarkError, match=r"raw.scans has no sharding key: name it in"):
        FOUR.made("create table raw.scans (a String) engine = MergeTree order by a")
    with pytest.raises(TidemarkError, match="as many replicas each"):
        Topology("tidemark", (Host(1, 1, "a"), Host(1, 2, "b"), Host(2, 1, "c")))


def models() -> dict[str, set[str]]:
    """The columns of every model that is a table and cut."""
    found: dict[str, set[str]] = {}
    folder = ROOT / "dbt_project" / "models"
    for layer in ("intermediate", "marts"):
        for path in (folder / layer).glob("_*.yml"):
            for model in yaml.safe_load(path.read_text()).get("models", []):
                text = (folder / layer / f"{model['name']}.sql").read_text()
                if "materialized='view'" not in text:
                    columns = {column["name"] for column in model["columns"]}
                    found[f"{layer}.{model['name']}"] = columns
    assert len(found) > 20
    return found


def test_keys_are_columns_and_no_table_lacks_one() -> None:
    columns = models()
    for statement in schema():
        name = statement.split("create table if not exists ")[-1].split("\n")[0]
        if name.startswith("raw."):
            columns[name] = {
                line.split()[0] for line in statement.splitlines() if line[:4].isspace()
            }
    assert set(topology.sharding_keys()) == set(columns)
    for table, key in topology.sharding_keys().items():
        named = key.removeprefix("sipHash64(").removesuffix(")").split(", ")
        assert set(named) <= columns[table], table


def test_linked_rows_lie_together() -> None:
    """A hold on a person reads the linked table on the host itself."""
    ladder = policy.read(Settings.from_env({}))
    links = [
        (table, other, link.columns)
        for own in ladder.classes.values()
        for table, link in own.subject_links.items()
        for other in link.tables
        if topology.is_sharded(other)
    ]
    assert links
    for table, other, columns in links:
        assert topology.sharding_key(table) == topology.sharding_key(other)
        assert topology.sharding_key(table) == f"sipHash64(workspace_id, {', '.join(columns)})"


def test_a_cluster_has_a_plain_name() -> None:
    env = {
        "TIDEMARK_PROFILE": "cluster",
        "TIDEMARK_CLICKHOUSE_URL": "http://u:p@ch:8123/",
        "TIDEMARK_POSTGRES_URL": "postgresql://u:p@pg/tidemark",
    }
    assert Settings.from_env(env).clickhouse_cluster is None
    named = Settings.from_env({**env, "TIDEMARK_CLICKHOUSE_CLUSTER": "eu_west"})
    assert named.clickhouse_cluster == "eu_west"
    with pytest.raises(UsageError, match="letters, digits and underscores"):
        Settings.from_env({**env, "TIDEMARK_CLICKHOUSE_CLUSTER": "eu`west"})
    laptop = Settings.from_env({"TIDEMARK_CLICKHOUSE_CLUSTER": "eu_west"})
    assert laptop.clickhouse_cluster is None


def test_rights_hold_on_each_host() -> None:
    declaration = roles.read(Settings.from_env({}))
    own = "create row policy or replace `own_workspace`"
    alone = [text for text in roles.clickhouse(declaration) if text.startswith(own)]
    assert len(alone) > 3
    assert not [text for text in alone if "_local" in text]
    on_hosts = list(roles.clickhouse(declaration, "tidemark"))
    where = " on cluster `tidemark` on `raw`.`quarantine_local` using workspace_id ="
    assert [text for text in on_hosts if text.startswith(own + where)]
    assert [text for text in on_hosts if " select on `raw`.`quarantine_local` to " in text]
    assert [
        text for text in on_hosts if text.startswith(f"{own} on cluster `tidemark` on `marts`.*")
    ]
