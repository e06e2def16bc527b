import gzip
import hashlib
import ipaddress
import json
import re
import runpy
from bisect import bisect_right
from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tidemark import demo, reference

ROOT = Path(__file__).resolve().parents[2]
AS_OF = date(2026, 11, 21)
ZONES = {row.workspace_id: ZoneInfo(row.timezone) for row in demo.WORKSPACES}
CURRENCIES = {row.workspace_id: row.currency for row in demo.WORKSPACES}


@pytest.fixture(scope="module")
def landing(tmp_path_factory) -> tuple[Path, demo.Summary]:
    folder = tmp_path_factory.mktemp("landing")
    return folder, demo.write_landing(folder, AS_OF, scale=0.06)


def lines(folder: Path, source: str) -> list[tuple[str, date, str]]:
    """(workspace, delivery day, line) of a source, as delivered."""
    found = []
    for path in sorted((folder / source).glob("*/*/*")):
        workspace, day = path.parts[-3:-1]
        text = gzip.decompress(path.read_bytes()).decode()
        found += [(workspace, date.fromisoformat(day), line) for line in text.splitlines()]
    assert found
    return found


def objects(folder: Path, source: str) -> list[tuple[str, date, dict[str, Any]]]:
    return [(workspace, day, json.loads(line)) for workspace, day, line in lines(folder, source)]


def good_pixel(folder: Path) -> list[tuple[str, date, dict[str, Any]]]:
    found = []
    for workspace, day, line in lines(folder, "pixel"):
        if workspace in ZONES and line.startswith("{") and line.endswith("}"):
            event = json.loads(line)
            if "event_id" in event and str(event["timestamp"]).startswith("20"):
                found.append((workspace, day, event))
    return found


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.gz")
    }


def test_the_same_arguments_make_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        demo.write_landing(tmp_path / name, AS_OF, scale=0.005)
    first = digest(tmp_path / "a")
    assert len(first) > 500
    assert digest(tmp_path / "b") == first
    demo.write_landing(tmp_path / "c", AS_OF, seed=8, scale=0.005)
    assert digest(tmp_path / "c") != first


def test_recent_deliveries_lie_apart_when_asked(tmp_path, landing):
    summary = demo.write_landing(tmp_path / "old", AS_OF, scale=0.005, recent=tmp_path / "new")
    cut = summary.history_as_of
    assert cut == AS_OF - timedelta(days=demo.RECENT_DAYS)
    old = {date.fromisoformat(path.parts[-2]) for path in (tmp_path / "old").rglob("*.gz")}
    new = {date.fromisoformat(path.parts[-2]) for path in (tmp_path / "new").rglob("*.gz")}
    assert max(old) == cut
    assert cut < min(new) <= max(new) == AS_OF


@pytest.mark.parametrize("day", range(0, 800, 13))
def test_a_whole_month_is_past_the_pixel_window(day):
    """Whatever day it is run on, the demonstration has a partition to purge."""
    as_of = date(2026, 1, 1) + timedelta(days=day)
    first = demo._months_before(as_of - timedelta(days=demo.RECENT_DAYS), 13)
    cutoff = demo._months_before(as_of, 13)
    assert (first.year, first.month) < (cutoff.year, cutoff.month)


def test_layout_and_counts(landing):
    folder, summary = landing
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == summary.files
    assert sum(path.stat().st_size for path in files) == summary.bytes
    for path in files:
        source, _, _, name = path.relative_to(folder).parts
        assert name == f"{source}.jsonl.gz"
    assert set(summary.lines) == {
        "pixel", "shopify_orders", "woocommerce_orders", "payments", "meta_ads", "google_ads",
        "tiktok_ads", "amazon_ads", "pinterest_ads", "klaviyo_events", "fx_rates",
    }  # fmt: skip
    for source, count in summary.lines.items():
        assert len(lines(folder, source)) == count


def test_pixel_events_fall_into_the_time_told_and_are_delivered_after(landing):
    folder, summary = landing
    late = 0
    days = set()
    for workspace, delivered, event in good_pixel(folder):
        local = datetime.fromisoformat(event["timestamp"]).astimezone(ZONES[workspace]).date()
        assert summary.first_day <= local <= summary.last_day + timedelta(days=1)
        assert delivered > local or delivered == local == summary.last_day + timedelta(days=1)
        late += summary.history_as_of < local < delivered - timedelta(days=1)
        days.add(local)
    assert late > 10
    assert len(days) >= (summary.last_day - summary.first_day).days


