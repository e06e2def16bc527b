"""The DAGs of requests: their task against real engines, and both on the real scheduler."""

import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

import history
from airflow_home import AirflowHome, airflow_home
from deliveries import CANARY, deliver
from homes import Warehouse, new_home
from tidemark import exports, holds, keys, policy, postgres, requests
from tidemark.errors import TidemarkError
from tidemark_airflow import subjects

TODAY = datetime.now(UTC).date()


@pytest.fixture(scope="module")
def shops() -> Iterator[Warehouse]:
    """Two shops with a few days."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        history.add_shops(home)
        history.deliver(home, *(TODAY - timedelta(days=number) for number in (3, 2)))
        home.run("load")
        yield home


@pytest.fixture
def shop(shops: Warehouse, monkeypatch: pytest.MonkeyPatch) -> Warehouse:
    """The same without a request, and the tasks' settings are theirs."""
    with postgres.connect(shops.settings) as connection:
        connection.execute("truncate control.requests")
    for name in [name for name in os.environ if name.startswith("TIDEMARK_")]:
        monkeypatch.delenv(name)
    for name, value in shops.env.items():
        monkeypatch.setenv(name, value)
    return shops


def later(home: Warehouse, *arguments: str) -> str:
    """The code of a request that is put on record."""
    return str(home.run("export", *arguments, "--later", "--json").json["code"])


def statuses(home: Warehouse) -> dict[str, str]:
    return {
        row["code"]: row["status"] for row in home.run("request", "list", "--all", "--json").json
    }


def test_every_person_that_waits_and_no_workspace(shop: Warehouse) -> None:
    people = [
        later(shop, "--workspace", "shop", "--subject", history.PERSON),
        later(shop, "--workspace", "till", "--subject", history.PERSON, "--format", "csv"),
    ]
    whole = later(shop, "--workspace", "shop")
    found = subjects.carry_out(None, TODAY)
    assert {own["code"]: own["status"] for own in found} == dict.fromkeys(people, "done")
    assert statuses(shop) == {**dict.fromkeys(people, "done"), whole: "received"}
    # Nothing waits; a workspace's is carried out by its code.
    assert subjects.carry_out(None, TODAY) == []
    assert [own["code"] for own in subjects.carry_out(whole, TODAY)] == [whole]
    folder = Path(exports.location(shop.settings, whole))
    assert json.loads((folder / exports.MANIFEST).read_text())["rows"] > 0


def test_one_that_fails_stops_no_other_and_is_named(
    shop: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = (
        later(shop, "--workspace", workspace, "--subject", subject)
        for workspace, subject in (
            ("shop", history.PERSON), ("till", history.PERSON), ("shop", "guest@example.org"),
        )
    )  # fmt: skip
    # Nobody knows any more whom it is of.
    forget = "update control.requests set subject_hashes = {} where code = %s"
    with postgres.connect(shop.settings) as connection:
        kept = requests.subject_hashes(connection, second)
        connection.execute(forget.format("'{}'"), [second])
    with caplog.at_level(logging.INFO, "airflow.task"), pytest.raises(TidemarkError) as raised:
        subjects.carry_out(None, TODAY)
    assert second in str(raised.value)
    assert first not in str(raised.value)
    assert statuses(shop) == {first: "done", second: "failed", third: "done"}
    assert f"request {second}: " in caplog.text
    for word in (history.PERSON, *kept):
        assert word not in caplog.text + str(raised.value)
    # The next night's run finds it, and what is done stays as it is.
    with postgres.connect(shop.settings) as connection:
        connection.execute(
            "update control.requests set subject_hashes = %s where code = %s", [list(kept), second]
        )
    assert [own["code"] for own in subjects.carry_out(None, TODAY)] == [second]


def test_a_code_that_nobody_has_is_final(shop: Warehouse) -> None:
    with pytest.raises(AirflowFailException, match="no request 'NOSUCHCODE22'"):
        subjects.carry_out("NOSUCHCODE22", TODAY)


# -- on the real scheduler -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home() -> Iterator[AirflowHome]:
    """A home with a workspace, a day of it, and Airflow."""
    with airflow_home() as home:
        workspace = ("--timezone", "Europe/London", "--currency", "GBP", "--plan", "growth")
        home.run("workspace", "add", "mugs", *workspace)
        deliver(home, TODAY - timedelta(days=1), 20)
        home.run("load")
        yield home


def _conf(home: AirflowHome, dag_id: str, **conf: Any) -> int:
    """What the API answers to a run with these parameters."""
    document = {"logical_date": None, "dag_run_id": f"with-{len(conf)}", "conf": conf}
    return home.ask("POST", f"/dags/{dag_id}/dagRuns", document, token=home.token).status


@pytest.mark.airflow
def test_a_workspace_is_exported(home: AirflowHome) -> None:
    home.trigger("export_workspace", "first", workspace="mugs", format="jsonl")
    states = home.ended("export_workspace", "first")
    assert states == dict.fromkeys(("receive", "carry_out", ""), "success")
    (request,) = json.loads(home.run("request", "list", "--all", "--json"))
    assert (request["kind"], request["status"]) == ("export", "done")
    shown = json.loads(home.run("request", "status", request["code"], "--json"))
    rows = {own["table"]: own["rows"] for own in shown["files"]}
    assert rows["raw.pixel_events"] == 20
    assert _conf(home, "export_workspace", workspace="mugs/../x", format="jsonl") == 400
    assert _conf(home, "export_workspace", workspace="mugs", format="exe") == 400


@pytest.mark.airflow
def test_persons_are_served_by_code_and_stay_out_of_airflow(home: AirflowHome) -> None:
    def asked(workspace: str) -> str:
        arguments = ("--workspace", workspace, "--subject", CANARY, "--later", "--json")
        return str(json.loads(home.run("export", *arguments))["code"])

    home.wait(lambda: home.knows("subject_request"), "Airflow does not know it")
    # Last night's run comes too, as the DAG is new: it must not take what this test asks for.
    home.pause("subject_request", paused=True)
    home.run(
        "workspace", "add", "cups", "--timezone", "UTC", "--currency", "EUR", "--plan", "growth"
    )
    named, waiting = asked("mugs"), asked("cups")
    home.pause("subject_request", paused=False)
    home.trigger("subject_request", "one", code=named)
    assert home.ended("subject_request", "one")[""] == "success"
    home.trigger("subject_request", "all")
    assert home.ended("subject_request", "all")[""] == "success"
    for code in (named, waiting):
        assert json.loads(home.run("request", "status", code, "--json"))["status"] == "done"
    assert _conf(home, "subject_request", code=CANARY) == 400
    logs = [
        path.read_text(errors="replace")
        for path in home.warehouse.settings.airflow.rglob("*")
        if path.is_file() and path.stat().st_size < 10_000_000
    ]
    assert any(named in text for text in logs)
    assert not any(CANARY in text for text in logs)
    ring = keys.Keyring.from_settings(home.warehouse.settings)
    with postgres.connect(home.warehouse.settings) as connection:
        (own,) = holds.subject_hashes(
            connection, ring, policy.read(home.warehouse.settings), "mugs", CANARY
        )[:1]
    assert not any(own in text for text in logs)
