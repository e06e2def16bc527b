from pathlib import Path

import pytest

from tidemark.config import Settings
from tidemark.errors import UsageError


def test_defaults_lie_in_the_repository() -> None:
    settings = Settings.from_env({})
    root = Path(__file__).parents[2]
    assert settings.root == root
    assert settings.home == root / ".tidemark"
    assert settings.landing == str(root / ".tidemark" / "landing")
    assert settings.profile == "laptop"
    assert (settings.clickhouse_port, settings.postgres_port, settings.airflow_port) == (
        8123,
        5433,
        8080,
    )


def test_every_derived_path_lies_in_the_home(tmp_path: Path) -> None:
    settings = Settings.from_env({"TIDEMARK_HOME": str(tmp_path)})
    paths = {
        settings.clickhouse, settings.postgres, settings.secrets, settings.logs, settings.tmp,
        settings.run, settings.expectations, settings.airflow,
    }  # fmt: skip
    assert len(paths) == 8
    assert {path.parent for path in paths} == {tmp_path}


def test_a_relative_home_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.from_env({"TIDEMARK_HOME": "h"}).home == tmp_path / "h"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TIDEMARK_CLICKHOUSE_PORT", "http"),
        ("TIDEMARK_POSTGRES_PORT", "0"),
        ("TIDEMARK_POSTGRES_PORT", "65536"),
        ("TIDEMARK_AIRFLOW_PORT", "-1"),
        ("TIDEMARK_AIRFLOW_PORT", "٨٠٨٠"),
        ("TIDEMARK_PROFILE", "server"),
        ("TIDEMARK_HOME", "/"),
        ("TIDEMARK_LANDING", "s3://"),
        ("TIDEMARK_LANDING", "ftp://host/x"),
        ("TIDEMARK_DEBUG", "yes please"),
    ],
)
def test_a_bad_value_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name):
        Settings.from_env({name: value})


def test_two_ports_must_differ() -> None:
    with pytest.raises(UsageError, match=r"TIDEMARK_POSTGRES_PORT.*TIDEMARK_CLICKHOUSE_PORT"):
        Settings.from_env({"TIDEMARK_POSTGRES_PORT": "8123"})


def test_landing_may_be_an_object_store() -> None:
    settings = Settings.from_env({"TIDEMARK_LANDING": "s3://bucket/landing/"})
    assert settings.landing == "s3://bucket/landing"
    with pytest.raises(UsageError, match="TIDEMARK_LANDING"):
        _ = settings.landing_path


def test_a_laptop_ignores_the_exports_of_another_home() -> None:
    settings = Settings.from_env({"TIDEMARK_POSTGRES_URL": "postgresql://u:p@elsewhere/db"})
    assert settings.postgres_url is None


def test_a_url_may_stand_in_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "postgres_url"
    secret.write_text("postgresql://owner:hunter2@pg/tidemark\n")
    env = {
        "TIDEMARK_PROFILE": "cluster",
        "TIDEMARK_CLICKHOUSE_URL": "https://owner:hunter2@ch:8443/",
        "TIDEMARK_POSTGRES_URL_FILE": str(secret),
    }
    assert Settings.from_env(env).postgres_url == "postgresql://owner:hunter2@pg/tidemark"
    with pytest.raises(UsageError, match="both set"):
        Settings.from_env({**env, "TIDEMARK_POSTGRES_URL": "postgresql://a:b@pg/tidemark"})
    with pytest.raises(UsageError, match="TIDEMARK_POSTGRES_URL_FILE cannot be read"):
        Settings.from_env({**env, "TIDEMARK_POSTGRES_URL_FILE": str(tmp_path / "none")})
    secret.write_text("mysql://owner:hunter2@pg/tidemark")
    with pytest.raises(UsageError, match="TIDEMARK_POSTGRES_URL") as refused:
        Settings.from_env(env)
    assert "hunter2" not in str(refused.value)


def test_a_cluster_needs_both_urls_and_hides_their_passwords() -> None:
    env = {
        "TIDEMARK_PROFILE": "cluster",
        "TIDEMARK_CLICKHOUSE_URL": "https://owner:hunter2@ch:8443/",
    }
    with pytest.raises(UsageError, match="TIDEMARK_POSTGRES_URL"):
        Settings.from_env(env)
    settings = Settings.from_env(
        {**env, "TIDEMARK_POSTGRES_URL": "postgresql://owner:hunter2@pg/tidemark"}
    )
    assert settings.postgres_url is not None
    assert "hunter2" not in repr(settings)
    with pytest.raises(UsageError) as error:
        Settings.from_env({**env, "TIDEMARK_POSTGRES_URL": "mysql://owner:hunter2@pg/tidemark"})
    assert "hunter2" not in str(error.value)
