"""`tidemark audit`: what went and on what proof, and every table that should follow from it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from homes import Warehouse, new_home, run_cli
from tidemark import clickhouse, ledger, plan, postgres
from tidemark.keys import Keyring
from tidemark.postgres import Connection

NOW = datetime(2031, 5, 10, 12, tzinfo=UTC)
PLAN = "a" * 64
# Two days of shop alone are past its own window, the whole month of other.
STEP = plan.Step(
    step_id="b" * 64,
    data_class="ad_spend",
    month=date(2029, 2, 1),
    action="delete_rows",
    expiry=("roll_up", "cold", "drop"),
    ranges=(
        plan.Range("shop", "", date(2029, 2, 2), date(2029, 2, 3)),
        plan.Range("other", "", date(2029, 2, 5), date(2029, 3, 1)),
    ),
    targets=(
        plan.Target(
            "raw.ad_spend", "202902", "local_date < '2029-02-03'", False, 9, {"spend": "20.5"},
            ("workspace_id",), "12345678901234567890",
        ),
    ),
)  # fmt: skip


def closed_days(step: plan.Step) -> list[tuple[str, date]]:
    """Every workspace and day that a step closes."""
    return [
        (workspace_id, step.month + timedelta(days=number))
        for workspace_id, days in step.closing.items()
        for number in range(days)
    ]


@pytest.fixture(scope="module")
def purged() -> Iterator[Warehouse]:
    """A warehouse in which one step was purged, as far as the evidence goes."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        ring = Keyring.from_settings(home.settings)
        with postgres.connect(home.settings, autocommit=True) as connection:
            row = connection.execute(
                "insert into control.verdicts (checkpoint, plan_id, class, run_id,"
                " validation_result_id, success, as_of, created_at, statistics)"
                " values ('tie_out', %s, 'ad_spend', 'run', 'tie_out/run/x', true, %s, %s, %s)"
                " returning verdict_id",
                [PLAN, NOW.date(), NOW, Jsonb({})],
            ).fetchone()
            assert row is not None
            with connection.transaction():
                for workspace_id, day in closed_days(STEP):
                    connection.execute(
                        "insert into control.purge_ledger"
                        " (class, workspace_id, local_date, plan_id, purged_at)"
                        " values ('ad_spend', %s, %s, %s, %s)",
                        [workspace_id, day, PLAN, NOW],
                    )
                for workspace_id, currency, money in (
                    ("shop", "EUR", "12.30"), ("other", "USD", "8.20"),
                ):  # fmt: skip
                    connection.execute(
                        "insert into control.purged_rows values"
                        " (%s, 'ad_spend', 'ad_spend', %s, '2029-02-02', %s, 3, 3, %s)",
                        [STEP.step_id, workspace_id, currency, money],
                    )
                begun = {
                    "plan_id": PLAN,
                    "step": json.loads(json.dumps(asdict(STEP), default=str)),
                    "rows": STEP.rows,
                    "verdict": {
                        "verdict_id": row["verdict_id"],
                        "validation_result_id": "tie_out/run/x",
                    },
                    "approved_by": None,
                    "aggregates": {},
                    "evidence": ledger.evidence(connection, STEP.step_id)[STEP.step_id],
                }
                ledger.append(connection, ring, "step_begun", begun, NOW)
            clickhouse.execute(
                home.settings,
                "insert into retention.frozen_days values "
                + ", ".join(f"('{own}', 'spend', '{day}')" for own, day in closed_days(STEP)),
            )
            done = {"plan_id": PLAN, "step_id": STEP.step_id, "rows": STEP.rows}
            ledger.append(connection, ring, "step_done", done, NOW + timedelta(minutes=1))
            ledger.copy_head(home.settings, connection, NOW)
        home.run(
            "sql", "--write", "create table default.by_hand (x int) engine MergeTree order by x"
        )
        yield home


@contextmanager
def changed(home: Warehouse, table: str, statement: str) -> Iterator[None]:
    """A statement of the owner, with triggers off, after which the table is as it was."""
    with unguarded(home, table) as connection:
        connection.execute(f"create table control.kept as table {table}")
        connection.execute(statement)
    try:
        yield
    finally:
        with unguarded(home, table) as connection:
            connection.execute(f"delete from {table}")
            connection.execute(f"insert into {table} overriding system value table control.kept")
            connection.execute("drop table control.kept")


@contextmanager
def unguarded(home: Warehouse, table: str) -> Iterator[Connection]:
    with postgres.connect(home.settings) as connection:
        triggers = connection.execute(
            "select tgname, tgenabled from pg_catalog.pg_trigger"
            " where tgrelid = %s::regclass and not tgisinternal",
            [table],
        ).fetchall()
        connection.execute(f"alter table {table} disable trigger user")
        yield connection
        for row in triggers:
            always = "always" if row["tgenabled"] == "A" else ""
            connection.execute(f"alter table {table} enable {always} trigger {row['tgname']}")


def findings(home: Warehouse) -> str:
    outcome = home.run("audit", "--json", check=False)
    found = outcome.json["findings"]
    assert outcome.code == (1 if found else 0)
    assert len(outcome.stderr.splitlines()) == len(found)
    return "; ".join(finding["problem"] for finding in found)


