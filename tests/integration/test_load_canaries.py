"""Canaries in every place of every source: after load and build they lie nowhere but in landing."""

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from homes import Warehouse, new_home
from landings import Line, changed, fixture, tenant
from tidemark import clickhouse, postgres

AGENT = "Mozilla/5.0 (CanaryPhone; CPU CanaryOS 9) CanaryKit/77.1 (KHTML, like Gecko)"
CANARIES = {
    "mail": "canary.person@canary-mail.example",
    "mail in capitals": "Canary.Person@Canary-Mail.Example",
    "phone": "+44 20 7946 0777",
    "phone without spaces": "+442079460777",
    "national phone": "020 7946 0777",
    "name": "Wilhelmina",
    "surname": "Canaryfeather",
    "address": "77 Canary Perch Lane",
    "postcode": "CN7 7RY",
    "ip": "81.2.69.177",
    "agent": "CanaryKit",
    "note": "canary-note-leave-with-porter",
    "click id": "CanaryClickId77",
}
MAIL, PHONE = CANARIES["mail"], CANARIES["phone"]
# What any text may hold and still must not be stored; names in free text are beyond any rule.
TEXT = f"for {MAIL} or {CANARIES['mail in capitals']} call {PHONE}, {CANARIES['national phone']}"
PERSON = {
    "first_name": CANARIES["name"],
    "last_name": CANARIES["surname"],
    "name": f"{CANARIES['name']} {CANARIES['surname']}",
    "address1": CANARIES["address"],
    "address_1": CANARIES["address"],
    "postcode": CANARIES["postcode"],
    "zip": CANARIES["postcode"],
    "email": MAIL,
    "phone": PHONE,
}
TELLING = {
    "first_name": CANARIES["name"],
    "customer_name": CANARIES["surname"],
    "address": {"street": CANARIES["address"], "zip": CANARIES["postcode"]},
    "user_agent": AGENT,
    "ip": CANARIES["ip"],
    "email": MAIL,
    "phone": [PHONE],
    "free": TEXT,
    "nested": [{"deep": TEXT, "agent string": AGENT}],
    TEXT: 1,
}
URL = (
    f"https://mugs.example/u/{MAIL}/{CANARIES['phone without spaces']}"
    f"?utm_source=s&utm_campaign={MAIL.replace('@', '%40')}&utm_term=%2B442079460777"
    f"&gclid={CANARIES['click id']}&q={CANARIES['note']}"
)


