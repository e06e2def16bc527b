"""The notice of a failed task, and how it is forgotten."""

import json
import os
import stat
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from tidemark.errors import Refused, TidemarkError
from tidemark_airflow import traces
from tidemark_airflow.notice import FailureNotice

PERSON = "grace@example.org"


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """The address of a webhook, and what it was told."""
    told: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/token", told
    server.shutdown()
    thread.join()
    server.server_close()


def context(error: Exception | str | None) -> dict[str, Any]:
    """What Airflow gives a callback."""
    instance = SimpleNamespace(dag_id="load", run_id="nightly", task_id="load_files", try_number=3)
    return {"ti": instance, "exception": error}


def notices(home: Path) -> list[dict[str, Any]]:
    """The lines of the file."""
    text = (home / "logs" / "failures.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_failure_is_written_and_posted_without_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, webhook: tuple[str, list[Any]]
) -> None:
    address, told = webhook
    monkeypatch.setenv("TIDEMARK_HOME", str(tmp_path))
    monkeypatch.setenv("TIDEMARK_WEBHOOK", address)
    notice = FailureNotice()
    notice.notify(context(Refused("the day lies in the future")))
    notice.notify(context(ValueError(f"cannot read {PERSON}")))
    notice.notify(context(None))
    notice.notify(context(AirflowFailException("the gate refused: pixel_events")))
    found = notices(tmp_path)
    assert [own["error"] for own in found] == [
        "Refused", "ValueError", "killed", "AirflowFailException",
    ]  # fmt: skip
    assert [own.get("message") for own in found] == [
        "the day lies in the future", None, None, "the gate refused: pixel_events",
    ]  # fmt: skip
    assert {own["dag"] for own in found} == {"load"}
    assert PERSON not in str(found)
    assert told == found
    mode = (tmp_path / "logs" / "failures.jsonl").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_a_webhook_that_does_not_answer_leaves_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMARK_HOME", str(tmp_path))
    monkeypatch.setenv("TIDEMARK_WEBHOOK", "http://127.0.0.1:1/secret-token")
    FailureNotice().notify(context(None))
    assert len(notices(tmp_path)) == 1


def test_notices_past_their_window_go(tmp_path: Path) -> None:
    file = tmp_path / "failures.jsonl"
    lines = [json.dumps({"at": f"2026-{month:02}-01T00:00:00+00:00"}) for month in (8, 9, 10)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    traces._forget_failures(file, date(2026, 9, 1))
    assert file.read_text(encoding="utf-8").splitlines() == lines[1:]


def test_the_database_is_where_airflows_own_processes_find_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocked = "airflow-db-not-allowed:///"
    for name in traces._BLOCKED:
        monkeypatch.setenv(name, blocked)
    address = "postgresql+psycopg://airflow:brine@127.0.0.1:1/airflow"
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD", f"printf {address}")
    assert traces._database_url() == address
    assert [os.environ[name] for name in traces._BLOCKED] == [blocked, blocked]
    with pytest.raises(TidemarkError, match=r"cannot be cleaned: .*port 1 failed") as failed:
        traces._clean_database(date(2026, 9, 1))
    assert "brine" not in str(failed.value)


def test_the_log_of_a_process_lives_a_window_at_most(tmp_path: Path) -> None:
    log = tmp_path / "airflow-scheduler.log"
    log.write_text("first\n", encoding="utf-8")
    half = (date(2026, 10, 31) - date(2026, 10, 1)) / 2
    writer = log.open("a", encoding="utf-8")
    traces._rotate(log, date(2026, 10, 1), half)
    traces._rotate(log, date(2026, 10, 15), half)
    assert log.read_text(encoding="utf-8") == "first\n"
    traces._rotate(log, date(2026, 10, 16), half)
    writer.write("second\n")
    writer.flush()
    assert log.read_text(encoding="utf-8") == "second\n"
    assert log.with_suffix(".log.1").read_text(encoding="utf-8") == "first\n"
    traces._rotate(log, date(2026, 10, 31), half)
    writer.close()
    # The first line's window ended today.
    assert log.with_suffix(".log.1").read_text(encoding="utf-8") == "second\n"
