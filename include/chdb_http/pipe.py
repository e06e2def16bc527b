"""Anonymous pipes between the event loop and the engine, which opens them by their path."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
from concurrent.futures import ThreadPoolExecutor

from chdb_http.protocol import Rest

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

    async def write(self, data: bytes) -> bool:
        """Write it all; False if the engine stopped reading."""
        view = memoryview(data)
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

    async def pour(self, rest: Rest, timeout: float) -> None:
        """Have the kernel move what is left of a body into it, without a copy here.

        Ends early if the engine stops reading. Raises EOFError or ConnectionError where the client
        goes away, and TimeoutError where nothing comes from it for so many seconds.
        """
        # In a thread of its own: woken for each packet, the loop would cost more than the moving.
        thread = ThreadPoolExecutor(1, "body", _yield_to_others)
        os.set_blocking(self._ours, True)
        stopped = os.eventfd(0)
        moving = asyncio.get_running_loop().run_in_executor(
            thread, self._pour, rest, timeout, stopped
        )
        try:
            await asyncio.shield(moving)
        except asyncio.CancelledError:
            # It would go on with the pipe's number when that is another file's.
            os.eventfd_write(stopped, 1)
            await asyncio.gather(moving, return_exceptions=True)
            raise
        finally:
            thread.shutdown(wait=False)
            os.close(stopped)
            os.set_blocking(self._ours, False)

    def _pour(self, rest: Rest, timeout: float, stopped: int) -> None:
        waiting = select.poll()
        waiting.register(rest.socket, select.POLLIN)
        waiting.register(stopped, select.POLLIN)
        # No event but the error that the engine's end is closed.
        waiting.register(self._ours, 0)
        with contextlib.suppress(BrokenPipeError):
            while rest.left:
                try:
                    moved = os.splice(rest.socket, self._ours, min(rest.left, _SIZE))
                except BlockingIOError:
                    ready = waiting.poll(timeout * 1000)
                    if not ready:
                        raise TimeoutError from None
                    if (stopped, select.POLLIN) in ready:
                        return
                else:
                    if not moved:
                        raise EOFError
                    rest.left -= moved


def _yield_to_others() -> None:
    """Let the engine's threads keep their processors when a packet wakes this one."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


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
