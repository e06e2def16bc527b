"""The gate on real engines: it passes what is whole, and names what somebody broke."""

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from homes import Warehouse, new_home
from tidemark import clickhouse, gate, postgres
from tidemark.build import ScopeDay

AS_OF = date(2026, 11, 20)
DAY = date(2026, 11, 19)
NEXT_DAY = date(2026, 11, 20)
CANARY = "canary.person@example.org"
CANARY_ID = "canary-visitor-0001"
CANARY_ORDER = "5550190001"


def _pixel(number: int, name: str, **more: Any) -> dict[str, Any]:
    return {
        "event_id": f"00000000-0000-7000-a000-{number:012}",
        "event_name": name,
        "timestamp": f"{DAY}T12:0{number}:00Z",
        "anonymous_id": CANARY_ID,
        "session_id": "s1",
        "url": "https://shop.example/p?utm_source=google&utm_medium=cpc&utm_campaign=Brand",
        "email": CANARY,
        "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        "properties": {},
        **more,
    }


def _order(number: int, currency: str, total: str, **more: Any) -> dict[str, Any]:
    money = {"shop_money": {"amount": total, "currency_code": currency}}
    return {
        "id": int(CANARY_ORDER) + number,
        "created_at": f"{DAY}T10:00:00Z",
        "updated_at": f"{DAY}T11:00:00Z",
        "financial_status": "paid",
        "test": False,
        "currency": currency,
        "total_price": total,
        "total_price_set": money,
        "total_discounts": "0.00",
        "total_tax": "0.00",
        "email": CANARY,
        "line_items": [{"quantity": 1, "price": total}],
        "refunds": [],
        **more,
    }


def _refund(amount: str) -> dict[str, Any]:
    transaction = {"kind": "refund", "status": "success", "amount": amount, "currency": "GBP"}
    return {"id": 7, "created_at": f"{NEXT_DAY}T09:00:00Z", "transactions": [transaction]}


def _seconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 9, tzinfo=UTC).timestamp())


def _charge(number: int, status: str) -> dict[str, Any]:
    refunds = [
        {"id": "re_1", "amount": 500, "created": _seconds(NEXT_DAY), "status": "succeeded"},
        # Counts nowhere: the money never went back.
        {"id": "re_2", "amount": 900, "created": _seconds(NEXT_DAY), "status": "failed"},
    ]
    return {
        "id": f"ch_{number}",
        "amount": 10050,
        "currency": "eur",
        "created": _seconds(DAY),
        "status": status,
        "paid": status == "succeeded",
        "livemode": True,
        "billing_details": {"email": CANARY},
        "metadata": {"visitor_id": CANARY_ID},
        "refunds": {"data": refunds if status == "succeeded" else []},
    }


def _email(number: int, metric: str, **properties: Any) -> dict[str, Any]:
    return {
        "id": f"kl{number}",
        "attributes": {
            "datetime": f"{DAY}T0{number}:00:00Z",
            "event_properties": {"$message": "M1", "Campaign Name": "Letter", **properties},
        },
        "relationships": {
            "profile": {"data": {"id": "PROFILE1"}},
            "metric": {"data": {"id": "X"}, "name": metric},
            "attributions": {"data": []},
        },
        "profile": {"email": CANARY},
    }


LANDING = {
    "pixel/shop": [
        _pixel(1, "$pageview"),
        _pixel(2, "$pageview"),
        _pixel(3, "purchase", properties={"order_id": CANARY_ORDER}),
        _pixel(4, "$pageview", anonymous_id="bot", user_agent="Googlebot/2.1"),
    ],
    "shopify_orders/shop": [
        _order(0, "GBP", "199.65", refunds=[_refund("68.20")]),
        _order(1, "GBP", "40.00"),
        _order(2, "GBP", "99.00", test=True),
    ],
    "payments/till": [_charge(1, "succeeded"), _charge(2, "failed")],
    "meta_ads/shop": [
        {
            "account_id": "1",
            "account_currency": "GBP",
            "campaign_id": "c",
            "campaign_name": "Autumn",
            "ad_id": "a",
            "date_start": str(DAY),
            "impressions": "1000",
            "clicks": "25",
            "spend": "12.34",
        }
    ],
    "klaviyo_events/shop": [
        _email(1, "Received Email"),
        _email(2, "Clicked Email"),
        _email(3, "Placed Order", **{"$value": 40, "$event_id": "o1"}),
    ],
}


