"""A person's erasure on real engines: what goes, what stays, and that a rerun finishes it.

One history for all: `shop` has the person, `twin` has the same days without them, and `till`,
which counts payments, has them too. What is old of it is purged. The tests run in the order they
stand in.
"""

import io
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

import history
from homes import Outcome, Warehouse, new_home
from tidemark import (
    clickhouse,
    erasure,
    gate,
    keys,
    policy,
    postgres,
    privacy,
    requests,
    retention,
)
from tidemark.errors import Refused, UsageError

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
            history.order(
                day, 4, "42.50", email=BOB, refunds=[history.refund(following, 4, "7.10")]
            ),
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


def closed_figures(home: Warehouse, workspace: str) -> Rows:
    """What the daily mart says of the measure groups that are closed."""
    orders = (
        "orders, new_customer_orders, gross_sales, revenue, new_customer_revenue, refunds,"
        " net_revenue"
    )
    return rows(
        home,
        f"select date_day, platform, campaign, {orders} from marts.summary_kpis_daily"
        f" where workspace_id = '{workspace}' and not {OPEN} and (orders, refunds) != (0, 0)"
        " order by all",
    ) + rows(
        home,
        "select date_day, platform, campaign, sessions, pageviews, conversions,"
        " finalizeAggregation(visitors_state) as visitors from marts.summary_kpis_daily"
        f" where workspace_id = '{workspace}' and date_day < '2024-08-01' and pageviews != 0"
        " order by all",
    )


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
            ("shop", "GBP", "orders"),
            ("twin", "GBP", "orders"),
            ("till", "EUR", "payments"),
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
    cells, frozen = cohorts(home, "shop", closed), closed_figures(home, "shop")
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
    built = build(home)
    assert built["gate"]["success"]
    assert built["days"] > 0
    assert found(home, values) == {}
    assert marts(home, "shop") == marts(home, "twin")
    assert len(marts(home, "twin")) > 20
    assert closed_figures(home, "shop") == frozen
    assert cohorts(home, "shop", closed) == cells
    for table in ("int_orders", "int_refunds", "int_sessions", "int_session_days",
                  "int_purchase_links", "int_email_orders", "int_customers"):  # fmt: skip
        one, other = (
            count(home, f"intermediate.{table}{' final' if table == 'int_customers' else ''}",
                  f"workspace_id = '{workspace}'")
            for workspace in ("shop", "twin")
        )  # fmt: skip
        assert one == other > 0, table
    [orders] = [
        own for own in home.run("audit", "--json").json["erased"] if own["data_class"] == "orders"
    ]
    assert (orders["code"], orders["tables"]["raw.order_refunds"]) == (done.json["code"], 8)
    assert orders["done_at"] is not None
    assert home.run("audit").code == 0


def test_done_is_done(home: Warehouse) -> None:
    [entry] = control(home, "select code, outcome, subject_hashes from control.requests")
    assert entry["subject_hashes"] == []
    before = control(home, "select count(*) as n from control.ledger")
    again = erasure.carry_out(home.settings, entry["code"], as_of=date(2025, 9, 10), clock=now)
    assert (again.status, again.outcome) == ("done", entry["outcome"])
    assert control(home, "select count(*) as n from control.ledger") == before
    # A new one finds nothing, and no day is due.
    batches = "select count(*) as n from control.load_batches where source = 'erasure'"
    assert control(home, batches)[0]["n"] == 1
    other = erase(home, "shop").json
    assert other["code"] != entry["code"]
    assert (other["status"], other["outcome"]) == ("done", {})
    assert control(home, batches)[0]["n"] == 1


