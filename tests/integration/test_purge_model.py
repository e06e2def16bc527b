"""Load, build, override, hold, purge and kill in any order, held against a simple model.

The model knows only pixel events by day: how many were loaded, how many the last build counted,
and which days have closed. Whatever the order, raw and marts have to say the same.
"""

import os
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import history
from homes import Warehouse, new_home
from tidemark import clickhouse, gate, policy, retention
from tidemark.plan import cutoffs

LOADED = date(2025, 1, 20)
DAYS = [date(2024, 10, 9), date(2024, 10, 30), date(2024, 11, 9), date(2025, 1, 9)]
PURGES = [date(2025, 9, 20), date(2025, 12, 5), date(2026, 1, 10), date(2026, 3, 1)]
#: More examples than `make test` has time for: TIDEMARK_MODEL_EXAMPLES=50.
EXAMPLES = int(os.environ.get("TIDEMARK_MODEL_EXAMPLES", "2"))

names = count(1)
events = count(1)


class Killed(BaseException):
    """Stands for a SIGKILL at a boundary of a step."""


class Purging(RuleBasedStateMachine):
    """One workspace of a warehouse that all examples share."""

    home: Warehouse

    def __init__(self) -> None:
        super().__init__()
        self.workspace = f"m{next(names)}"
        self.home.run(
            "workspace", "add", self.workspace, "--timezone", "UTC", "--currency", "GBP",
            "--plan", "enterprise",
        )  # fmt: skip
        #: Rows that stand, by day; and what the marts said of it when it was last built.
        self.raw: Counter[date] = Counter()
        self.built: Counter[date] = Counter()
        self.closed: set[date] = set()
        self.window: policy.Window | None = None
        self.hold: int | None = None
        self.latest = LOADED

    def run(self, *arguments: str) -> Any:
        return self.home.run(*arguments, "--json", check=False)

    @rule(day=st.sampled_from(DAYS), number=st.integers(1, 3))
    def load(self, day: date, number: int) -> None:
        lines = [
            history.pixel(day, n, "$pageview", event_id=f"e-{next(events)}", email=None)
            for n in range(number)
        ]
        folder = f"pixel/{self.workspace}"
        history.put(self.home, folder, LOADED, lines, f"f{next(events)}")
        report = self.run("load", "--as-of", str(LOADED)).json
        oldest = self.oldest(LOADED)
        if day in self.closed or day < oldest:
            assert (report["stored"], report["quarantined"]) == (0, number)
        else:
            assert (report["stored"], report["quarantined"]) == (number, 0)
            self.raw[day] += number

    @rule()
    def build(self) -> None:
        outcome = self.run("build", "--as-of", str(LOADED))
        assert outcome.code == 0, outcome.stderr
        for day in DAYS:
            if day not in self.closed:
                self.built[day] = self.raw[day]

    @precondition(lambda self: self.window is None)
    @rule(days=st.integers(200, 380))
    def override(self, days: int) -> None:
        assert self.run("override", "set", self.workspace, "pixel_events", f"{days}d").code == 0
        self.window = policy.Window(days, "day")

    @precondition(lambda self: self.window is not None)
    @rule()
    def withdraw(self) -> None:
        assert self.run("override", "withdraw", self.workspace, "pixel_events").code == 0
        self.window = None

    @precondition(lambda self: self.hold is None)
    @rule()
    def add_hold(self) -> None:
        outcome = self.run("hold", "add", "--workspace", self.workspace, "--reason", "case")
        self.hold = outcome.json["hold_id"]

    @precondition(lambda self: self.hold is not None)
    @rule()
    def release(self) -> None:
        assert self.run("hold", "release", str(self.hold)).code == 0
        self.hold = None

    @rule(as_of=st.sampled_from(PURGES), killed_after=st.none() | st.integers(1, 25))
    def purge(self, as_of: date, killed_after: int | None) -> None:
        before = self.oldest_by_purge(as_of)
        due = {day for day in DAYS if day < before and self.raw[day]}
        if killed_after is not None:
            passed = count(1)

            def note(_line: str) -> None:
                if next(passed) == killed_after:
                    raise Killed

            try:
                retention.purge(
                    self.home.settings, as_of=as_of, gate=gate, note=note,
                    clock=lambda: datetime.now(UTC),
                )  # fmt: skip
            except (Killed, retention.PurgeRefused):
                self.nothing_is_wrong_in_the_marts()
        outcome = self.run("purge", "--as-of", str(as_of))
        is_built = all(self.built[day] == self.raw[day] for day in due)
        if self.hold is None and due and not is_built:
            assert outcome.code == 3, outcome.stdout
            return
        assert outcome.code == 0, outcome.stderr
        if self.hold is None and due:
            self.closed |= {
                day for day in DAYS
                if day < before and any((day.year, day.month) == (d.year, d.month) for d in due)
            }  # fmt: skip
            for day in due:
                self.raw[day] = 0

    def oldest(self, as_of: date) -> date:
        """The first day that a load lets in."""
        data_class = policy.read(self.home.settings).classes["pixel_events"]
        oldest = data_class.oldest_day(as_of, self.window)
        assert oldest is not None
        return oldest

    def oldest_by_purge(self, as_of: date) -> date:
        """The first day that a purge leaves."""
        windows = {(self.workspace, "pixel_events"): self.window} if self.window else {}
        bounds = cutoffs(policy.read(self.home.settings), "pixel_events", as_of, windows)
        return max(day for _, _, day in bounds)

    @invariant()
    def raw_is_what_the_model_says(self) -> None:
        rows = clickhouse.rows(
            self.home.settings,
            "select local_date, count() as n from raw.pixel_events"
            f" where workspace_id = '{self.workspace}' group by local_date",
        )
        found = {date.fromisoformat(row["local_date"]): row["n"] for row in rows}
        assert found == {day: number for day, number in self.raw.items() if number}

    @invariant()
    def nothing_is_wrong_in_the_marts(self) -> None:
        if not clickhouse.rows(
            self.home.settings,
            "select 1 from system.tables where database = 'marts' and name = 'summary_kpis_daily'",
        ):
            return
        rows = clickhouse.rows(
            self.home.settings,
            "select date_day, sum(pageviews) as n from marts.summary_kpis_daily"
            f" where workspace_id = '{self.workspace}' group by date_day having n > 0",
        )
        found = {date.fromisoformat(row["date_day"]): row["n"] for row in rows}
        assert found == {day: number for day, number in self.built.items() if number}

    def teardown(self) -> None:
        # What this example leaves must not stop the next one's purges.
        if self.hold is not None:
            self.run("hold", "release", str(self.hold))
        assert self.run("build", "--as-of", str(LOADED)).code == 0
        assert self.run("audit").code == 0


@pytest.fixture(scope="module")
def home() -> Iterator[Warehouse]:
    """A warehouse for all examples."""
    with new_home() as made:
        made.run("up", "--no-airflow")
        yield made


def test_whatever_the_order_nothing_is_lost(home: Warehouse) -> None:
    machine = type("Machine", (Purging,), {"home": home})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=10,
            suppress_health_check=list(HealthCheck),
            # A failing order would be tried again and again, each time for minutes.
            report_multiple_bugs=False,
        ),
    )


def test_the_days_are_on_both_sides_of_every_cutoff() -> None:
    bounds = {day for as_of in PURGES for day in (as_of - timedelta(days=396),)}
    assert min(DAYS) < max(bounds)
    assert max(DAYS) > min(bounds)
