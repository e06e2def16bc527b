"""Which statements run at once: short reads always, writes and long reads a few at a time."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

LONG_ROWS = 200_000
LONG_BYTES = 16 << 20
LONG_SECONDS = 5.0
#: Seconds that a statement waits at most, and that one that writes keeps its place at most: a
#: client that sends or reads slowly holds up no one for ever.
PATIENCE = 30.0
HOLD = 0.5
#: A statement is due this many times as long after it came as its shape took last.
STRETCH = 10
#: Seconds that a shape is taken to last which has not run yet.
UNKNOWN = 0.05
_SHAPES = 4096
_VALUES = re.compile(r"'(?:[^'\\]|\\.)*'|\b\d[\w.]*")


@dataclass
class Cost:
    """What a statement has cost so far; set by who runs it."""

    figures: Mapping[str, int] = field(default_factory=dict)
    size: int = 0

    def is_long(self, seconds: float) -> bool:
        """Rows and bytes first: the time a statement takes is mostly that of its neighbours."""
        read = self.figures.get("read_rows", 0) > LONG_ROWS
        much = max(self.figures.get("read_bytes", 0), self.size) > LONG_BYTES
        return read or much or seconds > LONG_SECONDS


class Lane:
    """So many places; of those who wait for one, who is due first gets it."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def enter(self, due: float) -> bool:
        """Wait for a place; False if patience came to its end before."""
        if self._free:
            self._free -= 1
            return True
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (due, next(self._numbers), place))
        try:
            await asyncio.wait({place}, timeout=PATIENCE)
        except asyncio.CancelledError:
            if not place.cancel():
                self.leave()
            raise
        return not place.cancel()

    def leave(self) -> None:
        """Give a place back."""
        while self._waiting:
            _, _, place = heapq.heappop(self._waiting)
            if not place.done():
                place.set_result(None)
                return
        self._free += 1


class Lanes:
    """Remembers what shapes of statements took, and lets few writes and long reads run at once.

    A short read waits for none: what keeps the processors busy beside it is bounded. A statement is
    not known before it has run, so the first read of a shape runs at once. A write gives its place
    back before it ends if that takes long: it may wait for its client, or its client for another.
    """

    def __init__(self, writing: int, long: int) -> None:
        self._writing = Lane(writing)
        self._long = Lane(long)
        #: By shape: the seconds it took last, and whether it was long.
        self._known: OrderedDict[str, tuple[float, bool]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(self, text: str, reads: bool = True) -> AsyncIterator[Cost]:
        """Wait until this statement, which reads or writes, may run; it fills in what it cost."""
        shape = _VALUES.sub("?", text[:4096])
        seconds, is_long = self._known.get(shape, (UNKNOWN, False))
        lane = self._long if reads else self._writing
        held = False
        if is_long or not reads:
            held = await lane.enter(time.monotonic() + STRETCH * seconds)

        def leave() -> None:
            nonlocal held
            if held:
                held = False
                lane.leave()

        # A long read keeps its place: more of them at once would only be slower together.
        hold = None if reads else asyncio.get_running_loop().call_later(HOLD, leave)
        cost = Cost()
        begun = time.monotonic()
        try:
            yield cost
        finally:
            leave()
            if hold is not None:
                hold.cancel()
            took = time.monotonic() - begun
            self._remember(shape, took, reads and cost.is_long(took))

    def _remember(self, shape: str, seconds: float, is_long: bool) -> None:
        self._known.pop(shape, None)
        self._known[shape] = seconds, is_long
        if len(self._known) > _SHAPES:
            self._known.popitem(last=False)
