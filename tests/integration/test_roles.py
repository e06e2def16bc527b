"""Roles: what the declaration says is what the stores grant, and nobody crosses it."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg.rows import dict_row

from homes import Warehouse, new_home, run_cli
from tidemark import clickhouse, engines, postgres, roles
from tidemark.config import Settings
from tidemark.errors import TidemarkError, UsageError

NOW = datetime(2031, 5, 10, 12, tzinfo=UTC)
PASSWORD = "not-a-secret"  # of logins in a throwaway store
OWN, OTHER = "roles-own", "roles-other"


@pytest.fixture(scope="module")
def shared() -> Iterator[Warehouse]:
    """A warehouse with rows of two workspaces in every table that analysts may read."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        for workspace in (OWN, OTHER):
            home.run("workspace", "add", workspace, "--timezone", "UTC", "--currency", "EUR",
                     "--plan", "pro")  # fmt: skip
        with postgres.connect(home.settings) as connection:
            for workspace in (OWN, OTHER):
                row = connection.execute(
                    "insert into control.loads (source, workspace_id, delivery_date,"
                    " file_name_hash, file_sha256, bytes, status, as_of, started_at)"
                    " values ('pixel', %s, '2031-05-01', 'x', 'x', 1, 'staged', '2031-05-01', %s)"
                    " returning load_id",
                    [workspace, NOW],
                ).fetchone()
                assert row is not None
                for statement in (
                    f"control.load_days values ({row['load_id']}, 'pixel', '{workspace}',"
                    " '2031-05-01', 'pixel_events', 'EUR', 1, 1, 0)",
                    "control.overrides (workspace_id, class, window_value, window_unit, set_at)"
                    f" values ('{workspace}', 'pixel_events', 7, 'month', now())",
                    "control.purge_ledger (class, workspace_id, local_date, purged_at)"
                    f" values ('pixel_events', '{workspace}', '2029-01-01', now())",
                    "control.purged_rows values ('s', 'pixel_events', 'pixel_events',"
                    f" '{workspace}', '2029-01-01', 'EUR', 1, 1, 0)",
                    "control.cold_files (class, workspace_id, month, step_id, plan_id, table_name,"
                    f" path, tiered_at) values ('c', '{workspace}', '2029-01-01', 's', 'p', 't',"
                    f" '{workspace}', now())",
                    "control.recalls (class, workspace_id, month, reason, as_of, expires_on,"
                    f" begun_at) values ('c', '{workspace}', '2029-01-01', 'x', '2031-01-01',"
                    " '2031-02-01', now())",
                ):
                    connection.execute(f"insert into {statement}")
        make_logins(home)
        made = home.run("roles", "--store", "postgres", "--workspace", OWN, "--login", "jane")
        with postgres.connect(home.settings, "superuser", database="tidemark") as connection:
            connection.execute(made.stdout.encode())
        yield home


def make_logins(home: Warehouse) -> None:
    with postgres.connect(home.settings, "superuser", database="tidemark") as connection:
        for login, role in (
            ("jane", "workspace_analyst"), ("nobody", "workspace_analyst"),
            ("loads", "tidemark_loader"), ("builds", "tidemark_transformer"),
            ("purges", "tidemark_purger"), ("audits", "tidemark_auditor"),
        ):  # fmt: skip
            connection.execute(f"create role {login} login password '{PASSWORD}'")
            connection.execute(f"grant connect on database tidemark to {login}")
            connection.execute(f"grant {role} to {login}")


def url(home: Warehouse, login: str) -> str:
    return f"postgresql://{login}:{PASSWORD}@127.0.0.1:{home.settings.postgres_port}/tidemark"


def as_login(home: Warehouse, login: str) -> psycopg.Connection[dict[str, object]]:
    return psycopg.connect(url(home, login), autocommit=True, row_factory=dict_row)


def declaration(home: Warehouse) -> roles.Declaration:
    return roles.read(home.settings)


