"""A person's erasure on real engines: what goes, what stays, and that a rerun finishes it.

One history for all: `shop` has the person, `twin` has the same days without them, and `till`, which
counts payments, has them too. What is old of it is purged. The tests run in the order they stand in.
"""

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

import history
from homes import Outcome, Warehouse, new_home
from tidemark import clickhouse, erasure, keys, policy, postgres, privacy, requests

LOADED = date(2025, 1, 20)
#: Orders of shop are purged up to the ninth of September, its pixel rows up to July.
PURGED = "2025-09-10"
DAYS = [date(2024, month, day) for month in range(7, 13) for day in (9, 10)]
OPEN = "date_day >= '2024-09-10'"
BOB = "bob@example.org"
PERSON = history.PERSON
#: Of raw and what stands behind the marts.
LAYERS = ("raw", "intermediate", "anonymised", "recalled")

Rows = list[dict[str, Any]]


def theirs(day: date) -> dict[str, Rows]:
    """What a day of the person brings, by source."""
    own = {folder.split("/")[0]: lines for folder, lines in history.lines(day).items()}
    own["pixel"] = own["pixel"][:2]
    own["shopify_orders"] = own["shopify_orders"][:1]
    if day.day == 9:
        # A session that somebody without a name goes on with, and another customer's order.
        own["pixel"] += [
            history.pixel(day, 20, "$pageview", anonymous_id="shared", session_id=f"long-{day}"),
            history.pixel(
                day, 21, "purchase", anonymous_id="helper", session_id="h",
                properties={"order_id": str(history.order(day, 3, "1")["id"])},
            ),
        ]  # fmt: skip
    return {name: own[name] for name in ("pixel", "shopify_orders", "klaviyo_events")}


def others(day: date) -> dict[str, Rows]:
    """What a day of everybody else brings."""
    following, before = day + timedelta(days=1), day - timedelta(days=1)
    events = [
        history.email(day, 4, "Clicked Email"),
        history.email(day, 5, "Placed Order", **{"$value": 30, "$event_id": f"b-{day}"}),
    ]
    for event in events:
        event["relationships"]["profile"]["data"]["id"] = "BOBS"
        event["profile"]["email"] = BOB
    return {
        "pixel": [
            history.pixel(day, 3, "$pageview", anonymous_id=f"other-{day}", email=None),
            history.pixel(day, 10, "$pageview", anonymous_id="bobs", email=BOB),
            history.pixel(
                day, 11, "purchase", anonymous_id="bobs", email=BOB,
                properties={"order_id": str(history.order(day, 4, "1")["id"])},
            ),
            *(
                [history.pixel(day, 22, "$pageview", anonymous_id="shared",
                               session_id=f"long-{before}", email=None)]
                if day.day == 10
                else []
            ),
        ],
        "shopify_orders": [
            history.order(day, 2, "40.00", email=f"guest-{day}@example.org"),
            history.order(day, 3, "41.00", email=BOB),
            history.order(day, 4, "42.50", email=BOB, refunds=[history.refund(following, 4, "7.10")]),
        ],
        "meta_ads": [history.ad(day)],
        "klaviyo_events": events,
    }  # fmt: skip


def rows(home: Warehouse, query: str) -> Rows:
    return clickhouse.rows(home.settings, query)


def count(home: Warehouse, table: str, where: str = "1") -> int:
    return int(rows(home, f"select count() as n from {table} where {where}")[0]["n"])


def control(home: Warehouse, query: str, *values: Any) -> Rows:
    with postgres.connect(home.settings) as connection:
        return connection.execute(query.encode(), list(values)).fetchall()


def hashes_of(home: Warehouse, workspace: str, subject: str = PERSON) -> set[str]:
    ladder = policy.read(home.settings)
    with postgres.connect(home.settings) as connection:
        key = keys.Keyring.from_settings(home.settings).pseudonym_key(connection, workspace)
    return privacy.subject_hashes(key, subject, tuple(ladder.sources))


def found(home: Warehouse, values: set[str], workspace: str = "") -> dict[str, int]:
    """Rows of any table in which any text is one of these values."""
    listed = ", ".join(f"'{value}'" for value in sorted(values))
    counts = {}
    for table in rows(
        home,
        "select concat(database, '.', table) as name, groupArray(columns.name) as texts"
        " from system.columns as columns where database not in ('system', 'INFORMATION_SCHEMA',"
        " 'information_schema') and type in ('String', 'LowCardinality(String)') group by name",
    ):
        own = "true"
        if workspace:
            if "workspace_id" not in table["texts"]:
                continue
            own = f"workspace_id = '{workspace}'"
        texts = " or ".join(f"`{name}` in ({listed})" for name in table["texts"])
        n = count(home, table["name"], f"{own} and ({texts})")
        if n:
            counts[table["name"]] = n
    return counts


def print_of(home: Warehouse, where: str = "true", layers: tuple[str, ...] = LAYERS) -> Any:
    """Count and hash of the rows of every table with rows of people."""
    prints = {}
    for table in rows(
        home,
        "select concat(database, '.', name) as name, engine from system.tables"
        f" where database in ({', '.join(repr(own) for own in layers)}) and engine not like '%View'"
        " and name not in ('pending_days')",
    ):
        types = rows(
            home,
            "select name, type from system.columns"
            f" where concat(database, '.', table) = '{table['name']}' order by position",
        )
        if "workspace_id" not in {row["name"] for row in types}:
            continue
        hashed = ", ".join(
            f"finalizeAggregation(`{row['name']}`)"
            if row["type"].startswith("AggregateFunction")
            else f"`{row['name']}`"
            for row in types
            if row["name"] != "version"
        )
        final = " final" if "Replacing" in table["engine"] else ""
        prints[table["name"]] = rows(
            home,
            f"select count() as n, toString(sum(sipHash64(tuple({hashed})))) as hash"
            f" from {table['name']}{final} where {where}",
        )
    return prints


