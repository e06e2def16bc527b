"""Purged days on a real engine: their figures stay, and the days that live on lose nothing.

What must come out is told as ever from all rows at once, those that are purged too.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest

from commerce import (
    Dbt,
    Event,
    Order,
    Payment,
    Refund,
    Row,
    Workspace,
    changed,
    figures,
    random_rows,
)
from homes import new_home

FIRST_DAY = date(2025, 9, 20)
DAYS = 100
#: The first days that stay; pixel rows go sooner than orders, payments and refunds do.
PIXEL_CUT = FIRST_DAY + timedelta(days=45)
SALES_CUT = FIRST_DAY + timedelta(days=33)

KATHMANDU = Workspace("kathmandu", "Asia/Kathmandu", "USD")
LONDON = Workspace("london", "Europe/London", "GBP")
PAYING = Workspace("paying", "America/New_York", "GBP", "payments")
SHOPS = [KATHMANDU, LONDON, PAYING]

DOLLAR = {
    FIRST_DAY + timedelta(days=number): Decimal(7000 + number * 13) / 10000
    for number in range(-9, DAYS + 130)
}

NOON = datetime(2025, 10, 10, 12, tzinfo=UTC)

GROUP_OF = dict.fromkeys(("sessions", "pageviews", "bot_pageviews", "conversions"), "pixel") | {
    "visitors": "pixel", "refunds": "refunds",
}  # fmt: skip

Figures = dict[tuple[str, str, str, str], dict[str, Decimal]]
Cells = dict[tuple[str, date, date], tuple[int, int, Decimal, Decimal]]


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
    engine.open(SHOPS, [(day, "USD", "GBP", str(value)) for day, value in DOLLAR.items()])
    return engine


def group_of(workspace_id: str, measure: str) -> str:
    sales = "payments" if workspace_id == PAYING.workspace_id else "orders"
    return GROUP_OF.get(measure, sales)


def split(told: Figures, frozen: Iterable[tuple[str, str, date]]) -> tuple[Any, Any]:
    """The figures of the days that are frozen, and of those that are not."""
    closed = set(frozen)
    sides: tuple[dict[Any, Decimal], dict[Any, Decimal]] = ({}, {})
    for (workspace_id, day, platform, campaign), measures in told.items():
        for name, value in measures.items():
            own = (workspace_id, group_of(workspace_id, name), date.fromisoformat(day))
            sides[own not in closed][workspace_id, day, platform, campaign, name] = value
    return sides


def cells(dbt: Dbt) -> Cells:
    """What the warehouse says of each cohort in each month."""
    return {
        (
            row["workspace_id"],
            date.fromisoformat(row["cohort_month"]),
            date.fromisoformat(row["date_day"]),
        ): (
            int(row["customers"]),
            int(row["orders"]),
            Decimal(row["revenue"]),
            Decimal(row["refunds"]),
        )
        for row in dbt.query("select * from intermediate.int_cohort_months")
    }


def told_cells(rows: Iterable[Row]) -> Cells:
    """The same told from all rows."""
    rows = list(rows)
    sales = [
        row for row in rows if isinstance(row, Order | Payment) and row.is_counted and row.customer
    ]
    cohort: dict[tuple[str, str], date] = {}
    for sale in sales:
        key = (sale.workspace.workspace_id, sale.customer)
        month = sale.workspace.day(sale.at).replace(day=1)
        cohort[key] = min(cohort.get(key, month), month)
    customers: dict[Any, set[str]] = defaultdict(set)
    sums: dict[Any, list[Decimal]] = defaultdict(lambda: [Decimal(0)] * 3)

    def converted(sale: Order | Payment, amount: Decimal, day: date) -> Decimal:
        factor = rate(sale.currency, sale.workspace.currency, day)
        return (amount * factor).quantize(Decimal("0.01"), ROUND_HALF_UP)

    for sale in sales:
        workspace = sale.workspace
        own = (workspace.workspace_id, cohort[workspace.workspace_id, sale.customer])
        day = workspace.day(sale.at)
        cell = (*own, day.replace(day=1))
        customers[cell].add(sale.customer)
        total = sale.total if isinstance(sale, Order) else sale.amount
        sums[cell][0] += 1
        sums[cell][1] += converted(sale, total, day)
        if isinstance(sale, Payment):
            returned = [
                (at, money) for _, at, money, status in sale.refunds if status == "succeeded"
            ]
        else:
            returned = [
                (row.at, row.amount)
                for row in rows
                if isinstance(row, Refund) and row.order == sale
            ]
        for at, money in returned:
            day = workspace.day(at)
            sums[*own, day.replace(day=1)][2] += converted(sale, money, day)
    return {
        cell: (len(customers[cell]), int(count), revenue, refunds)
        for cell, (count, revenue, refunds) in sums.items()
    }


def due(cut: date, groups: Iterable[str]) -> Iterator[tuple[str, str, date]]:
    """Every day before a cut, in every shop."""
    day = FIRST_DAY - timedelta(days=3)
    while day < cut:
        for shop in SHOPS:
            for group in groups:
                yield shop.workspace_id, group, day
        day += timedelta(days=1)


def all_days() -> Iterator[tuple[str, str, date]]:
    return due(FIRST_DAY + timedelta(days=DAYS + 60), ("pixel", "orders", "payments", "refunds"))


def test_days_that_live_on_come_out_as_if_nothing_had_been_purged(dbt: Dbt) -> None:
    dice = random.Random(20261121)
    pool = random_rows(dice, SHOPS, FIRST_DAY, DAYS, 900)
    orders = {row for row in pool if not isinstance(row, Refund) and dice.random() < 0.8}
    rows: set[Row] = orders | {
        row for row in pool if isinstance(row, Refund) and row.order in orders
    }
    dbt.load(rows)
    dbt.run("run")
    before, known = dbt.figures(), cells(dbt)
    assert before == figures(rows, rate)
    assert known == told_cells(rows)

    closing = {
        *due(PIXEL_CUT, ("pixel",)),
        *due(SALES_CUT, ("orders", "payments", "refunds")),
    }
    coverage = "select * from retention.coverage order by all"
    covered = dbt.query(coverage)
    dbt.purge(closing)
    assert dbt.query("select count() as n from anonymised.orders")[0]["n"] not in (0, "0")
    assert dbt.query(coverage) == covered

    # Everything that may be built is built again, from what is left.
    dbt.scope(all_days())
    dbt.run("build", "--exclude-resource-type", "unit_test", "seed", "snapshot")
    assert dbt.figures() == before
    assert cells(dbt) == known
    assert dbt.query(coverage) == covered

    def is_purged(row: Order | Payment) -> bool:
        return row.workspace.day(row.at) < SALES_CUT

    # Newer versions of what stands, also near the purged days.
    sales = sorted((row for row in rows if isinstance(row, Order | Payment)), key=repr)
    standing = [sale for sale in sales if not is_purged(sale)]
    for sale in dice.sample(standing, 25):
        newer = changed(dice, sale)
        refunds = [row for row in rows if isinstance(row, Refund) and row.order == sale]
        rows -= {sale, *refunds}
        rows.add(newer)
        if isinstance(newer, Order):
            rows |= {replace(refund, order=newer) for refund in refunds}
    # Refunds of what is purged, on days that stand.
    late = datetime(2025, 12, 5, 12, tzinfo=UTC)
    gone = [sale for sale in sales if is_purged(sale)]
    assert {type(sale) for sale in gone} == {Order, Payment}
    for number, sale in enumerate(dice.sample(gone, 25)):
        at = late + timedelta(hours=7 * number)
        if isinstance(sale, Order):
            rows.add(Refund(sale, f"late{number}", at, Decimal("3.21")))
        else:
            rows.remove(sale)
            refund = (f"late{number}", at, Decimal("3.21"), "succeeded")
            rows.add(replace(sale, refunds=(*sale.refunds, refund)))
    # New sales of old customers and new events, a session's reach away from the purged ones.
    far = PIXEL_CUT + timedelta(days=33)
    fresh = [row for row in pool if row not in orders and not isinstance(row, Refund)]
    rows |= {row for row in fresh if row.workspace.day(row.at) >= far}
    dbt.load(rows)
    dbt.run("build", "--exclude-resource-type", "unit_test", "seed", "snapshot")
    frozen_now, standing_now = split(dbt.figures(), closing)
    frozen_before, standing_before = split(before, closing)
    assert frozen_before
    assert frozen_now == frozen_before
    _, expected = split(figures(rows, rate), closing)
    assert standing_now == expected
    assert standing_now != standing_before
    assert cells(dbt) == told_cells(rows)


def test_a_session_that_began_on_a_purged_day_goes_on(dbt: Dbt) -> None:
    day = timedelta(days=1)
    rows: set[Row] = {
        Event(LONDON, "a", NOON, "ann", session="s", rule="r02", campaign="spring"),
        Event(LONDON, "b", NOON + day, "ann", session="s"),
        Event(LONDON, "c", NOON, "bob", session="t"),
        Event(LONDON, "d", NOON + day, "bob", session="t", rule="r01", campaign="brand"),
        # The purchase that names the order is purged, the order is not.
        Event(LONDON, "e", NOON, "ann", "purchase", session="s", order_id="7"),
        order := Order(LONDON, "7", NOON + day, customer="c"),
    }
    dbt.load(rows)
    dbt.run("run")
    assert dbt.figures() == figures(rows, rate)
    closing = {("london", "pixel", NOON.date())}
    dbt.purge(closing)
    frozen, _ = split(dbt.figures(), closing)

    rows -= {order}
    rows |= {
        replace(order, total=Decimal(150)),
        Event(LONDON, "f", NOON + day, "ann", session="s", rule="r01", campaign="brand"),
        Event(LONDON, "g", NOON + 2 * day, "ann", session="s"),
        Event(LONDON, "h", NOON + 2 * day, "bob", session="t", rule="r10"),
        # A later event of another visitor names the order too: the earlier one holds.
        Event(LONDON, "i", NOON + 2 * day, "eve", "purchase", rule="r03", order_id="7"),
    }
    dbt.load(rows)
    dbt.run("run")
    now, expected = dbt.figures(), figures(rows, rate)
    assert split(now, closing)[0] == frozen
    assert split(now, closing)[1] == split(expected, closing)[1]


def test_a_snapshot_that_was_killed_leaves_each_fact_once(dbt: Dbt) -> None:
    rows: set[Row] = {Order(LONDON, str(n), NOON, customer=f"c{n}") for n in range(5)}
    dbt.load(rows)
    dbt.run("run")
    day = {"workspace_id": "london", "measure_group": "orders", "local_date": NOON.date()}
    dbt.insert("retention.expiring_days", [day])
    dbt.run("snapshot")
    # What a run leaves that is killed after half of its work.
    for name in ("orders__snapshot_upsert", "orders__dbt_tmp"):
        dbt.execute(f"create table anonymised.{name} as anonymised.orders")
        dbt.execute(f"insert into anonymised.{name} select * from anonymised.orders limit 3")
    dbt.execute(
        "alter table anonymised.orders delete where order_key like '%3' settings mutations_sync = 2"
    )
    dbt.run("snapshot")
    dbt.run("snapshot")
    kept = dbt.query(
        "select order_key, toInt64(count()) as n, countIf(dbt_valid_to is null) as valid"
        " from anonymised.orders group by order_key"
    )
    assert len(kept) == 5
    assert {(int(row["n"]), int(row["valid"])) for row in kept} == {(1, 1)}
    tables = dbt.query("select name from system.tables where database = 'anonymised'")
    assert {row["name"] for row in tables} == {"orders", "order_refunds", "payments"}
    columns = dbt.query("select name from system.columns where database = 'anonymised'")
    assert not {"order_id", "refund_id", "payment_id"} & {row["name"] for row in columns}
