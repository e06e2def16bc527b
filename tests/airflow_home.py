"""A warehouse with Airflow for the tests: real processes, asked over the commands and the API."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from homes import Warehouse, new_home
from tidemark import airflow_engine, processes

ROOT = Path(__file__).resolve().parents[1]
_PARTS = ("include", "dags", "plugins", "dbt_project", "expectations", "airflow.cfg")
#: Seconds; a machine that does other things too takes its time.
PATIENCE = 900.0
_USERS_SETTING = "simple_auth_manager_users"
#: Besides the administrator: one who may look, and one who may nothing.
USERS = "admin:admin,reader:viewer,stranger:"
ENDED = frozenset({"success", "failed"})


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The document in it."""
        return json.loads(self.body)


@dataclass
class AirflowHome:
    """A home whose Airflow runs from a copy of the repository, with a policy of its own."""

    warehouse: Warehouse
    root: Path
    env: Mapping[str, str] = field(repr=False)
    token: str = field(default="", repr=False)

    def run(self, *arguments: str, check: bool = True) -> str:
        """Run `tidemark` in this home; what it printed."""
        return self._command(
            [sys.executable, "-c", "from tidemark.cli import main; main()", *arguments], check
        )

    def airflow(self, *arguments: str, check: bool = True) -> str:
        """Run `airflow` in this home; what it printed."""
        return self._command([sys.executable, "-m", "airflow", *arguments], check)

    def _command(self, command: Sequence[str], check: bool) -> str:
        done = subprocess.run(
            command, env=self.env, cwd=self.root, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done.stdout if check else done.stdout + done.stderr

    def status(self) -> Any:
        """The engines and Airflow's processes."""
        return json.loads(self.run("status", "--json"))

    def sql(self, query: str, store: str = "clickhouse") -> Any:
        """The rows of a query."""
        return json.loads(self.run("sql", query, "--store", store, "--json"))

    def fetch(self, path: str, *, cookie: str | None = None) -> Answer:
        """Get a page as a browser would, signed in where there is a cookie."""
        return self._ask("GET", path, {"cookie": f"_token={cookie}"} if cookie else {}, None)

    def api(self, method: str, path: str, document: Any = None) -> Any:
        """Ask Airflow's API as the administrator."""
        answer = self.ask(method, path, document, token=self.token)
        assert answer.status < 300, (method, path, answer.status, answer.body[:500])
        return answer.json if answer.body else None

    def ask(self, method: str, path: str, document: Any = None, *, token: str) -> Answer:
        """Ask Airflow's API as somebody; its answer, whatever it is."""
        return self._ask(
            method,
            f"/api/v2{path}",
            {"authorization": f"Bearer {token}", "content-type": "application/json"},
            None if document is None else json.dumps(document).encode(),
        )

    def token_of(self, user: str) -> str:
        """The token of one of `USERS`."""
        file = self.warehouse.settings.secrets / "airflow_passwords.json"
        answer = self.sign_in(user, json.loads(file.read_text(encoding="ascii"))[user])
        assert answer.status == 201, answer.body
        return str(answer.json["access_token"])

    def sign_in(self, user: str, password: str) -> Answer:
        """Ask for a token."""
        document = json.dumps({"username": user, "password": password}).encode()
        return self._ask("POST", "/auth/token", {"content-type": "application/json"}, document)

    def is_served(self) -> bool:
        """Whether the API server answers."""
        try:
            return self.fetch("/api/v2/version").status == 200
        except OSError:
            return False

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        url = f"http://127.0.0.1:{self.warehouse.settings.airflow_port}{path}"
        request = urllib.request.Request(url, method=method, data=body, headers=dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return Answer(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, dict(error.headers), error.read())

    def trigger(self, dag_id: str, run_id: str, **conf: Any) -> str:
        """Start a run by hand."""
        self.wait(lambda: self.knows(dag_id), f"Airflow does not know {dag_id}")
        document = {"logical_date": None, "dag_run_id": run_id, "conf": conf}
        self.api("POST", f"/dags/{dag_id}/dagRuns", document)
        return run_id

    def knows(self, dag_id: str) -> bool:
        """Whether the DAG processor has read it."""
        return any(dag["dag_id"] == dag_id for dag in self.api("GET", "/dags")["dags"])

    def state(self, dag_id: str, run_id: str) -> str:
        """The state of a run."""
        return str(self.api("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")["state"])

    def tasks(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """The task instances of a run by task."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances"
        found = self.api("GET", path)["task_instances"]
        return {task["task_id"]: task for task in found}

    def ended(self, dag_id: str, run_id: str) -> dict[str, str]:
        """Wait until a run has ended; the states of its tasks, and its own under ''."""
        self.wait(
            lambda: self.state(dag_id, run_id) in ENDED, f"{dag_id} {run_id} does not end",
            lambda: {name: own["state"] for name, own in self.tasks(dag_id, run_id).items()},
        )  # fmt: skip
        states = {name: task["state"] for name, task in self.tasks(dag_id, run_id).items()}
        return {**states, "": self.state(dag_id, run_id)}

    def newest(self, dag_id: str) -> str | None:
        """The run of a DAG that came last."""
        runs = self.api("GET", f"/dags/{dag_id}/dagRuns?order_by=-id&limit=1")["dag_runs"]
        return str(runs[0]["dag_run_id"]) if runs else None

    def built(self) -> str | None:
        """The newest run of `transform` that built; one after it may have found nothing due."""
        for run in self.api("GET", "/dags/transform/dagRuns?order_by=-id")["dag_runs"]:
            run_id = str(run["dag_run_id"])
            if self.tasks("transform", run_id).get("gate", {}).get("state") == "success":
                return run_id
        return None

    def log(self, dag_id: str, run_id: str, task_id: str, number: int = 1) -> str:
        """What a task wrote."""
        path = (
            f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/logs/{number}"
        )
        return str(self.api("GET", f"{path}?full_content=true"))

    def set_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task, as a person does in the UI."""
        run = quote(run_id, safe="")
        self.api(
            "PATCH", f"/dags/{dag_id}/dagRuns/{run}/taskInstances/{task_id}", {"new_state": state}
        )

    def pause(self, dag_id: str, *, paused: bool) -> None:
        """Keep the scheduler from a DAG, or let it go on."""
        self.api("PATCH", f"/dags/{dag_id}", {"is_paused": paused})

    def options(self, run_id: str) -> list[str]:
        """What a person may answer about a purge now; empty where nothing is asked."""
        path = f"/dags/retention_nightly/dagRuns/{quote(run_id, safe='')}/hitlDetails"
        found = self.api("GET", f"{path}?response_received=false")["hitl_details"]
        return [option for detail in found for option in detail["options"]]

    def answer(self, run_id: str, option: str) -> dict[str, str]:
        """Answer the approval of a purge as soon as it is asked, and whenever it is asked again.

        Returns:
            The states of the run's tasks at its end, and its own under ''.
        """
        path = f"/dags/retention_nightly/dagRuns/{quote(run_id, safe='')}"

        def done() -> bool:
            if option in self.options(run_id):
                document = {"chosen_options": [option], "params_input": {}}
                self.api("PATCH", f"{path}/taskInstances/approve/-1/hitlDetails", document)
            return self.state("retention_nightly", run_id) in ENDED

        self.wait(done, f"{run_id} does not end")
        return self.ended("retention_nightly", run_id)

    def wait(self, done: Any, problem: str, more: Any = lambda: "") -> None:
        """Ask until it is so.

        Raises:
            AssertionError: it never is.
        """
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, f"{problem}: {more()}"
            time.sleep(0.3)


@contextlib.contextmanager
def airflow_home(**policy: str) -> Iterator[AirflowHome]:
    """A home with the engines and Airflow up.

    Args:
        policy: entries of the policy to change, by their key: the line's new value.
    """
    with new_home() as warehouse:
        root = warehouse.settings.home / "repository"
        root.mkdir()
        for part in _PARTS:
            source = ROOT / part
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "target", "logs")
                shutil.copytree(source, root / part, ignore=ignored)
            else:
                shutil.copy(source, root / part)
        file = root / "include" / "policy.yml"
        text = file.read_text(encoding="utf-8")
        for key, value in policy.items():
            lines = [line for line in text.splitlines() if line.strip().startswith(f"{key}:")]
            assert len(lines) == 1, f"{key} does not stand once in the policy"
            text = text.replace(lines[0], f"{lines[0].split(':')[0]}: {value}")
        file.write_text(text, encoding="utf-8")
        config = root / "airflow.cfg"
        lines = config.read_text(encoding="utf-8").splitlines()
        (place,) = (i for i, line in enumerate(lines) if line.startswith(f"{_USERS_SETTING} ="))
        lines[place] = f"{_USERS_SETTING} = {USERS}"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        env = {**kept, **warehouse.env, "PYTHONPATH": str(root / "include")}
        home = AirflowHome(warehouse, root, env)
        home.run("up")
        exports = json.loads(home.run("env", "--json"))
        home.env = {**env, **exports}
        home.token = home.token_of(exports["TIDEMARK_AIRFLOW_USER"])
        try:
            yield home
        finally:
            home.run("down", check=False)


@contextlib.contextmanager
def api_server(warehouse: Warehouse) -> Iterator[AirflowHome]:
    """The API server alone over a warehouse that is up: nothing is scheduled, nothing runs."""
    settings = warehouse.settings
    settings.airflow.mkdir(mode=0o700)
    airflow_engine.credentials(settings)
    passwords = {user.split(":")[0]: secrets.token_urlsafe(16) for user in USERS.split(",")}
    processes.write_private(settings.secrets / "airflow_passwords.json", passwords)
    environment = airflow_engine.environment(settings) | {
        f"AIRFLOW__CORE__{_USERS_SETTING.upper()}": USERS
    }
    command = [sys.executable, "-m", "airflow"]
    log = settings.logs / "airflow-api-server.log"
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> psutil.Process:
            process = processes.spawn(
                [*command, *arguments], log, cwd=settings.airflow, environment=environment
            )
            stack.callback(_end, process.pid)
            return process

        assert start("db", "migrate").wait(PATIENCE) == 0, log.read_text()[-3000:]
        home = AirflowHome(warehouse, ROOT, environment)
        process = start("api-server")
        processes.wait_ready(
            "airflow api-server", process.is_running, home.is_served, log, seconds=PATIENCE
        )
        home.token = home.token_of("admin")
        yield home


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
