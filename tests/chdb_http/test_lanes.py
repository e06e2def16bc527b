"""Long reads wait for each other, writes too, the shortest first; short reads for none."""

from __future__ import annotations

import asyncio

import pytest

from bench import soak_endpoint
from chdb_http import lanes
from chdb_http.lanes import Lane, Lanes

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
        all_lanes = Lanes(9, 1)
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
        all_lanes = Lanes(9, 1)
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


def test_who_is_due_first_goes_first() -> None:
    async def check() -> None:
        lane, order = Lane(1), []
        assert await lane.enter(0.0)

        async def enter(due: float) -> None:
            assert await lane.enter(due)
            order.append(due)
            lane.leave()

        waiting = [asyncio.create_task(enter(due)) for due in (3.0, 1.0, 2.0, 0.5)]
        await asyncio.sleep(0)
        # One whose client has gone away takes no place with it.
        waiting[-1].cancel()
        await asyncio.sleep(0)
        lane.leave()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert order == [1.0, 2.0, 3.0]
        assert await lane.enter(0.0)

    asyncio.run(check())


def test_a_place_that_comes_as_its_client_goes_is_not_lost() -> None:
    async def check() -> None:
        lane = Lane(1)
        assert await lane.enter(0.0)
        going = asyncio.create_task(lane.enter(1.0))
        await asyncio.sleep(0)
        lane.leave()
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        assert await asyncio.wait_for(lane.enter(2.0), 1)

    asyncio.run(check())


def test_a_write_goes_before_one_that_took_longer_and_a_short_read_at_once() -> None:
    async def check() -> None:
        all_lanes, order, closed = Lanes(1, 1), [], asyncio.Event()

        async def ask(text: str, seconds: float = 0.0) -> None:
            async with all_lanes.turn(text, reads=False):
                await asyncio.sleep(seconds)
                order.append(text)

        async def hold() -> None:
            async with all_lanes.turn("OPTIMIZE TABLE t", reads=False):
                await closed.wait()

        await ask("DROP slow", 0.1)
        await ask("DROP quick")
        order.clear()
        held = asyncio.create_task(hold())
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(ask(f"DROP {name}")) for name in ("slow", "new", "quick")]
        await asyncio.sleep(0)
        assert await begun(all_lanes, "SELECT a FROM t")
        assert order == []
        closed.set()
        await asyncio.gather(held, *waiting)
        assert order == ["DROP quick", "DROP new", "DROP slow"]

    asyncio.run(check())


def test_a_write_gives_its_place_back_before_its_slow_client_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "HOLD", 0.01)

    async def check() -> None:
        all_lanes, closed = Lanes(1, 1), asyncio.Event()

        async def write(gate: asyncio.Event) -> None:
            async with all_lanes.turn("INSERT INTO t", reads=False) as cost:
                cost.figures = LONG
                await gate.wait()

        async def at_once() -> None:
            async with all_lanes.turn("INSERT INTO t", reads=False):
                pass

        # Two at once, though there is one place, and though such a one has read much.
        stuck = [asyncio.create_task(write(closed)) for _ in range(2)]
        await asyncio.wait_for(at_once(), 1)
        closed.set()
        await asyncio.gather(*stuck)
        # Its place is not given back twice.
        assert all_lanes._writing._free == 1

    asyncio.run(check())


@pytest.mark.faults
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
