"""Fixtures that every test may use; what they hand out is described in `homes`."""

from collections.abc import Iterator

import hypothesis
import pytest

from homes import Warehouse, new_home

# How long an example takes tells of the machine, not of what is tested.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def warehouse() -> Iterator[Warehouse]:
    """One running warehouse for the whole session: give each test workspaces of its own."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        yield home


@pytest.fixture
def fresh_warehouse() -> Iterator[Warehouse]:
    """A running warehouse for one test alone."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        yield home


@pytest.fixture
def empty_home() -> Iterator[Warehouse]:
    """A home in which nothing was ever started."""
    with new_home() as home:
        yield home
