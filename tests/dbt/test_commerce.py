"""Pixel, orders, payments and refunds on a real engine, as days change, empty, freeze and fail."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from commerce import (
    Dbt,
    Event,
    Order,
    Refund,
    Row,
    Workspace,
    changed,
    figures,
    random_rows,
)
from homes import new_home
from tidemark.errors import TidemarkError

FIRST_DAY = date(2025, 9, 20)

# Local midnight inside a UTC half hour, a clock change among the days, and payments that count.
KATHMANDU = Workspace("kathmandu", "Asia/Kathmandu", "USD")
LONDON = Workspace("london", "Europe/London", "GBP")
PAYING = Workspace("paying", "America/New_York", "GBP", "payments")

DOLLAR = {
    FIRST_DAY + timedelta(days=number): Decimal(7000 + number * 13) / 10000
    for number in range(-7, 120)
}

NOON = datetime(2025, 10, 10, 12, tzinfo=UTC)


def rate(of: str, to: str, day: date) -> Decimal:
    if of == to:
        return Decimal(1)
    return DOLLAR[day] if of == "USD" else 1 / DOLLAR[day]


@pytest.fixture(scope="module")
def engine() -> Iterator[Dbt]:
    with new_home() as home:
        home.run("up", "--no-airflow")
        dbt = Dbt(home)
        dbt.run("seed")
        yield dbt


@pytest.fixture
def dbt(engine: Dbt) -> Dbt:
    engine.open(
        [KATHMANDU, LONDON, PAYING],
        [(day, "USD", "GBP", str(value)) for day, value in DOLLAR.items()],
    )
    return engine


def complete(rows: Iterable[Row]) -> set[Row]:
    """Leave out refunds of orders that are not among the rows."""
    kept = set(rows)
    return {row for row in kept if not isinstance(row, Refund) or row.order in kept}


def late_changes(dice: random.Random, rows: set[Row], pool: list[Row]) -> set[Row]:
    """Some rows come late, some vanish, some come in a newer version."""
    rows = set(rows)
    for _ in range(10):
        row = dice.choice(sorted(rows, key=repr))
        match dice.randrange(3):
            case 0:
                rows.add(dice.choice(pool))
            case 1:
                rows.remove(row)
            case 2:
                newer = changed(dice, row)
                refunds = [
                    other for other in rows if isinstance(other, Refund) and other.order == row
                ]
                rows -= {row, *refunds}
                rows |= {newer}
                if isinstance(newer, Order):
                    rows |= {replace(refund, order=newer) for refund in refunds}
    return complete(rows)


def test_late_days_give_what_all_rows_at_once_would(dbt: Dbt) -> None:
    dice = random.Random(11)
    pool = random_rows(dice, [KATHMANDU, LONDON, PAYING], FIRST_DAY, 50, 500)
    rows = complete(row for row in pool if dice.random() < 0.7)
    dbt.load(rows)
    dbt.run("run")
    expected = figures(rows, rate)
    measured = {name for row in expected.values() for name in row}
    assert {"sessions", "bot_pageviews", "new_customer_orders", "revenue", "refunds"} <= measured
    assert dbt.figures() == expected

    for _ in range(3):
        rows = late_changes(dice, rows, pool)
        dbt.load(rows)
        dbt.run("run")
        assert dbt.figures() == figures(rows, rate)
    dbt.run("test", "--select", "test_type:data")


def test_a_day_that_became_empty_loses_its_rollup(dbt: Dbt) -> None:
    kept = Event(LONDON, "kept", NOON + timedelta(days=1), "ann")
    gone: list[Row] = [
        Event(LONDON, "gone", NOON, "bob"),
        order := Order(LONDON, "1", NOON),
        Refund(order, "f1", NOON),
    ]
    dbt.load([kept, *gone])
    dbt.run("run")
    assert {key[1] for key in dbt.figures()} == {"2025-10-10", "2025-10-11"}
    dbt.load([kept])
    dbt.run("run")
    assert {key[1] for key in dbt.figures()} == {"2025-10-11"}
    assert dbt.query("select * from retention.coverage where local_date = '2025-10-10'") == []


def test_a_build_killed_halfway_is_simply_run_again(dbt: Dbt) -> None:
    """What led to the other days is gone by then: the first event, the link, the first order."""
    later = NOON + timedelta(days=1)
    origin = Event(LONDON, "a", NOON, "ann", session="s", rule="r02", campaign="spring")
    visit = Event(LONDON, "b", later, "ann", session="s")
    purchase = Event(LONDON, "c", NOON, "ann", "purchase", session="s", order_id="7")
    linked = Order(LONDON, "7", later)
    first = Order(LONDON, "8", NOON, customer="c")
    second = Order(LONDON, "9", later + timedelta(days=40), customer="c")
    rows: set[Row] = {origin, visit, purchase, linked, first, second}
    dbt.load(rows)
    dbt.run("run")
    assert dbt.figures() == figures(rows, rate)

    rows -= {origin, purchase, first}
    dbt.load(rows)
    killed_before = ("int_sessions+", "int_orders+")
    dbt.run("run", "--exclude", *killed_before)
    assert dbt.figures() != figures(rows, rate)
    dbt.run("run")
    assert dbt.figures() == figures(rows, rate)
    assert dbt.query("select * from intermediate.pending_days") == []


def test_frozen_days_keep_their_figures_and_attributions(dbt: Dbt) -> None:
    visit = Event(LONDON, "a", NOON, "ann", rule="r02", campaign="spring")
    purchase = Event(LONDON, "b", NOON, "ann", "purchase", order_id="7")
    order = Order(LONDON, "7", NOON + timedelta(minutes=1))
    dbt.load([visit, purchase, order])
    dbt.run("run")
    before = dbt.figures()
    assert ("london", "2025-10-10", "meta", "spring") in before

    frozen = {"workspace_id": "london", "measure_group": "pixel", "local_date": "2025-10-10"}
    dbt.insert("retention.frozen_days", [frozen])
    restated = replace(order, total=Decimal(150))
    dbt.load([restated])
    # The facts that outlive the raw rows may themselves be gone.
    dbt.execute("truncate table intermediate.int_sessions")
    dbt.execute("truncate table intermediate.int_purchase_links")
    dbt.run("run")
    after = dbt.figures()
    key = ("london", "2025-10-10", "meta", "spring")
    assert after[key]["revenue"] == 150
    assert after[key]["sessions"] == before[key]["sessions"] == 1
    assert after[key]["visitors"] == 1


def test_new_is_who_orders_first_however_late_we_hear_of_it(dbt: Dbt) -> None:
    early = Order(LONDON, "10", NOON, customer="c")
    late = Order(LONDON, "11", NOON + timedelta(days=90), customer="c")
    tie = Order(LONDON, "9", NOON, customer="c")
    steps: list[set[Row]] = [
        {late},
        {late, early},
        {late, early, tie},
        {late},
        {late, replace(early, status="voided")},
    ]
    for rows in steps:
        dbt.load(rows)
        dbt.run("run")
        assert dbt.figures() == figures(rows, rate)
        cohorts = dbt.query(
            "select toString(cohort_month) as month, toString(sum(customers)) as n"
            " from marts.customer_cohorts_monthly where months_since = 0 group by 1"
        )
        first = min(row.at for row in rows if isinstance(row, Order) and row.is_counted)
        assert cohorts == [{"month": str(first.date().replace(day=1)), "n": "1"}]


def test_what_the_marts_know_ties_out_with_raw(dbt: Dbt) -> None:
    rows = complete(random_rows(random.Random(3), [KATHMANDU, LONDON, PAYING], FIRST_DAY, 20, 200))
    dbt.load(rows)
    dbt.run("run")
    columns = "workspace_id, toString(local_date) as day, currency"
    for table, ids, money in [
        ("pixel_events", "event_id", "0"),
        ("orders", "source, order_id", "total"),
        ("order_refunds", "source, refund_id", "amount"),
        ("payments", "payment_id", "amount"),
    ]:
        known = dbt.query(
            f"select {columns}, toInt64(row_count) as r, toInt64(distinct_ids) as i,"
            f" toString(toDecimal128(money, 4)) as m from retention.coverage"
            f" where class = '{table}'"
            " order by all"
        )
        raw_columns = columns.replace("currency", "'' as currency") if money == "0" else columns
        raw = dbt.query(
            f"select {raw_columns}, toInt64(count()) as r, toInt64(uniqExact({ids})) as i,"
            f" toString(toDecimal128(sum({money}), 4)) as m from raw.{table}"
            " group by all order by all"
        )
        assert known, table
        assert known == raw


def test_a_full_refresh_is_refused(dbt: Dbt) -> None:
    dbt.load([Event(LONDON, "a", NOON, "ann")])
    dbt.run("run")
    before = dbt.figures()
    assert before
    with pytest.raises(TidemarkError, match="--full-refresh is refused"):
        dbt.run("run", "--full-refresh")
    assert dbt.figures() == before


def test_a_day_costs_the_same_whatever_lies_behind_it(dbt: Dbt) -> None:
    today = date(2025, 11, 14)
    reads = {}
    for days in (30, 760):
        dbt.open([LONDON, PAYING], [(today - timedelta(days=days), "USD", "GBP", "0.8")])
        first = today - timedelta(days=days)
        _fill(dbt, first, today)
        dbt.run("run")
        _fill(dbt, today, today + timedelta(days=1))
        dbt.run("run")
        reads[days] = dict(dbt.reads)
        assert dbt.figures(f"date_day = '{today}'")
    assert reads[30]["read_rows"] > 1000
    for counter in ("read_rows", "read_bytes"):
        assert reads[760][counter] <= 1.2 * reads[30][counter], (counter, reads)


def _fill(dbt: Dbt, first: date, end: date) -> None:
    """The same number of rows of every source on each day, and just these days in the scope."""
    days = (end - first).days
    source = (
        f"(select arrayJoin(range({{}})) as n, toDate('{first}') + number as day"
        f" from numbers({days}))"
    )
    at = "toDateTime64(day, 6, 'UTC') + 36000 + n"
    workspace = "['london', 'paying'][1 + n % 2]"
    for table, count, columns in [
        ("pixel_events", 300, {
            "event_at": at,
            "event_id": "concat(toString(day), '-', toString(n))",
            "event_name": "if(n % 10 = 0, 'purchase', '$pageview')",
            "anonymous_id": "concat('v', toString(cityHash64(day, intDiv(n, 3)) % 20000))",
            "session_id": "if(n % 3 = 0, '', concat('s', toString(day), toString(intDiv(n, 3))))",
            "order_id": "if(n % 10 = 0, concat(toString(day), toString(intDiv(n, 10))), '')",
            "source_rule_id": "['r01', 'r13', 'r02', 'r10'][1 + n % 4]",
        }),
        ("orders", 30, {
            "source": "'shopify_orders'",
            "order_id": "concat(toString(day), toString(n))",
            "order_key": "concat('o', toString(day), toString(n))",
            "created_at": at,
            "status": "'paid'",
            "currency": "'GBP'",
            "total": "10",
            "customer_key": "hex(sipHash128(cityHash64(day, n) % if(n % 3 = 0, 400, 100000000)))",
            "source_rule_id": "'r13'",
        }),
        ("payments", 10, {
            "payment_id": "concat(toString(day), toString(n))",
            "order_key": "concat('p', toString(day), toString(n))",
            "paid_at": at,
            "status": "'succeeded'",
            "is_paid": "true",
            "is_livemode": "true",
            "currency": "'GBP'",
            "amount": "10",
            "visitor_id": "concat('v', toString(cityHash64(day, intDiv(n, 3)) % 20000))",
        }),
        ("order_refunds", 3, {
            "source": "'shopify_orders'",
            "refund_id": "concat('f', toString(day), toString(n))",
            "order_id": "concat(toString(day - 1 - n), toString(n))",
            "order_key": "concat('o', toString(day - 1 - n), toString(n))",
            "refunded_at": at,
            "order_local_date": "day - 1 - n",
            "currency": "'GBP'",
            "amount": "1",
        }),
        ("ad_spend", 15, {
            "source": "'meta_ads'",
            "platform": "'meta'",
            "report_date": "day",
            "ad_id": "toString(n)",
            "currency": "'GBP'",
            "spend": "1",
        }),
        ("email_events", 60, {
            "event_id": "concat('k', toString(day), '-', toString(n))",
            "event_at": at,
            "metric": "['Opened Email', 'Clicked Email', 'Placed Order'][1 + intDiv(n, 2) % 3]",
            "profile_key": "concat('p', toString(intDiv(n, 8)))",
            "message_id": "'m1'",
            "message_name": "'news'",
            "order_id": "concat(toString(day), toString(n))",
            "value": "10",
            "currency": "'GBP'",
        }),
    ]:  # fmt: skip
        values = {"workspace_id": workspace, "local_date": "day"} | columns
        dbt.execute(
            f"insert into raw.{table} ({', '.join(values)}) select {', '.join(values.values())}"
            f" from {source.format(count)} settings max_partitions_per_insert_block = 0"
        )
    groups = ("pixel", "orders", "payments", "refunds", "spend", "email")
    dbt.scope(
        (workspace.workspace_id, group, first + timedelta(days=number))
        for workspace in (LONDON, PAYING)
        for group in groups
        for number in range(days)
    )