def test_postgres_grants_what_is_declared_and_nothing_else(shared: Warehouse) -> None:
    own = declaration(shared)
    with postgres.connect(shared.settings, "superuser", database="tidemark") as connection:
        tables = connection.execute(
            "select schemaname || '.' || tablename as name from pg_catalog.pg_tables"
            " where schemaname in ('app', 'control', 'analytics')"
        ).fetchall()
        assert len(tables) > 20
        rights = {"read": "SELECT", "append": "INSERT", "change": "UPDATE", "remove": "DELETE"}
        for name, role in own.roles.items():
            declared = {
                (table["name"], privilege)
                for right, privilege in rights.items()
                for relation in getattr(role.postgres, right)
                for table in tables
                if table["name"] == relation
                or (relation.endswith(".*") and table["name"].startswith(relation[:-1]))
            }
            found = connection.execute(
                "select table_schema || '.' || table_name as name, privilege_type"
                " from information_schema.role_table_grants where grantee = %s",
                [name],
            ).fetchall()
            assert {(row["name"], row["privilege_type"]) for row in found} == declared, name
            for relation in {*role.postgres.read, *role.postgres.append}:
                assert relation.endswith(".*") or relation in {row["name"] for row in tables}
    assert own.roles[roles.WORKSPACE_ANALYST].postgres.append == ()


def test_an_analyst_of_one_workspace_sees_no_row_of_another(shared: Warehouse) -> None:
    relations = declaration(shared).roles[roles.WORKSPACE_ANALYST].postgres.own_rows
    assert relations == declaration(shared).roles[roles.WORKSPACE_ANALYST].postgres.read
    with as_login(shared, "jane") as jane, as_login(shared, "nobody") as nobody:
        for relation in relations:
            with postgres.connect(shared.settings) as owner:
                both = owner.execute(f"select workspace_id from {relation}").fetchall()
            assert {row["workspace_id"] for row in both} >= {OWN, OTHER}, relation
            seen = jane.execute(f"select workspace_id from {relation}").fetchall()
            assert {row["workspace_id"] for row in seen} == {OWN}, relation
            assert nobody.execute(f"select * from {relation}").fetchall() == []


def test_it_can_not_be_crossed(shared: Warehouse) -> None:
    with as_login(shared, "jane") as jane:
        jane.execute("set default_transaction_read_only = off")
        for statement in (
            "set role workspace_analyst",
            "set search_path = control, pg_catalog",
            "set row_security = on",
            "select set_config('tidemark.workspace_id', 'roles-other', false)",
        ):
            jane.execute(statement)
            seen = jane.execute("select workspace_id from control.loads").fetchall()
            assert {row["workspace_id"] for row in seen} <= {OWN}
        jane.execute("reset role")
        for statement in (
            "set role tidemark",
            "set session authorization 'nobody'",
            "set row_security = off; select * from control.loads",
            "insert into control.workspace_logins values ('jane', 'roles-other')",
            "update control.workspace_logins set workspace_id = 'roles-other'",
            "select * from control.workspace_logins",
            "alter table control.loads disable row level security",
            "drop policy own_workspace on control.loads",
            "create or replace function control.own_workspace() returns text"
            " language sql as $$ select 'roles-other' $$",
            "create function control.mine() returns text language sql as $$ select 'x' $$",
            "create schema mine",
            "insert into control.overrides (workspace_id, class, window_value, window_unit, set_at)"
            " values ('roles-own', 'pixel_events', 6, 'month', now())",
            "update app.workspaces set plan = 'enterprise'",
            "delete from control.purge_ledger",
            "select * from control.keys",
            "select * from control.salts",
            "select * from control.ledger",
            "select * from control.erasure_list",
            "select * from app.user_accounts",
            "select pg_advisory_lock(1952806246)",
            "select lo_create(0)",
            "copy control.loads to program 'cat'",
            "select pg_read_file('/etc/passwd')",
        ):
            with pytest.raises(psycopg.errors.Error) as refused:
                jane.execute(statement)
            assert refused.value.sqlstate in ("42501", "42809"), statement