def _lines() -> dict[str, list[Line]]:
    """Lines of every source with canaries in each field that can hold one."""
    pixel = changed(
        fixture("pixel")[1],
        event_name=f"saw {MAIL}", user_id=MAIL, email=MAIL, ip=CANARIES["ip"], user_agent=AGENT,
        anonymous_id=MAIL, session_id=MAIL, url=URL, referrer=URL,
        viewport=PHONE, language=MAIL, timezone=MAIL, name=PERSON["name"], note=CANARIES["note"],
        properties={**TELLING, "order_id": "5"},
    )  # fmt: skip
    order = changed(
        fixture("shopify_orders")[0],
        email=MAIL, contact_email=MAIL, phone=PHONE, browser_ip=CANARIES["ip"],
        client_details={"browser_ip": CANARIES["ip"], "user_agent": AGENT},
        customer={"id": 1, **PERSON}, billing_address=PERSON, shipping_address=PERSON,
        note=f"{CANARIES['note']} {TEXT}", note_attributes=[{"name": "for", "value": TEXT}],
        landing_site=URL, referring_site=URL, name=MAIL,
    )  # fmt: skip
    order["line_items"][0]["properties"] = [{"name": "engraving", "value": PERSON["name"] + TEXT}]
    order["refunds"][0]["note"] = CANARIES["note"]
    woo = changed(
        fixture("woocommerce_orders")[0],
        billing=PERSON, shipping=PERSON, customer_ip_address=CANARIES["ip"],
        customer_user_agent=AGENT, customer_note=CANARIES["note"], meta_data=[
            {"key": "_wc_order_attribution_utm_campaign", "value": MAIL},
            {"key": "_wc_order_attribution_utm_source", "value": MAIL},
            {"key": "_wc_order_attribution_utm_medium", "value": PHONE},
            {"key": "_wc_order_attribution_session_entry", "value": URL},
            {"key": "_wc_order_attribution_user_agent", "value": AGENT},
        ],
    )  # fmt: skip
    charge = changed(
        fixture("payments")[0],
        billing_details={**PERSON, "address": PERSON}, receipt_email=MAIL, description=TEXT,
        metadata={"visitor_id": MAIL, "note": CANARIES["note"]}, customer=MAIL,
    )  # fmt: skip
    meta = changed(fixture("meta_ads")[0], campaign_name=TEXT, adset_name=TEXT, ad_name=TEXT)
    google = changed(fixture("google_ads")[0], campaign={"id": "1", "name": TEXT})
    google["adGroup"]["name"] = TEXT
    google["adGroupAd"]["ad"]["name"] = TEXT
    tiktok = fixture("tiktok_ads")[0]
    tiktok["metrics"] |= {"campaign_name": TEXT, "adgroup_name": TEXT, "ad_name": TEXT}
    amazon = changed(fixture("amazon_ads")[0], campaignName=TEXT, adGroupName=TEXT)
    pinterest = changed(fixture("pinterest_ads")[0], CAMPAIGN_NAME=TEXT, AD_GROUP_NAME=TEXT)
    klaviyo = changed(fixture("klaviyo_events")[0], profile=PERSON)
    klaviyo["attributes"]["event_properties"] |= {
        "Campaign Name": TEXT, "URL": URL, "$message": MAIL, "$flow": MAIL, "$event_id": MAIL,
    }  # fmt: skip
    klaviyo["relationships"]["profile"]["data"]["id"] = MAIL
    klaviyo["relationships"]["metric"]["name"] = TEXT
    good: dict[str, dict[str, Any]] = {
        "pixel": pixel, "shopify_orders": order, "woocommerce_orders": woo, "payments": charge,
        "meta_ads": meta, "google_ads": google, "tiktok_ads": tiktok, "amazon_ads": amazon,
        "pinterest_ads": pinterest, "klaviyo_events": klaviyo,
    }  # fmt: skip
    lines: dict[str, list[Line]] = {}
    for source, line in good.items():
        text = json.dumps(line)
        # Good; broken in the middle; no object; and, of the pixel, refused.
        lines[source] = [
            line,
            text[:-9],
            json.dumps([line]),
            text.replace("2026-11-1", "1970-01-1"),
        ]
    lines["pixel"] += [
        changed(pixel, event_id="refused", consent=False),
        changed(pixel, event_id="number", timestamp=MAIL),
        changed(pixel, event_id=MAIL, email=None),
    ]
    return lines


def _haystacks(warehouse: Warehouse) -> Iterator[tuple[str, bytes]]:
    """Everything that lies in a home outside landing: rows as the engines tell them, and bytes."""
    settings = warehouse.settings
    tables = clickhouse.rows(
        settings,
        "select database, name from system.tables where not is_temporary"
        " and (database not in ('system', 'INFORMATION_SCHEMA', 'information_schema')"
        " or name like '%_log' or name like 'query_log%' or name in"
        " ('query_cache', 'processes', 'errors', 'mutations', 'parts', 'warnings'))",
    )
    assert {"raw", "marts", "reference"} <= {row["database"] for row in tables}
    for row in tables:
        name = f"{row['database']}.`{row['name']}`"
        yield name, clickhouse.execute(settings, f"select * from {name} format JSONEachRow").body
    with postgres.connect(settings) as connection:
        for row in connection.execute(
            "select quote_ident(schemaname) || '.' || quote_ident(tablename) as name from pg_tables"
            " where schemaname in ('app', 'control')"
        ).fetchall():
            found = connection.execute(f"select t::text as line from {row['name']} t")
            yield f"PostgreSQL {row['name']}", "\n".join(r["line"] for r in found).encode()
    # Stopped, both have written everything they held in memory.
    warehouse.run("down")
    landing = settings.landing_path
    for path in sorted(settings.home.rglob("*")):
        if path.is_file() and landing not in path.parents:
            data = path.read_bytes()
            yield str(path), data
            if path.suffix == ".gz":
                yield f"{path} unpacked", gzip.decompress(data)
    warehouse.run("up", "--no-airflow")


