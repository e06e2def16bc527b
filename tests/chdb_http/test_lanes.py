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
    # The engine's pool keeps idle threads, a few for each of the clients there were at once.
    assert figures["threads"]["after"] < figures["threads"]["before"] + 8 * 32
    assert figures["files"]["after"] < figures["files"]["before"] + 50
