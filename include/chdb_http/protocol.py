"""uvicorn's HTTP protocol, able to send single header lines before an answer is known."""

from __future__ import annotations

import asyncio
import http
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

EARLY_HEADER = "chdb_http.early_header"
# Statements may stand in the address, as on the server.
MAX_HEAD = (1 << 20) + (1 << 17)


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

    Gives each request's scope the extension ``EARLY_HEADER``: a function of one header line. As on
    the server, lines sent with it stand between the status line and the other headers, at once, so
    that a long statement's progress keeps its connection alive.
    """

    most_connections = 1024
    receive_timeout = 60.0
    send_timeout = 300.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport))  # type: ignore[arg-type]
        self._head: int | None = 0
        self._waiting: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
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
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > MAX_HEAD:
            self._refuse(431, "The request's line and headers are too large.")

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Only those behind a body in chunks come now, and nobody reads them.
        if self._head is not None:
            super().on_header(name, value)

    def on_message_complete(self) -> None:
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
        self.scope["extensions"] = {EARLY_HEADER: {"send": early_header}}