def test_pixel_has_what_a_loader_must_cope_with(landing):
    folder, _ = landing
    events = good_pixel(folder)
    ids = Counter(event["event_id"] for _, _, event in events)
    assert max(ids.values()) > 1
    assert any(not event["consent"]["analytics"] for _, _, event in events)
    assert any("@" in event["url"] for _, _, event in events)
    bad = len(lines(folder, "pixel")) - len(events)
    assert bad > 3
    assert any(workspace not in ZONES for workspace, _, _ in lines(folder, "pixel"))
    agents = list(reference.user_agent_classes(event["user_agent"] for _, _, event in events))
    assert {"mobile", "tablet", "desktop", "bot"} == {agent.device_type for agent in agents}
    assert any(agent.is_ai_agent for agent in agents)
    assert all(agent.browser for agent in agents if not agent.is_bot)
    assert {"chatgpt.com", "www.perplexity.ai"} <= {
        event["referrer"].split("/")[2] for _, _, event in events if event["referrer"]
    }


def test_addresses_resolve_to_a_country(landing):
    folder, _ = landing
    starts, ends, names = defaultdict(list), defaultdict(list), defaultdict(list)
    for prefix, country in reference.country_ranges(reference.DEFAULT_GEO):
        net = ipaddress.ip_network(prefix)
        starts[net.version].append(int(net.network_address))
        ends[net.version].append(int(net.broadcast_address))
        names[net.version].append(country)
    found: Counter[str] = Counter()
    for _, _, event in good_pixel(folder):
        address = ipaddress.ip_address(event["ip"])
        at = bisect_right(starts[address.version], int(address)) - 1
        known = at >= 0 and int(address) <= ends[address.version][at]
        found[names[address.version][at] if known else ""] += 1
    assert found[""] < 0.01 * found.total()
    assert {"GB", "FR", "US"} <= {country for country, _ in found.most_common(3)}


def test_orders_and_purchases_belong_together(landing):
    folder, _ = landing
    purchases = {
        event["properties"]["order_id"]: event
        for _, _, event in good_pixel(folder)
        if event["event_name"] == "purchase"
    }
    orders = {
        str(order["id"]): order
        for source in ("shopify_orders", "woocommerce_orders", "payments")
        for _, _, order in objects(folder, source)
    }
    assert len(purchases) > 200
    assert set(purchases) <= set(orders)
    assert 0.35 < len(purchases) / len(orders) < 0.65
    charges = {order["id"]: order for _, _, order in objects(folder, "payments")}
    seen = [key for key in charges if key in purchases]
    assert seen
    for key in seen:
        assert charges[key]["metadata"]["visitor_id"] == purchases[key]["anonymous_id"]


def test_a_refund_redelivers_its_order(landing):
    folder, _ = landing
    versions = defaultdict(list)
    for _, delivered, order in objects(folder, "shopify_orders"):
        versions[order["id"]].append((delivered, order))
    again = [rows for rows in versions.values() if len(rows) > 1]
    assert again
    for rows in again:
        (_, first), (_, last) = rows
        assert last["updated_at"] > first["updated_at"]
        assert last["created_at"] == first["created_at"]
        assert last["refunds"]
        assert not first["refunds"]
    for rows in versions.values():
        for _, order in rows:
            back = sum(
                Decimal(transaction["amount"])
                for refund in order["refunds"]
                for transaction in refund["transactions"]
                if transaction["status"] == "success"
            )
            assert back <= Decimal(order["total_price"])
            items = sum(Decimal(item["price"]) * item["quantity"] for item in order["line_items"])
            shipping = Decimal(order["total_shipping_price_set"]["shop_money"]["amount"])
            assert items - Decimal(order["total_discounts"]) + shipping == Decimal(
                order["total_price"]
            )
    assert any(order["cancelled_at"] for rows in versions.values() for _, order in rows)


def test_woocommerce_totals_add_up(landing):
    folder, _ = landing
    statuses = set()
    for _, _, order in objects(folder, "woocommerce_orders"):
        statuses.add(order["status"])
        total = sum(Decimal(i["total"]) + Decimal(i["total_tax"]) for i in order["line_items"])
        tax = Decimal(order["total_tax"]) - Decimal(order["cart_tax"])
        assert total + Decimal(order["shipping_total"]) + tax == Decimal(order["total"])
        for refund in order["refunds"]:
            assert -Decimal(order["total"]) <= Decimal(refund["total"]) < 0
    assert {"completed", "refunded", "cancelled"} <= statuses


