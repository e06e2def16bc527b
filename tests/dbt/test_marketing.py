"""Spend, e-mail and exchange rates on a real engine, as days change, freeze and empty."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from homes import Warehouse, new_home
from tidemark import build, clickhouse
from tidemark.errors import TidemarkError

MODELS = ("+email_revenue_daily", "+int_coverage_marketing")
TABLES = {
    "intermediate.int_spend_daily": "workspace_id, date_day, platform, campaign, currency",
    "intermediate.int_email_messages_daily": "workspace_id, date_day, kind, source_id",
    "intermediate.int_email_orders": "workspace_id, date_day, event_id",
    "intermediate.int_email_refunds": "workspace_id, date_day, event_id",
    "intermediate.int_email_daily": "workspace_id, date_day, campaign, currency",
    "marts.email_revenue_daily": "workspace_id, date_day, kind, source_id",
}
DAY = date(2026, 10, 1)

Row = dict[str, Any]


@dataclass(frozen=True)
class Marketing:
    """The marketing models over one warehouse."""

    warehouse: Warehouse

    def execute(self, sql: str) -> None:
        clickhouse.execute(self.warehouse.settings, sql)

    def query(self, sql: str) -> list[Row]:
        params = {"default_format": "JSONEachRow", "output_format_json_quote_decimals": "1"}
        body = clickhouse.execute(self.warehouse.settings, sql, params=params).body
        return [json.loads(line) for line in body.splitlines()]

    def insert(self, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = "\n".join(json.dumps(row, default=str) for row in rows)
        if lines:
            self.execute(f"insert into {table} format JSONEachRow\n{lines}")

    def empty(self) -> None:
        """Forget every row and every rollup; two tenants and no rates stay."""
        raw = ["raw.ad_spend", "raw.email_events", "raw.fx_rates", "reference.build_scope"]
        for table in [*raw, "reference.workspaces", "retention.frozen_days"]:
            self.execute(f"truncate table {table}")
        self.forget_rollups()
        self.insert(
            "reference.workspaces",
            [
                {"workspace_id": "shop", "timezone": "Europe/London", "currency": "GBP",
                 "currency_exponent": 2, "plan": "pro", "revenue_source": "orders"},
                {"workspace_id": "tokyo", "timezone": "Asia/Tokyo", "currency": "JPY",
                 "currency_exponent": 0, "plan": "pro", "revenue_source": "orders"},
            ],
        )  # fmt: skip

    def forget_rollups(self) -> None:
        for table in [*TABLES, "intermediate.int_fx_rates"]:
            self.execute(f"drop table if exists {table} sync")

    def rate(self, day: date, base: str, quote: str, rate: str) -> None:
        self.insert(
            "raw.fx_rates",
            [{"workspace_id": "_", "local_date": day, "base": base, "quote": quote, "rate": rate}],
        )

    def build(self, scope: Iterable[tuple[str, str, date]]) -> None:
        """Build these days. Raises TidemarkError with what failed, as dbt says it."""
        self.execute("truncate table reference.build_scope")
        self.insert(
            "reference.build_scope",
            [
                {"workspace_id": workspace, "measure_group": group, "local_date": day}
                for workspace, group, day in scope
            ],
        )
        assert build.dbt(self.warehouse.settings, ["run", "--select", *MODELS])
        # Their contracts held: they need not be asked about again.
        build.note_models(self.warehouse.settings)

    def contents(self) -> dict[str, list[Row]]:
        return {
            table: self.query(f"select * from {table} order by {key}")
            for table, key in TABLES.items()
        }

    def spend(self, day: date = DAY) -> list[tuple[str, str, Decimal]]:
        """Campaign, currency and converted spend of a day."""
        rows = self.query(
            "select campaign, currency, ad_spend from intermediate.int_spend_daily"
            f" where date_day = '{day}' order by workspace_id, campaign, currency"
        )
        return [(row["campaign"], row["currency"], Decimal(row["ad_spend"])) for row in rows]


def ad(
    spend: str, *, ad_id: str = "1", day: date = DAY, currency: str = "GBP", workspace: str = "shop"
) -> Row:
    """A row of spend as the loader stores it."""
    return {
        "workspace_id": workspace, "source": "meta_ads", "platform": "meta", "account_id": "a",
        "local_date": day, "report_date": day, "campaign": "Autumn", "ad_id": ad_id,
        "currency": currency, "spend": spend, "impressions": 100, "clicks": 5,
    }  # fmt: skip


def event(event_id: str, metric: str, at: datetime, **values: Any) -> Row:
    """An e-mail event in London as the loader stores it; summer time ends there on the 25th."""
    clock = timedelta(hours=1) if at < datetime(2026, 10, 25, 1, tzinfo=UTC) else timedelta()
    return {
        "workspace_id": "shop", "event_id": event_id, "local_date": (at + clock).date(),
        "event_at": at.strftime("%Y-%m-%d %H:%M:%S"), "metric": metric, "profile_key": "ada",
        **values,
    }  # fmt: skip


def comes_again(row: Row, other: Row) -> bool:
    """Whether the other is a later event of the row's order, on a day no click reaches too."""
    if {row["metric"], other["metric"]} != {"Placed Order"} or row["order_id"] != other["order_id"]:
        return False
    later: timedelta = other["local_date"] - row["local_date"]
    return timedelta(7) < later <= timedelta(31)