def test_the_auditor_reads_no_key_and_writes_nothing(shared: Warehouse) -> None:
    with as_login(shared, "audits") as auditor:
        auditor.execute("select * from control.ledger")
        for statement in (
            "select * from control.keys", "select * from control.salts",
            "select * from control.erasure_list", "select * from app.user_accounts",
            "insert into control.emergency_writes default values",
            "delete from control.purge_ledger", "truncate control.verdicts",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                auditor.execute(statement)
    for login in ("loads", "builds", "purges"):
        with as_login(shared, login) as connection:
            for statement in (
                "delete from control.ledger", "update control.verdicts set success = true",
                "delete from control.purge_ledger", "select * from app.user_accounts",
                "alter table control.ledger disable trigger all", "drop table control.loads",
                "update app.workspaces set timezone = 'UTC'",
            ):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)


@pytest.fixture(scope="module")
def verbs() -> Iterator[Warehouse]:
    """A warehouse with one row that is long past its window, loaded and built by members."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        home.run("workspace", "add", "shop", "--timezone", "UTC", "--currency", "EUR",
                 "--plan", "pro")  # fmt: skip
        make_logins(home)
        (running,) = (own for own in engines.status(home.settings) if own.name == "clickhouse")
        engine = psutil.Process(running.pid)
        engine.terminate()
        engine.wait(60)
        put_event(home, "2025-02-03")
        assert as_member(home, "loads", "load", "--as-of", "2025-02-10")["stored"] == 1
        assert as_member(home, "builds", "build", "--as-of", "2025-02-10")["gate"]["success"]
        again = ("build", "--from", "2025-02-03", "--to", "2025-02-03", "--as-of", "2025-02-10")
        assert as_member(home, "builds", *again)["gate"]["success"]
        yield home


def put_event(home: Warehouse, day: str) -> None:
    folder = Path(home.settings.landing) / "pixel" / "shop" / day
    folder.mkdir(parents=True)
    line = {
        "event_id": day, "event_name": "$pageview", "timestamp": f"{day}T10:00:00Z",
        "anonymous_id": "a", "url": "https://shop.example/", "ip": "81.2.69.142",
    }  # fmt: skip
    (folder / "events.jsonl").write_text(json.dumps(line) + "\n")


LOGINS = {
    "loads": "tidemark_loader", "builds": "tidemark_transformer",
    "purges": "tidemark_purger", "audits": "tidemark_auditor",
}  # fmt: skip


def as_member(home: Warehouse, login: str, *arguments: str) -> Any:
    """What a command answers that a cluster's worker runs with this login, in both stores."""
    env = {
        **home.env,
        "TIDEMARK_PROFILE": "cluster",
        "TIDEMARK_POSTGRES_URL": url(home, login),
        "TIDEMARK_CLICKHOUSE_URL": clickhouse.endpoint(home.settings, "owner").url,
    }
    with endpoint(home, granted(home, LOGINS[login])):
        outcome = run_cli([*arguments, "--json"], env)
    assert outcome.code == 0, outcome.stderr
    return outcome.json


def granted(home: Warehouse, role: str) -> list[str]:
    """What ClickHouse's SQL grants to a role, with nobody named."""
    to = f" to `{role}`"
    return [
        statement.removesuffix(to)
        for statement in roles.clickhouse(declaration(home))
        if statement.startswith("grant ") and statement.endswith(to)
    ]


