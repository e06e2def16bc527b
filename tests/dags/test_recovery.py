"""Outages on the real scheduler: killed processes, gaps, runs at once (`make test-airflow`)."""

import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest

from airflow_home import AirflowHome, airflow_home
from deliveries import deliver

pytestmark = pytest.mark.airflow

TODAY = datetime.now(UTC).date()


@pytest.fixture(scope="module")
def home() -> Iterator[AirflowHome]:
    """A home with a workspace and Airflow."""
    with airflow_home() as home:
        workspace = ("--timezone", "Europe/London", "--currency", "GBP", "--plan", "enterprise")
        home.run("workspace", "add", "mugs", *workspace)
        yield home


def pageviews(home: AirflowHome) -> dict[str, int]:
    """Page views by day, as the mart has them."""
    query = (
        "select toString(date_day) as day, sum(pageviews) as n from marts.summary_kpis_daily"
        " group by day order by day"
    )
    return {row["day"]: int(row["n"]) for row in home.sql(query)}


def loaded_and_built(home: AirflowHome, run_id: str) -> None:
    """A load, and the transform that follows it, both successful."""
    last = home.newest("transform")
    home.trigger("load", run_id)
    assert home.ended("load", run_id)[""] == "success"
    home.wait(lambda: home.newest("transform") != last, "nothing is transformed")
    run = home.newest("transform")
    assert run is not None
    assert home.ended("transform", run)[""] == "success"


def running(home: AirflowHome, dag_id: str, run_id: str, task_id: str) -> None:
    """Wait until a task runs."""
    home.wait(
        lambda: (
            home.tasks(dag_id, run_id).get(task_id, {}).get("state")
            in ("running", "success", "failed")
        ),
        f"{task_id} does not start",
    )
    assert home.tasks(dag_id, run_id)[task_id]["state"] == "running"


def backfills(home: AirflowHome) -> list[Any]:
    """Those of the DAG load."""
    found: list[Any] = home.api("GET", "/backfills?dag_id=load")["backfills"]
    return found


def pid_of(home: AirflowHome, name: str) -> int:
    """The process of an engine."""
    states = {state["name"]: state for state in home.status()}
    return int(states[name]["pid"])


def workers(home: AirflowHome) -> list[psutil.Process]:
    """The processes that run tasks now."""
    scheduler = psutil.Process(pid_of(home, "airflow scheduler"))
    found = scheduler.children(recursive=True)
    return [own for own in found if own.name().startswith("airflow worker -- 0")] or [
        own for own in found if "airflow worker -- 0" in " ".join(own.cmdline())
    ]


def test_a_gap_is_filled_by_airflows_backfill(home: AirflowHome) -> None:
    days = [TODAY - timedelta(days=number) for number in range(12, 2, -1)]
    deliver(home, days[0], 3)
    deliver(home, days[-1], 4)
    loaded_and_built(home, "before the gap")
    for number, day in enumerate(days[1:-1], start=5):
        deliver(home, day, number)
    home.airflow(
        "backfill", "create", "--dag-id", "load", "--from-date", str(days[0]), "--to-date",
        str(days[-1]), "--max-active-runs", "2",
    )  # fmt: skip
    home.wait(
        lambda: all(own["completed_at"] for own in backfills(home)),
        "the backfill does not end",
    )
    runs = home.api("GET", "/dags/load/dagRuns?limit=100")["dag_runs"]
    filled = [run["state"] for run in runs if run["run_type"] == "backfill"]
    assert len(filled) >= len(days) - 1
    assert set(filled) == {"success"}
    expected = {str(days[0]): 3, str(days[-1]): 4}
    expected |= {str(day): number for number, day in enumerate(days[1:-1], start=5)}
    assert pageviews(home) == expected


def kill_scheduler(home: AirflowHome) -> None:
    """The scheduler alone: its workers are left behind."""
    os.kill(pid_of(home, "airflow scheduler"), signal.SIGKILL)


def kill_workers(home: AirflowHome) -> None:
    """Whatever runs a task now."""
    found = workers(home)
    assert found
    for process in found:
        process.kill()


def kill_clickhouse(home: AirflowHome) -> None:
    """The warehouse's engine."""
    os.kill(pid_of(home, "clickhouse"), signal.SIGKILL)


@pytest.mark.parametrize("kill", [kill_scheduler, kill_workers, kill_clickhouse])
def test_what_is_killed_is_taken_up_again(
    home: AirflowHome, kill: Callable[[AirflowHome], None]
) -> None:
    day = TODAY - timedelta(days=20 + len(kill.__name__))
    before = pageviews(home) if home.newest("transform") else {}
    deliver(home, day, 7)
    last = home.newest("transform")
    run_id = kill.__name__
    home.trigger("load", run_id)
    assert home.ended("load", run_id)[""] == "success"
    home.wait(lambda: home.newest("transform") != last, "nothing is transformed")
    run = home.newest("transform")
    assert run is not None
    running(home, "transform", run, "intermediate")
    kill(home)
    home.run("up")
    states = home.ended("transform", run)
    if states[""] != "success":
        # Tries can be used up while an engine is away: the next run takes what is due.
        home.trigger("transform", f"after {run_id}".replace(" ", "-"))
        assert home.ended("transform", f"after-{run_id}")[""] == "success"
    assert pageviews(home) == {**before, str(day): 7}


def test_two_purges_at_once_do_each_step_once(home: AirflowHome) -> None:
    old = TODAY.replace(day=15) - timedelta(days=240)
    deliver(home, old, 9)
    loaded_and_built(home, "old-rows")
    home.run("override", "set", "mugs", "pixel_events", "6 months")
    runs = [home.trigger("retention_nightly", f"at-once-{number}") for number in range(3)]
    # Beside Airflow, which starts one at a time, the command line.
    home.run("purge", check=False)
    for run in runs:
        assert home.ended("retention_nightly", run)[""] in ("success", "failed")
    left = home.sql(f"select count() as n from raw.pixel_events where local_date = '{old}'")
    assert left == [{"n": 0}]
    steps = home.sql(
        "select document ->> 'step_id' as step, count(*) as n from control.ledger"
        " where kind = 'step_done' group by 1",
        "postgres",
    )
    assert steps
    assert {step["n"] for step in steps} == {1}