def test_it_says_what_went_and_on_what_proof(purged: Warehouse) -> None:
    outcome = purged.run("audit", "--json")
    assert outcome.json["findings"] == []
    (step,) = outcome.json["destroyed"]
    expected: dict[str, Any] = {
        "data_class": "ad_spend", "month": "2029-02-01", "first_day": "2029-02-02",
        "last_day": "2029-02-28", "workspaces": ["other", "shop"], "rows": 9, "plan_id": PLAN,
        "money": {"ad_spend": {"EUR": 12.3, "USD": 8.2}},
        "validation_result_id": "tie_out/run/x", "begun_at": "2031-05-10T12:00:00+00:00",
        "done_at": "2031-05-10T12:01:00+00:00",
    }  # fmt: skip
    assert {name: step[name] for name in expected} == expected
    text = purged.run("audit").stdout
    for part in ("ad_spend", "2029-02", "other, shop", "ad_spend 12.3 EUR", "tie_out/run/x"):
        assert part in text
    assert "1 steps destroyed 9 rows; no findings" in text


def test_the_tables_that_follow_are_held_against_the_chain(purged: Warehouse) -> None:
    for table, statement, problem in (
        ("control.purge_ledger", "delete from control.purge_ledger where workspace_id = 'other'"
         " and local_date >= '2029-02-20'", "ad_spend of workspace other is missing in"
         " control.purge_ledger on 9 days from 2029-02-20 on"),
        ("control.purge_ledger", "update control.purge_ledger set class = 'payments'"
         " where workspace_id = 'shop'", "payments of workspace shop is in no entry"),
        ("control.purged_rows", "update control.purged_rows set money = 1"
         " where workspace_id = 'shop'", "not what it was when its step began"),
        ("control.purged_rows", "delete from control.purged_rows",
         "not what it was when its step began"),
        ("control.purged_rows", "insert into control.purged_rows values ('c', 'ad_spend',"
         " 'ad_spend', 'shop', '2029-02-02', 'EUR', 1, 1, 1)", "step in no entry: c"),
        ("control.verdicts", "update control.verdicts set success = false",
         "is not what let it through"),
        ("control.verdicts", "delete from control.verdicts", "is gone"),
        ("control.emergency_writes", "delete from control.emergency_writes", "is gone"),
        ("control.emergency_writes", "update control.emergency_writes set query_sha256 = 'x'",
         "was changed"),
        ("control.emergency_writes", "update control.emergency_writes set success = false",
         "was changed"),
        ("control.emergency_writes", "insert into control.emergency_writes"
         " (store, os_user, statement_kind, query_sha256, started_at)"
         " values ('postgres', 'x', 'drop', 'x', now())", "is in no entry"),
    ):  # fmt: skip
        with changed(purged, table, statement):
            assert problem in findings(purged), statement
    assert findings(purged) == ""


def test_frozen_days_are_held_against_the_chain(purged: Warehouse) -> None:
    for statement, undo, problem in (
        ("insert into retention.frozen_days values ('shop', 'spend', '2029-02-03')",
         "alter table retention.frozen_days delete where workspace_id = 'shop'"
         " and local_date = '2029-02-03' settings mutations_sync = 2",
         "spend of workspace shop in 2029-02: days of retention.frozen_days are in no entry"),
        ("insert into retention.frozen_days values ('shop', 'pixel', '2029-02-02')",
         "alter table retention.frozen_days delete where measure_group = 'pixel'"
         " settings mutations_sync = 2", "pixel of workspace shop in 2029-02"),
        ("alter table retention.frozen_days delete where workspace_id = 'other'"
         " and local_date = '2029-02-28' settings mutations_sync = 2",
         "insert into retention.frozen_days values ('other', 'spend', '2029-02-28')",
         "spend of workspace other in 2029-02: purged days are missing"),
    ):  # fmt: skip
        clickhouse.execute(purged.settings, statement)
        assert problem in findings(purged)
        clickhouse.execute(purged.settings, undo)
    assert findings(purged) == ""


def test_a_tampered_chain_is_reported_whatever_follows_from_it(purged: Warehouse) -> None:
    for statement, problem in (
        ("update control.ledger set document = '{}' where kind = 'step_begun'", "was edited"),
        ("update control.ledger set document = document - 'verdict'", "was edited"),
        ("update control.ledger set document = jsonb_set(document, '{step,month}', '7')"
         " where kind = 'step_begun'", "was edited"),
        ("delete from control.ledger where kind = 'emergency_write_done'", "was cut off"),
        ("delete from control.ledger", "was cut off"),
    ):  # fmt: skip
        with changed(purged, "control.ledger", statement):
            assert problem in findings(purged), statement
    assert findings(purged) == ""


