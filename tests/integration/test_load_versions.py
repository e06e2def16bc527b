"""Rows count once per key: which version of an order, a payment or a spend row stands in raw.

Each sequence of deliveries is loaded, and told a second time by a small model of the contract.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from homes import Warehouse
from landings import DAY, Tenant, changed, fixture, tenant
from tidemark import load as loading

SPEND = fixture("meta_ads")[0]
ORDER = changed(fixture("shopify_orders")[0], refunds=[])
EVENT = fixture("pixel")[4]


def _spend(ad: str, spend: str, day: date = DAY) -> dict[str, Any]:
    return changed(SPEND, ad_id=ad, spend=spend, date_start=str(day))


def _order(number: int, total: str, updated: str, **more: Any) -> dict[str, Any]:
    return changed(
        ORDER,
        id=number,
        total_price=total,
        total_price_set={"shop_money": {"amount": total}},
        updated_at=updated,
        **more,
    )


def _fates(counts: loading.Counts) -> tuple[int, int, int]:
    return counts.lines, counts.stored, counts.duplicate


def _totals(shop: Tenant) -> dict[str, str]:
    return {
        row["order_id"]: str(Decimal(row["total"])) for row in shop.table("raw.orders", "order_id")
    }


def test_the_same_file_loads_once(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    shop.load_lines("pixel", [EVENT])
    before = shop.table("raw.pixel_events"), shop.counts()
    again = shop.load()
    assert (again.files, again.unchanged) == ((), 1)
    # The same content under another name, or delivered on another day, is another file.
    shop.deliver("pixel", [EVENT], name="other.jsonl.gz")
    shop.deliver("pixel", [EVENT], day=DAY + timedelta(days=1))
    report = shop.load()
    assert [_fates(file.counts) for file in report.files] == [(1, 0, 1), (1, 0, 1)]
    assert shop.table("raw.pixel_events") == before[0]
    assert shop.counts()[:1] == before[1]
    shop.assert_ties_out()


def test_the_same_name_with_other_content_is_another_file(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path)
    shop.load_lines("meta_ads", [_spend("a", "1.00"), _spend("b", "2.00")])
    # Restated under the very name, day and line: what came later holds.
    counts = shop.load_lines("meta_ads", [_spend("a", "1.50"), _spend("b", "2.00")])
    assert _fates(counts) == (2, 2, 0)
    rows = shop.table("raw.ad_spend", "ad_id")
    assert [(row["ad_id"], Decimal(row["spend"])) for row in rows] == [
        ("a", Decimal("1.5")),
        ("b", Decimal(2)),
    ]
    shop.assert_ties_out()


def test_restated_spend_replaces_across_deliveries_and_within_a_file(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path)
    later = DAY + timedelta(days=1)
    shop.deliver("meta_ads", [_spend("a", "1"), _spend("a", "2"), _spend("b", "9")])
    shop.deliver("meta_ads", [_spend("a", "3")], day=later)
    report = shop.load()
    assert [_fates(file.counts) for file in report.files] == [(3, 2, 1), (1, 1, 0)]
    # An older delivery that arrives late is an older version.
    shop.deliver("meta_ads", [_spend("a", "4"), _spend("c", "5")], day=DAY, name="z.jsonl")
    report = shop.load()
    assert [_fates(file.counts) for file in report.files] == [(2, 1, 1)]
    rows = shop.table("raw.ad_spend", "ad_id")
    assert [Decimal(row["spend"]) for row in rows] == [3, 9, 5]
    shop.assert_ties_out()


def test_the_newest_update_of_an_order_holds_whatever_came_first(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path)
    old, new = "2026-11-19T10:00:00Z", "2026-11-19T11:00:00+00:00"
    refunds = fixture("shopify_orders")[0]["refunds"]
    shop.deliver("shopify_orders", [_order(1, "10", new, refunds=refunds), _order(2, "20", old)])
    shop.load()
    # Delivered later, but older: a duplicate; its refunds with it.
    shop.deliver(
        "shopify_orders",
        [_order(1, "11", old), _order(2, "21", new), _order(2, "22", old)],
        day=DAY + timedelta(days=1),
    )
    report = shop.load()
    assert [_fates(file.counts) for file in report.files] == [(3, 1, 2)]
    assert _totals(shop) == {"1": "10", "2": "21"}
    assert len(shop.table("raw.order_refunds")) == 2
    # The same update again: the later line of the later file by name.
    shop.deliver(
        "shopify_orders",
        [_order(2, "23", new), _order(2, "24", new)],
        day=DAY + timedelta(days=1),
        name="a.jsonl",
    )
    report = shop.load()
    assert [_fates(file.counts) for file in report.files] == [(2, 0, 2)]
    shop.deliver(
        "shopify_orders",
        [_order(2, "25", new), _order(2, "26", new)],
        day=DAY + timedelta(days=1),
        name="z.jsonl",
    )
    report = shop.load()
    assert [_fates(file.counts) for file in report.files] == [(2, 1, 1)]
    assert _totals(shop) == {"1": "10", "2": "26"}
    shop.assert_ties_out()


def test_a_replaced_order_takes_its_day_and_refunds_along(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path)
    refunds = fixture("shopify_orders")[0]["refunds"]
    shop.load_lines("shopify_orders", [_order(1, "10", "2026-11-19T10:00:00Z", refunds=refunds)])
    shop.load_lines(
        "shopify_orders",
        [
            _order(
                1,
                "12",
                "2026-11-19T12:00:00Z",
                refunds=[],
                created_at="2026-10-31T12:00:00Z",
                currency="EUR",
            )
        ],
        name="second.jsonl",
    )
    (row,) = shop.table("raw.orders")
    assert (row["local_date"], row["currency"]) == ("2026-10-31", "EUR")
    assert shop.table("raw.order_refunds") == []
    shop.assert_ties_out()
    touched = shop.ledger(
        "select distinct measure, local_date::text from control.touched_days"
        " where workspace_id = %s order by 1, 2",
        [shop.workspace_id],
    )
    # The day it left is as touched as the one it went to.
    assert [(row["measure"], row["local_date"]) for row in touched] == [
        ("order_refunds", "2026-11-19"),
        ("orders", "2026-10-31"),
        ("orders", "2026-11-19"),
    ]


def test_an_event_id_counts_once_within_its_month(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    first = changed(EVENT, event_id="x", event_name="first")
    counts = shop.load_lines(
        "pixel",
        [
            first,
            changed(first, event_name="second"),
            # Another month: another event.
            changed(first, timestamp="2026-10-31T12:00:00Z"),
            # Still November in UTC, and in London.
            changed(first, timestamp="2026-11-01T00:00:00Z"),
        ],
    )
    assert _fates(counts) == (4, 2, 2)
    other = tenant(warehouse, tmp_path / "other")
    assert _fates(other.load_lines("pixel", [first])) == (1, 1, 0)
    rows = shop.table("raw.pixel_events", "local_date")
    assert [row["event_name"] for row in rows] == ["first", "first"]
    shop.assert_ties_out()


@dataclass(frozen=True)
class Delivery:
    """A file of a sequence: its lines as (key, version within the file, day, money, currency)."""

    source: str
    day: date
    name: str
    lines: tuple[tuple[str, int, date, Decimal, str], ...]


Stored = tuple[date, Decimal, str]


class Model:
    """The contract's rules over a sequence, in Python."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, ...], tuple[tuple[Any, ...], Stored]] = {}
        self.fates: list[tuple[int, int, int]] = []

    def deliver(self, file: Delivery) -> None:
        stored: set[tuple[str, ...]] = set()
        for number, (key_text, update, day, money, currency) in enumerate(file.lines, 1):
            key: tuple[str, ...] = (file.source, key_text)
            if file.source == "meta_ads":
                key, version = (*key, str(day)), (0, file.day, file.name, number)
            elif file.source == "shopify_orders":
                version = (update, file.day, file.name, number)
            elif file.source == "payments":
                version = (0, file.day, file.name, number)
            else:
                key = (*key, f"{day:%Y%m}")
                if key not in self.rows:
                    self.rows[key] = ((0,), (day, money, currency))
                    stored.add(key)
                continue
            if key not in self.rows or version >= self.rows[key][0]:
                self.rows[key] = (version, (day, money, currency))
                stored.add(key)
        lines = len(file.lines)
        self.fates.append((lines, len(stored), lines - len(stored)))