def test_nothing_tells_of_whom_it_was(home: Warehouse) -> None:
    values = hashes_of(home, "shop")
    listed = control(home, "select subject_hash from control.erasure_list")
    assert values < {row["subject_hash"] for row in listed}
    secret = [*values, PERSON]
    tables = control(
        home,
        "select table_schema || '.' || table_name as name from information_schema.tables"
        " where table_schema in ('control', 'app') and table_type = 'BASE TABLE'",
    )
    assert len(tables) > 10
    for table in tables:
        if table["name"] == "control.erasure_list":
            continue
        for text in secret:
            query = f"select from {table['name']} as t where t::text like '%%' || %s || '%%'"
            assert control(home, query, text) == [], table["name"]
    kinds = {
        row["kind"]
        for row in control(
            home,
            "select kind from control.ledger where document ->> 'code' ="
            " (select code from control.requests order by request_id limit 1)",
        )
    }
    assert kinds == {
        "request_received", "request_running", "request_done", "erasure_begun", "erasure_done",
        "erasure_rekeyed",
    }  # fmt: skip
    for table in rows(
        home,
        "select distinct table as name from system.columns where database = 'system'"
        " and table in ('query_log', 'mutations', 'part_log', 'text_log')",
    ):
        texts = rows(home, f"select * from system.{table['name']}")
        assert not any(text in json.dumps(texts) for text in secret), table["name"]
    files = [
        path
        for path in home.settings.home.rglob("*")
        if path.is_file() and not path.is_relative_to(home.settings.landing_path)
    ]
    assert any(path.suffix == ".log" for path in files)
    for path in files:
        if path.is_relative_to(home.settings.logs) or path.suffix in (".log", ".json", ".jsonl"):
            content = path.read_bytes()
            assert not any(text.encode() in content for text in secret), path


def test_a_load_refuses_their_lines(home: Warehouse) -> None:
    day = date(2024, 12, 11)
    lines = [history.order(day, 1, "9.00"), history.order(day, 2, "8.00", email=BOB)]
    history.put(home, "shopify_orders/shop", date(2025, 1, 19), lines, "late")
    history.put(home, "shopify_orders/twin", date(2025, 1, 19), lines[1:], "late")
    loaded = home.run("load", "--as-of", str(LOADED), "--json").json
    assert (loaded["lines"], loaded["stored"], loaded["refused"]) == (3, 2, 1)
    assert found(home, hashes_of(home, "shop")) == {}
    assert build(home)["gate"]["success"]
    assert marts(home, "shop") == marts(home, "twin")


def test_the_days_are_purged_later_as_if_nothing_had_been(home: Warehouse) -> None:
    report = home.run("purge", "--as-of", "2025-12-10", "--json").json
    steps = [step for step in report["steps"] if "shop" in step["workspaces"]]
    assert {step["data_class"] for step in steps} == {"pixel_events", "orders"}
    assert {step["status"] for step in steps} == {"done"}
    assert report["problems"] == []
    assert count(home, "raw.orders", "workspace_id = 'shop' and local_date < '2024-12-10'") == 0
    assert home.run("audit").code == 0
    assert found(home, hashes_of(home, "shop")) == {}


