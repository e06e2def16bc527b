"""Long-running processes of a home: start them detached, find them again, stop them."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tidemark.config import Settings
from tidemark.errors import TidemarkError

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Account:
    """The system account that a process runs under, when that is not the caller's own."""

    uid: int
    gid: int


@contextlib.contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Nobody else starts or stops anything in this home meanwhile."""
    descriptor = os.open(settings.run / "engines.lock", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_same_port(running_on: int | None, wanted: int, name: str) -> None:
    """Refuse to go on beside a process that listens elsewhere.

    Raises:
        TidemarkError: it runs on another port than the one wanted.
    """
    if running_on is not None and running_on != wanted:
        raise TidemarkError(
            f"{name} of this home runs on port {running_on}, not {wanted}:"
            " run `tidemark down` first to change it"
        )


def check_port_free(port: int, variable: str, name: str) -> None:
    """Refuse a port that something else listens on.

    Raises:
        TidemarkError: it is taken; the message names the variable to set.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise TidemarkError(
                f"{name} cannot listen on 127.0.0.1:{port} ({error.strerror}):"
                f" set {variable} to a free port"
            ) from None


def clean_environment() -> dict[str, str]:
    """What a process gets of the caller's shell: no settings and no credentials."""
    kept = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C"}


def run_as(account: Account | None) -> dict[str, Any]:
    """The arguments of `subprocess` that make a process run under this account."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def spawn(
    command: list[str],
    log: Path,
    *,
    cwd: Path,
    account: Account | None = None,
    environment: Mapping[str, str] | None = None,
) -> psutil.Process:
    """Start a process that outlives the caller; what it says goes to the end of `log`.

    Args:
        environment: what it gets besides the clean environment.

    Raises:
        TidemarkError: it cannot be started.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = psutil.Popen(
            command,
            cwd=cwd,
            env=clean_environment() | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
            umask=0o077,
            **run_as(account),
        )
    except OSError as error:
        raise TidemarkError(f"{command[0]} cannot be started: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return psutil.Process(process.pid)


def wait_ready(
    name: str,
    is_alive: Callable[[], bool],
    answers: Callable[[], bool],
    log: Path,
    *,
    seconds: float = _START_SECONDS,
) -> None:
    """Wait until it answers.

    Raises:
        TidemarkError: it ended, or does not answer within so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not answers():
        if not is_alive():
            raise TidemarkError(f"{name} stopped while starting: {_last_line(log)} (see {log})")
        if time.monotonic() > deadline:
            raise TidemarkError(f"{name} does not answer after {seconds:.0f} s: see {log}")
        time.sleep(0.05)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1].strip() if lines else "it said nothing"


def terminate(
    process: psutil.Process, how: signal.Signals, name: str, *, seconds: float = _STOP_SECONDS
) -> None:
    """Send the signal and wait until the process is gone.

    Raises:
        TidemarkError: it is still there after so many seconds.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(how)
    deadline = time.monotonic() + seconds
    while alive(process):
        if time.monotonic() > deadline:
            raise TidemarkError(
                f"{name} (process {process.pid}) did not stop within {seconds:.0f} s"
            )
        time.sleep(0.02)
    # Where the caller itself started it, the dead process stays listed until it is waited for.
    with contextlib.suppress(psutil.Error):
        process.wait(1)


def alive(process: psutil.Process) -> bool:
    """Whether it still runs, or holds files and locks."""
    try:
        if not process.is_running():
            return False
        # A zombie whose other threads still exit holds its files and locks; one that is all gone
        # stays listed where nobody waits for it.
        return bool(process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.Error:
        return False


def record(path: Path, process: psutil.Process, port: int) -> None:
    """Note a process where `recorded` finds it again."""
    write_private(path, {"pid": process.pid, "started": process.create_time(), "port": port})


def recorded(path: Path, cwd: Path) -> psutil.Process | None:
    """The process noted there, if it still runs.

    Args:
        cwd: the folder it works in or below, so that no recycled pid is taken for it. Its command
            line would not do: Airflow's processes change theirs.
    """
    noted = _read(path)
    try:
        process = psutil.Process(int(noted["pid"]))
        # Pids are recycled; the clock behind start times may be set by a second or so.
        if abs(process.create_time() - float(noted["started"])) > 2.0:
            return None
        inside = Path(process.cwd()).resolve().is_relative_to(cwd.resolve())
        return process if alive(process) and inside else None
    except (KeyError, ValueError, OSError, psutil.Error):
        return None


def left_behind(path: Path, cwd: Path) -> list[psutil.Process]:
    """What a process noted there started and left running when it was killed.

    Args:
        cwd: the folder that they work in.
    """
    pid = _read(path).get("pid")
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            # Each process of a home begins a session of its own.
            is_ours = os.getsid(process.pid) == pid and process.pid != pid
            if is_ours and Path(process.cwd()).samefile(cwd):
                found.append(process)
    return found


def recorded_port(path: Path) -> int | None:
    """The port noted there."""
    port = _read(path).get("port")
    return port if isinstance(port, int) else None


def write_private(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a JSON file that only its owner may read."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(document, file)
    draft.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
