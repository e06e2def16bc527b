"""What reaches a purged day on real engines: late lines, ranges, backfills and dbt by hand.

One history for all, purged once through the real commands.
"""

import gzip
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

import history
from homes import Warehouse, new_home
from tidemark import build as building
from tidemark import clickhouse, postgres
from tidemark.errors import TidemarkError

OLD = [date(2024, 9, 28), date(2024, 9, 29)]
STAYS = date(2024, 10, 2)
#: 25 months and more after September 2024, and less after October.
AS_OF = "2026-11-20"
REFUNDED = date(2026, 11, 2)

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def purged() -> Iterator[Warehouse]:
    """Three days, of which the first two have gone."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        history.add_shops(home)
        history.deliver(home, *OLD, STAYS)
        loaded = home.run("load", "--as-of", "2024-10-05", "--json").json
        assert (loaded["quarantined"], loaded["stored"]) == (0, loaded["lines"])
        home.run("build", "--as-of", "2024-10-05")
        before = figures(home)
        assert sum(Decimal(row["revenue"]) for row in cohorts(home)) > 0
        home.run("purge", "--as-of", AS_OF)
        for table in ("orders", "payments", "ad_spend", "email_events", "pixel_events"):
            assert rows(home, f"select 1 from raw.{table} where local_date < '2024-10-01'") == []
        for table in ("int_orders", "int_refunds", "int_email_orders", "int_sessions"):
            assert (
                rows(home, f"select 1 from intermediate.{table} where date_day < '2024-10-01'")
                == []
            )
        assert figures(home) == before
        yield home


def rows(home: Warehouse, query: str) -> Rows:
    return clickhouse.rows(home.settings, query)


def cohorts(home: Warehouse) -> Rows:
    return rows(home, "select * from marts.customer_cohorts_monthly order by all")


def figures(home: Warehouse) -> Rows:
    """Every figure of the marts, and of the cohorts."""
    # The mart itself has gone to cold at 25 months; its cohorts and later days stay.
    return [
        row
        for table in ("kpis_daily", "email_revenue_daily")
        for row in rows(
            home, f"select * from marts.{table} where date_day >= '2024-10-01' order by all"
        )
    ] + cohorts(home)


def control(home: Warehouse, query: str) -> Rows:
    with postgres.connect(home.settings) as connection:
        return list(connection.execute(query.encode()))


def late_order(total: str, *refunds: dict[str, Any], updated: str) -> dict[str, Any]:
    """A newer version of an order that is purged."""
    return history.order(OLD[1], 1, total, refunds=list(refunds), updated_at=updated)


def test_a_refund_in_its_own_window_loads_although_its_order_is_purged(purged: Warehouse) -> None:
    known = cohorts(purged)
    old = history.refund(date(2024, 9, 30), 1, "68.20")
    line = late_order(
        "199.65", old, history.refund(REFUNDED, 2, "20.00"), updated="2026-11-02T09:00:00Z"
    )
    history.put(purged, "shopify_orders/shop", date(2026, 11, 3), [line], "refund")
    charge = history.charge(OLD[1], 2, refunded=REFUNDED)
    history.put(purged, "payments/till", date(2026, 11, 3), [charge], "refund")
    loaded = purged.run("load", "--as-of", AS_OF, "--json").json
    assert (loaded["stored"], loaded["quarantined"]) == (2, 0)
    assert rows(purged, "select 1 from raw.orders where local_date < '2024-10-01'") == []
    [stored] = rows(purged, "select * from raw.order_refunds where local_date > '2026-01-01'")
    assert (stored["local_date"], stored["amount"]) == (str(REFUNDED), "20")
    assert purged.run("build", "--as-of", AS_OF, "--json").json["gate"]["success"]

    refunds = rows(
        purged,
        "select workspace_id, platform, campaign, toString(refunds) as refunds"
        f" from marts.summary_kpis_daily where date_day = '{REFUNDED}' order by workspace_id",
    )
    # The order's visitor had come by an ad, the payment's too.
    assert refunds == [
        {"workspace_id": "shop", "platform": "google", "campaign": "Brand", "refunds": "20"},
        {"workspace_id": "till", "platform": "direct", "campaign": "", "refunds": "5"},
    ]
    gained = [row for row in cohorts(purged) if row not in known]
    months_since = {row["workspace_id"]: row["months_since"] for row in gained}
    # September 2024 to November 2026 is more than the 24 months that cohorts run for.
    assert set(months_since.values()) <= set(range(24))
    cells = rows(
        purged,
        "select workspace_id, toString(cohort_month) as cohort, toString(refunds) as refunds"
        " from intermediate.int_cohort_months where date_day = '2026-11-01' order by all",
    )
    assert cells == [
        {"workspace_id": "shop", "cohort": "2024-09-01", "refunds": "20"},
        {"workspace_id": "till", "cohort": "2024-09-01", "refunds": "5"},
    ]


def test_a_refund_comes_once_however_often_its_line_does(purged: Warehouse) -> None:
    line = late_order(
        "199.65", history.refund(REFUNDED, 2, "20.00"), updated="2026-11-02T09:00:00Z"
    )
    history.put(purged, "shopify_orders/shop", date(2026, 11, 4), [line], "again")
    older = {**line, "updated_at": "2026-11-01T09:00:00Z"}
    history.put(purged, "shopify_orders/shop", date(2026, 11, 5), [older], "older")
    loaded = purged.run("load", "--as-of", AS_OF, "--json").json
    assert (loaded["stored"], loaded["duplicate"]) == (1, 1)
    [row] = rows(
        purged,
        "select count() as n, toString(sum(amount)) as money from raw.order_refunds"
        " where local_date > '2026-01-01'",
    )
    assert (int(row["n"]), row["money"]) == (1, "20")
    assert purged.run("build", "--as-of", AS_OF, "--json").json["gate"]["success"]


def test_a_change_of_a_purged_order_is_refused_and_counted(purged: Warehouse) -> None:
    before = figures(purged)
    changes = [
        late_order("999.00", updated="2026-11-06T09:00:00Z"),
        # Its refund's day has gone too.
        history.order(
            OLD[0], 1, "1.00", refunds=[history.refund(OLD[1], 9, "1.00")],
            updated_at="2026-11-06T09:00:00Z",
        ),
    ]  # fmt: skip
    history.put(purged, "shopify_orders/shop", date(2026, 11, 6), changes, "change")
    history.put(purged, "payments/till", date(2026, 11, 6), [history.charge(OLD[0], 1)], "change")
    loaded = purged.run("load", "--as-of", AS_OF, "--json").json
    assert (loaded["stored"], loaded["quarantined"]) == (0, 3)
    reasons = rows(
        purged, "select distinct reason from raw.quarantine where delivery_date = '2026-11-06'"
    )
    assert reasons == [{"reason": "past_retention"}]
    purged.run("build", "--as-of", AS_OF)
    assert figures(purged) == before


def test_a_range_over_purged_days_answers_3_and_changes_nothing(purged: Warehouse) -> None:
    before = figures(purged)
    where = ("--from", str(OLD[0]), "--to", str(STAYS), "--as-of", AS_OF)
    refused = purged.run("build", *where, "--json", check=False)
    assert refused.code == 3
    closed = {(own["class"], own["workspace_id"]) for own in refused.json["closed"]}
    assert {("orders", "shop"), ("payments", "till"), ("email_events", "shop")} <= closed
    assert "tidemark recall ad_spend --workspace shop --month 2024-09" in refused.stderr
    assert figures(purged) == before

    refused = purged.run("backfill", *where, "--reason", "an outage", "--json", check=False)
    assert refused.code == 3
    assert refused.json["build"]["closed"] != []
    assert figures(purged) == before
    [record] = control(purged, "select * from control.backfills")
    assert (record["reason"], record["from_date"], record["to_date"]) == (
        "an outage", OLD[0], STAYS,
    )  # fmt: skip
    assert record["finished_at"] is not None
    [entry] = control(purged, "select document from control.ledger where kind = 'backfill'")
    assert entry["document"]["reason"] == "an outage"
    assert entry["document"]["closed"] != []

    # A file of another day that is damaged hides none of it.
    cut = purged.settings.landing_path / "pixel" / "shop" / "2026-11-12" / "cut.jsonl.gz"
    cut.parent.mkdir(parents=True, exist_ok=True)
    cut.write_bytes(gzip.compress(b"{}\n")[:-4])
    failed = purged.run("backfill", *where, "--reason", "an outage", "--json", check=False)
    cut.unlink()
    assert failed.code == 1
    assert failed.json["build"]["closed"] != []
    assert "cut.jsonl.gz: after line 1: " in failed.stderr
    assert "purged days stay as they are: " in failed.stderr
    assert "tidemark recall" in failed.stderr

    # What was recalled is asked for no more.
    purged.run("recall", "ad_spend", "--workspace", "shop", "--month", "2024-09", "--as-of", AS_OF)
    refused = purged.run("build", *where, "--json", check=False)
    left = {(own["class"], own["workspace_id"]) for own in refused.json["closed"]}
    assert left == closed - {("ad_spend", "shop")}
    assert figures(purged) == before


def test_a_backfill_loads_what_stands_in_landing_and_rebuilds_the_range(purged: Warehouse) -> None:
    day = date(2026, 11, 10)
    history.deliver(purged, day)
    where = ("--from", str(day), "--to", "2026-11-11", "--as-of", AS_OF)
    report = purged.run("backfill", *where, "--reason", "the feed was down", "--json").json
    assert report["load"]["stored"] == report["load"]["lines"] > 0
    assert report["build"]["gate"]["success"]
    assert report["build"]["closed"] == []
    [row] = rows(
        purged,
        "select toString(revenue) as revenue from marts.kpis_daily where workspace_id = 'shop'"
        f" and date_day = '{day}' and platform = 'all'",
    )
    assert row == {"revenue": "239.65"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--from", "2026-11-11", "--to", "2026-11-10", "--reason", "x"), 2),
        (("--from", "2026-11-10", "--to", "2026-11-10", "--reason", " "), 2),
        (("--from", "2026-11-10", "--to", "2026-11-10"), 2),
        (("--from", "2026-11-10", "--to", "2026-11-10", "--reason", "of ada@example.org"), 3),
        (
            (
                "--from",
                "2026-11-10",
                "--to",
                "2026-11-10",
                "--reason",
                "x",
                "--as-of",
                "2999-01-01",
            ),
            3,
        ),
    ],
)
def test_a_backfill_is_refused_before_it_does_anything(
    purged: Warehouse, arguments: tuple[str, ...], code: int
) -> None:
    known = control(purged, "select count(*) as n from control.backfills")
    assert purged.run("backfill", *arguments, check=False).code == code
    assert control(purged, "select count(*) as n from control.backfills") == known


def test_dbt_by_hand_leaves_purged_days_as_they_are(purged: Warehouse) -> None:
    before = figures(purged)
    groups = ("pixel", "orders", "payments", "refunds", "spend", "email")
    days = {
        building.ScopeDay(workspace, group, day)
        for workspace in history.SHOPS
        for group in groups
        for day in (*OLD, STAYS)
    }
    building.publish_scope(purged.settings, frozenset(days))
    building.dbt(purged.settings, ["build", "--exclude-resource-type", "unit_test", "seed"])
    assert figures(purged) == before
    with pytest.raises(TidemarkError, match="--full-refresh is refused"):
        building.dbt(purged.settings, ["run", "--full-refresh"])
    assert figures(purged) == before


def test_what_the_ledger_has_closed_is_closed_to_a_load_that_finds_it_open(
    purged: Warehouse,
) -> None:
    """As where a purge was killed between the two stores, or one of them was restored."""
    query = "select distinct workspace_id, measure_group, local_date from retention.frozen_days"
    before = rows(purged, f"{query} order by all")
    assert before
    clickhouse.execute(purged.settings, "truncate table retention.frozen_days")
    history.put(purged, "pixel/shop", date(2026, 11, 12), [history.pixel(OLD[0], 40, "x")], "late")
    loaded = purged.run("load", "--as-of", "2024-10-05", "--json").json
    assert (loaded["stored"], loaded["quarantined"]) == (0, 1)
    assert rows(purged, f"{query} order by all") == before
