"""Outages on the real scheduler: killed processes, gaps, runs at once (`make test-airflow`)."""

import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psutil
import pytest

import history
from airflow_home import AirflowHome, airflow_home
from deliveries import deliver

pytestmark = pytest.mark.airflow

TODAY = datetime.now(UTC).date()
#: Past a window of six months, inside that of the policy.
OLD = TODAY.replace(day=15) - timedelta(days=240)


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


def fill(home: AirflowHome, first: date, last: date) -> None:
    """Airflow's backfill of some days, until it has ended."""
    # Its range ends at midnight, and a day's run is at two.
    end = str(last + timedelta(days=1))
    home.airflow(
        "backfill", "create", "--dag-id", "load", "--from-date", str(first), "--to-date", end,
        "--max-active-runs", "2",
    )  # fmt: skip
    home.wait(
        lambda: all(own["completed_at"] for own in backfills(home)), "the backfill does not end"
    )


def backfill_runs(home: AirflowHome) -> dict[str, str]:
    """The state of each run of Airflow's backfills, by its day."""
    runs = home.api("GET", "/dags/load/dagRuns?limit=100")["dag_runs"]
    return {run["logical_date"][:10]: run["state"] for run in runs if run["run_type"] == "backfill"}


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


#: The shops of tests/history.py, once without an outage and once for each way to fill its gap.
STEADY, BY_AIRFLOW, BY_COMMAND = "steady", "by-airflow", "by-command"


def bring(home: AirflowHome, name: str, *days: date) -> None:
    """What some days bring to the shops of a name, delivered on the day itself."""
    for day in days:
        for folder, documents in history.lines(day).items():
            source, shop = folder.split("/")
            history.put(home.warehouse, f"{source}/{name}-{shop}", day, documents)


def figures(home: AirflowHome, name: str) -> Any:
    """Every figure of the marts of a name's shops."""
    shop = f"substring(workspace_id, {len(name) + 2}) as shop, * except (workspace_id"
    where = f"where startsWith(workspace_id, '{name}-') order by all"
    found = {
        mart: home.sql(f"select {shop}{left_out}) from marts.{mart} {where}")
        for mart, left_out in {
            # The sketch shows as `visitors` of the other.
            "summary_kpis_daily": ", visitors_state",
            "kpis_daily": "",
            "email_revenue_daily": "",
            "customer_cohorts_monthly": "",
        }.items()
    }
    assert all(found.values())
    return found


def test_a_gap_that_is_filled_leaves_no_trace(home: AirflowHome) -> None:
    days = [TODAY - timedelta(days=number) for number in range(14, 2, -1)]
    gap = days[1:-1]
    assert len(gap) == 10
    for name in (STEADY, BY_AIRFLOW, BY_COMMAND):
        for shop, (currency, source, plan) in history.SHOPS.items():
            home.run(
                "workspace", "add", f"{name}-{shop}", "--timezone", "Europe/London",
                "--currency", currency, "--plan", plan, "--revenue-source", source,
            )  # fmt: skip
    bring(home, STEADY, *days)
    for name in (BY_AIRFLOW, BY_COMMAND):
        bring(home, name, days[0], days[-1])
    loaded_and_built(home, "through-the-outage")
    expected = figures(home, STEADY)
    assert figures(home, BY_AIRFLOW) != expected

    bring(home, BY_AIRFLOW, *gap)
    fill(home, gap[0], gap[-1])
    assert backfill_runs(home) == dict.fromkeys(map(str, gap), "success")
    assert figures(home, BY_AIRFLOW) == expected

    bring(home, BY_COMMAND, *gap)
    home.run("backfill", "--from", str(gap[0]), "--to", str(gap[-1]), "--reason", "an outage")
    assert figures(home, BY_COMMAND) == expected
    assert figures(home, BY_AIRFLOW) == expected


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
        home.trigger("transform", f"after-{run_id}")
        assert home.ended("transform", f"after-{run_id}")[""] == "success"
    assert pageviews(home) == {**before, str(day): 7}


def test_two_purges_at_once_do_each_step_once(home: AirflowHome) -> None:
    deliver(home, OLD, 9)
    loaded_and_built(home, "old-rows")
    home.run("override", "set", "mugs", "pixel_events", "6 months")
    runs = [home.trigger("retention_nightly", f"at-once-{number}") for number in range(3)]
    # Beside Airflow, which starts one at a time, the command line.
    home.run("purge", check=False)
    for run in runs:
        assert home.ended("retention_nightly", run)[""] in ("success", "failed")
    left = home.sql(f"select count() as n from raw.pixel_events where local_date = '{OLD}'")
    assert left == [{"n": 0}]
    steps = home.sql(
        "select document ->> 'step_id' as step, count(*) as n from control.ledger"
        " where kind = 'step_done' group by 1",
        "postgres",
    )
    assert steps
    assert {step["n"] for step in steps} == {1}


def test_a_backfill_of_purged_days_is_refused_and_names_the_recall(home: AirflowHome) -> None:
    recall = f"tidemark recall pixel_events --workspace mugs --month {OLD:%Y-%m}"
    before = pageviews(home)
    where = ("--from", str(OLD), "--to", str(OLD), "--reason", "an outage")
    said = home.run("backfill", *where, check=False)
    assert "purged days stay as they are" in said
    assert recall in said
    fill(home, OLD, OLD)
    assert backfill_runs(home)[str(OLD)] == "failed"
    (run,) = (
        run["dag_run_id"]
        for run in home.api("GET", "/dags/load/dagRuns?limit=100")["dag_runs"]
        if run["run_type"] == "backfill" and run["logical_date"].startswith(str(OLD))
    )
    assert recall in home.log("load", run, "load_files")
    assert pageviews(home) == before