def _document(source: str, line: tuple[str, int, date, Decimal, str]) -> dict[str, Any]:
    key, update, day, money, currency = line
    if source == "meta_ads":
        return changed(_spend(key, str(money), day), account_currency=currency)
    if source == "shopify_orders":
        updated = f"2026-11-19T10:00:{update:02}Z"
        return _order(
            int(key), str(money), updated, created_at=f"{day}T12:00:00Z", currency=currency
        )
    if source == "payments":
        return changed(
            fixture("payments")[3],
            id=key,
            amount=int(money * 100),
            currency=currency.lower(),
            created=f"{day}T12:00:00Z",
        )
    return changed(EVENT, event_id=key, timestamp=f"{day}T12:00:00Z")


def _sequence(dice: random.Random) -> Iterator[list[Delivery]]:
    """Rounds of deliveries; a load follows each."""
    contents = set()
    for _ in range(4):
        files = []
        for source in ("shopify_orders", "meta_ads", "payments", "pixel"):
            for name in dice.sample(("a.jsonl", "b.jsonl", "c.jsonl.gz"), dice.randint(0, 2)):
                lines = tuple(
                    (
                        dice.choice("123456"),
                        dice.randint(0, 3),
                        DAY - timedelta(days=dice.choice((0, 0, 1, 30))),
                        Decimal(dice.randint(0, 999)) / 100,
                        dice.choice(("GBP", "GBP", "EUR")),
                    )
                    for _ in range(dice.randint(0, 8))
                )
                file = Delivery(source, DAY + timedelta(days=dice.randint(0, 2)), name, lines)
                if (file.source, file.day, file.name, file.lines) not in contents:
                    contents.add((file.source, file.day, file.name, file.lines))
                    files.append(file)
        yield files


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_deliveries_leaves_what_the_rules_say(
    warehouse: Warehouse, tmp_path: Path, seed: int
) -> None:
    shop, model, fates = tenant(warehouse, tmp_path), Model(), []
    order = ["shopify_orders", "payments", "pixel", "meta_ads"]
    for files in _sequence(random.Random(seed)):
        # Of two contents under one name the last one stands in the folder.
        standing = {(file.source, file.day, file.name): file for file in files}
        for file in standing.values():
            lines = [_document(file.source, line) for line in file.lines]
            shop.deliver(file.source, lines, name=file.name, day=file.day)
        for file in sorted(
            standing.values(), key=lambda file: (order.index(file.source), file.day, file.name)
        ):
            model.deliver(file)
        fates += [_fates(file.counts) for file in shop.load().files]
    assert fates == model.fates
    assert sum(stored for _, stored, _ in fates) > 10
    assert sum(duplicate for _, _, duplicate in fates) > 10
    raw: dict[tuple[str, ...], Stored] = {}
    for source, query in (
        (
            "shopify_orders",
            "select order_id as k, local_date, total as m, currency from raw.orders",
        ),
        ("payments", "select payment_id as k, local_date, amount as m, currency from raw.payments"),
        ("meta_ads", "select ad_id as k, local_date, spend as m, currency from raw.ad_spend"),
        ("pixel", "select event_id as k, local_date, 0 as m, '' as currency from raw.pixel_events"),
    ):
        for row in shop.rows(f"{query} where workspace_id = {{workspace}}"):
            day = date.fromisoformat(row["local_date"])
            key: tuple[str, ...] = (source, row["k"])
            if source == "meta_ads":
                key = (*key, str(day))
            if source == "pixel":
                key = (*key, f"{day:%Y%m}")
            assert key not in raw
            raw[key] = (day, Decimal(row["m"]), row["currency"])
    told = {
        key: (day, Decimal(0), "") if key[0] == "pixel" else (day, money, currency)
        for key, (_, (day, money, currency)) in model.rows.items()
    }
    assert raw == told
    shop.assert_ties_out()


