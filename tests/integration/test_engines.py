"""The engines of a home: start, stop, crash, and how they stay apart."""

import os
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pytest

from homes import Warehouse, new_home, run_cli
from tidemark import clickhouse, engines, postgres, secrets_store
from tidemark.config import Settings
from tidemark.errors import TidemarkError


def states(home: Warehouse) -> dict[str, engines.EngineStatus]:
    return {status.name: status for status in engines.status(home.settings)}


def kill(pid: int | None) -> None:
    assert pid is not None
    process = psutil.Process(pid)
    process.send_signal(signal.SIGKILL)
    process.wait(10)


def test_up_twice_and_down_twice(fresh_warehouse: Warehouse) -> None:
    before = states(fresh_warehouse)
    assert {name for name, state in before.items() if state.answering} == {"clickhouse", "postgres"}
    again = fresh_warehouse.run("up", "--no-airflow", "--json").json
    assert [state["pid"] for state in again] == [state.pid for state in before.values()]
    for _ in range(2):
        stopped = fresh_warehouse.run("down", "--json").json
        assert {"clickhouse", "postgres"} < {state["name"] for state in stopped}
        assert not any(state["running"] for state in stopped)
    assert not [state.pid for state in before.values() if psutil.pid_exists(state.pid or 0)]


def test_several_up_at_once_start_each_engine_once(empty_home: Warehouse) -> None:
    code = "from tidemark.cli import main; main()"
    command = [sys.executable, "-c", code, "up", "--no-airflow", "--json"]
    environment = {**os.environ, **empty_home.env}
    calls = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    answers = [call.communicate()[0] for call in calls]
    assert [call.returncode for call in calls] == [0, 0, 0]
    assert len(set(answers)) == 1


def test_up_after_kill_9_keeps_the_data(fresh_warehouse: Warehouse) -> None:
    settings = fresh_warehouse.settings
    clickhouse.execute(settings, "create table default.kept (x Int64) engine MergeTree order by x")
    clickhouse.execute(settings, "insert into default.kept values (7)")
    with postgres.connect(settings) as connection:
        connection.execute("create table control.kept as select 7 as x")
    for state in states(fresh_warehouse).values():
        kill(state.pid)
    assert not any(state.running for state in states(fresh_warehouse).values())
    fresh_warehouse.run("up", "--no-airflow")
    rows = fresh_warehouse.run("sql", "--write", "--json", "select x from default.kept").json
    assert rows == [{"x": 7}]
    with postgres.connect(settings) as connection:
        assert connection.execute("select x from control.kept").fetchall() == [{"x": 7}]


def test_a_recycled_pid_is_neither_trusted_nor_killed(fresh_warehouse: Warehouse) -> None:
    settings = fresh_warehouse.settings
    for state in states(fresh_warehouse).values():
        kill(state.pid)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        lock = settings.postgres / "data" / "postmaster.pid"
        lines = lock.read_text().splitlines()
        lock.write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")
        record = settings.run / "clickhouse.pid"
        record.write_text(f'{{"pid": {bystander.pid}, "started": 0, "port": 1}}')
        assert not any(state.running for state in states(fresh_warehouse).values())
        fresh_warehouse.run("down")
        fresh_warehouse.run("up", "--no-airflow")
        assert bystander.poll() is None
        bystander.communicate()
    assert all(state.answering for state in states(fresh_warehouse).values())


@pytest.mark.parametrize("engine", ["clickhouse", "postgres"])
def test_a_port_in_use_names_its_variable(empty_home: Warehouse, engine: str) -> None:
    port = getattr(empty_home.settings, f"{engine}_port")
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        outcome = empty_home.run("up", "--no-airflow", "--json", check=False)
    assert outcome.code == 1
    assert f"TIDEMARK_{engine.upper()}_PORT" in outcome.json["error"]
    assert str(port) in outcome.json["error"]


def test_another_port_for_a_running_home_is_refused(warehouse: Warehouse) -> None:
    port = states(warehouse)["postgres"].port
    outcome = run_cli(
        ["up", "--no-airflow"], {**warehouse.env, "TIDEMARK_POSTGRES_PORT": str(port ^ 1)}
    )
    assert outcome.code == 1
    assert "tidemark down" in outcome.stderr


def test_data_of_another_postgresql_is_left_alone(empty_home: Warehouse) -> None:
    data = empty_home.settings.postgres / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("19\n")
    outcome = empty_home.run("up", "--no-airflow", check=False)
    assert outcome.code == 1
    assert "PostgreSQL 19" in outcome.stderr


def test_two_homes_side_by_side(warehouse: Warehouse, fresh_warehouse: Warehouse) -> None:
    with postgres.connect(fresh_warehouse.settings) as connection:
        connection.execute("create table control.only_here (x int)")
    query = "select to_regclass('control.only_here') is null as missing"
    with postgres.connect(warehouse.settings) as connection:
        assert connection.execute(query).fetchall() == [{"missing": True}]
    # One home's passwords open nothing in the other.
    mixed = replace(warehouse.settings, postgres_port=fresh_warehouse.settings.postgres_port)
    with pytest.raises(TidemarkError, match="password authentication failed"):
        postgres.connect(mixed)


def test_a_home_with_spaces_and_a_path_too_long_for_a_socket() -> None:
    with new_home() as outer:
        home = outer.settings.home / ("a folder " * 12).strip()
        env = {**outer.env, "TIDEMARK_HOME": str(home)}
        inner = Warehouse(Settings.from_env(env), env)
        try:
            inner.run("up", "--no-airflow")
            assert all(state.answering for state in states(inner).values())
            assert list((home / "run" / "postgres").iterdir()) == []
        finally:
            inner.run("down")