def test_a_hold_keeps_what_it_covers(home: Warehouse) -> None:
    recalled = home.run(
        "recall", "payments", "--workspace", "till", "--month", "2024-08", "--as-of", PURGED,
        "--json",
    ).json  # fmt: skip
    assert recalled["rows"] > 0
    values = hashes_of(home, "till")
    before, prints = found(home, values, "till"), print_of(home, "workspace_id = 'till'")
    assert {"raw.payments", "raw.pixel_events", "recalled.payments"} <= before.keys()
    person = home.run(
        "hold", "add", "--workspace", "till", "--subject", PERSON, "--reason", "case 1", "--json"
    ).json
    held = erase(home, "till")
    assert (held.code, held.json["status"]) == (3, "held")
    assert held.json["reason"].startswith(f"hold {person['hold_id']}: ")
    assert held.json["outcome"] == {}
    assert print_of(home, "workspace_id = 'till'") == prints
    refused = home.run(
        "recall", "payments", "--workspace", "till", "--month", "2024-07", "--as-of", PURGED,
        check=False,
    )  # fmt: skip
    assert (refused.code, "erasure is due" in refused.stderr) == (3, True)
    home.run("hold", "release", str(person["hold_id"]))

    whole = home.run(
        "hold", "add", "--workspace", "till", "--class", "payments", "--reason", "case 2", "--json"
    ).json
    code = held.json["code"]
    held = erase(home, "till")
    assert (held.code, held.json["code"], held.json["created"]) == (3, code, False)
    assert f"hold {whole['hold_id']}: " in held.json["reason"]
    left = found(home, values, "till")
    assert "raw.pixel_events" not in left
    for table in ("raw.payments", "anonymised.payments", "recalled.payments",
                  "intermediate.int_orders", "intermediate.int_customers"):  # fmt: skip
        assert left[table] == before[table], table
    assert build(home)["gate"]["success"]
    home.run("hold", "release", str(whole["hold_id"]))
    cells = cohorts(home, "till", "addMonths(cohort_month, months_since) < '2024-09-01'")
    assert cells

    done = erase(home, "till")
    assert (done.code, done.json["status"], done.json["code"]) == (0, "done", code)
    assert done.json["outcome"]["raw.pixel_events"] == before["raw.pixel_events"]
    assert done.json["outcome"]["raw.payments"] == before["raw.payments"]
    assert done.json["outcome"]["recalled.payments"] > 0
    assert done.json["reason"] is None
    assert found(home, values) == {}
    assert build(home)["gate"]["success"]
    assert found(home, values) == {}
    assert cohorts(home, "till", "addMonths(cohort_month, months_since) < '2024-09-01'") == cells
    again = home.run(
        "recall", "payments", "--workspace", "till", "--month", "2024-08", "--as-of", PURGED,
        "--json",
    ).json  # fmt: skip
    assert (again["rows"], again["erased_rows"]) == (0, recalled["rows"])
    # Nor where no row that stands leads to it any more.
    listed = "select subject_hash from control.erasure_list where workspace_id = 'till'"
    assert len(control(home, listed)) > len(values)
    assert home.run("audit").code == 0


def test_a_visitors_payment_goes_and_its_customer_stays(home: Warehouse) -> None:
    days = [date(2024, 12, 12), date(2024, 12, 13)]
    charges = [history.charge(day, 7) for day in days]
    for charge, visitor in zip(charges, ("v-77", "v-78"), strict=True):
        charge["billing_details"]["email"] = "karl@example.org"
        charge["metadata"]["visitor_id"] = visitor
    history.put(home, "payments/till", date(2025, 1, 19), charges, "karl")
    assert home.run("load", "--as-of", str(LOADED), "--json").json["stored"] == 2
    build(home)
    new = (
        "select toString(date_day) as day from marts.kpis_daily where workspace_id = 'till'"
        " and platform = 'all' and new_customer_orders = 1 and date_day > '2024-12-11'"
    )
    assert [row["day"] for row in rows(home, new)] == [str(days[0])]
    done = erase(home, "till", "visitor:v-77").json
    assert (done["status"], done["outcome"]["raw.payments"]) == ("done", 1)
    assert build(home)["gate"]["success"]
    # What stands is what there would be without that payment.
    assert [row["day"] for row in rows(home, new)] == [str(days[1])]
    karl = hashes_of(home, "till", "karl@example.org")
    assert found(home, karl)["raw.payments"] == 1
    assert found(home, karl)["intermediate.int_customers"] >= 1


