"""Personal data planted wherever a source can carry it: after load and build it is nowhere."""

import json
from pathlib import Path
from typing import Any

from homes import Warehouse
from landings import changed, fixture, tenant
from tidemark import clickhouse, postgres

MAIL = "canary.mail@example.org"
PHONE = "+44 7700 900123"
NAME = "Canarina Quillfeather"
ADDRESS = "17 Canary Lane"
IP = "203.0.113.77"
USER_AGENT = "Mozilla/5.0 (CanaryOS 9) CanaryBrowser/9.9"
CANARIES = (MAIL, PHONE, "7700900123", NAME, ADDRESS, IP, "CanaryBrowser")

PERSON = {
    "first_name": NAME, "last_name": NAME, "name": NAME, "phone": PHONE, "email": MAIL,
    "address1": ADDRESS, "address_1": ADDRESS, "address": ADDRESS, "city": ADDRESS, "zip": "CN1",
}  # fmt: skip
TEXT = f"to {MAIL} or {PHONE}"
TAIL = f"write-{MAIL}-or-{PHONE.replace(' ', '-')}"
QUERY = f"utm_source={MAIL}&utm_campaign={TAIL}&utm_term={MAIL}&email={MAIL}&name=Canarina"


def planted() -> dict[str, list[dict[str, Any] | str]]:
    """Lines of each source, stored, refused and quarantined, with the canaries in them."""
    event = changed(
        fixture("pixel")[0],
        event_name=f"signup {MAIL}",
        email=MAIL,
        user_id=MAIL,
        ip=IP,
        user_agent=USER_AGENT,
        url=f"https://shop.example/u/{MAIL}/{TAIL}?{QUERY}",
        referrer=f"https://mail.example/inbox/{MAIL}?to={MAIL}",
        properties={
            "title": TEXT,
            "contact": {"customer_name": NAME, "shipping_address": ADDRESS, "deep": [TEXT, IP]},
            "full_name": NAME,
            "phone": PHONE,
            "agent": USER_AGENT,
        },
    )
    shopify = changed(
        fixture("shopify_orders")[0],
        email=MAIL,
        contact_email=MAIL,
        phone=PHONE,
        browser_ip=IP,
        note=f"{NAME}, {ADDRESS}",
        note_attributes=[{"name": "gift for", "value": NAME}],
        client_details={"browser_ip": IP, "user_agent": USER_AGENT},
        customer={"id": 1, **PERSON},
        billing_address=PERSON,
        shipping_address=PERSON,
        landing_site=f"/welcome/{MAIL}?{QUERY}",
        referring_site=f"https://mail.example/{MAIL}",
    )
    for item in shopify["line_items"]:
        item["properties"] = [{"name": "engraving", "value": f"For {NAME} {MAIL}"}]
    woo = changed(
        fixture("woocommerce_orders")[0],
        currency="GBP",
        customer_ip_address=IP,
        customer_user_agent=USER_AGENT,
        customer_note=TEXT,
        billing=PERSON,
        shipping=PERSON,
        meta_data=[
            {"key": "_wc_order_attribution_utm_source", "value": MAIL},
            {"key": "_wc_order_attribution_utm_campaign", "value": TEXT},
            {"key": "_wc_order_attribution_user_agent", "value": USER_AGENT},
            {"key": "_wc_order_attribution_referrer", "value": f"https://m.example/{MAIL}"},
        ],
    )
    payment = changed(
        fixture("payments")[0],
        billing_details=PERSON,
        receipt_email=MAIL,
        customer=MAIL,
        description=TEXT,
        metadata={"visitor_id": MAIL, "who": NAME},
    )
    klaviyo = fixture("klaviyo_events")[0]
    klaviyo["profile"] = PERSON
    klaviyo["attributes"]["event_properties"] |= {"Campaign Name": TEXT, "Items": [NAME, MAIL]}
    meta = changed(
        fixture("meta_ads")[0], campaign_name=TEXT, adset_name=MAIL, ad_name=f"ad {PHONE}"
    )
    lines: dict[str, list[dict[str, Any] | str]] = {
        "pixel": [
            event,
            changed(event, event_id="no", consent={"analytics": False}),
            changed(event, event_id="old", timestamp="1970-01-01T00:00:00Z"),
            changed(event, event_id=...),
            json.dumps(changed(event, event_id="cut"))[:-20],
            json.dumps([MAIL, NAME, PHONE]),
        ],
        "shopify_orders": [shopify, changed(shopify, id="bad", total_price=MAIL)],
        "woocommerce_orders": [woo, changed(woo, id=7, line_items=[{"quantity": MAIL}])],
        "payments": [payment, changed(payment, id="ch_bad", currency=MAIL)],
        "klaviyo_events": [klaviyo],
        "meta_ads": [meta, changed(meta, ad_id="x", spend=MAIL, account_currency=NAME)],
    }
    return lines


def found_in(data: bytes) -> list[str]:
    """The canaries that some bytes hold, in any case."""
    lower = data.lower()
    return [canary for canary in CANARIES if canary.lower().encode() in lower]


def test_no_canary_survives_load_and_build(fresh_warehouse: Warehouse, tmp_path: Path) -> None:
    settings = fresh_warehouse.settings
    shop = tenant(fresh_warehouse, tmp_path)
    sent = planted()
    for source, lines in sent.items():
        shop.deliver(source, lines, name=f"export of {MAIL} {PHONE}.jsonl")
    shop.deliver("pixel", sent["pixel"], name="stray.jsonl", workspace="nobody")
    # They must be there to be missed.
    delivered = b"".join(path.read_bytes() for path in tmp_path.rglob("*.jsonl"))
    assert set(found_in(delivered)) >= {MAIL, PHONE, NAME, ADDRESS, IP}

    loaded = fresh_warehouse.run("load", "--landing", str(tmp_path), "--as-of", "2026-11-20")
    assert not found_in((loaded.stdout + loaded.stderr).encode())
    built = fresh_warehouse.run("build", "--json")
    assert built.json["gate"]["success"] is True
    assert not found_in((built.stdout + built.stderr).encode())
    stored = {
        row["source"]
        for row in shop.ledger(
            "select source from control.loads where workspace_id = %s and stored > 0",
            [shop.workspace_id],
        )
    }
    assert stored == set(sent)

    tables = clickhouse.rows(
        settings,
        "select database, name from system.tables where engine not like '%View'"
        " and database not in ('INFORMATION_SCHEMA', 'information_schema')"
        " and (database != 'system' or name like '%log%')",
    )
    assert len(tables) > 30
    for table in tables:
        content = clickhouse.execute(
            settings, f"select * from `{table['database']}`.`{table['name']}` format TSVRaw"
        ).body
        assert not found_in(content), table

    with postgres.connect(settings, "superuser", autocommit=True) as connection:
        connection.execute("checkpoint")
    places = 0
    for path in settings.home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            places += 1
            assert not found_in(path.read_bytes()), path
    assert places > 1000
