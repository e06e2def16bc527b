"""The policy covers what stands: an unlisted column stops the build, and nothing is forgotten."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from homes import Warehouse
from landings import Tenant, fixture, tenant
from tidemark import build, clickhouse, coverage, policy
from tidemark.errors import TidemarkError


@pytest.fixture(scope="module")
def built(warehouse: Warehouse) -> Warehouse:
    """The session's warehouse with every model and snapshot that dbt makes."""
    settings = warehouse.settings
    build.seed(settings)
    build.publish_scope(settings, frozenset())
    build.dbt(settings, ["run"])
    return warehouse


@contextmanager
def _changed(warehouse: Warehouse, change: str, back: str) -> Iterator[None]:
    clickhouse.execute(warehouse.settings, change)
    try:
        yield
    finally:
        clickhouse.execute(warehouse.settings, back)


def test_everything_that_stands_is_in_the_policy_and_the_other_way(built: Warehouse) -> None:
    settings = built.settings
    ladder = policy.read(settings)
    standing = {
        row["name"]
        for row in clickhouse.rows(
            settings,
            "select concat(database, '.', name) as name from system.tables"
            " where database in ('raw', 'anonymised', 'marts')",
        )
    }
    # Without what dbt's files promise: the engine alone knows every table.
    assert standing == {name for name in ladder.columns if not name.startswith("intermediate.")}
    for table, known in ladder.columns.items():
        rows = clickhouse.rows(
            settings,
            f"select name from system.columns where concat(database, '.', table) = '{table}'",
        )
        assert {row["name"] for row in rows} == set(known), table
    assert coverage.faults(settings, ladder) == ()
    coverage.check(settings, ladder)


@pytest.mark.parametrize(
    ("change", "back", "said"),
    [
        (
            "alter table raw.orders add column buyer_email String",
            "alter table raw.orders drop column buyer_email",
            "raw.orders.buyer_email is in no list: add it under columns",
        ),
        (
            "create table raw.leads (email String) engine = MergeTree order by email",
            "drop table raw.leads sync",
            "raw.leads is in no list",
        ),
        (
            "create view marts.people as select customer_key from raw.orders",
            "drop view marts.people",
            "marts.people is in no list",
        ),
        (
            "create table intermediate.kept_orders engine = MergeTree order by order_id"
            " as select workspace_id, order_id from raw.orders",
            "drop table intermediate.kept_orders sync",
            "intermediate.kept_orders.order_id may tell people or visits apart",
        ),
        (
            "create table default.scratch (ip_hash String) engine = MergeTree order by ip_hash",
            "drop table default.scratch sync",
            "default.scratch.ip_hash may tell",
        ),
    ],
)
def test_what_the_policy_does_not_know_stops_the_build(
    built: Warehouse, change: str, back: str, said: str
) -> None:
    with _changed(built, change, back):
        outcome = built.run("build", check=False)
    assert outcome.code == 1
    assert said in outcome.stderr
    assert "policy.yml" in outcome.stderr
    coverage.check(built.settings, policy.read(built.settings))


def test_nothing_is_written_where_a_contract_promises_an_unlisted_column(
    built: Warehouse, tmp_path: Path
) -> None:
    own = built.settings
    root = tmp_path / "repository"
    for folder in ("include", "dbt_project"):
        shutil.copytree(own.root / folder, root / folder, ignore=shutil.ignore_patterns("target"))
    contract = root / "dbt_project" / "models" / "marts" / "_marketing.yml"
    text = contract.read_text(encoding="utf-8")
    contract.write_text(
        text.replace("      - name: source_id\n", "      - name: profile_key\n        data_type:"
                     " String\n      - name: source_id\n", 1),
        encoding="utf-8",
    )  # fmt: skip
    settings = replace(own, root=root)
    with pytest.raises(TidemarkError, match=r"marts\.email_revenue_daily\.profile_key is in no"):
        coverage.check(settings, policy.read(settings))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "    personal: [order_id]\n",
            "    personal: [order_id, iban]\n",
            "raw.orders.iban is under",
        ),
        (
            "  raw.quarantine:\n    pseu",
            "  marts.ghosts: {}\n  raw.quarantine:\n    pseu",
            "marts.ghosts is",
        ),
        ("kept:\n", "kept:\n  intermediate.int_ghosts: none\n", "int_ghosts is under kept"),
        (
            "  intermediate.int_customers: the first order of each customer, by which later ones"
            " are not new\n",
            "",
            "int_customers.customer_key may tell",
        ),
        (
            "    derived: [intermediate.int_email_orders, intermediate.int_email_refunds]\n",
            "    derived: [intermediate.int_email_refunds]\n",
            "int_email_orders.event_id may tell",
        ),
    ],
)
def test_an_entry_without_its_table_and_a_forgotten_one_are_faults(
    built: Warehouse, tmp_path: Path, old: str, new: str, said: str
) -> None:
    text = policy.path(built.settings).read_text(encoding="utf-8")
    assert old in text
    root = tmp_path / "repository"
    (root / "include").mkdir(parents=True)
    (root / "include" / "policy.yml").write_text(text.replace(old, new, 1), encoding="utf-8")
    (root / "dbt_project").symlink_to(built.settings.dbt_project)
    settings = replace(built.settings, root=root)
    with pytest.raises(TidemarkError, match=said):
        coverage.check(settings, policy.read(settings))


def test_what_a_killed_run_left_is_found(built: Warehouse, tmp_path: Path) -> None:
    shop: Tenant = tenant(built, tmp_path)
    shop.load_lines("shopify_orders", fixture("shopify_orders"))
    before = {own.name for own in coverage.orphans(built.settings)}
    tables = {
        "intermediate.int_orders__dbt_backup": "select * from raw.orders",
        "marts.email_revenue_daily__dbt_tmp": "select 1 as n",
        "intermediate.int_sessions__replace_days": "select 1 as n",
    }
    assert not before & tables.keys()
    try:
        for name, rows in tables.items():
            clickhouse.execute(
                built.settings,
                f"create table {name} engine = MergeTree order by tuple() as {rows}",
            )
        found = {own.name: own.rows for own in coverage.orphans(built.settings)}
        assert tables.keys() <= found.keys()
        assert found["intermediate.int_orders__dbt_backup"] >= 1
        # A build sweeps them when it begins, so they do not stop it.
        coverage.check(built.settings, policy.read(built.settings))
    finally:
        for name in tables:
            clickhouse.execute(built.settings, f"drop table {name} sync")
