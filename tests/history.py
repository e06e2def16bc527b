"""A small history for the purge's tests: days of two shops, one counting orders, one payments."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

from homes import Warehouse

#: An identifier that must not outlive the rows that carry it.
PERSON = "ada.canary@example.org"
VISITOR = "canary-visitor-0001"

SHOPS = {"shop": ("GBP", "orders", "enterprise"), "till": ("EUR", "payments", "growth")}


def pixel(day: date, number: int, name: str, **more: Any) -> dict[str, Any]:
    """An event of a day; its number makes its id."""
    return {
        "event_id": f"{day:%Y%m%d}-0000-7000-a000-{number:012}",
        "event_name": name,
        "timestamp": f"{day}T12:{number % 60:02}:00Z",
        "anonymous_id": VISITOR,
        "session_id": f"s-{day}",
        "url": "https://shop.example/p?utm_source=google&utm_medium=cpc&utm_campaign=Brand",
        "email": PERSON,
        "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        "properties": {},
        **more,
    }


def order(day: date, number: int, total: str, **more: Any) -> dict[str, Any]:
    """A Shopify order of a day."""
    money = {"shop_money": {"amount": total, "currency_code": "GBP"}}
    return {
        "id": int(f"{day:%Y%m%d}") * 1000 + number,
        "created_at": f"{day}T10:00:00Z",
        "updated_at": f"{day}T11:00:00Z",
        "financial_status": "paid",
        "test": False,
        "currency": "GBP",
        "total_price": total,
        "total_price_set": money,
        "total_discounts": "0.00",
        "total_tax": "0.00",
        "email": PERSON,
        "line_items": [{"quantity": 1, "price": total}],
        "refunds": [],
        **more,
    }


def refund(day: date, number: int, amount: str) -> dict[str, Any]:
    """A refund that an order carries."""
    transaction = {"kind": "refund", "status": "success", "amount": amount, "currency": "GBP"}
    return {"id": number, "created_at": f"{day}T09:00:00Z", "transactions": [transaction]}


def charge(day: date, number: int, refunded: date | None = None) -> dict[str, Any]:
    """A payment of a day, refunded in part on another."""
    refunds = (
        [{"id": f"re_{day}_{number}", "amount": 500, "created": _seconds(refunded),
          "status": "succeeded"}]
        if refunded
        else []
    )  # fmt: skip
    return {
        "id": f"ch_{day:%Y%m%d}_{number}",
        "amount": 10050,
        "currency": "eur",
        "created": _seconds(day),
        "status": "succeeded",
        "paid": True,
        "livemode": True,
        "billing_details": {"email": PERSON},
        "metadata": {"visitor_id": VISITOR},
        "refunds": {"data": refunds},
    }


def ad(day: date) -> dict[str, Any]:
    """A line of ad spend."""
    return {
        "account_id": "1",
        "account_currency": "GBP",
        "campaign_id": "c",
        "campaign_name": "Autumn",
        "ad_id": "a",
        "date_start": str(day),
        "impressions": "1000",
        "clicks": "25",
        "spend": "12.34",
    }


def email(day: date, number: int, metric: str, **properties: Any) -> dict[str, Any]:
    """An event of the e-mail vendor."""
    return {
        "id": f"kl-{day}-{number}",
        "attributes": {
            "datetime": f"{day}T0{number}:00:00Z",
            "event_properties": {"$message": "M1", "Campaign Name": "Letter", **properties},
        },
        "relationships": {
            "profile": {"data": {"id": "PROFILE1"}},
            "metric": {"data": {"id": "X"}, "name": metric},
            "attributions": {"data": []},
        },
        "profile": {"email": PERSON},
    }


def lines(day: date) -> dict[str, list[dict[str, Any]]]:
    """What a day brings, by folder of the landing."""
    following = day + timedelta(days=1)
    return {
        "pixel/shop": [
            pixel(day, 1, "$pageview"),
            pixel(day, 2, "purchase", properties={"order_id": str(order(day, 1, "1")["id"])}),
            pixel(day, 3, "$pageview", anonymous_id=f"other-{day}", email=None),
        ],
        "shopify_orders/shop": [
            order(day, 1, "199.65", refunds=[refund(following, 1, "68.20")]),
            order(day, 2, "40.00", email=f"guest-{day}@example.org"),
        ],
        "payments/till": [charge(day, 1, refunded=following), charge(day, 2)],
        "meta_ads/shop": [ad(day)],
        "klaviyo_events/shop": [
            email(day, 1, "Received Email"),
            email(day, 2, "Clicked Email"),
            email(day, 3, "Placed Order", **{"$value": 40, "$event_id": f"o-{day}"}),
        ],
    }


def add_shops(home: Warehouse) -> None:
    """Make both tenants."""
    for workspace, (currency, source, plan) in SHOPS.items():
        home.run(
            "workspace", "add", workspace, "--timezone", "Europe/London", "--currency", currency,
            "--plan", plan, "--revenue-source", source,
        )  # fmt: skip


def deliver(home: Warehouse, *days: date, name: str = "a") -> None:
    """Put what some days bring into landing, delivered on the day itself."""
    for day in days:
        for folder, documents in lines(day).items():
            put(home, folder, day, documents, name)


def put(
    home: Warehouse, folder: str, day: date, documents: list[dict[str, Any]], name: str = "a"
) -> None:
    """Put one file into landing."""
    file = home.settings.landing_path / folder / str(day) / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))


def _seconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 9, tzinfo=UTC).timestamp())
