"""Every source: each column of `raw` from the lines of `tests/fixtures/<source>`.

`lines.jsonl` is what the vendor delivers, `<table>.jsonl` what must stand in `raw.<table>`. There
`<kind value>` stands for the workspace's keyed pseudonym of that value.
"""

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from homes import Warehouse
from landings import AS_OF, DAY, FIXTURES, Tenant, fixture, tenant
from tidemark import keys, policy, postgres
from tidemark.config import Settings

TABLES = sorted(
    (path.parent.name, path.stem)
    for path in FIXTURES.glob("*/*.jsonl")
    if path.stem != "lines"
)  # fmt: skip
# Ids of different vendors must not meet in one pseudonym.
BY_SOURCE = {"customer", "order"}


def pseudonym(shop: Tenant, kind: str, value: str) -> str:
    """The keyed pseudonym, told a second time."""
    with postgres.connect(shop.warehouse.settings) as connection:
        keyring = keys.Keyring.from_settings(shop.warehouse.settings)
        key = keyring.pseudonym_key(connection, shop.workspace_id)
    return hmac.new(key, f"{kind}\0{value}".encode(), hashlib.sha256).hexdigest()[:32]


def expected(shop: Tenant, source: str, table: str) -> list[dict[str, Any]]:
    """The rows of the fixture, with pseudonyms in the place of their marks."""

    def filled(value: Any) -> Any:
        if not (isinstance(value, str) and value.startswith("<")):
            return value
        kind, text = value[1:-1].split(" ", 1)
        return pseudonym(shop, kind, f"{source}\0{text}" if kind in BY_SOURCE else text)

    lines = (FIXTURES / source / f"{table}.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    return [{k: filled(v) for k, v in json.loads(line).items()} for line in lines]


def test_every_source_of_the_policy_has_a_fixture() -> None:
    sources = policy.read(Settings.from_env({})).sources
    assert {source for source, _ in TABLES} == set(sources)


@pytest.mark.parametrize("source", sorted({source for source, _ in TABLES}))
def test_each_column_of_raw_is_as_expected(
    warehouse: Warehouse, tmp_path: Path, source: str
) -> None:
    shop = tenant(warehouse, tmp_path)
    lines = fixture(source)
    counts = shop.load_lines(source, lines, name="part.jsonl.gz")
    load_id = shop.report.files[0].load_id
    refused = sum(line.get("consent") == {"analytics": False} for line in lines)
    assert (counts.lines, counts.refused, counts.quarantined) == (len(lines), refused, 0)
    assert counts.stored == len(lines) - refused
    tables = [table for of, table in TABLES if of == source]
    assert tables
    for table in tables:
        order = "line_number, refund_id" if table.endswith("_refunds") else "line_number"
        rows = shop.rows(f"select * from raw.{table} where load_id = {load_id} order by {order}")
        for row in rows:
            assert row.pop("load_id") == load_id
            assert row.pop("delivery_date") == str(DAY)
            assert row.pop("workspace_id") == ("_" if source == "fx_rates" else shop.workspace_id)
        assert rows == expected(shop, source, table)
    if source != "fx_rates":
        shop.assert_ties_out()


def test_one_person_has_one_key_across_sources_and_another_in_another_workspace(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    keys_of: list[set[str]] = []
    for name in ("one", "other"):
        shop = tenant(warehouse, tmp_path / name)
        for source in ("pixel", "shopify_orders", "payments", "klaviyo_events"):
            shop.deliver(source, fixture(source))
        shop.deliver(
            "woocommerce_orders",
            [{**fixture("woocommerce_orders")[0], "billing": {"email": "  GRACE@example.org "}}],
        )
        shop.load()
        keys_of.append(set())
        for table, where in (
            ("pixel_events", "user_key != ''"),
            ("orders", "order_id in ('4501', '9727')"),
            ("payments", "payment_id in ('ch_gbp', 'ch_kwd')"),
            ("email_events", "event_id = 'kl1'"),
        ):
            rows = shop.rows(
                f"select customer_key from raw.{table}"
                f" where workspace_id = {{workspace}} and {where}"
            )
            assert rows
            keys_of[-1] |= {row["customer_key"] for row in rows}
    assert [len(found) for found in keys_of] == [1, 1]
    assert keys_of[0] != keys_of[1]


def test_an_order_is_of_the_workspaces_own_day_across_a_clock_change(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path, timezone="America/New_York", currency="USD")
    order = fixture("shopify_orders")[0]
    times = {
        # The clocks went back at 06:00 UTC on 2026-11-01: from UTC-4 to UTC-5.
        "2026-11-01T03:59:59Z": "2026-10-31",
        "2026-11-01T04:00:00Z": "2026-11-01",
        "2026-11-02T04:59:59Z": "2026-11-01",
        "2026-11-02T05:00:00Z": "2026-11-02",
    }
    counts = shop.load_lines(
        "shopify_orders", [{**order, "id": n, "created_at": at} for n, at in enumerate(times, 1)]
    )
    assert counts.stored == 4
    rows = shop.table("raw.orders", "line_number")
    assert [row["local_date"] for row in rows] == list(times.values())
    # A report's day is its own, whatever the workspace's timezone.
    shop.load_lines("google_ads", fixture("google_ads"))
    assert {row["local_date"] for row in shop.table("raw.ad_spend")} == {str(DAY)}


def test_a_line_later_than_as_of_and_a_day_waits(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    event = fixture("pixel")[4]
    times = {
        "2026-11-21T23:59:59.999999Z": "",
        "2026-11-22T00:00:00Z": "bad_timestamp",
        "1999-12-31T23:59:59Z": "bad_timestamp",
        # Thirteen months before as_of, to the day.
        "2025-10-20T00:00:00Z": "",
        "2025-10-19T22:59:59Z": "past_retention",
        "2000-01-01T00:00:00Z": "past_retention",
    }
    shop.load_lines(
        "pixel", [{**event, "event_id": str(n), "timestamp": at} for n, at in enumerate(times)]
    )
    assert shop.as_of == AS_OF
    assert shop.quarantine() == {n: why for n, why in enumerate(times.values(), 1) if why}
