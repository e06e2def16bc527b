"""Start, stop and show Airflow in a home: API server, scheduler and DAG processor.

Airflow is started as processes and never imported: the orchestrator calls Tidemark.
"""

import configparser
import http.client
import json
import secrets
import signal
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path

import psutil

from tidemark import postgres, processes, secrets_store
from tidemark.config import Settings
from tidemark.engines import EngineStatus
from tidemark.errors import TidemarkError

_PARTS: Mapping[str, tuple[str, ...]] = {
    "api-server": ("api-server",),
    # The log server would listen on every address; the API server reads the files itself.
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
}
_PASSWORDS = "airflow_passwords.json"
_HEARTBEAT_SECONDS = 30.0
# Three processes of some seconds of imports each, on a machine that may be busy.
_START_SECONDS = 600.0
_STOP_SECONDS = 30.0


def up(settings: Settings, *, note: Callable[[str], None] = lambda _: None) -> list[EngineStatus]:
    """Start what does not run of Airflow and wait until it answers; PostgreSQL must be up.

    Safe to call at any time. On a cluster nothing is started.

    Args:
        note: receives one line per step, for people; a password that is new, and only then.

    Raises:
        TidemarkError: a process cannot start or does not answer within ten minutes.
    """
    if settings.profile == "cluster":
        return []
    with processes.locked(settings):
        settings.airflow.mkdir(mode=0o700, exist_ok=True)
        _ensure_secrets(settings, note)
        parts = _parts(settings)
        if not all(part.process() for part in parts):
            note(f"starting Airflow on http://127.0.0.1:{settings.airflow_port}")
            _migrate(settings, note)
        for part in parts:
            part.start()
        for part in parts:
            processes.wait_ready(
                part.name, part.is_running, part.answers, part.log, seconds=_START_SECONDS
            )
    return status(settings)


def down(settings: Settings, *, note: Callable[[str], None] = lambda _: None) -> list[EngineStatus]:
    """Stop Airflow, its running tasks too: the next run takes up what they left.

    Raises:
        TidemarkError: a process does not stop within a minute.
    """
    if settings.profile == "cluster" or not settings.run.is_dir():
        return []
    with processes.locked(settings):
        parts = _parts(settings)
        if any(part.is_running() for part in parts):
            note("stopping Airflow")
        # The API server last: the others report to it while they stop.
        for part in sorted(parts, key=lambda part: part.name == "airflow api-server"):
            part.stop()
    return status(settings)


def status(settings: Settings) -> list[EngineStatus]:
    """Look at Airflow's processes without changing anything; none on a cluster."""
    if settings.profile == "cluster":
        return []
    return [part.status() for part in _parts(settings)]


def environment(settings: Settings) -> dict[str, str]:
    """The variables that make `airflow`, and what its tasks run, work in this home."""
    variables = {
        "AIRFLOW_HOME": str(settings.airflow),
        "AIRFLOW_CONFIG": str(settings.root / "airflow.cfg"),
        "TIDEMARK_ROOT": str(settings.root),
        "TIDEMARK_HOME": str(settings.home),
        "TIDEMARK_CLICKHOUSE_PORT": str(settings.clickhouse_port),
        "TIDEMARK_POSTGRES_PORT": str(settings.postgres_port),
        "TIDEMARK_AIRFLOW_PORT": str(settings.airflow_port),
        "TIDEMARK_LANDING": settings.landing,
        "TIDEMARK_COLD": settings.cold,
        "TIDEMARK_BACKUPS": settings.backups,
        "TIDEMARK_EXPORTS": settings.exports,
    }
    if settings.geo is not None:
        variables["TIDEMARK_GEO"] = str(settings.geo)
    if settings.webhook is not None:
        variables["TIDEMARK_WEBHOOK"] = settings.webhook
    return variables


def credentials(settings: Settings) -> tuple[str, str]:
    """The first user of airflow.cfg, who is an administrator, and the password.

    Raises:
        TidemarkError: the home was never up.
    """
    _ensure_secrets(settings, lambda _: None)
    user = next(iter(_users(settings)))
    passwords = json.loads(secrets_store.read_password(settings.secrets, _PASSWORDS))
    return user, str(passwords[user])


def _users(settings: Settings) -> list[str]:
    config = configparser.RawConfigParser()
    config.read(settings.root / "airflow.cfg", encoding="utf-8")
    pairs = config.get("core", "simple_auth_manager_users").split(",")
    return [pair.split(":")[0].strip() for pair in pairs]


def _ensure_secrets(settings: Settings, note: Callable[[str], None]) -> None:
    folder = settings.secrets
    secrets_store.ensure_secret(
        folder, "airflow_fernet_key", urlsafe_b64encode(secrets.token_bytes(32))
    )
    for name in ("airflow_secret_key", "airflow_jwt_secret"):
        secrets_store.ensure_secret(folder, name, secrets.token_urlsafe(64).encode())
    password = secrets_store.read_password(folder, secrets_store.POSTGRES_AIRFLOW)
    secrets_store.ensure_secret(folder, "airflow_pgpass", f"*:*:*:airflow:{password}\n".encode())
    secrets_store.ensure_secret(folder, _PASSWORDS, b"{}")
    # Airflow would make the missing ones by itself, and write them into its log.
    passwords: dict[str, str] = json.loads(secrets_store.read_password(folder, _PASSWORDS))
    missing = [user for user in _users(settings) if user not in passwords]
    for user in missing:
        passwords[user] = secrets.token_urlsafe(16)
        note(f"Airflow's user {user} has the password {passwords[user]} (shown once)")
    if missing:
        processes.write_private(folder / _PASSWORDS, passwords)


