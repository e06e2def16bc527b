"""The DAGs on the real scheduler: files become marts, and no control of Airflow opens the gate."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_home import AirflowHome, airflow_home
from deliveries import CANARY, deliver
from tidemark import postgres

# Starting Airflow and waiting for its scheduler takes minutes.
pytestmark = pytest.mark.airflow

TODAY = datetime.now(UTC).date()
#: Past a window of six months, inside that of the policy.
OLD = TODAY.replace(day=15) - timedelta(days=240)


def raw_rows(home: AirflowHome) -> int:
    """Rows of the day that is past its window."""
    query = f"select count() as n from raw.pixel_events where local_date = '{OLD}'"
    return int(home.sql(query)[0]["n"])


@pytest.fixture(scope="module")
def home() -> Iterator[AirflowHome]:
    """A home in which a plan of any size needs a person, with an old and a new day loaded."""
    with airflow_home(approval_rows="1") as home:
        workspace = ("--timezone", "Europe/London", "--currency", "GBP", "--plan", "enterprise")
        home.run("workspace", "add", "mugs", *workspace)
        deliver(home, OLD, 40)
        deliver(home, TODAY - timedelta(days=1), 20)
        home.trigger("load", "first")
        assert home.ended("load", "first")[""] == "success"
        # Last night's run comes too, as the DAG is new: either may load, and both tell of it.
        home.wait(home.built, "the asset starts no transform")
        run = home.built()
        assert run is not None
        states = home.ended("transform", run)
        assert states == dict.fromkeys(("staging", "intermediate", "marts", "gate", ""), "success")
        home.run("override", "set", "mugs", "pixel_events", "6 months")
        yield home


def waiting(home: AirflowHome, run_id: str) -> None:
    """Start a purge and wait until it asks for a person."""
    home.trigger("retention_nightly", run_id)
    home.wait(
        lambda: (
            home.tasks("retention_nightly", run_id).get("approve", {}).get("state")
            in ("awaiting_input", "deferred", "failed", "skipped")
        ),
        "the purge asks for nobody",
    )


def test_files_become_marts(home: AirflowHome) -> None:
    query = (
        "select toString(date_day) as day, sum(pageviews) as n from marts.kpis_daily"
        " where platform = 'all' group by date_day order by date_day"
    )
    rows = {row["day"]: int(row["n"]) for row in home.sql(query)}
    assert rows == {str(OLD): 40, str(TODAY - timedelta(days=1)): 20}
    run = home.built()
    assert run is not None
    assert "int_pixel_daily" in home.log("transform", run, "intermediate")


def test_marking_tasks_as_success_opens_no_gate(home: AirflowHome) -> None:
    before = raw_rows(home)
    assert before == 40
    waiting(home, "marked")
    assert "pixel_events" in str(
        home.api("GET", "/dags/~/dagRuns/~/hitlDetails?response_received=false")
    )
    # First the gate, so that the approval's answer finds it passed; then the approval itself.
    home.set_state("retention_nightly", "marked", "pixel_events.gate", "success")
    home.set_state("retention_nightly", "marked", "approve", "success")
    states = home.ended("retention_nightly", "marked")
    assert states[""] == "failed"
    assert states["pixel_events.purge"] == "failed"
    assert raw_rows(home) == before


def test_a_purge_alone_or_cleared_destroys_nothing(home: AirflowHome) -> None:
    before = raw_rows(home)
    assert before == 40
    # It makes a run for its task, which the scheduler would take from it.
    home.pause("retention_nightly", paused=True)
    said = home.airflow(
        "tasks", "test", "retention_nightly", "pixel_events.purge", str(TODAY), check=False
    )
    home.pause("retention_nightly", paused=False)
    assert "this run has no plan" in said, said[-3000:]
    home.api(
        "POST",
        "/dags/retention_nightly/clearTaskInstances",
        {
            "dry_run": False,
            "dag_run_id": "marked",
            "task_ids": ["pixel_events.purge"],
            "only_failed": False,
            "reset_dag_runs": True,
        },
    )
    assert home.ended("retention_nightly", "marked")["pixel_events.purge"] == "failed"
    assert raw_rows(home) == before


def test_a_person_lets_a_large_purge_go(home: AirflowHome) -> None:
    marts = "select sum(pageviews) as n from marts.summary_kpis_daily"
    before = home.sql(marts)
    assert raw_rows(home) == 40
    # At once, which Airflow may take amiss: then it asks again.
    home.trigger("retention_nightly", "rejected")
    assert home.answer("rejected", "Reject")["pixel_events.purge"] == "skipped"
    assert raw_rows(home) == 40

    waiting(home, "approved")
    text = home.fetch("/retention/", cookie=home.token).body.decode()
    assert "only with a person" in text
    # An answer names the plan that it lets go.
    (approve,) = (option for option in home.options("approved") if option != "Reject")
    (plan,) = home.sql(
        "select left(plan_id, 12) as id from control.plans order by created_at desc limit 1",
        "postgres",
    )
    assert approve == f"Approve plan {plan['id']}"
    reader = home.token_of("reader")
    path = "/dags/retention_nightly/dagRuns/approved/taskInstances/approve/-1/hitlDetails"
    document = {"chosen_options": [approve], "params_input": {}}
    assert home.ask("PATCH", path, document, token=reader).status == 403
    states = home.answer("approved", approve)
    assert states[""] == "success", states
    assert states["pixel_events.verify"] == "success"
    assert states["orders.gate"] == "skipped"
    assert raw_rows(home) == 0
    assert home.sql(marts) == before
    (entry,) = home.sql(
        "select document ->> 'approved_by' as who from control.ledger where kind = 'step_begun'"
        " and document -> 'step' ->> 'data_class' = 'pixel_events'",
        "postgres",
    )
    assert entry["who"] == "admin"
    text = home.fetch("/retention/", cookie=home.token).body.decode()
    assert "approved by admin" in text
    assert "only with a person" not in text
    proof = text.split('href="proofs/validations/')[1].split('"')[0]
    found = home.fetch(f"/retention/proofs/validations/{proof}", cookie=home.token)
    assert found.status == 200


def test_lineage_and_proofs_stand_beside_each_other(home: AirflowHome) -> None:
    told = json.loads(home.run("docs", "--json"))
    assert Path(told["data_docs"]).is_file()
    for path, content in {
        "/retention/lineage": b"summary_kpis_daily",
        "/retention/proofs/index.html": b"Data Docs",
    }.items():
        answer = home.fetch(path, cookie=home.token)
        assert answer.status == 200
        assert content in answer.body
    text = home.fetch("/retention/", cookie=home.token).body.decode()
    assert 'href="lineage"' in text
    assert 'href="proofs/index.html"' in text


def test_a_late_file_rebuilds_its_day_and_no_other(home: AirflowHome) -> None:
    late = TODAY - timedelta(days=3)
    deliver(home, late, 5)
    last = home.newest("transform")
    home.trigger("load", "late")
    assert home.ended("load", "late")[""] == "success"
    home.wait(lambda: home.newest("transform") != last, "the late file starts no transform")
    run = home.newest("transform")
    assert run is not None
    assert home.ended("transform", run)[""] == "success"
    (build,) = home.sql(
        "select array_agg(distinct local_date::text) as days from control.build_days"
        " where build_id = (select max(build_id) from control.builds)",
        "postgres",
    )
    assert build["days"] == [str(late)]


def test_airflow_keeps_nothing_of_a_person(home: AirflowHome) -> None:
    settings = home.warehouse.settings
    files = [path for path in settings.airflow.rglob("*") if path.is_file()]
    files += [path for path in settings.logs.rglob("*") if path.is_file()]
    assert any("task_id=load_files" in str(path) for path in files)
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path
        assert path.stat().st_mode & 0o077 == 0, path
    dump = home.api("GET", "/dags/~/dagRuns?limit=100")
    assert dump["dag_runs"]
    assert CANARY not in str(dump)


def test_airflows_traces_go_with_their_window(home: AirflowHome) -> None:
    settings = home.warehouse.settings
    old = datetime.now(UTC) - timedelta(days=40)
    logs = settings.airflow / "logs" / "dag_id=retention_nightly"
    told = [path for path in (logs / "run_id=rejected").rglob("*") if path.is_file()]
    assert told
    for path in told:
        os.utime(path, (old.timestamp(), old.timestamp()))
    tables = ("dag_run", "task_instance", "task_instance_history", "xcom", "hitl_detail")

    def kept() -> set[str]:
        """The tables that hold something of the run."""
        # The answer to a task goes with the task.
        through = "join task_instance on task_instance.id = hitl_detail.ti_id"
        with postgres.connect(settings, "airflow") as connection:
            return {
                table
                for table in tables
                for row in connection.execute(
                    f"select count(*) as n from {table}"
                    f" {through if table == 'hitl_detail' else ''} where run_id = 'rejected'"
                )
                if row["n"]
            }

    assert {"dag_run", "task_instance", "xcom", "hitl_detail"} <= kept()
    with postgres.connect(settings, "airflow") as connection:
        for table in ("dag_run", "task_instance", "task_instance_history"):
            connection.execute(
                f"update {table} set start_date = %s where run_id = 'rejected'", [old]
            )
        connection.execute("update xcom set timestamp = %s where run_id = 'rejected'", [old])
    home.trigger("retention_nightly", "forgetful")
    states = home.ended("retention_nightly", "forgetful")
    assert states["forget_traces"] == "success", states
    assert kept() == set()
    assert not (logs / "run_id=rejected").exists()
    # What is inside the window stays.
    assert home.state("retention_nightly", "approved") == "success"
    assert (logs / "run_id=approved").is_dir()