def test_nothing_in_a_home_is_open_to_other_accounts(warehouse: Warehouse) -> None:
    home = warehouse.settings.home
    open_to_all = [
        path for path in (home, *home.iterdir()) if stat.S_IMODE(path.lstat().st_mode) & 0o007
    ]
    assert open_to_all == []
    assert stat.S_IMODE(warehouse.settings.secrets.stat().st_mode) == 0o700
    data = warehouse.settings.postgres / "data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert data.stat().st_uid != 0
    files = [
        path
        for folder in ("logs", "run")
        for path in (home / folder).rglob("*")
        if not path.is_dir()
    ]
    assert files
    assert not [path for path in files if stat.S_IMODE(path.lstat().st_mode) & 0o007]


def test_both_engines_listen_on_loopback_only(warehouse: Warehouse) -> None:
    listening = {
        connection.laddr.ip
        for state in states(warehouse).values()
        for connection in psutil.Process(state.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_no_secret_in_arguments_environment_or_logs(warehouse: Warehouse) -> None:
    settings = warehouse.settings
    warehouse.run("sql", "--store", "postgres", "selec", check=False)
    secrets = [
        secrets_store.read_password(settings.secrets, name) for name in secrets_store.PASSWORDS
    ]
    texts = [
        path.read_text(errors="replace") for path in settings.logs.rglob("*") if path.is_file()
    ]
    texts += [path.read_text() for path in settings.run.glob("clickhouse.*")]
    for state in states(warehouse).values():
        process = psutil.Process(state.pid)
        texts += [*process.cmdline(), *process.environ().values()]
    assert texts
    assert not [text for text in texts for secret in secrets if secret in text]


def test_logs_repeat_no_values(warehouse: Warehouse) -> None:
    canary = "canary@example.com"
    settings = warehouse.settings
    with postgres.connect(settings, autocommit=True) as connection:
        with pytest.raises(psycopg.Error):
            connection.execute("select %s::int", [canary])
        connection.execute("create table control.canaries (x text primary key)")
        connection.execute("insert into control.canaries values (%s)", [canary])
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("insert into control.canaries values (%s)", [canary])
        connection.execute("drop table control.canaries")
    with pytest.raises(clickhouse.ClickHouseError, match=canary):
        clickhouse.execute(settings, f"select toInt64('{canary}')")
    insert = "insert into function null('x Int64') format JSONEachRow"
    with pytest.raises(clickhouse.ClickHouseError, match=canary):
        clickhouse.stream_insert(settings, insert, [b'{"x": "%s"}' % canary.encode()])
    logs = {path.name: path.read_text() for path in settings.logs.rglob("*") if path.is_file()}
    assert {"postgres.log", "clickhouse.log"} <= set(logs)
    assert "ready to accept connections" in logs["postgres.log"]
    assert not [name for name, text in logs.items() if canary in text]


def test_migrations_run_again_only_when_changed(warehouse: Warehouse) -> None:
    settings = warehouse.settings
    names = sorted(path.name for path in (settings.sql / "postgres").glob("*.sql"))
    assert names
    assert postgres.migrate(settings) == []
    with postgres.connect(settings) as connection:
        connection.execute("update control.migrations set sha256 = 'changed'")
    # Every file must be able to run over what it already made.
    assert postgres.migrate(settings) == names


def test_the_analyst_reads_figures_and_no_secrets(warehouse: Warehouse) -> None:
    with postgres.connect(warehouse.settings, "analyst", autocommit=True) as connection:
        for table in ("app.workspaces", "control.loads", "control.load_days", "control.verdicts"):
            connection.execute(f"select * from {table} limit 1")
        for table in (
            "app.user_accounts", "app.ad_platform_tokens", "app.request_logs", "control.keys",
            "control.salts", "control.erasure_list", "control.holds",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"select * from {table} limit 1")
        connection.execute("set default_transaction_read_only = off")
        connection.read_only = False
        for statement in (
            "create table analytics.mine (x int)",
            "create temporary table mine (x int)",
            "select lo_create(0)",
            "select pg_advisory_lock(1)",
            "select pg_read_file('/etc/passwd')",
            "copy (select 1) to program 'true'",
            "insert into control.emergency_writes default values",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    with pytest.raises(TidemarkError, match="permission denied"):
        postgres.connect(warehouse.settings, "analyst", database="airflow")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_up_as_root_below_a_closed_folder() -> None:
    with new_home() as outer:
        closed = outer.settings.home / "closed"
        closed.mkdir(mode=0o700)
        env = {**outer.env, "TIDEMARK_HOME": str(closed / "home")}
        inner = Warehouse(Settings.from_env(env), env)
        try:
            inner.run("up", "--no-airflow")
            assert all(state.answering for state in states(inner).values())
            assert not stat.S_IMODE(closed.stat().st_mode) & 0o006
        finally:
            inner.run("down")


def test_a_home_cannot_be_brought_up_with_other_secrets(empty_home: Warehouse) -> None:
    empty_home.run("up", "--no-airflow")
    empty_home.run("down")
    secret: Path = empty_home.settings.secrets / secrets_store.POSTGRES_SUPERUSER
    secret.write_text("another password")
    outcome = empty_home.run("up", "--no-airflow", check=False)
    assert outcome.code == 1
    assert "put the matching secrets back" in outcome.stderr


def test_down_and_up_keep_the_data(empty_home: Warehouse) -> None:
    for _ in range(2):
        empty_home.run("up", "--no-airflow")
        empty_home.run("down")
    empty_home.run("up", "--no-airflow")
    states = empty_home.run("status", "--no-airflow", "--json").json
    assert [state["answering"] for state in states] == [True, True]