def test_an_order_of_somebody_else_forgets_the_visitor(home: Warehouse) -> None:
    """Where its visitor is a stored fact, for the pixel rows behind it are purged."""
    clickhouse.execute(
        home.settings,
        "insert into intermediate.int_orders (workspace_id, measure_group, date_day, source,"
        " order_id, visitor_id, attribution, platform) values ('shop', 'orders', '2024-12-15',"
        " 'shopify_orders', 'o-1', 'v-99', 'session', 'google'), ('shop', 'orders', '2024-12-15',"
        " 'shopify_orders', 'o-2', 'v-98', 'session', 'google')",
    )
    orders = "intermediate.int_orders where workspace_id = 'shop' and date_day = '2024-12-15'"
    assert erase(home, "shop", "visitor:v-99").json["status"] == "done"
    first, second = rows(home, f"select * from {orders} order by order_id")
    assert (first["platform"], first["attribution"]) == ("google", "session")
    assert len(first["visitor_id"]) == 32
    assert second["visitor_id"] == "v-98"
    assert found(home, {"v-99"}) == {}
    clickhouse.execute(
        home.settings,
        "alter table intermediate.int_orders delete where workspace_id = 'shop'"
        " and date_day = '2024-12-15' settings mutations_sync = 2",
    )


class Killed(BaseException):
    """Stands for a SIGKILL."""


def die_at(end: str) -> Callable[[str], None]:
    def note(line: str) -> None:
        if line.endswith(end):
            raise Killed(line)

    return note


def test_a_hold_that_comes_between_two_runs_keeps_what_still_stands(home: Warehouse) -> None:
    guest = "guest-2024-12-10@example.org"
    code = erase(home, "shop", guest, "--later").json["code"]
    with pytest.raises(Killed):
        erasure.carry_out(
            home.settings, code, as_of=date(2025, 12, 10), clock=now,
            note=die_at("orders: is in the ledger"),
        )  # fmt: skip
    hold = home.run(
        "hold", "add", "--workspace", "shop", "--class", "orders", "--reason", "case 3", "--json"
    ).json
    values = hashes_of(home, "shop", guest)
    held = erase(home, "shop", guest)
    assert (held.code, f"hold {hold['hold_id']}: " in held.json["reason"]) == (3, True)
    assert found(home, values)["raw.orders"] == 1
    home.run("hold", "release", str(hold["hold_id"]))
    done = erase(home, "shop", guest).json
    assert (done["code"], done["status"], done["outcome"]["raw.orders"]) == (code, "done", 1)
    assert found(home, values) == {}
    # The same for the other, which the next tests hold against it.
    assert erase(home, "twin", guest).json["outcome"]["raw.orders"] == 1
    assert build(home)["gate"]["success"]


def test_a_purge_that_was_killed_comes_to_its_end_first(home: Warehouse) -> None:
    november = "toYYYYMM(local_date) = 202411"
    assert count(home, "raw.pixel_events", november) > 0
    with pytest.raises(Killed):
        retention.purge(
            home.settings, as_of=date(2026, 1, 10), clock=now, gate=gate,
            note=die_at("2024-11: is in the ledger"),
        )  # fmt: skip
    hold = home.run(
        "hold", "add", "--workspace", "shop", "--class", "pixel_events", "--reason", "case 4",
        "--json",
    ).json  # fmt: skip
    refused = erase(home, "shop", "stranger@example.org")
    assert (refused.code, "was begun and is held" in refused.stderr) == (1, True)
    home.run("hold", "release", str(hold["hold_id"]))
    assert erase(home, "shop", "stranger@example.org").json["status"] == "done"
    assert count(home, "raw.pixel_events", november) == 0
    assert home.run("plan", "--as-of", "2026-01-10", "--json").json["unfinished"] == []


