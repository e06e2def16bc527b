"""Legal holds: kept without anybody's name, and found again in every table that has the person."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from homes import Warehouse
from landings import Tenant, changed, fixture, tenant
from tidemark import clickhouse, keys, plan, policy, postgres, privacy, retention
from tidemark.errors import UsageError

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
PERSON = "grace@example.org"


def _add(shop: Tenant, *arguments: str) -> Any:
    return shop.warehouse.run(
        "hold", "add", "--workspace", shop.workspace_id, "--reason", "case 12/2026", "--json",
        *arguments,
    ).json  # fmt: skip


def test_a_hold_is_added_once_listed_and_released(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    everything, orders = _add(shop), _add(shop, "--class", "orders")
    person = _add(shop, "--class", "orders", "--subject", PERSON)
    assert len({hold["hold_id"] for hold in (everything, orders, person)}) == 3
    again = _add(shop, "--class", "orders", "--subject", f" {PERSON} ")
    assert (again["hold_id"], again["created"]) == (person["hold_id"], False)
    other = warehouse.run(
        "hold", "add", "--workspace", shop.workspace_id, "--reason", "another case", "--json"
    ).json
    assert other["hold_id"] not in (everything["hold_id"], person["hold_id"])

    own = [h for h in warehouse.run("hold", "list", "--json").json
           if h["workspace_id"] == shop.workspace_id]  # fmt: skip
    assert [(h["class"], h["is_of_subject"], h["reason"]) for h in own] == [
        (None, False, "case 12/2026"),
        ("orders", False, "case 12/2026"),
        ("orders", True, "case 12/2026"),
        (None, False, "another case"),
    ]
    with postgres.connect(warehouse.settings) as connection:
        in_force = [h for h in policy.holds(connection) if h.workspace_id == shop.workspace_id]
    assert [(h.data_class, h.is_of_subject) for h in in_force] == [
        (None, False), ("orders", False), ("orders", True), (None, False),
    ]  # fmt: skip

    first = warehouse.run("hold", "release", str(person["hold_id"]), "--json").json
    second = warehouse.run("hold", "release", str(person["hold_id"]), "--json").json
    assert (first["changed"], second["changed"]) == (True, False)
    assert first["released_at"] == second["released_at"]
    fresh = _add(shop, "--class", "orders", "--subject", PERSON)
    assert fresh["created"] is True
    kinds = shop.ledger(
        "select kind, document from control.ledger where document ->> 'workspace_id' = %s"
        " order by entry_id",
        [shop.workspace_id],
    )
    assert [row["kind"] for row in kinds] == [*["hold_added"] * 4, "hold_released", "hold_added"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--reason", "about ada@example.org"), 3, "e-mail address"),
        (("--reason", "call +44 20 7946 0958"), 3, "phone number"),
        (("--reason", " "), 2, "1 to 500 characters"),
        (("--reason", "x", "--class", "wishes"), 2, "no class wishes"),
        (("--reason", "x", "--class", "ad_spend", "--subject", "ada"), 2, "names a person"),
        (("--reason", "x", "--subject", " "), 2, "subject is empty"),
    ],
)
def test_a_hold_that_must_not_be_is_refused(
    warehouse: Warehouse, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    shop = tenant(warehouse, tmp_path)
    outcome = warehouse.run(
        "hold", "add", "--workspace", shop.workspace_id, *arguments, check=False
    )
    assert (outcome.code, said in outcome.stderr) == (code, True), outcome.stderr
    assert (
        shop.ledger("select from control.holds where workspace_id = %s", [shop.workspace_id]) == []
    )
    for canary in ("ada@example.org", "7946"):
        assert canary not in outcome.stderr


@pytest.mark.parametrize("arguments", [("release", "999999"), ("add", "--workspace", "nobody")])
def test_what_is_not_there_is_wrong_usage(warehouse: Warehouse, arguments: tuple[str, ...]) -> None:
    more = ("--reason", "x") if arguments[0] == "add" else ()
    outcome = warehouse.run("hold", *arguments, *more, check=False)
    assert (outcome.code, "no " in outcome.stderr) == (2, True)


def test_no_table_of_control_knows_who_is_held(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    _add(shop, "--subject", "canary.held@example.org")
    _add(shop, "--subject", "canary-customer-4711")
    tables = shop.ledger(
        "select table_schema || '.' || table_name as name from information_schema.tables"
        " where table_schema in ('control', 'app') and table_type = 'BASE TABLE'"
    )
    assert len(tables) > 10
    for table in tables:
        rows = shop.ledger(f"select count(*) as n from {table['name']} as t"
                           " where t::text ilike '%%canary%%held%%'"
                           " or t::text ilike '%%canary-customer%%'")  # fmt: skip
        assert rows[0]["n"] == 0, table["name"]
    (hashes,) = shop.ledger(
        "select count(*) as n from control.holds, unnest(subject_hashes) as hash"
        " where workspace_id = %s and hash ~ '^[0-9a-f]{32}$'",
        [shop.workspace_id],
    )
    assert hashes["n"] > 3


@pytest.mark.parametrize(
    "subject",
    ["a@example.org\nb@example.org", "Ada <a@example.org>", "mailto:a@example.org", "'a@b.org'"],
)
def test_what_no_source_sends_names_nobody(subject: str) -> None:
    with pytest.raises(UsageError, match="alone"):
        privacy.subject_hashes(b"key", subject, ("pixel",))


def test_what_stands_around_an_identifier_is_none_of_it() -> None:
    def hashes(subject: str) -> set[str]:
        return privacy.subject_hashes(b"key", subject, ("pixel",))

    assert hashes("\ufeffa@example.org\n") == hashes("a@example.org")
    assert hashes("Visitor: Vis ünï") == hashes("visitor:Vis ünï") != hashes("visitor:vis ünï")


EVENT = changed(fixture("pixel")[0], url="https://mugs.example/", referrer="", user_agent=None)


def test_a_subject_is_found_wherever_the_load_put_them(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path)
    shop.deliver(
        "pixel",
        [
            changed(
                EVENT,
                event_id="email",
                email="\t\u00a0GRACE@example.org\u3000",
                user_id=...,
                anonymous_id="x",
            ),
            changed(EVENT, event_id="user", email=..., user_id="cust_9", anonymous_id="x"),
            changed(EVENT, event_id="visitor", email=..., user_id=..., anonymous_id="vis-1"),
            changed(EVENT, event_id="guilty", email=..., user_id=PERSON, anonymous_id=PERSON),
            changed(EVENT, event_id="nobody", email=..., user_id=..., anonymous_id="x"),
        ],
    )
    shop.deliver("shopify_orders", fixture("shopify_orders"))
    shop.deliver("payments", [changed(fixture("payments")[1], metadata={"visitor_id": "vis-1"})])
    shop.deliver("klaviyo_events", fixture("klaviyo_events"))
    shop.load()
    ladder = policy.read(warehouse.settings)
    with postgres.connect(warehouse.settings) as connection:
        key = keys.Keyring.from_settings(warehouse.settings).pseudonym_key(
            connection, shop.workspace_id
        )

    def found(subject: str) -> set[str]:
        hashes = privacy.subject_hashes(key, subject, tuple(ladder.sources))
        rows = set()
        for own in ladder.loaded.values():
            for table in own.tables:
                known = [column for column in own.subjects if column in ladder.columns[table]]
                for row in shop.table(table) if known else []:
                    if any(row[column] in hashes for column in known):
                        rows.add(f"{table} {row.get('event_id', '')}".strip())
        return rows

    assert {"raw.pixel_events email", "raw.pixel_events guilty"} <= found("Grace@Example.org ")
    assert "raw.pixel_events nobody" not in found(PERSON)
    assert found("cust_9") == {"raw.pixel_events user"}
    assert found("20712") == {"raw.orders"}
    assert {"raw.pixel_events visitor", "raw.payments"} == found("visitor:vis-1")
    assert found("visitor:x") >= {"raw.pixel_events nobody"}
    profile = found("01GDDKASAP8TKDDA2GRZDSVP4H")
    assert profile
    assert {row.split()[0] for row in profile} == {"raw.email_events"}
    assert found("nobody@example.org") == set()


def test_a_held_persons_refund_is_found_by_its_order_purged_or_not(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    settings = warehouse.settings
    shop = tenant(warehouse, tmp_path)
    shop.load_lines("shopify_orders", fixture("shopify_orders"))
    refunds = shop.rows(
        "select refunds.refund_id as refund_id, refunds.order_key as order_key,"
        " orders.customer_key as customer_key from raw.order_refunds as refunds"
        " inner join raw.orders as orders on refunds.workspace_id = orders.workspace_id"
        " and refunds.order_key = orders.order_key"
        " where refunds.workspace_id = {workspace} and orders.customer_key != ''"
    )
    assert refunds
    person = refunds[0]["customer_key"]
    ladder = policy.read(settings)

    def held() -> set[str]:
        with postgres.connect(settings) as connection:
            connection.execute(
                "update control.holds set subject_hashes = array[%s] where hold_id = %s",
                [person, hold["hold_id"]],
            )
            retention.publish_holds(settings, connection)
            condition = plan.held_condition(
                ladder, "orders", "raw.order_refunds", policy.holds(connection)
            )
            connection.rollback()
        return {
            row["refund_id"]
            for row in shop.rows(
                "select refund_id from raw.order_refunds"
                f" where workspace_id = {{workspace}} and {condition}"
            )
        }

    hold = _add(shop, "--class", "orders", "--subject", "whoever-it-is")
    theirs = {row["refund_id"] for row in refunds if row["customer_key"] == person}
    assert held() == theirs
    # The order goes, and its anonymised fact stays.
    for order_key in {row["order_key"] for row in refunds if row["customer_key"] == person}:
        clickhouse.execute(
            settings,
            "insert into anonymised.orders (workspace_id, source, order_key, customer_key)"
            f" values ('{shop.workspace_id}', 'shopify_orders', '{order_key}', '{person}')",
        )
    clickhouse.execute(
        settings,
        f"alter table raw.orders delete where workspace_id = '{shop.workspace_id}'"
        " settings mutations_sync = 2",
    )
    assert held() == theirs
    warehouse.run("hold", "release", str(hold["hold_id"]))
    assert held() == set()