@pytest.fixture(scope="module")
def engine() -> Iterator[Marketing]:
    with new_home() as home:
        home.run("up", "--no-airflow")
        yield Marketing(home)


@pytest.fixture
def marketing(engine: Marketing) -> Marketing:
    engine.empty()
    return engine


def test_restated_spend_replaces_and_an_emptied_day_loses_its_rollup(marketing: Marketing) -> None:
    next_day = DAY + timedelta(days=1)
    marketing.insert("raw.ad_spend", [ad("10"), ad("7", ad_id="2"), ad("3", day=next_day)])
    scope = [("shop", "spend", DAY), ("shop", "spend", next_day)]
    marketing.build(scope)
    assert marketing.spend() == [("Autumn", "GBP", Decimal(17))]
    assert marketing.spend(next_day) == [("Autumn", "GBP", Decimal(3))]

    marketing.execute("truncate table raw.ad_spend")
    marketing.insert("raw.ad_spend", [ad("12"), ad("7", ad_id="2")])
    marketing.build(scope)
    assert marketing.spend() == [("Autumn", "GBP", Decimal(19))]
    assert marketing.spend(next_day) == []


def test_frozen_day_keeps_what_it_had_when_its_raw_rows_go(marketing: Marketing) -> None:
    marketing.insert("raw.ad_spend", [ad("10")])
    marketing.insert(
        "raw.email_events", [event("e1", "Opened Email", datetime(2026, 10, 1, 9, tzinfo=UTC))]
    )
    scope = [("shop", "spend", DAY), ("shop", "email", DAY)]
    marketing.build(scope)
    before = marketing.contents()
    assert before["intermediate.int_spend_daily"]
    assert before["intermediate.int_email_daily"]

    marketing.execute("truncate table raw.ad_spend")
    marketing.execute("truncate table raw.email_events")
    marketing.insert(
        "retention.frozen_days",
        [
            {"workspace_id": "shop", "measure_group": group, "local_date": DAY}
            for group in ("spend", "email")
        ],
    )
    marketing.build(scope)
    assert marketing.contents() == before


def test_missing_rate_fails_the_build_and_names_day_and_pair(marketing: Marketing) -> None:
    marketing.insert("raw.ad_spend", [ad("10", currency="USD"), ad("5", ad_id="2")])
    marketing.rate(DAY - timedelta(days=8), "EUR", "USD", "1.25")
    marketing.rate(DAY - timedelta(days=7), "EUR", "GBP", "0.8")
    with pytest.raises(TidemarkError) as failed:
        marketing.build([("shop", "spend", DAY)])
    [failure] = str(failed.value).removeprefix("dbt run failed: ").split("; ")
    assert failure.startswith("int_spend_daily: ")
    assert "no exchange rate on 2026-10-01 or the 7 days before from USD to GBP" in failure

    marketing.rate(DAY - timedelta(days=7), "EUR", "USD", "1.25")
    marketing.build([("shop", "spend", DAY)])
    assert marketing.spend() == [("Autumn", "GBP", Decimal(5)), ("Autumn", "USD", Decimal("6.4"))]


def test_money_is_rounded_half_away_from_zero_in_the_currency_of_the_workspace(
    marketing: Marketing,
) -> None:
    marketing.rate(DAY, "USD", "JPY", "150.5")
    marketing.rate(DAY, "GBP", "USD", "0.3")
    marketing.insert(
        "raw.ad_spend",
        [
            ad("1", currency="USD", workspace="tokyo"),
            ad("-3", ad_id="2", currency="USD", workspace="tokyo"),
            # 0.0045 / 0.3 is half a cent more than a cent, though 1 / 0.3 has no last digit.
            ad("0.0045", currency="USD"),
        ],
    )
    marketing.build([("tokyo", "spend", DAY), ("shop", "spend", DAY)])
    assert marketing.spend() == [
        ("Autumn", "USD", Decimal("0.02")),
        ("Autumn", "USD", Decimal(151 - 452)),
    ]


