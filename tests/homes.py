"""Warehouses for the tests: real engines in a throwaway home, on ports of their own."""

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import psutil
import pytest

from tidemark import airflow_engine, cli, engines
from tidemark.config import Settings


@dataclass(frozen=True)
class Outcome:
    """What a command printed and ended with."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.stdout)


@dataclass(frozen=True)
class Warehouse:
    """A home of its own; `run("load", "--json")` is the command line in it."""

    settings: Settings
    env: Mapping[str, str] = field(repr=False)

    def run(self, *arguments: str, check: bool = True) -> Outcome:
        """Run the command line in this process, with nothing of the caller's TIDEMARK_*.

        With `check`, a code other than 0 fails the test with what the command said.
        """
        outcome = run_cli(arguments, self.env)
        if check and outcome.code != 0:
            pytest.fail(
                f"tidemark {' '.join(arguments)} ended with {outcome.code}: {outcome.stderr}"
            )
        return outcome


def run_cli(arguments: Sequence[str], env: Mapping[str, str]) -> Outcome:
    """Run the command line in this process with these TIDEMARK_* variables and no others."""
    out = TextIOWrapper(BytesIO(), encoding="utf-8", newline="")
    err = StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TIDEMARK_")]:
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run(list(arguments))
    out.flush()
    return Outcome(code, out.buffer.getvalue().decode(), err.getvalue())


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on just now, all different."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
        return ports


def kill_engines(settings: Settings) -> None:
    """Kill whatever still works in this home; for the end of a test that went wrong."""
    for status in airflow_engine.status(settings) + engines.status(settings):
        if status.pid is not None:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(status.pid)
                for victim in (*process.children(recursive=True), process):
                    victim.send_signal(signal.SIGKILL)
                process.wait(10)


@contextlib.contextmanager
def new_home() -> Iterator[Warehouse]:
    """A home that is not up yet; whatever runs in it at the end is stopped, and it is removed."""
    # Short, because PostgreSQL's socket lies in it.
    home = Path(tempfile.mkdtemp(prefix="tm-"))
    clickhouse, postgres, airflow = free_ports(3)
    env = {
        "TIDEMARK_HOME": str(home),
        "TIDEMARK_CLICKHOUSE_PORT": str(clickhouse),
        "TIDEMARK_POSTGRES_PORT": str(postgres),
        "TIDEMARK_AIRFLOW_PORT": str(airflow),
    }
    warehouse = Warehouse(Settings.from_env(env), env)
    try:
        yield warehouse
        airflow_engine.down(warehouse.settings)
        engines.down(warehouse.settings)
    finally:
        kill_engines(warehouse.settings)
        shutil.rmtree(home, ignore_errors=True)