def test_spend_is_restated(landing):
    folder, _ = landing
    days = defaultdict(list)
    for workspace, delivered, row in objects(folder, "meta_ads"):
        days[workspace, row["ad_id"], row["date_start"]].append((delivered, row))
    assert max(len(rows) for rows in days.values()) == 3
    changed = [rows for rows in days.values() if len({row["spend"] for _, row in rows}) > 1]
    assert changed
    currencies = {row["account_currency"] for _, _, row in objects(folder, "meta_ads")}
    assert len(currencies) > 1


def test_rates_cover_every_day_within_a_week(landing):
    folder, summary = landing
    days = defaultdict(set)
    for workspace, _, rate in objects(folder, "fx_rates"):
        assert workspace == "_"
        assert rate["base"] == "EUR"
        days[rate["quote"]].add(date.fromisoformat(rate["date"]))
    assert set(days) == {"GBP", "USD", "SEK"}
    for known in days.values():
        day = summary.first_day
        while day <= summary.last_day:
            assert known & {day - timedelta(days=back) for back in range(8)}
            day += timedelta(days=1)


def test_klaviyo_attributes_to_events_that_exist(landing):
    folder, _ = landing
    events = {event["id"]: event for _, _, event in objects(folder, "klaviyo_events")}
    names = Counter(event["relationships"]["metric"]["name"] for event in events.values())
    assert set(names) == {
        "Received Email", "Opened Email", "Clicked Email", "Placed Order", "Refunded Order",
    }  # fmt: skip
    assert names["Received Email"] > names["Opened Email"] > names["Clicked Email"] > 0
    attributed = 0
    for event in events.values():
        moment = event["attributes"]
        assert datetime.fromisoformat(moment["datetime"]) == datetime.fromtimestamp(
            moment["timestamp"], UTC
        )
        for attribution in event["relationships"]["attributions"]["data"]:
            click = attribution["relationships"]["attributed-event"]["data"]["id"]
            attributed += events[click]["attributes"]["timestamp"] <= moment["timestamp"]
    assert attributed


def test_nobody_real_is_in_it(landing):
    folder, _ = landing
    emails: set[str] = set()
    phones: set[str] = set()
    for path in folder.rglob("*.gz"):
        text = gzip.decompress(path.read_bytes()).decode()
        emails.update(re.findall(r"[\w.+-]+@[\w.-]+\w", text))
        phones.update(re.findall(r'"phone": "([^"]+)"', text))
    assert emails
    bots = {"+claudebot@anthropic.com"}
    assert {email for email in emails if not email.lower().endswith("@example.org")} <= bots
    assert phones
    # Ranges that Ofcom, Arcep and the NANP keep for fiction.
    fiction = re.compile(r"\+44 20 7946 0\d{3}|\+33 1 99 00 \d\d \d\d|\+1 202 555 01\d\d")
    assert all(fiction.fullmatch(phone) for phone in phones)


def test_bench_lines(tmp_path):
    generate_pixel = runpy.run_path(str(ROOT / "bench" / "generate.py"))["generate_pixel"]
    path = tmp_path / "pixel.jsonl.gz"
    day = date(2026, 11, 19)
    size = generate_pixel(path, 20_000, day=day, timezone="America/New_York")
    text = gzip.decompress(path.read_bytes()).decode()
    assert len(text) == size
    rows = text.splitlines()
    assert len(rows) == 20_000
    assert 600 < size / len(rows) < 700
    good = []
    for row in rows:
        try:
            event = json.loads(row)
        except ValueError:
            continue
        if isinstance(event, dict) and {"event_id", "user_agent"} <= set(event):
            good.append(event)
    ids = Counter(event["event_id"] for event in good)
    assert 0.005 < 1 - len(ids) / len(good) < 0.02
    assert len({event["user_agent"] for event in good}) > 1_000
    assert 2_500 < len({event["ip"] for event in good}) < 5_000
    zone = ZoneInfo("America/New_York")
    days = {
        datetime.fromisoformat(event["timestamp"]).astimezone(zone).date()
        for event in good
        if str(event["timestamp"]).startswith("2026")
    }
    assert days == {day}
    assert generate_pixel(tmp_path / "again.gz", 20_000, day=day, timezone="America/New_York") == (
        size
    )
    assert (tmp_path / "again.gz").read_bytes() == path.read_bytes()
