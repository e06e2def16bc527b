"""uvicorn's HTTP protocol, with early header lines, and bodies that are taken from the socket."""

from __future__ import annotations

import asyncio
import contextlib
import http
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

EARLY_HEADER = "chdb_http.early_header"
BODY = "chdb_http.body"
# Statements may stand in the address, as on the server.
MAX_HEAD = (1 << 20) + (1 << 17)
_MAX_PARSED = 0xFFFF


@dataclass
class Rest:
    """What has not been received yet of a body whose length is known.

    ``come`` are bytes that came meanwhile; ``left`` so many are still to be read from ``socket``.
    Whoever reads them counts ``left`` down.
    """

    come: bytes
    left: int
    socket: int


class _Transport:
    """A connection whose answers may have begun with header lines of their own."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._begun = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def early_header(self, line: bytes) -> None:
        """Send one header line of the answer to come, whose status is now 200."""
        status = b"" if self._begun else STATUS_LINE[200]
        self._begun = True
        self._transport.write(status + line + b"\r\n")

    def write(self, data: bytes) -> None:
        if self._begun:
            # The status line went out with the first early header.
            self._begun = False
            data = data.partition(b"\r\n")[2]
        self._transport.write(data)


class HeaderProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on what comes before a body, and on how slowly it may come.

    Gives each request's scope two extensions. ``EARLY_HEADER`` is a function of one header line. As
    on the server, lines sent with it stand between the status line and the other headers, at once,
    so that a long statement's progress keeps its connection alive. ``BODY`` is ``rest``.
    """

    most_connections = 1024
    receive_timeout = 60.0
    send_timeout = 300.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport))  # type: ignore[arg-type]
        self._head: int | None = 0
        self._waiting: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        # Bytes of the body to come, if its length is known, and those of them to throw away.
        self._left = 0
        self._skip = 0
        self._await_head()
        if len(self.connections) > self.most_connections:
            self._refuse(503, "Too many connections.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        self.resume_writing()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_came()
        self._head = 0
        self._waiting = self.loop.call_later(self.receive_timeout, self._head_is_late)

    def _head_came(self) -> None:
        self._head = None
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _head_is_late(self) -> None:
        if self._answering():
            # It came while the one before is still being answered.
            self._await_head()
        elif self.cycle is not None and not self._head:
            # Nothing of a next request, but perhaps of the rest of an answered one's body.
            self.transport.close()
        else:
            self._refuse(408, "The request's headers did not come in time.")

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, message: str) -> None:
        if self._answering():
            self.transport.abort()
        elif not self.transport.is_closing():
            line = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
            rest = f"content-length: {len(message) + 1}\r\nconnection: close\r\n\r\n{message}\n"
            self.transport.write(f"{line}content-type: text/plain\r\n{rest}".encode("ascii"))
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self._take(data)
        idle = self.cycle is not None and not self._answering()
        if idle and self._waiting is None and self.timeout_keep_alive_task is None:
            # Whoever sends the rest of a body that nobody reads has as long as for a head.
            self._waiting = self.loop.call_later(self.receive_timeout, self._head_is_late)

    def _take(self, data: bytes) -> None:
        if self._skip:
            self._unset_keepalive_if_required()
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
            if self._skip:
                return
            self.on_message_complete()
            if not data:
                return
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > MAX_HEAD:
            self._refuse(431, "The request's line and headers are too large.")

    def on_headers_complete(self) -> None:
        self._head_came()
        # The parser refuses more than one, and one that is no number.
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        self._left = int(length)
        if len(self.url) <= _MAX_PARSED:
            super().on_headers_complete()
            return
        # The library that takes addresses apart counts in 16 bits.
        self.url, _, query = self.url.partition(b"?")
        super().on_headers_complete()
        # Whoever answers reads it when this has returned.
        self.scope["query_string"] = query.partition(b"#")[0]

    def on_body(self, body: bytes) -> None:
        self._left = max(0, self._left - len(body))
        cycle: Any = self.cycle
        if isinstance(cycle.body, bytes):
            cycle.body = bytearray(cycle.body)
        if len(body) >= HIGH_WATER_LIMIT and not cycle.body and not cycle.response_complete:
            # uvicorn would copy it twice.
            cycle.body, body = body, b""
        super().on_body(body)

    @contextlib.contextmanager
    def rest(self, scope: object) -> Iterator[Rest]:
        """Take what is left of a request's body away from the parser; nothing if that is not known.

        What its reader leaves of it is thrown away as it comes; then the next request is read.
        """
        cycle: Any = self.cycle
        # Behind a body that is whole, the parser may be at the next request already.
        if not self._left or cycle.scope is not scope or self.transport.is_closing():
            yield Rest(b"", 0, -1)
            return
        self.flow.pause_reading()
        come, cycle.body = bytes(cycle.body), bytearray()
        found = Rest(come, self._left, os.dup(self.transport.get_extra_info("socket").fileno()))
        try:
            yield found
        finally:
            os.close(found.socket)
            self._left, self._skip = 0, found.left
            # The old one still waits for the body.
            self.parser = httptools.HttpRequestParser(self)
            if not self._skip:
                self.on_message_complete()
            self.flow.resume_reading()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Only those behind a body in chunks come now, and nobody reads them.
        if self._head is not None:
            super().on_header(name, value)

    def on_message_complete(self) -> None:
        self._head_came()
        self._head = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._sending is None:
            # A client that reads no more holds a statement.
            self._sending = self.loop.call_later(self.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        super().resume_writing()

    def on_message_begin(self) -> None:
        if self._waiting is None:
            self._await_head()
        super().on_message_begin()
        early_header: Any = self.transport.early_header  # type: ignore[attr-defined]
        self.scope["extensions"] = {
            EARLY_HEADER: {"send": early_header},
            BODY: {"rest": partial(self.rest, self.scope)},
        }