@pytest.fixture(scope="module")
def built() -> Iterator[Warehouse]:
    """Two workspaces, loaded, built and tied out; one counts orders, the other payments."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        for workspace, currency, source in (("shop", "GBP", "orders"), ("till", "EUR", "payments")):
            home.run(
                "workspace", "add", workspace, "--timezone", "Europe/London", "--currency",
                currency, "--plan", "pro", "--revenue-source", source,
            )  # fmt: skip
        landing = home.settings.landing_path
        for folder, lines in LANDING.items():
            file = landing / folder / str(AS_OF) / "a.jsonl"
            file.parent.mkdir(parents=True)
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        loaded = home.run("load", "--as-of", str(AS_OF), "--json").json
        assert loaded["stored"] == loaded["lines"] == sum(map(len, LANDING.values()))
        report = home.run("build", "--as-of", str(AS_OF), "--json").json
        assert report["gate"]["success"]
        yield home


@pytest.fixture(scope="module")
def moments() -> Iterator[datetime]:
    return (datetime.now(UTC) + timedelta(seconds=n) for n in range(1000))


def tie_out(built: Warehouse, moments: Iterator[datetime], *days: date) -> gate.Verdict:
    wanted = frozenset(
        ScopeDay(workspace, "pixel", day)
        for workspace in ("shop", "till")
        for day in days or (DAY, NEXT_DAY)
    )
    with postgres.connect(built.settings, autocommit=True) as connection:
        return gate.tie_out(built.settings, connection, wanted, AS_OF, next(moments))


@contextlib.contextmanager
def changed(built: Warehouse, store: str, table: str, statement: str) -> Iterator[None]:
    """A table after a statement, and as it was again afterwards."""
    copy = f"{table}_before"
    if store == "clickhouse":
        clickhouse.execute(built.settings, f"create table {copy} as {table}")
        clickhouse.execute(built.settings, f"insert into {copy} select * from {table}")
        clickhouse.execute(built.settings, statement, params={"mutations_sync": "2"})
        try:
            yield
        finally:
            clickhouse.execute(built.settings, f"truncate table {table}")
            clickhouse.execute(built.settings, f"insert into {table} select * from {copy}")
            clickhouse.execute(built.settings, f"drop table {copy}")
    else:
        with postgres.connect(built.settings, autocommit=True) as connection:
            connection.execute(f"create table {copy} as select * from {table}".encode())
            connection.execute(statement.encode())
            try:
                yield
            finally:
                connection.execute(f"delete from {table}".encode())
                connection.execute(f"insert into {table} select * from {copy}".encode())
                connection.execute(f"drop table {copy}".encode())


def test_what_is_whole_passes(built: Warehouse, moments: Iterator[datetime]) -> None:
    verdict = tie_out(built, moments)
    assert verdict.failures == ()
    assert verdict.success
    assert verdict.checkpoint == "tie_out"
    assert verdict.checked > 100
    [row] = built.run(
        "sql", f"select * from control.verdicts where verdict_id = {verdict.verdict_id}",
        "--store", "postgres", "--json",
    ).json  # fmt: skip
    assert row["success"] is True
    assert row["checkpoint"] == "tie_out"
    assert row["as_of"] == str(AS_OF)
    assert row["statistics"]["rows"] == verdict.checked
    assert row["validation_result_id"] == verdict.validation_result_id
    results = built.settings.expectations / "validation_results"
    assert (results / f"{verdict.validation_result_id}.json").is_file()
    assert Path(verdict.data_docs).is_file()
    assert json.loads(json.dumps(verdict.as_dict()))["data_docs"] == verdict.data_docs


@pytest.mark.parametrize(
    ("store", "table", "statement", "where"),
    [
        # The marts and what lies behind them.
        (
            "clickhouse", "marts.summary_kpis_daily",
            "alter table marts.summary_kpis_daily update revenue = revenue + 0.01"
            " where revenue > 0 and workspace_id = 'shop'",
            "revenue, workspace shop, 2026-11-19: raw 239.65, facts 239.65, mart ",
        ),
        (
            "clickhouse", "marts.summary_kpis_daily",
            "alter table marts.summary_kpis_daily delete where workspace_id = 'till'",
            "orders, workspace till, 2026-11-19: raw 1, facts 1, mart 0",
        ),
        (
            "clickhouse", "marts.summary_kpis_daily",
            "alter table marts.summary_kpis_daily update sessions = 2 where sessions = 1",
            "sessions, workspace shop, 2026-11-19: facts 1, mart 2",
        ),
        (
            "clickhouse", "marts.email_revenue_daily",
            "alter table marts.email_revenue_daily delete where true",
            "emails_clicked, workspace shop, 2026-11-19: raw 1, facts 1, mart 0",
        ),
        (
            "clickhouse", "intermediate.int_orders",
            "alter table intermediate.int_orders delete where amount = 40",
            "orders, workspace shop, 2026-11-19, GBP: ledger 3 rows of 3 ids 338.65,"
            " raw 3 rows of 3 ids 338.65, marts 2 rows of 2 ids 298.65",
        ),
        (
            "clickhouse", "intermediate.int_refunds",
            "alter table intermediate.int_refunds delete where source = 'payments'",
            "payment_refunds, workspace till, 2026-11-20, EUR: ledger 1 rows of 1 ids 5,"
            " raw 1 rows of 1 ids 5, marts 0 rows of 0 ids 0",
        ),
        # Raw.
        (
            "clickhouse", "raw.pixel_events",
            "alter table raw.pixel_events delete where event_name = 'purchase'",
            "conversions, workspace shop, 2026-11-19: raw 0, facts 1, mart 1",
        ),
        (
            "clickhouse", "raw.pixel_events",
            "insert into raw.pixel_events select * from raw.pixel_events where is_bot",
            "pixel_events, workspace shop, 2026-11-19: ledger 4 rows of 4 ids 0,"
            " raw 5 rows of 4 ids 0, marts 4 rows of 4 ids 0",
        ),
        (
            "clickhouse", "raw.orders",
            "alter table raw.orders update total = total + 0.0001 where total = 40",
            "orders, workspace shop, 2026-11-19, GBP: ledger 3 rows of 3 ids 338.65,"
            " raw 3 rows of 3 ids 338.6501, marts",
        ),
        (
            "clickhouse", "raw.payment_refunds",
            "alter table raw.payment_refunds update amount = 4 where status = 'succeeded'",
            "payment_refunds, workspace till, 2026-11-20, EUR: ledger 1 rows of 1 ids 5,"
            " raw 1 rows of 1 ids 4,",
        ),
        (
            "clickhouse", "raw.ad_spend",
            "alter table raw.ad_spend update clicks = 26 where true",
            "clicks, workspace shop, 2026-11-19: raw 26, facts 25, mart 25",
        ),
        (
            "clickhouse", "raw.email_events",
            "alter table raw.email_events delete where metric = 'Received Email'",
            "email_events, workspace shop, 2026-11-19, GBP: ledger 3 rows",
        ),
        # The ledger.
        (
            "postgres", "control.load_days",
            "update control.load_days set event_count = 5 where measure = 'pixel_events'",
            "pixel_events, workspace shop, 2026-11-19: ledger 5 rows of 4 ids 0, raw 4 rows",
        ),
        (
            "postgres", "control.load_days",
            "delete from control.load_days where measure = 'order_refunds'",
            "order_refunds, workspace shop, 2026-11-20, GBP: ledger 0 rows of 0 ids 0,"
            " raw 1 rows of 1 ids 68.2, marts 1 rows of 1 ids 68.2",
        ),
        (
            "postgres", "control.load_days",
            "update control.load_days set money = money + 0.000001 where measure = 'ad_spend'",
            "ad_spend, workspace shop, 2026-11-19, GBP: ledger 1 rows of 1 ids 12.340001, raw",
        ),
    ],
)  # fmt: skip
def test_what_is_broken_fails_and_is_named(
    built: Warehouse,
    moments: Iterator[datetime],
    store: str,
    table: str,
    statement: str,
    where: str,
) -> None:
    with changed(built, store, table, statement):
        verdict = tie_out(built, moments)
        assert not verdict.success
        assert [line for line in verdict.failures if line.startswith(where)], verdict.failures
        stored = built.run(
            "sql", "select success from control.verdicts order by verdict_id desc limit 1",
            "--store", "postgres", "--json",
        ).json  # fmt: skip
        assert stored == [{"success": False}]


def test_what_is_mended_passes(built: Warehouse, moments: Iterator[datetime]) -> None:
    assert tie_out(built, moments).failures == ()


def test_a_day_that_others_broke_is_not_this_days(
    built: Warehouse, moments: Iterator[datetime]
) -> None:
    # The days the last build rewrote are part of every verdict: here there are none.
    for name in ("int_dirty_pixel_days", "int_dirty_order_days", "int_dirty_refund_days"):
        clickhouse.execute(built.settings, f"truncate table if exists intermediate.{name}")
    clickhouse.execute(
        built.settings, "truncate table if exists intermediate.int_dirty_days_marketing"
    )
    statement = "alter table raw.ad_spend delete where true"
    with changed(built, "clickhouse", "raw.ad_spend", statement):
        assert tie_out(built, moments, NEXT_DAY).success
        assert not tie_out(built, moments, DAY).success
    forgotten = tie_out(built, moments, date(2026, 10, 1))
    assert forgotten.success
    assert forgotten.checked == forgotten.statistics["asked_rows"] > 0


def test_frozen_days_are_not_asked_of_raw(built: Warehouse, moments: Iterator[datetime]) -> None:
    frozen = (
        "insert into retention.frozen_days (workspace_id, measure_group, local_date)"
        f" values ('shop', 'pixel', '{DAY}')"
    )
    purge = "alter table raw.pixel_events delete where workspace_id = 'shop'"
    with (
        changed(built, "clickhouse", "raw.pixel_events", purge),
        changed(built, "clickhouse", "retention.frozen_days", frozen),
    ):
        assert tie_out(built, moments).failures == ()
        ledger = "update control.load_days set event_count = 5 where measure = 'pixel_events'"
        with changed(built, "postgres", "control.load_days", ledger):
            [line] = tie_out(built, moments).failures
            assert line == (
                "pixel_events, workspace shop, 2026-11-19: ledger 5 rows of 4 ids 0,"
                " marts 4 rows of 4 ids 0"
            )


def test_build_ends_with_the_verdict(built: Warehouse) -> None:
    arguments = ("build", "--from", str(DAY), "--to", str(NEXT_DAY), "--as-of", str(AS_OF))
    ledger = "update control.load_days set event_count = 5 where measure = 'pixel_events'"
    with changed(built, "postgres", "control.load_days", ledger):
        failed = built.run(*arguments, "--json", check=False)
        assert failed.code == 1
        assert "pixel_events, workspace shop, 2026-11-19: ledger 5 rows" in failed.stderr
        assert str(built.settings.expectations) in failed.stderr
        assert failed.json["gate"]["success"] is False
        assert failed.json["gate"]["failures"]
    passed = built.run(*arguments)
    assert passed.code == 0
    [*_, last] = passed.stdout.splitlines()
    assert str(built.settings.expectations / "data_docs" / "index.html") in last


def test_the_proof_holds_counts_and_nobody(built: Warehouse, moments: Iterator[datetime]) -> None:
    # A failing result lists what it found, which a passing one does not.
    statement = "alter table raw.orders delete where true"
    with changed(built, "clickhouse", "raw.orders", statement):
        assert not tie_out(built, moments).success
    files = [path for path in built.settings.expectations.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".html", ".json"}
    stored = built.run("sql", "select * from control.verdicts", "--store", "postgres").stdout
    keys = clickhouse.rows(
        built.settings, "select distinct customer_key from raw.orders where customer_key != ''"
    )
    assert keys
    texts = [CANARY, "canary", CANARY_ID, CANARY_ORDER, "PROFILE1", "re_1", "ch_1"]
    texts += [row["customer_key"] for row in keys]
    for text in texts:
        assert text not in stored
        for path in files:
            assert text.encode() not in path.read_bytes(), path
