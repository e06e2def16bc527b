"""The DAGs as Airflow parses them: the exact set, and what every one of them must have."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tidemark import airflow_engine
from tidemark.config import Settings

ROOT = Path(__file__).resolve().parents[2]
#: dag_id: its schedule.
DAGS = {
    "backup_nightly": "0 3 * * *",
    "export_workspace": None,
    "load": "0 2 * * *",
    "recall": None,
    "restore_smoke_weekly": "0 4 * * 0",
    "retention_nightly": "30 3 * * *",
    "subject_request": "30 2 * * *",
    "transform": "asset",
}

# A process of its own, as the DAG processor's are: Airflow reads its settings once, on import.
_PARSE = """
import json, sys, time
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import Asset
def told(dag):
    timetable = dag.timetable
    return {
        "fileloc": dag.fileloc, "doc": dag.doc_md, "tags": sorted(dag.tags),
        "catchup": dag.catchup, "max_active_runs": dag.max_active_runs,
        "schedule": getattr(timetable, "expression", None)
        or ("asset" if "Asset" in type(timetable).__name__ else None),
        "is_paused_upon_creation": dag.is_paused_upon_creation,
        "inlets": sorted({a.name for t in dag.tasks for a in t.inlets}),
        "outlets": sorted({a.name for t in dag.tasks for a in t.outlets}),
        "tasks": {
            task.task_id: {
                "owner": task.owner, "retries": task.retries,
                "backoff": task.retry_exponential_backoff,
                "timeout": (task.execution_timeout or getattr(task, "response_timeout", None)
                            or __import__("datetime").timedelta(0)).total_seconds(),
                "callbacks": len(task.on_failure_callback or []),
                "upstream": sorted(task.upstream_task_ids), "rule": task.trigger_rule.value,
            } for task in dag.tasks
        },
    }
found = {}
for path in sys.argv[1:]:
    began = time.process_time()
    bag = DagBag(dag_folder=path)
    found[path] = {
        "seconds": time.process_time() - began, "errors": list(bag.import_errors.values()),
        "dags": {name: told(dag) for name, dag in bag.dags.items()},
    }
print("\\n" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Each file of dags/ as a DAG processor reads it, without a database."""
    home = tmp_path_factory.mktemp("airflow-home")
    settings = Settings.from_env({"TIDEMARK_HOME": str(home)})
    for name in ("airflow_fernet_key", "airflow_secret_key", "airflow_jwt_secret"):
        (settings.secrets).mkdir(mode=0o700, exist_ok=True)
        (settings.secrets / name).write_text("A" * 43 + "=", encoding="ascii")
    paths = sorted(str(path) for path in (ROOT / "dags").glob("*.py"))
    done = subprocess.run(
        [sys.executable, "-c", _PARSE, *paths],
        env={"PATH": os.environ["PATH"], "HOME": str(home)}
        | airflow_engine.environment(settings)
        | {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite://"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found, "dags/ has no file"
    return found


@pytest.fixture(scope="module")
def dags(parsed: Mapping[str, Any]) -> Mapping[str, Any]:
    """By dag_id; at least one, or no test of them could fail."""
    found = {name: dag for file in parsed.values() for name, dag in file["dags"].items()}
    assert found
    return found


def test_every_file_is_one_dag_of_its_name(parsed: Mapping[str, Any]) -> None:
    assert {path: file["errors"] for path, file in parsed.items()} == {path: [] for path in parsed}
    assert {Path(path).stem: list(file["dags"]) for path, file in parsed.items()} == {
        name: [name] for name in DAGS
    }


def test_schedules(dags: Mapping[str, Any]) -> None:
    assert {name: dag["schedule"] for name, dag in dags.items()} == DAGS
    assert not any(dag["catchup"] for dag in dags.values())
    assert {dag["max_active_runs"] for dag in dags.values()} == {1}


def test_a_file_is_wiring_and_parses_within_a_second(parsed: Mapping[str, Any]) -> None:
    for path, file in parsed.items():
        # Of the processor's time, not the clock's: others may be using the machine.
        assert file["seconds"] < 1.0, path
        assert len(Path(path).read_text(encoding="utf-8").splitlines()) < 80, path


def test_the_documentation_says_what_people_ask(dags: Mapping[str, Any]) -> None:
    for name, dag in dags.items():
        doc = dag["doc"] or ""
        assert doc.startswith(f"# {name}\n"), name
        for heading in ("**It will not**", "**By hand:**", "**When it fails:**"):
            assert heading in doc, (name, heading)
        for word in doc.replace(";", " ").replace(",", " ").split():
            if word.startswith("docs/"):
                assert (ROOT / word.rstrip(".:")).is_file(), (name, word)
        assert dag["tags"], name


def test_every_task_has_an_owner_an_end_and_tells_of_its_failure(dags: Mapping[str, Any]) -> None:
    tasks = {
        f"{name}.{task_id}": task
        for name, dag in dags.items()
        for task_id, task in dag["tasks"].items()
    }
    assert len(tasks) > len(DAGS)
    for name, task in tasks.items():
        assert task["owner"] == "tidemark", name
        assert 0 < task["timeout"] <= timedelta(days=1).total_seconds(), name
        assert task["callbacks"] == 1, name
        assert task["retries"] == 0 or task["backoff"] >= 2, name


def test_assets_connect_load_transform_and_retention(dags: Mapping[str, Any]) -> None:
    assert dags["load"]["outlets"] == ["raw"]
    assert dags["transform"]["outlets"] == ["marts"]
    assert dags["retention_nightly"]["inlets"] == ["marts"]


def test_each_class_has_its_gate_before_its_purge(dags: Mapping[str, Any]) -> None:
    tasks = dags["retention_nightly"]["tasks"]
    classes = [name.removesuffix(".gate") for name in tasks if name.endswith(".gate")]
    assert {"pixel_events", "orders", "summary_kpis_daily"} <= set(classes)
    for number, name in enumerate(classes):
        # Classes go one after another, also where one between them has nothing to go.
        before = {f"{other}.purge" for other in classes[:number]}
        assert set(tasks[f"{name}.gate"]["upstream"]) == {"plan", "approve"} | before
        assert tasks[f"{name}.purge"]["upstream"] == [f"{name}.gate"]
        assert tasks[f"{name}.purge"]["rule"] == "all_success"
        assert tasks[f"{name}.verify"]["upstream"] == [f"{name}.purge"]
        # The failure of a class is the run's, though the classes after it go on: nothing comes
        # after this task, and Airflow judges a run by its last ones.
        assert not [own for own in tasks.values() if f"{name}.verify" in own["upstream"]]
    assert dags["retention_nightly"]["outlets"] == ["purged"]
