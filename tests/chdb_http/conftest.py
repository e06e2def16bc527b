"""A real daemon on a free port over a fresh data folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clickhouse_connect.driver.client import Client

from chdb_http.testing import Daemon


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("daemon")).start()
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    client = daemon.client()
    yield client
    client.close()


@pytest.fixture
def table(daemon: Daemon) -> Iterator[str]:
    assert (
        daemon.send("CREATE TABLE t (a Int64, s String) ENGINE = MergeTree ORDER BY a").status
        == 200
    )
    yield "t"
    assert daemon.send("DROP TABLE IF EXISTS t SYNC").status == 200
