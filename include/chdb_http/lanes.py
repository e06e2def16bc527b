"""Which statements run at once: short ones always, long ones a few at a time."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

LONG_ROWS = 200_000
LONG_BYTES = 16 << 20
LONG_SECONDS = 5.0
PATIENCE = 30.0
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


class Lanes:
    """Remembers which shapes of statements were long, and lets few of those run at once.

    A statement is not known before it has run, so the first of a shape runs at once. One that
    waits for half a minute runs as well: a client that reads its result slowly holds up no one
    for ever.
    """

    def __init__(self, slots: int) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._long: OrderedDict[str, None] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(self, text: str) -> AsyncIterator[Cost]:
        """Wait until this statement may run; it fills in what it cost."""
        shape = _VALUES.sub("?", text[:4096])
        held = False
        if shape in self._long:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._slots.acquire()
                held = True
        cost = Cost()
        begun = time.monotonic()
        try:
            yield cost
        finally:
            if held:
                self._slots.release()
            self._remember(shape, cost.is_long(time.monotonic() - begun))

    def _remember(self, shape: str, is_long: bool) -> None:
        self._long.pop(shape, None)
        if is_long:
            self._long[shape] = None
            if len(self._long) > _SHAPES:
                self._long.popitem(last=False)
