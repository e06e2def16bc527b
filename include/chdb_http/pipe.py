"""Anonymous pipes between the event loop and the engine, which opens them by their path."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select

_SIZE = 1 << 20
_SET_SIZE = 1031


class Pipe:
    """A pipe the engine opens as ``path``; the other end is non-blocking and ours.

    Both ends stay open here until closed, so the engine's open() never blocks, and what it has
    opened sees no end before we say so.
    """

    def __init__(self, engine_reads: bool) -> None:
        self._read, self._write = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._write, _SET_SIZE, _SIZE)
        self._theirs = self._read if engine_reads else self._write
        self._ours = self._write if engine_reads else self._read
        self._open = {self._read, self._write}
        os.set_blocking(self._ours, False)

    @property
    def path(self) -> str:
        """The name by which this process opens the engine's end."""
        return f"/proc/self/fd/{self._theirs}"

    def _close(self, end: int) -> None:
        if end in self._open:
            self._open.remove(end)
            os.close(end)

    def close_theirs(self) -> None:
        """The engine is done with it."""
        self._close(self._theirs)

    def close_ours(self) -> None:
        """End of data, or no more reading."""
        self._close(self._ours)

    def close(self) -> None:
        """Close both ends."""
        self.close_theirs()
        self.close_ours()

    async def read(self) -> bytes:
        """The next bytes; nothing at the end."""
        while True:
            if self._ours not in self._open:
                return b""
            try:
                return os.read(self._ours, _SIZE)
            except BlockingIOError:
                await _ready(self._ours, reading=True)

    async def write(self, *parts: bytes | memoryview) -> bool:
        """Write it all; False if the engine stopped reading."""
        for part in parts:
            view = memoryview(part)
            while view:
                if self._ours not in self._open:
                    return False
                try:
                    view = view[os.write(self._ours, view[:_SIZE]) :]
                except BlockingIOError:
                    await _ready(self._ours, reading=False)
                except BrokenPipeError:
                    return False
        return True

    async def move(self, source: int, size: int, timeout: float) -> int:
        """Have the kernel move up to so many bytes of a socket into it, without a copy here.

        How many it were: none if the engine stopped reading. Raises EOFError at the socket's end,
        and TimeoutError where nothing comes from it for so many seconds.
        """
        while self._ours in self._open:
            try:
                moved = os.splice(source, self._ours, size, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                room = select.poll()
                room.register(self._ours, select.POLLOUT)
                if room.poll(0):
                    async with asyncio.timeout(timeout):
                        await _ready(source, reading=True)
                else:
                    await _ready(self._ours, reading=False)
            except BrokenPipeError:
                return 0
            else:
                if not moved:
                    raise EOFError
                return moved
        return 0


async def _ready(end: int, reading: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    if reading:
        loop.add_reader(end, wake)
    else:
        loop.add_writer(end, wake)
    try:
        await ready
    finally:
        if reading:
            loop.remove_reader(end)
        else:
            loop.remove_writer(end)