def killed_at(home: Warehouse, code: str, seen: set[str]) -> bool:
    """Carry a request out in a child that kills itself at the first boundary not seen yet."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:

        def note(line: str) -> None:
            if line not in seen:
                os.write(writer, line.encode())
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            erasure.carry_out(home.settings, code, as_of=date(2025, 12, 10), clock=now, note=note)
        except BaseException as error:
            os.write(writer, f"!{type(error).__name__}: {error}".encode())
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as heard:
        said = heard.read().decode()
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    assert ended in (0, -signal.SIGKILL), said
    seen.add(said)
    return ended == 0


@pytest.mark.faults
def test_killed_anywhere_it_ends_as_if_it_had_not_been(home: Warehouse) -> None:
    # The same days for both, also where no test ran before.
    assert erase(home, "shop").json["status"] == "done"
    for workspace in ("shop", "twin"):
        assert count(home, "raw.orders", f"workspace_id = '{workspace}'") > 0
    build(home)
    assert marts(home, "shop", "date_day >= '2024-12-10'") == (
        marts(home, "twin", "date_day >= '2024-12-10'")
    )
    expected = erase(home, "shop", BOB, "--later").json
    assert (expected["status"], expected["outcome"]) == ("received", None)
    done = erasure.carry_out(home.settings, expected["code"], as_of=date(2025, 12, 10), clock=now)
    code = erase(home, "twin", BOB, "--later").json["code"]
    seen: set[str] = set()
    for kills in itertools.count():
        if killed_at(home, code, seen):
            break
        if kills % 12 == 11:
            # A build in between may take days whose rows go later.
            home.run("build", "--as-of", PURGED, check=False)
    assert kills > 25
    assert any("is copied" in line for line in seen)
    with postgres.connect(home.settings) as connection:
        request = requests.find(connection, code)
    assert (request.status, request.outcome) == ("done", done.outcome)
    assert found(home, hashes_of(home, "twin", BOB)) == {}
    assert count(home, "retention.erasing_values") == count(home, "retention.permits") == 0
    assert build(home)["gate"]["success"]
    assert marts(home, "shop", "date_day >= '2024-12-10'") == (
        marts(home, "twin", "date_day >= '2024-12-10'")
    )
    # What came in a month: earlier ones had a person more in shop.
    came = (
        "select cohort_month, months_since, customers, orders, revenue, refunds"
        " from marts.customer_cohorts_monthly where workspace_id = '{}'"
        " and addMonths(cohort_month, months_since) = '2024-12-01' order by all"
    )
    assert rows(home, came.format("shop")) == rows(home, came.format("twin")) != []
    assert home.run("audit").code == 0
    report = home.run("purge", "--as-of", "2026-03-10", "--json").json
    assert {step["status"] for step in report["steps"]} == {"done"}
    assert report["problems"] == []


def test_what_killed_runs_left_goes_first(home: Warehouse) -> None:
    clickhouse.execute(
        home.settings,
        "create table intermediate.int_orders__replace_days as intermediate.int_orders",
    )
    with postgres.connect(home.settings) as connection:
        connection.execute(
            "insert into control.load_batches (source, status, tables, results, prepared_at)"
            " values ('pixel', 'prepared', '{}', '{}', now())"
        )
    try:
        refused = erase(home, "shop", "someone@example.org")
        assert (refused.code, "tidemark load" in refused.stderr) == (1, True)
        [request] = control(
            home, "select status, reason from control.requests order by request_id desc limit 1"
        )
        assert request["status"] == "failed"
        assert "someone" not in request["reason"]
    finally:
        with postgres.connect(home.settings) as connection:
            connection.execute("update control.load_batches set status = 'done'")
    assert erase(home, "shop", "someone@example.org").json["status"] == "done"
    assert count(home, "system.tables", "name like '%__replace_days'") == 0


def test_a_table_that_nobody_told_it_of_stops_it(
    home: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(erasure._DERIVED, "intermediate.int_orders")
    refused = erase(home, "shop", "another@example.org")
    assert (refused.code, "intermediate.int_orders" in refused.stderr) == (1, True)


def test_wrong_usage(home: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    assert erase(home, "nobody").code == 2
    assert erase(home, "shop", " ").code == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("reads@example.org\n"))
    later = erase(home, "shop", "-", "--later").json
    assert erase(home, "shop", "reads@example.org", "--later").json["code"] == later["code"]
    with pytest.raises(Refused, match="lies in the future"):
        erasure.carry_out(
            home.settings, later["code"], as_of=now().date() + timedelta(days=1), clock=now
        )
    with pytest.raises(UsageError, match="no request"):
        erasure.carry_out(home.settings, "NOSUCHCODE", as_of=date(2025, 9, 10), clock=now)
