"""The command line: codes, documents, and what each role may do."""

import json
import os
import shlex
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from homes import Warehouse, run_cli
from tidemark import postgres
from tidemark.config import Settings

VERBS = (
    ["up"], ["down"], ["status"], ["env"], ["sql"], ["workspace", "add"], ["workspace", "list"],
    ["audit"],
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_and_json(verb: list[str]) -> None:
    outcome = run_cli([*verb, "--help"], {})
    assert outcome.code == 0
    assert "--json" in outcome.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        ["sql"],
        ["sql", "select 1", "--store", "redis"],
        ["sql", "  -- nothing\n ; "],
        ["workspace"],
        ["workspace", "add", "UPPER", "--timezone", "UTC", "--currency", "EUR", "--plan", "pro"],
        ["workspace", "add", "a", "--timezone", "Berlin", "--currency", "EUR", "--plan", "pro"],
        ["workspace", "add", "a", "--timezone", "UTC", "--currency", "EUX", "--plan", "pro"],
        ["workspace", "add", "a", "--timezone", "UTC", "--currency", "EUR", "--plan", "free"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_one_line(arguments: list[str]) -> None:
    outcome = run_cli([*arguments, "--json"], {})
    assert outcome.code == 2
    assert set(outcome.json) == {"error", "exit_code"}
    assert len(outcome.stderr.splitlines()) == 1
    assert "Traceback" not in outcome.stderr


def test_a_bad_setting_is_2_and_names_the_variable() -> None:
    outcome = run_cli(["status"], {"TIDEMARK_POSTGRES_PORT": "x"})
    assert outcome.code == 2
    assert "TIDEMARK_POSTGRES_PORT" in outcome.stderr


def test_before_up_the_message_says_so(empty_home: Warehouse) -> None:
    for arguments in (["workspace", "list"], ["sql", "select 1"], ["env"]):
        outcome = empty_home.run(*arguments, check=False)
        assert outcome.code == 1
        assert "tidemark up" in outcome.stderr
    status = empty_home.run("status", "--json").json
    assert [state["running"] for state in status] == [False] * 5
    assert list(empty_home.settings.home.iterdir()) == []


def test_the_installed_command_keeps_stdout_for_the_document(warehouse: Warehouse) -> None:
    command = Path(sys.executable).with_name("tidemark")
    done = subprocess.run(
        [command, "up", "--no-airflow", "--json"],
        env={**os.environ, **warehouse.env},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {state["name"] for state in json.loads(done.stdout)} == {"clickhouse", "postgres"}


def test_env_opens_both_stores(warehouse: Warehouse) -> None:
    exports = dict(
        shlex.split(line)[1].split("=", 1) for line in warehouse.run("env").stdout.splitlines()
    )
    assert exports == warehouse.run("env", "--json").json
    with psycopg.connect(exports["TIDEMARK_POSTGRES_URL"]) as connection:
        assert connection.execute("select current_user").fetchone() == ("tidemark",)
    with psycopg.connect(exports["TIDEMARK_POSTGRES_ANALYST_URL"]) as connection:
        assert connection.execute("select current_user").fetchone() == ("analyst",)
    # The same URLs are what a cluster is reached by, so the cluster's code path can run on them.
    env = {**exports, "TIDEMARK_PROFILE": "cluster"}
    for store in ("clickhouse", "postgres"):
        outcome = run_cli(["sql", "--store", store, "--json", "select 1 as x"], env)
        assert (outcome.code, outcome.json) == (0, [{"x": 1}])
    assert run_cli(["up", "--json"], env).code == 0
    assert [state["answering"] for state in run_cli(["status", "--json"], env).json] == [True, True]
    assert run_cli(["down"], env).code == 1


def test_sql_keeps_decimals_and_writes_iso_times(warehouse: Warehouse) -> None:
    query = (
        "select toDecimal64('199.65', 4) as revenue, toDate('2026-03-29') as date_day,"
        " toDateTime64('2026-03-29 01:02:03.5', 3, 'UTC') as event_at, null as nothing,"
        " toUInt64(18446744073709551615) as big, toDecimal128('12345678901234567890.12', 2) as d"
    )
    outcome = warehouse.run("sql", query, "--json")
    assert json.loads(outcome.stdout, parse_float=Decimal) == [
        {
            "revenue": Decimal("199.65"),
            "date_day": "2026-03-29",
            "event_at": "2026-03-29T01:02:03.500Z",
            "nothing": None,
            "big": 18446744073709551615,
            "d": Decimal("12345678901234567890.12"),
        }
    ]
    query = (
        "select 199.65::numeric(38, 6) as revenue, date '2026-03-29' as date_day,"
        " timestamptz '2026-03-29 01:02:03+00' as event_at"
    )
    outcome = warehouse.run("sql", query, "--store", "postgres", "--json")
    assert json.loads(outcome.stdout, parse_float=Decimal) == [
        {
            "revenue": Decimal("199.650000"),
            "date_day": "2026-03-29",
            "event_at": "2026-03-29T01:02:03+00:00",
        }
    ]


def test_sql_prints_tabs_when_piped_and_the_format_it_was_asked_for(warehouse: Warehouse) -> None:
    assert warehouse.run("sql", "select 1 as a, 'x\ty' as b").stdout == "a\tb\n1\tx\\ty\n"
    assert warehouse.run("sql", "select 1 as a, 2 as b format CSV").stdout == "1,2\n"
    outcome = warehouse.run("sql", "select 1 format CSV", "--json", check=False)
    assert outcome.code == 2
    assert "FORMAT" in outcome.stderr
    assert warehouse.run("sql", "select 1 as x where 0", "--json").json == []


@pytest.mark.parametrize("store", ["clickhouse", "postgres"])
def test_sql_is_read_only_without_write(warehouse: Warehouse, store: str) -> None:
    schema = "default" if store == "clickhouse" else "control"
    engine = "engine MergeTree order by x" if store == "clickhouse" else ""
    table = f"{schema}.made_by_sql"
    create = f"/* why */ create table {table} (x int) {engine}"
    refused = warehouse.run("sql", "--store", store, create, check=False)
    assert refused.code == 1
    ledger = "select * from control.emergency_writes order by id"
    before = warehouse.run("sql", "--store", "postgres", "--json", ledger).json
    warehouse.run("sql", "--store", store, "--write", create)
    warehouse.run("sql", "--store", store, "--write", f"drop table {table}")
    failed = warehouse.run("sql", "--store", store, "--write", f"drop table {table}", check=False)
    assert failed.code == 1
    after = warehouse.run("sql", "--store", "postgres", "--json", ledger).json[len(before) :]
    assert [(row["store"], row["statement_kind"], row["success"]) for row in after] == [
        (store, "create", True),
        (store, "drop", True),
        (store, "drop", False),
    ]
    assert not [row for row in after if table in json.dumps(row)]


def test_the_analyst_reaches_no_file_and_no_network(warehouse: Warehouse) -> None:
    for query in (
        "select * from file('/etc/passwd', 'LineAsString')",
        "select * from url('http://127.0.0.1:1/', 'LineAsString')",
    ):
        outcome = warehouse.run("sql", query, check=False)
        assert outcome.code == 1
        assert "root:" not in outcome.stdout


def test_a_workspace_is_made_once_with_its_key(warehouse: Warehouse) -> None:
    arguments = [
        "workspace", "add", "made-once", "--timezone", "America/New_York", "--currency", "usd",
        "--plan", "growth", "--json",
    ]  # fmt: skip
    made = warehouse.run(*arguments).json
    assert made == {
        "workspace_id": "made-once",
        "timezone": "America/New_York",
        "currency": "USD",
        "plan": "growth",
        "revenue_source": "orders",
        "created": True,
    }
    assert warehouse.run(*arguments).json["created"] is False
    for option, value in (("--timezone", "UTC"), ("--currency", "EUR"), ("--plan", "pro")):
        other = list(arguments)
        other[other.index(option) + 1] = value
        refused = warehouse.run(*other, check=False)
        assert refused.code == 3
        assert "made-once" in refused.stderr
    listed = {row["workspace_id"]: row for row in warehouse.run("workspace", "list", "--json").json}
    assert listed["made-once"]["currency"] == "USD"
    with postgres.connect(warehouse.settings) as connection:
        keys = connection.execute(
            "select purpose, length(wrapped_key) as size from control.keys where workspace_id = %s",
            ["made-once"],
        ).fetchall()
        # Nonce, key and tag of AES-GCM.
        assert keys == [{"purpose": "pseudonym", "size": 12 + 32 + 16}]
        with pytest.raises(psycopg.errors.RaiseException, match="never change"):
            connection.execute(
                "update app.workspaces set timezone = 'UTC' where workspace_id = 'made-once'"
            )


def test_an_internal_error_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, empty_home: Warehouse
) -> None:
    def broken(*_: object, **__: object) -> Settings:
        raise RuntimeError("canary@example.com")

    monkeypatch.setattr("tidemark.cli.Settings.from_env", broken)
    outcome = empty_home.run("status", "--json", check=False)
    assert outcome.code == 1
    assert "RuntimeError" in outcome.json["error"]
    assert "Traceback" not in outcome.stderr
    assert "canary" not in outcome.stdout + outcome.stderr