def test_refunds_of_an_order_past_its_window_load_and_the_order_stays_as_it_stands(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    """Until the purge has taken it, nothing may take an order away or change it."""
    shop = tenant(warehouse, tmp_path)

    def refund(number: int, day: str, amount: str) -> dict[str, Any]:
        transaction = {"kind": "refund", "status": "success", "amount": amount}
        return {"id": number, "created_at": f"{day}T09:00:00Z", "transactions": [transaction]}

    early = refund(1, "2024-10-12", "1.00")
    order = changed(
        fixture("shopify_orders")[0],
        created_at="2024-10-10T10:00:00Z", updated_at="2024-10-12T10:00:00Z", refunds=[early],
    )  # fmt: skip
    shop.deliver("shopify_orders", [order], name="a.jsonl", day="2024-10-13")
    shop.load(as_of=date(2024, 10, 15))
    before = shop.table("raw.orders") + shop.table("raw.order_refunds")
    assert len(before) == 2

    for number, amount in enumerate(("20.00", "25.00"), start=1):
        newer = changed(
            order,
            total_price="999.00",
            updated_at=f"2026-11-0{number}T10:00:00Z",
            refunds=[refund(1, "2024-10-12", "7.00"), refund(2, "2026-11-01", amount)],
        )
        counts = shop.load_lines("shopify_orders", [newer], name=f"{number}.jsonl")
        assert (counts.stored, counts.quarantined) == (1, 0)
        kept = shop.table("raw.orders") + shop.table("raw.order_refunds")
        assert kept[:2] == before
        assert [(row["refund_id"], Decimal(row["amount"])) for row in kept[2:]] == [
            ("2", Decimal(amount))
        ]
        shop.assert_ties_out()

    # Nothing in it may load: the line waits in quarantine.
    counts = shop.load_lines(
        "shopify_orders", [changed(order, updated_at="2026-11-04T10:00:00Z")], name="z.jsonl"
    )
    assert (counts.stored, counts.quarantined) == (0, 1)
    assert set(shop.quarantine().values()) == {"past_retention"}

    # Inside a longer window the order is one row again, of its newest version.
    last = changed(order, updated_at="2026-11-05T10:00:00Z", refunds=[refund(2, "2026-11-01", "3")])
    shop.deliver("shopify_orders", [last], name="zz.jsonl")
    report = shop.load(as_of=date(2026, 11, 5))
    assert report.files[0].counts.stored == 1
    [_] = shop.table("raw.orders")
    [row] = shop.table("raw.order_refunds")
    assert (row["refund_id"], Decimal(row["amount"])) == ("2", Decimal(3))
    shop.assert_ties_out()