def random_events(chance: random.Random) -> list[Row]:
    """Fifty days of events that meet often."""
    start = datetime(2026, 10, 1, tzinfo=UTC)
    metrics = [
        "Received Email",
        "Opened Email",
        "Clicked Email",
        "Placed Order",
        "Placed Order",
        "Refunded Order",
    ]
    events = []
    for number in range(220):
        # Whole hours and few profiles, so that clicks tie and lie 120 hours before an order.
        at = start + timedelta(hours=chance.randrange(50 * 24))
        metric = chance.choice(metrics)
        is_order = metric.endswith("Order")
        message = f"W{chance.randrange(4)}"
        values: Row = {"profile_key": f"p{chance.randrange(3)}"}
        if is_order:
            values |= {
                "order_id": str(chance.randrange(60)),
                "value": chance.randrange(1, 99),
                "currency": "EUR",
            }
            vendor = chance.random()
            values |= {"attributed_campaign_id": message} if vendor < 0.2 else {}
            values |= {"attributed_flow_id": "F1"} if vendor < 0.1 else {}
        else:
            values |= {"message_id": message, "message_name": f"{message} of {at.date()}"}
            values |= {"flow_id": "F1"} if chance.random() < 0.2 else {}
        events.append(event(f"e{number:03}", metric, at, **values))
    return events


def test_increments_equal_a_rebuild_from_scratch(marketing: Marketing) -> None:
    """Events arrive late and out of order; what is built must not depend on when they came."""
    chance = random.Random(20261001)
    events = random_events(chance)
    for offset in range(0, 52, 3):
        marketing.rate(DAY + timedelta(days=offset), "EUR", "GBP", f"0.8{offset:02}")

    chance.shuffle(events)
    late = [row for row in events if any(comes_again(row, other) for other in events)]
    in_time = [row for row in events if row not in late]
    assert late
    scope: set[tuple[str, str, date]] = set()
    for batch in (in_time[:-10], in_time[-10:], late):
        marketing.insert("raw.email_events", batch)
        touched = {("shop", "email", row["local_date"]) for row in batch}
        marketing.build(touched)
        scope |= touched
    increments = marketing.contents()

    marketing.forget_rollups()
    marketing.build(scope)
    assert increments == marketing.contents()

    orders = increments["intermediate.int_email_orders"]
    assert {row["kind"] for row in orders} == {"flow", "campaign", "unattributed"}
    assert {row["is_counted"] for row in orders} == {True, False}
    assert {row["kind"] for row in increments["intermediate.int_email_refunds"]} > {"campaign"}
    [coverage] = marketing.query(
        "select toString(sum(row_count)) as lines, toString(sum(money)) as money"
        " from intermediate.int_coverage_marketing where class = 'email_events'"
    )
    assert int(coverage["lines"]) == len(events)
    assert Decimal(coverage["money"]) == sum(row.get("value", 0) for row in events)


def test_days_that_live_on_keep_their_sources_when_earlier_ones_are_purged(
    marketing: Marketing,
) -> None:
    events = random_events(random.Random(20261002))
    for offset in range(0, 52, 3):
        marketing.rate(DAY + timedelta(days=offset), "EUR", "GBP", f"0.8{offset:02}")
    marketing.insert("raw.email_events", events)
    days = sorted({row["local_date"] for row in events})
    marketing.build([("shop", "email", day) for day in days])
    before = marketing.contents()

    cut = DAY + timedelta(days=25)
    reached = [
        row
        for row in before["intermediate.int_email_orders"]
        if row["date_day"] >= str(cut)
        and "1970-01-01" < max(row["click_date"], row["previous_date"]) < str(cut)
    ]
    reached += [
        row
        for row in before["intermediate.int_email_refunds"]
        if row["date_day"] >= str(cut) and "1970-01-01" < row["order_date"] < str(cut)
    ]
    assert len(reached) > 5
    marketing.insert(
        "retention.frozen_days",
        [
            {"workspace_id": "shop", "measure_group": "email", "local_date": day}
            for day in days
            if day < cut
        ],
    )
    for table, day in (
        ("raw.email_events", "local_date"),
        ("intermediate.int_email_orders", "date_day"),
        ("intermediate.int_email_refunds", "date_day"),
    ):
        marketing.execute(
            f"alter table {table} delete where {day} < '{cut}' settings mutations_sync = 2"
        )
    marketing.build([("shop", "email", day) for day in days])
    after = marketing.contents()
    purged = {"intermediate.int_email_orders", "intermediate.int_email_refunds"}
    for table, rows in before.items():
        kept = [row for row in rows if table not in purged or row["date_day"] >= str(cut)]
        assert after[table] == kept, table
