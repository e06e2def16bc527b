"""The one place that reads the environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from tidemark.errors import UsageError

Profile = Literal["laptop", "cluster"]

_ROOT = Path(__file__).resolve().parents[2]
_URL_SCHEMES = ("s3", "gs", "az", "abfs", "http", "https")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where everything lies and which ports it listens on.

    Locations that may be object stores (`landing`, `cold`, `backups`, `exports`) are text: an
    absolute path or an `s3://` style URL. URLs of a cluster carry passwords and are left out of
    the representation.
    """

    root: Path
    home: Path
    profile: Profile
    clickhouse_port: int
    postgres_port: int
    airflow_port: int
    landing: str
    cold: str
    backups: str
    exports: str
    #: An IP database to take instead of the one in the repository: .mmdb or .csv.gz.
    geo: Path | None = None
    debug: bool = False
    #: Told of failed runs; its address often holds a token.
    webhook: str | None = field(default=None, repr=False)
    #: Under which the servers know the cluster; without a name ClickHouse is one server.
    clickhouse_cluster: str | None = None
    clickhouse_url: str | None = field(default=None, repr=False)
    clickhouse_analyst_url: str | None = field(default=None, repr=False)
    postgres_url: str | None = field(default=None, repr=False)
    postgres_analyst_url: str | None = field(default=None, repr=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> "Settings":
        """Read and check the settings; an unset or empty variable means its default.

        Raises:
            UsageError: a value makes no sense; the message names the variable.
        """
        env = os.environ if env is None else env
        home = _absolute(env.get("TIDEMARK_HOME") or str(_ROOT / ".tidemark"))
        if home == Path(home.anchor):
            raise UsageError("TIDEMARK_HOME must be a folder of its own, not the file system root")
        profile = env.get("TIDEMARK_PROFILE") or "laptop"
        if profile not in ("laptop", "cluster"):
            raise UsageError(f"TIDEMARK_PROFILE must be laptop or cluster, not {profile!r}")
        ports = {
            name: _port(name, env.get(name) or str(default))
            for name, default in (
                ("TIDEMARK_CLICKHOUSE_PORT", 8123),
                ("TIDEMARK_POSTGRES_PORT", 5433),
                ("TIDEMARK_AIRFLOW_PORT", 8080),
            )
        }
        owner_of: dict[int, str] = {}
        for name, port in ports.items():
            if port in owner_of:
                raise UsageError(f"{name} and {owner_of[port]} are both {port}: change one of them")
            owner_of[port] = name
        cluster = profile == "cluster"
        settings = cls(
            root=_ROOT,
            home=home,
            profile=cast(Profile, profile),
            clickhouse_port=ports["TIDEMARK_CLICKHOUSE_PORT"],
            postgres_port=ports["TIDEMARK_POSTGRES_PORT"],
            airflow_port=ports["TIDEMARK_AIRFLOW_PORT"],
            landing=_location(env, "TIDEMARK_LANDING", home / "landing"),
            cold=_location(env, "TIDEMARK_COLD", home / "cold"),
            backups=_location(env, "TIDEMARK_BACKUPS", home / "backups"),
            exports=_location(env, "TIDEMARK_EXPORTS", home / "exports"),
            geo=_absolute(env["TIDEMARK_GEO"]) if env.get("TIDEMARK_GEO") else None,
            debug=_flag(env, "TIDEMARK_DEBUG"),
            webhook=_url(env, "TIDEMARK_WEBHOOK", ("https", "http"), wanted=True),
            # `tidemark env` exports these names for other clients; a laptop must not take them for
            # its own connections, or one home's shell would reach into another home.
            clickhouse_cluster=_cluster(env) if cluster else None,
            clickhouse_url=_url(env, "TIDEMARK_CLICKHOUSE_URL", ("http", "https"), wanted=cluster),
            clickhouse_analyst_url=_url(
                env, "TIDEMARK_CLICKHOUSE_ANALYST_URL", ("http", "https"), wanted=cluster
            ),
            postgres_url=_url(
                env, "TIDEMARK_POSTGRES_URL", ("postgresql", "postgres"), wanted=cluster
            ),
            postgres_analyst_url=_url(
                env, "TIDEMARK_POSTGRES_ANALYST_URL", ("postgresql", "postgres"), wanted=cluster
            ),
        )
        if cluster:
            for name, value in (
                ("TIDEMARK_CLICKHOUSE_URL", settings.clickhouse_url),
                ("TIDEMARK_POSTGRES_URL", settings.postgres_url),
            ):
                if value is None:
                    raise UsageError(f"{name} must be set when TIDEMARK_PROFILE is cluster")
        return settings

    @property
    def clickhouse(self) -> Path:
        """The ClickHouse engine's folder."""
        return self.home / "clickhouse"

    @property
    def postgres(self) -> Path:
        """PostgreSQL's folder; its data lie in `data` below."""
        return self.home / "postgres"

    @property
    def secrets(self) -> Path:
        """Generated passwords and the master key, 0700."""
        return self.home / "secrets"

    @property
    def logs(self) -> Path:
        """Logs of the engines."""
        return self.home / "logs"

    @property
    def tmp(self) -> Path:
        """Scratch space that may be emptied while nothing runs."""
        return self.home / "tmp"

    @property
    def run(self) -> Path:
        """Process records, locks and sockets."""
        return self.home / "run"

    @property
    def ledger(self) -> Path:
        """The ledger's copied heads and public key, outside the database."""
        return self.home / "ledger"

    @property
    def expectations(self) -> Path:
        """Validation results and Data Docs."""
        return self.home / "expectations"

    @property
    def airflow(self) -> Path:
        """Airflow's home."""
        return self.home / "airflow"

    @property
    def cold_folder(self) -> Path:
        """Where ClickHouse writes and reads cold files: `cold`, or scratch space before its URL."""
        return self.tmp / "cold" if "://" in self.cold else Path(self.cold)

    @property
    def backups_folder(self) -> Path:
        """Where the engines write and read backups: `backups`, or scratch space before its URL."""
        return self.tmp / "backups" if "://" in self.backups else Path(self.backups)

    @property
    def exports_folder(self) -> Path:
        """Where ClickHouse writes exports: `exports`, or scratch space before its URL."""
        return self.tmp / "exports" if "://" in self.exports else Path(self.exports)

    @property
    def sql(self) -> Path:
        """The repository's DDL and load SQL."""
        return self.root / "include" / "sql"

    @property
    def dbt_project(self) -> Path:
        """The repository's dbt project."""
        return self.root / "dbt_project"

    @property
    def landing_path(self) -> Path:
        """`landing` as a local folder.

        Raises:
            UsageError: landing is a URL.
        """
        if "://" in self.landing:
            raise UsageError(
                f"TIDEMARK_LANDING is {self.landing}: this needs a local folder, not a URL"
            )
        return Path(self.landing)


def _absolute(text: str) -> Path:
    return Path(os.path.abspath(Path(text).expanduser()))


def _port(name: str, text: str) -> int:
    # str.isdigit() alone admits digits of other scripts.
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise UsageError(f"{name} must be a port from 1 to 65535, not {text!r}")
    return int(text)


def _cluster(env: Mapping[str, str]) -> str | None:
    text = env.get("TIDEMARK_CLICKHOUSE_CLUSTER") or None
    # It stands in statements, and in paths of the servers' Keeper.
    if text is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise UsageError(
            "TIDEMARK_CLICKHOUSE_CLUSTER must be letters, digits and underscores, as the servers"
            f" name their cluster, not {text!r}"
        )
    return text


def _flag(env: Mapping[str, str], name: str) -> bool:
    text = (env.get(name) or "0").lower()
    if text not in ("0", "1", "true", "false"):
        raise UsageError(f"{name} must be 0 or 1, not {text!r}")
    return text in ("1", "true")


def _location(env: Mapping[str, str], name: str, default: Path) -> str:
    text = env.get(name)
    if not text:
        return str(default)
    if "://" not in text:
        return str(_absolute(text))
    parts = urlsplit(text)
    if parts.scheme == "file":
        return str(_absolute(parts.path))
    if parts.scheme not in _URL_SCHEMES or not parts.netloc:
        raise UsageError(f"{name} must be a path or a URL like s3://bucket/prefix, not {text!r}")
    return text.rstrip("/")


def _url(
    env: Mapping[str, str], name: str, schemes: tuple[str, ...], *, wanted: bool
) -> str | None:
    if not wanted:
        return None
    text, file = env.get(name), env.get(f"{name}_FILE")
    if file:
        if text:
            raise UsageError(f"{name} and {name}_FILE are both set: unset one of them")
        try:
            text = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{name}_FILE cannot be read: {type(error).__name__}") from error
    if not text:
        return None
    # The value carries a password, so no message repeats it.
    try:
        parts = urlsplit(text)
        valid = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{name} must be a URL like {schemes[0]}://user:password@host:port/")
    return text