def test_a_step_that_was_killed_is_unfinished_and_no_finding(purged: Warehouse) -> None:
    step = replace(STEP, step_id="d" * 64, month=date(2029, 3, 1), ranges=(
        plan.Range("shop", "", date(2029, 3, 1), date(2029, 4, 1)),
    ))  # fmt: skip
    ring = Keyring.from_settings(purged.settings)
    with postgres.connect(purged.settings) as connection:
        old = connection.execute(
            "select document from control.ledger where kind = 'step_begun'"
        ).fetchone()
        assert old is not None
        for workspace_id, day in closed_days(step):
            connection.execute(
                "insert into control.purge_ledger"
                " (class, workspace_id, local_date, plan_id, purged_at)"
                " values ('ad_spend', %s, %s, %s, %s)",
                [workspace_id, day, PLAN, NOW],
            )
        document = {
            **old["document"],
            "step": json.loads(json.dumps(asdict(step), default=str)),
            "evidence": {},
        }
        ledger.append(connection, ring, "step_begun", document, NOW)
    outcome = purged.run("audit", "--json")
    assert [step["done_at"] is None for step in outcome.json["destroyed"]] == [False, True]
    assert "not yet" in purged.run("audit").stdout


def test_cold_files_go_on_record(purged: Warehouse) -> None:
    ring = Keyring.from_settings(purged.settings)
    with postgres.connect(purged.settings) as connection:
        row = connection.execute(
            "insert into control.cold_files (class, workspace_id, month, step_id, plan_id,"
            " table_name, path, tiered_at) values ('pixel_events', 'shop', '2029-02-01', 'x', 'x',"
            " 'raw.pixel_events', 'old', %s) returning cold_id",
            [NOW],
        ).fetchone()
        assert row is not None
        number = row["cold_id"]
        begun = {
            "data_class": "cold_files", "number": number, "of_class": "pixel_events",
            "workspace_id": "shop", "month": date(2029, 2, 1), "rows": 5, "sha256": "",
            "held_by": [],
        }  # fmt: skip
        ledger.append(connection, ring, "expiry_begun", begun, NOW)
    assert findings(purged) == ""
    with postgres.connect(purged.settings) as connection:
        done = {"data_class": "cold_files", "number": number}
        ledger.append(connection, ring, "expiry_done", done, NOW)
    assert findings(purged) == f"cold file {number} is not marked as deleted any more"
    assert purged.run("audit", "--json", check=False).json["expired"][0]["rows"] == 5
    assert "pixel_events" in purged.run("audit", check=False).stdout


def test_an_export_is_audited_elsewhere(purged: Warehouse, tmp_path: Path) -> None:
    file, key = tmp_path / "ledger.jsonl", tmp_path / "key.pem"
    entries = purged.run("audit", "--export", str(file), "--json").json["entries"]
    assert entries == len(file.read_text().splitlines())
    key.write_bytes(ledger.public_key_path(purged.settings).read_bytes())
    assert purged.run("audit", "--file", str(file), "--json").json["entries"] == entries
    nowhere = {"TIDEMARK_HOME": str(tmp_path / "nowhere")}
    offline = ["audit", "--file", str(file), "--public-key", str(key), "--json"]
    outcome = run_cli(offline, nowhere)
    assert (outcome.code, outcome.json["findings"]) == (0, [])
    assert outcome.json["destroyed"][0]["plan_id"] == PLAN
    file.write_text(file.read_text().replace('"rows":9', '"rows":8', 1))
    outcome = run_cli(offline, nowhere)
    assert outcome.code == 1
    assert "was edited" in outcome.json["findings"][0]["problem"]
    assert run_cli(["audit", "--file", str(file), "--export", str(file)], nowhere).code == 2
    assert run_cli(["audit", "--public-key", str(key)], nowhere).code == 2
    assert run_cli(["audit", "--file", str(file)], nowhere).code == 1


def test_a_changed_figure_of_a_purged_day_is_found(purged: Warehouse) -> None:
    """Last of those that share a ledger: what it enters stays."""
    table = "marts.summary_kpis_daily"
    with postgres.connect(purged.settings) as connection:
        old = connection.execute(
            "select document from control.ledger where kind = 'step_begun' order by entry_id"
        ).fetchone()
        assert old is not None
        step = replace(STEP, step_id="e" * 64)
        begun = {
            **old["document"],
            "step": json.loads(json.dumps(asdict(step), default=str)),
            "aggregates": {table: {"shop": "0" * 64}},
            "evidence": {},
        }
        ring = Keyring.from_settings(purged.settings)
        ledger.append(connection, ring, "step_begun", begun, NOW)
        assert f"figures of {table}" not in findings(purged)
        connection.commit()
        assert f"figures of {table}" not in findings(purged)
        done = {"plan_id": PLAN, "step_id": step.step_id, "rows": STEP.rows}
        ledger.append(connection, ring, "step_done", done, NOW)
        connection.commit()
    assert (
        f"figures of {table} changed for workspace shop in 2029-02 after ad_spend was purged"
        in findings(purged)
    )


def test_an_empty_ledger_is_clean(fresh_warehouse: Warehouse) -> None:
    assert fresh_warehouse.run("audit", "--json").json == {
        "entries": 0, "head": ledger.GENESIS, "destroyed": [], "expired": [],
        "erased": [], "findings": [],
    }  # fmt: skip
