"""Backfills of recalled days on real engines: what they mend, what they leave, what they refuse.

One history for all, purged once through the real commands; each test leaves the figures right.
"""

from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest

import history
from homes import Outcome, Warehouse, new_home
from tidemark import clickhouse, postgres

OLD = [date(2025, 8, 28), date(2025, 8, 29)]
STAYS = date(2025, 12, 2)
PURGED = "2026-10-10"
#: Recalled rows are there for 30 days.
EXPIRED = "2026-11-20"
CLASSES = {"pixel_events": "shop", "ad_spend": "shop", "email_events": "shop", "payments": "till"}
RANGE = ("--from", str(OLD[0]), "--to", str(OLD[1]), "--reason", "case 12", "--json")
OF_SHOP = "workspace_id = 'shop' and date_day < '2025-09-01'"
OF_TILL = "workspace_id = 'till' and date_day < '2025-09-01'"

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def purged() -> Iterator[Warehouse]:
    """August 2025 of four classes has gone, and the marts of it stand."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        for name, currency, source in (("shop", "GBP", "orders"), ("till", "EUR", "payments")):
            home.run(
                "workspace", "add", name, "--timezone", "Europe/London", "--currency", currency,
                "--plan", "enterprise", "--revenue-source", source,
            )  # fmt: skip
        history.deliver(home, *OLD, STAYS)
        dollars = [
            {**history.ad(day), "ad_id": "b", "account_currency": "USD", "spend": "10.05"}
            for day in OLD
        ]
        history.put(home, "meta_ads/shop", OLD[1], dollars, "dollars")
        rates = [
            {"date": str(day), "base": "EUR", "quote": quote, "rate": rate}
            for day in (OLD[0], STAYS)
            for quote, rate in (("USD", 1.0842), ("GBP", 0.8371))
        ]
        history.put(home, "fx_rates/_", OLD[0], rates)
        loaded = home.run("load", "--as-of", "2025-12-05", "--json").json
        assert (loaded["quarantined"], loaded["stored"]) == (0, loaded["lines"])
        home.run("build", "--as-of", "2025-12-05")
        for name in ("ad_spend", "email_events"):
            home.run("override", "set", "shop", name, "12 months")
        home.run("override", "set", "till", "payments", "12 months")
        before = figures(home)
        home.run("purge", "--as-of", PURGED)
        for name in CLASSES:
            assert rows(home, f"select 1 from raw.{name} where local_date < '2025-09-01'") == []
        assert figures(home) == before
        yield home


@pytest.fixture
def recalled(purged: Warehouse) -> Warehouse:
    for name, workspace in CLASSES.items():
        recall(purged, name, workspace)
    return purged


def recall(home: Warehouse, name: str, workspace: str) -> Any:
    return home.run(
        "recall", name, "--workspace", workspace, "--month", "2025-08", "--as-of", PURGED, "--json"
    ).json


def rows(home: Warehouse, query: str) -> Rows:
    return clickhouse.rows(home.settings, query)


def figures(home: Warehouse) -> Rows:
    """Every figure of the marts, and of the rollups behind them."""
    return [
        row
        for table in (
            "marts.kpis_daily",
            "marts.email_revenue_daily",
            "intermediate.int_orders_daily",
            "intermediate.int_refunds_daily",
            "intermediate.int_spend_daily",
        )
        for row in rows(home, f"select * from {table} order by all")
    ] + rows(
        home,
        "select * except (visitors_state), finalizeAggregation(visitors_state) as visitors"
        " from intermediate.int_pixel_daily order by all",
    )


def ledger(home: Warehouse, kind: str) -> Rows:
    with postgres.connect(home.settings) as connection:
        return [
            row["document"]
            for row in connection.execute(
                "select document from control.ledger where kind = %s order by entry_id", [kind]
            )
        ]


def backfill(home: Warehouse, as_of: str = "2026-10-12") -> Outcome:
    return home.run("backfill", *RANGE, "--as-of", as_of, check=False)


def outcomes(backfilled: Outcome) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for own in backfilled.json["build"]["recalled"]:
        found.setdefault(own["class"], set()).add(own["outcome"])
    return found


def damage(home: Warehouse, *statements: str) -> None:
    for statement in statements:
        home.run("sql", "--write", f"{statement} settings mutations_sync = 2")
    assert home.run("audit", check=False).code == 1


def test_without_a_recall_it_is_refused(purged: Warehouse) -> None:
    before = figures(purged)
    refused = backfill(purged)
    assert refused.code == 3
    closed = {(own["class"], own["workspace_id"]) for own in refused.json["build"]["closed"]}
    assert closed >= set(CLASSES.items())
    assert refused.json["build"]["recalled"] == []
    assert figures(purged) == before


def test_recalled_days_give_the_figures_that_stand(recalled: Warehouse) -> None:
    before = figures(recalled)
    report = backfill(recalled)
    assert report.code == 0, report.stderr
    assert outcomes(report) == {
        "pixel_events": {"equal"},
        "ad_spend": {"equal"},
        "payments": {"equal"},
        "email_events": {"kept"},
    }
    assert figures(recalled) == before
    for name in CLASSES:
        assert rows(recalled, f"select 1 from raw.{name} where local_date < '2025-09-01'") == []
    assert ledger(recalled, "backfill")[-1]["recalled"] == report.json["build"]["recalled"]
    assert ledger(recalled, "figures_rebuilt") == []
    assert recalled.run("audit").code == 0


def test_figures_damaged_by_hand_are_made_again(recalled: Warehouse) -> None:
    before = figures(recalled)
    damage(
        recalled,
        f"alter table marts.summary_kpis_daily update pageviews = 99, email_revenue = 1,"
        f" ad_spend = 0 where {OF_SHOP}",
        f"alter table marts.summary_kpis_daily update revenue = 1, orders = 0 where {OF_TILL}",
        f"alter table intermediate.int_pixel_daily update pageviews = 0, sessions = 77"
        f" where {OF_SHOP}",
        f"alter table intermediate.int_spend_daily delete where {OF_SHOP}",
        f"alter table intermediate.int_orders_daily update revenue = 1 where {OF_TILL}",
    )
    assert figures(recalled) != before
    report = backfill(recalled)
    assert report.code == 0, report.stderr
    assert {name for name, found in outcomes(report).items() if "rebuilt" in found} == set(CLASSES)
    assert figures(recalled) == before
    entries = ledger(recalled, "figures_rebuilt")
    assert {(own["class"], own["workspace_id"]) for own in entries} == set(CLASSES.items())
    assert recalled.run("audit").code == 0


def test_rows_without_who_was_erased_change_no_figure(recalled: Warehouse) -> None:
    before = figures(recalled)
    [someone] = rows(recalled, "select distinct customer_key from recalled.payments")
    with postgres.connect(recalled.settings) as connection:
        connection.execute(
            "insert into control.erasure_list values ('till', %s, now())",
            [someone["customer_key"]],
        )
    try:
        assert recall(recalled, "payments", "till")["erased_rows"] > 0
        report = backfill(recalled)
        assert outcomes(report)["payments"] == {"kept"}
        assert figures(recalled) == before

        # The rollup is damaged too, and nothing is left that could say what it was.
        add = "update revenue = revenue + 1 where revenue != 0 and"
        damage(
            recalled,
            f"alter table marts.summary_kpis_daily {add} {OF_TILL}",
            f"alter table intermediate.int_orders_daily {add} {OF_TILL}",
        )
        lost = backfill(recalled)
        assert lost.code == 1
        assert "not as the ledger has it" in lost.stderr
    finally:
        with postgres.connect(recalled.settings) as connection:
            connection.execute("delete from control.erasure_list")
    assert recall(recalled, "payments", "till")["erased_rows"] == 0
    assert outcomes(backfill(recalled))["payments"] == {"rebuilt"}
    assert figures(recalled) == before
    assert recalled.run("audit").code == 0


def test_an_expired_recall_is_none(recalled: Warehouse) -> None:
    """Also before the purge has come that drops the rows."""
    assert rows(recalled, "select 1 from recalled.ad_spend") != []
    refused = backfill(recalled, EXPIRED)
    assert refused.code == 3
    closed = {(own["class"], own["workspace_id"]) for own in refused.json["build"]["closed"]}
    assert closed >= set(CLASSES.items())
    assert refused.json["build"]["recalled"] == []
