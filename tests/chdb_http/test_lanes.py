"""Long statements wait for each other, short ones for none."""

from __future__ import annotations

import asyncio

import pytest

from bench import soak_endpoint
from chdb_http import lanes
from chdb_http.lanes import Lanes

LONG = {"read_rows": lanes.LONG_ROWS + 1}


async def run(all_lanes: Lanes, text: str, figures: dict[str, int], gate: asyncio.Event) -> None:
    async with all_lanes.turn(text) as cost:
        await gate.wait()
        cost.figures = figures


async def begun(all_lanes: Lanes, text: str) -> bool:
    """Does it start at once?"""
    entered = asyncio.Event()

    async def enter() -> None:
        async with all_lanes.turn(text):
            entered.set()

    task = asyncio.create_task(enter())
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return entered.is_set()


def test_a_shape_that_was_long_waits_for_a_place() -> None:
    async def check() -> None:
        opened, closed = asyncio.Event(), asyncio.Event()
        opened.set()
        all_lanes = Lanes(1)
        await run(all_lanes, "SELECT sum(a) FROM t WHERE b = 'x' LIMIT 5", LONG, opened)
        await run(all_lanes, "SELECT a FROM t WHERE b = 1", {"read_rows": 3}, opened)
        held = asyncio.create_task(
            run(all_lanes, "SELECT sum(a) FROM t WHERE b = 'y\\'z' LIMIT 17", LONG, closed)
        )
        for _ in range(5):
            await asyncio.sleep(0)
        # The same but for its values: it waits. Another does not.
        assert not await begun(all_lanes, "SELECT sum(a) FROM t WHERE b = '' LIMIT 6")
        assert await begun(all_lanes, "SELECT a FROM t WHERE b = 2")
        assert await begun(all_lanes, "SELECT new FROM t")
        closed.set()
        await held
        assert await begun(all_lanes, "SELECT sum(a) FROM t WHERE b = '' LIMIT 6")

    asyncio.run(check())


def test_none_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "PATIENCE", 0.01)

    async def check() -> None:
        opened, closed = asyncio.Event(), asyncio.Event()
        opened.set()
        all_lanes = Lanes(1)
        await run(all_lanes, "SELECT 1", LONG, opened)
        stuck = asyncio.create_task(run(all_lanes, "SELECT 1", LONG, closed))
        for _ in range(5):
            await asyncio.sleep(0)
        await run(all_lanes, "SELECT 1", {}, opened)
        # It turned out short, so the next does not wait at all.
        assert await begun(all_lanes, "SELECT 2")
        closed.set()
        await stuck

    asyncio.run(check())


def test_a_short_soak() -> None:
    """The whole of it takes ten minutes: ``make soak``."""
    figures, wrong = soak_endpoint.run(20)
    assert wrong == []
    done = figures["requests_done"]
    assert set(done) == {"point", "read", "insert", "define", "session"}
    assert min(done.values()) > 0
    judged = {figure.name.split()[0]: figure for figure in soak_endpoint.goals(figures)}
    for name in ("wrong", "threads", "open"):
        assert judged[name].met, judged[name]


def test_the_soaks_goals_can_be_missed() -> None:
    fine = {
        "clients": 32,
        "wrong_answers": 0,
        "requests_done": {"point": 5},
        "point_quiet_ms": {"p50": 1.0, "p99": 2.0},
        "point_busy_ms": {"p50": 3.0, "p99": 19.0},
        "p99_ratio": 9.5,
        "memory_mib": {"highest_of_first_half": 500, "highest_of_second_half": 600},
        "threads": {"before": 40, "after": 296},
        "files": {"before": 100, "after": 150},
        "load_before": 0.1,
    }
    assert {figure.met for figure in soak_endpoint.goals(fine)} == {True, None}
    for change in (
        {"wrong_answers": 1},
        {"p99_ratio": 10.0},
        {"memory_mib": {"highest_of_first_half": 500, "highest_of_second_half": 601}},
        {"threads": {"before": 40, "after": 297}},
        {"files": {"before": 100, "after": 151}},
    ):
        met = [figure.met for figure in soak_endpoint.goals({**fine, **change})]
        assert met.count(False) == 1