def marts(home: Warehouse, workspace: str, where: str = OPEN) -> Rows:
    """Every figure of the daily marts."""
    return [
        row
        for table in ("kpis_daily", "email_revenue_daily")
        for row in rows(
            home,
            f"select * except (workspace_id) from marts.{table} where workspace_id = '{workspace}'"
            f" and {where} order by all",
        )
    ]


def cohorts(home: Warehouse, workspace: str, where: str = "true") -> Rows:
    return rows(
        home,
        "select * except (workspace_id) from marts.customer_cohorts_monthly"
        f" where workspace_id = '{workspace}' and {where} order by all",
    )


def erase(home: Warehouse, workspace: str, subject: str = PERSON, *more: str) -> Outcome:
    return home.run(
        "erase", "--workspace", workspace, "--subject", subject, "--as-of", PURGED, "--json", *more,
        check=False,
    )  # fmt: skip


def now() -> datetime:
    return datetime.now(UTC)


def build(home: Warehouse) -> Any:
    return home.run("build", "--as-of", PURGED, "--json").json


@pytest.fixture(scope="module")
def home() -> Iterator[Warehouse]:
    with new_home() as home:
        home.run("up", "--no-airflow")
        for workspace, currency, source in (
            ("shop", "GBP", "orders"), ("twin", "GBP", "orders"), ("till", "EUR", "payments")
        ):
            home.run(
                "workspace", "add", workspace, "--timezone", "Europe/London", "--currency",
                currency, "--plan", "enterprise", "--revenue-source", source,
            )  # fmt: skip
        for day in DAYS:
            own, rest = theirs(day), others(day)
            for source in rest:
                lines = [*own.get(source, []), *rest[source]]
                history.put(home, f"{source}/shop", day, lines)
                history.put(home, f"{source}/twin", day, rest[source])
            history.put(home, "payments/till", day, history.lines(day)["payments/till"])
            history.put(home, "pixel/till", day, own["pixel"])
        loaded = home.run("load", "--as-of", str(LOADED), "--json").json
        assert (loaded["quarantined"], loaded["stored"]) == (0, loaded["lines"])
        assert home.run("build", "--as-of", str(LOADED), "--json").json["gate"]["success"]
        for workspace in ("shop", "twin"):
            home.run("override", "set", workspace, "orders", "12 months")
        home.run("override", "set", "till", "payments", "12 months")
        steps = home.run("purge", "--as-of", PURGED, "--json").json["steps"]
        assert {step["status"] for step in steps} == {"done"}
        assert {step["data_class"] for step in steps} == {"pixel_events", "orders", "payments"}
        yield home


def test_a_person_goes_and_nobody_else(home: Warehouse) -> None:
    values = hashes_of(home, "shop")
    before = found(home, values)
    assert {
        "raw.pixel_events", "raw.orders", "raw.email_events", "intermediate.int_orders",
        "intermediate.int_customers", "anonymised.orders", "anonymised.order_refunds",
    } <= before.keys()  # fmt: skip
    assert "raw.payments" not in before
    closed = "cohort_month < '2024-09-01' and addMonths(cohort_month, months_since) < '2024-09-01'"
    cells, frozen = cohorts(home, "shop", closed), marts(home, "shop", f"not {OPEN}")
    assert len(cells) > 1
    assert len(frozen) > 4
    elsewhere = print_of(home, "workspace_id != 'shop'")
    assert marts(home, "shop") != marts(home, "twin")

    done = erase(home, "shop")
    assert (done.code, done.json["status"]) == (0, "done"), done.stderr
    outcome = done.json["outcome"]
    assert outcome["raw.orders"] == before["raw.orders"]
    assert outcome["raw.pixel_events"] == before["raw.pixel_events"]
    assert outcome["raw.email_events"] == before["raw.email_events"]
    assert outcome["raw.order_refunds"] == 8
    assert outcome["anonymised.orders"] > 0
    assert found(home, values) == {}
    assert print_of(home, "workspace_id != 'shop'") == elsewhere
    emptied = ", ".join(f"'{table}'" for table in (*outcome, "retention.erasing_values"))
    dead = f"not active and concat(database, '.', table) in ({emptied})"
    assert rows(home, f"select database, table, name from system.parts where {dead}") == []
    assert count(home, "retention.permits") == 0
    assert count(home, "retention.erasing_values") == 0
    # Before the build the figures of the days that are closed stand already.
    assert marts(home, "shop", f"not {OPEN}") == frozen

    built = build(home)
    assert built["gate"]["success"]
    assert built["days"] > 0
    assert found(home, values) == {}
    assert marts(home, "shop") == marts(home, "twin")
    assert len(marts(home, "twin")) > 20
    assert marts(home, "shop", f"not {OPEN}") == frozen
    assert cohorts(home, "shop", closed) == cells
    for table in ("int_orders", "int_refunds", "int_sessions", "int_session_days",
                  "int_purchase_links", "int_email_orders", "int_customers"):  # fmt: skip
        one, other = (
            count(home, f"intermediate.{table}{' final' if table == 'int_customers' else ''}",
                  f"workspace_id = '{workspace}'")
            for workspace in ("shop", "twin")
        )  # fmt: skip
        assert one == other > 0, table
    assert home.run("audit").code == 0