def _migrate(settings: Settings, note: Callable[[str], None]) -> None:
    """Bring the metadata database to the installed version, which takes seconds: only when due."""
    mark = settings.airflow / "migrated"
    state = f"{metadata.version('apache-airflow-core')} {_revision(settings)}"
    if mark.is_file() and mark.read_text(encoding="ascii") == state:
        return
    note("preparing Airflow's database")
    log = settings.logs / "airflow-migrate.log"
    process = processes.spawn(
        _command("db", "migrate"),
        log,
        cwd=settings.airflow,
        environment=environment(settings),
    )
    if process.wait(300) != 0:
        raise TidemarkError(f"Airflow's database cannot be prepared: see {log}")
    mark.touch(0o600)
    mark.write_text(
        f"{metadata.version('apache-airflow-core')} {_revision(settings)}", encoding="ascii"
    )


def _revision(settings: Settings) -> str:
    with postgres.connect(settings, "airflow") as connection:
        found = connection.execute("select to_regclass('public.alembic_version') as name")
        row = found.fetchone()
        if row is None or row["name"] is None:
            return ""
        version = connection.execute("select version_num from alembic_version").fetchone()
        return str(version["version_num"]) if version else ""


def _command(*arguments: str) -> list[str]:
    # Not with -m: dbt asks what module each frame of its stack is of, and for those that start a
    # module by name Python looks through all there are, a sixth of a second each time.
    return [sys.executable, str(Path(sys.executable).with_name("airflow")), *arguments]


def _parts(settings: Settings) -> list["_Part"]:
    return [_Part(settings, name, arguments) for name, arguments in _PARTS.items()]


class _Part:
    def __init__(self, settings: Settings, name: str, arguments: tuple[str, ...]) -> None:
        self.name = f"airflow {name}"
        self.log = settings.logs / f"airflow-{name}.log"
        self._settings = settings
        self._arguments = arguments
        self._record = settings.run / f"airflow-{name}.pid"
        self._serves = name == "api-server"

    def start(self) -> None:
        settings = self._settings
        if self.process() is not None:
            processes.check_same_port(
                processes.recorded_port(self._record), settings.airflow_port, self.name
            )
            return
        self._sweep()
        if self._serves:
            processes.check_port_free(settings.airflow_port, "TIDEMARK_AIRFLOW_PORT", self.name)
        process = processes.spawn(
            _command(*self._arguments),
            self.log,
            cwd=settings.airflow,
            environment=environment(settings),
        )
        processes.record(self._record, process, settings.airflow_port)

    def process(self) -> psutil.Process | None:
        return processes.recorded(self._record, self._settings.airflow)

    def is_running(self) -> bool:
        return self.process() is not None

    def answers(self) -> bool:
        """Whether it did its work lately; only the API server can be asked itself."""
        health = self._health()
        if health is None or self._serves:
            return health is not None
        key = self.name.removeprefix("airflow ").replace("-", "_")
        process = self.process()
        seen = (health.get(key) or {}).get(f"latest_{key}_heartbeat")
        if process is None or seen is None:
            return False
        beat = datetime.fromisoformat(seen).timestamp()
        # The last heartbeat of a process that was killed looks fresh for a while.
        return beat > process.create_time() - 2.0 and time.time() - beat < _HEARTBEAT_SECONDS

    def stop(self) -> None:
        process = self.process()
        if process is None:
            self._sweep()
            return
        try:
            processes.terminate(process, signal.SIGTERM, self.name, seconds=_STOP_SECONDS)
        except TidemarkError:
            # It waits for its tasks; those can be killed anywhere.
            processes.terminate(process, signal.SIGKILL, self.name)
        self._sweep()
        self._record.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Workers outlive a killed scheduler; what they do is done again, one at a time."""
        for process in processes.left_behind(self._record, self._settings.airflow):
            processes.terminate(process, signal.SIGKILL, self.name)

    def status(self) -> EngineStatus:
        process = self.process()
        port = processes.recorded_port(self._record) if process else None
        return EngineStatus(
            name=self.name,
            running=process is not None,
            answering=process is not None and self.answers(),
            port=port or self._settings.airflow_port,
            pid=process.pid if process else None,
            log=str(self.log),
        )

    def _health(self) -> dict[str, dict[str, str]] | None:
        port = processes.recorded_port(self._record) or self._settings.airflow_port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/api/v2/monitor/health")
            document = json.loads(connection.getresponse().read())
            return document if isinstance(document, dict) else None
        except (OSError, ValueError, http.client.HTTPException):
            return None
        finally:
            connection.close()