@contextlib.contextmanager
def endpoint(home: Warehouse, grants: Sequence[str] = ()) -> Iterator[None]:
    """ClickHouse, whose engine lets its user do nothing but what these statements grant."""
    config = json.loads((home.settings.run / "clickhouse.json").read_text())
    if grants:
        # The endpoint itself makes the database `default`, and reads a body from a pipe.
        grants = [*grants, "grant all on default.*", "grant file on *.*"]
        queries = "".join(f"<query>{own}</query>" for own in grants)
        users = home.settings.run / "users.xml"
        users.write_text(
            "<clickhouse><users><default><password/><networks><ip>::/0</ip></networks>"
            "<profile>default</profile><quota>default</quota>"
            f"<grants>{queries}</grants></default></users>"
            "<profiles><default/></profiles><quotas><default/></quotas></clickhouse>"
        )
        config["server"] = {**config["server"], "users_config": str(users)}
    file = home.settings.run / "granted.json"
    file.write_text(json.dumps(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "chdb_http", "--config", str(file)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                clickhouse.execute(home.settings, "select 1", timeout=5)
                break
            except TidemarkError:
                assert process.poll() is None, (home.settings.logs / "clickhouse.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(60)


def test_each_verb_runs_with_its_own_role(verbs: Warehouse) -> None:
    purged = as_member(verbs, "purges", "purge", "--as-of", "2026-11-20")
    assert purged["rows"] == 1
    recalled = as_member(
        verbs, "purges", "recall", "pixel_events", "--workspace", "shop", "--month", "2025-02",
        "--reason", "audit", "--as-of", "2026-11-20",
    )  # fmt: skip
    assert recalled["rows"] == 1
    exported = as_member(
        verbs, "purges", "export", "--workspace", "shop", "--subject", "visitor:a",
        "--as-of", "2026-11-20",
    )  # fmt: skip
    assert exported["status"] == "done"
    audited = as_member(verbs, "audits", "audit")
    assert audited["findings"] == []
    assert [step["data_class"] for step in audited["destroyed"]] == ["pixel_events"]


# -- ClickHouse ------------------------------------------------------------------------------------


_ENGINE = """
import json, sys
from chdb import session
engine = session.Session()
answers = []
for statement in json.load(sys.stdin):
    quoted = statement.replace("\\\\", "\\\\\\\\").replace("'", "\\\\'")
    form = f"select formatQuerySingleLine('{quoted}') as query"
    tree = str(engine.query(f"explain ast {statement}", "TabSeparatedRaw"))
    answers.append([json.loads(engine.query(form, "JSONEachRow").bytes())["query"], tree])
print(json.dumps(answers))
"""


@pytest.mark.parametrize("cluster", [None, "tidemark"])
def test_the_engine_parses_every_statement(cluster: str | None) -> None:
    own = roles.read(Settings.from_env({}))
    statements = [
        *roles.clickhouse(own, cluster), *roles.clickhouse_analyst("jane doe`", OWN, cluster)
    ]  # fmt: skip
    assert len(statements) > 60
    ran = subprocess.run(
        [sys.executable, "-c", _ENGINE], input=json.dumps(statements), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    granted: dict[str, set[tuple[str, str]]] = {}
    for statement, (query, tree) in zip(statements, json.loads(ran.stdout), strict=True):
        assert query.split()[0] in ("CREATE", "ALTER", "GRANT", "REVOKE")
        assert ("ON CLUSTER tidemark" in query) == bool(cluster), statement
        assert "QUERY" in tree.upper(), statement
        # What it does to rights comes back in the engine's own form, not in our text.
        found = re.fullmatch(r"GRANT (?:ON CLUSTER tidemark )?(.+) ON (\S+) TO (\w+)", query)
        if found:
            for privilege in found[1].split(", "):
                granted.setdefault(found[3], set()).add((privilege, found[2].replace("`", "")))
    reader = own.roles[roles.WORKSPACE_ANALYST].clickhouse
    assert granted[roles.WORKSPACE_ANALYST] == {
        ("SELECT", place) for place in roles._everywhere(reader.read, cluster)
    }
    assert {privilege for privilege, _ in granted["tidemark_auditor"]} == {"SELECT", "FILE"}
    for name, role in own.roles.items():
        selects = {place for privilege, place in granted[name] if privilege == "SELECT"}
        assert selects == set(roles._everywhere(role.clickhouse.read, cluster))
        # Nobody but the purger, and the loader who replaces versions, takes rows out of raw.
        if name not in ("tidemark_purger", "tidemark_loader"):
            assert ("ALTER DELETE", "raw.*") not in granted[name]


def test_a_role_does_nothing_but_its_own(verbs: Warehouse) -> None:
    """The same engine that lets the verbs through refuses what they do not need."""
    refused = {
        "loads": ["select * from marts.kpis_daily", "drop table retention.permits"],
        "builds": ["truncate table raw.orders", "alter table retention.permits delete where true"],
        "purges": ["drop table raw.orders", "insert into raw.orders select * from raw.orders"],
        "audits": ["select * from raw.pixel_events", "truncate table marts.summary_kpis_daily"],
    }
    for login, statements in refused.items():
        with endpoint(verbs, granted(verbs, LOGINS[login])):
            for statement in statements:
                with pytest.raises(clickhouse.ClickHouseError, match="Not enough privileges"):
                    clickhouse.execute(verbs.settings, statement)


@pytest.fixture
def used(verbs: Warehouse) -> Iterator[Warehouse]:
    """The same, and everything may be asked there."""
    with endpoint(verbs):
        yield verbs


def test_relations_of_clickhouse_exist(used: Warehouse) -> None:
    clickhouse_tables = {
        f"{row['database']}.{row['name']}": row
        for row in clickhouse.rows(
            used.settings, "select database, name, engine from system.tables"
        )
    }
    databases = {name.split(".")[0] for name in clickhouse_tables} | {
        row["name"] for row in clickhouse.rows(used.settings, "show databases")
    }
    privileges = {
        row["privilege"]
        for row in clickhouse.rows(
            used.settings, "select toString(privilege) as privilege from system.privileges"
        )
    }
    for role in declaration(used).roles.values():
        rights = role.clickhouse
        for own in (*rights.use, *rights.use_on_cluster):
            assert (own if own == "dictGet" else own.upper()) in privileges, own
        for relation in {*rights.read, *rights.append, *rights.remove, *rights.define}:
            database, table = relation.split(".")
            assert database == "*" or database in databases, relation
            assert table == "*" or relation in clickhouse_tables, relation


def test_an_analysts_relations_have_workspaces(used: Warehouse) -> None:
    reader = declaration(used).roles[roles.WORKSPACE_ANALYST].clickhouse
    assert reader.own_rows == reader.read
    tables = clickhouse.rows(
        used.settings,
        "select concat(database, '.', name) as name, database, engine,"
        " has(groupArray(c.name), 'workspace_id') as has_workspace from system.tables as t"
        " left join system.columns as c on c.database = t.database and c.table = t.name"
        " group by database, name, engine",
    )
    readable = [
        row for row in tables if row["name"] in reader.read or f"{row['database']}.*" in reader.read
    ]
    assert len(readable) >= 7
    assert [row["name"] for row in readable if not row["has_workspace"]] == []
    views = {row["name"] for row in readable if row["engine"] == "View"}
    assert views == set(reader.definer_views)


# -- the declaration -------------------------------------------------------------------------------


def test_a_name_cannot_end_its_quotes(shared: Warehouse) -> None:
    for arguments in (
        ["--workspace", "x' or true", "--login", "jane"],
        ["--workspace", "x"],
        ["--store", "postgres", "--cluster", "c"],
    ):
        assert shared.run("roles", *arguments, check=False).code == 2
    with pytest.raises(UsageError):
        list(roles.postgres_analyst("jane", "X"))
    text = shared.run(
        "roles", "--store", "postgres", "--workspace", OWN, "--login", 'a"b', "--json"
    ).json
    assert 'to "a""b"' in text[0].lower()


def test_the_declaration_is_checked(shared: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    whole = yaml.safe_load((shared.settings.root / "include" / "roles.yml").read_text())
    for change, message in (
        ({"roles": {**whole["roles"], "x": {}}}, "roles.x.does"),
        ({"roles": {"x": whole["roles"]["tidemark_loader"]}}, "no role workspace_analyst"),
        ({"profiles": {}}, "names profile"),
    ):
        monkeypatch.setattr(yaml, "safe_load", lambda _, change=change: {**whole, **change})
        with pytest.raises(TidemarkError, match=message) as error:
            roles.read(shared.settings)
        assert "roles.yml" in str(error.value)