def _needles() -> re.Pattern[bytes]:
    words = set()
    for canary in CANARIES.values():
        words |= {canary, canary.replace("@", "%40"), canary.replace(" ", "%20"),
                  canary.replace("+", "%2B")}  # fmt: skip
    alternatives = sorted(re.escape(word).encode() for word in words)
    return re.compile(b"|".join(alternatives), re.IGNORECASE)


@pytest.fixture(scope="module")
def planted() -> Iterator[Warehouse]:
    """A home with canaries loaded and built, still running."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        shop = tenant(home, home.settings.landing_path)
        unknown = tenant(home, home.settings.landing_path, exists=False)
        for each in (shop, unknown):
            for source, lines in _lines().items():
                each.deliver(source, lines, name=f"{MAIL} {CANARIES['phone']}.jsonl.gz")
        shop.deliver(
            "pixel",
            data=gzip.compress(json.dumps(_lines()["pixel"][0]).encode())[:-9],
            name=f"cut {MAIL}.jsonl.gz",
        )
        (home.settings.landing_path / MAIL / PHONE).mkdir(parents=True)
        shop.deliver(
            "fx_rates",
            fixture("fx_rates")
            + [
                {"date": "2026-11-19", "base": base, "quote": "GBP", "rate": "0.8"}
                for base in ("USD",)
            ],
        )
        said = home.run("load", "--json", "--as-of", str(shop.as_of), check=False)
        said_again = home.run("load", "--retry", "--as-of", str(shop.as_of), check=False)
        built = home.run("build", "--as-of", str(shop.as_of), check=False)
        assert built.code == 0, built.stderr
        files = said.json["files"]
        loaded = [file for file in files if shop.workspace_id in file["file"]]
        assert len(loaded) == len(_lines()) + 1
        assert all(file["stored"] >= 1 for file in loaded if "error" not in file)
        assert sum("error" in file for file in loaded) == 1
        assert sum(file["refused"] for file in loaded) == 1
        (home.settings.home / "said.txt").write_text(
            "\n".join(o.stdout + o.stderr for o in (said, said_again, built)), encoding="utf-8"
        )
        yield home


def test_canaries_are_found_nowhere_outside_landing(planted: Warehouse) -> None:
    needles = _needles()
    # The search finds what is there: a canary put into a table and a file.
    assert needles.search(f"x{MAIL.upper()}y".encode())
    searched, found = 0, []
    for place, data in _haystacks(planted):
        searched += 1
        if match := needles.search(data):
            context = data[max(0, match.start() - 60) : match.end() + 20]
            found.append((place, match[0], context))
    assert searched > 100
    assert not found, found[:9]


def test_the_rest_of_the_rows_is_there(planted: Warehouse) -> None:
    settings = planted.settings
    (event,) = clickhouse.rows(
        settings, "select * from raw.pixel_events where event_id not like '%@%' limit 1"
    )
    assert event["order_id"] == "5"
    assert event["url_path"].startswith("/u/[redacted]/")
    assert "[redacted]" in event["properties"]
    assert (event["country"], event["click_id_kind"]) == ("GB", "gclid")
    assert clickhouse.rows(settings, "select count() as n from marts.kpis_daily")[0]["n"] > 0
    assert clickhouse.rows(settings, "select count() as n from raw.quarantine")[0]["n"] > 20
