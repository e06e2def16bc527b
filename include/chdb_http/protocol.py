"""uvicorn's HTTP protocol, able to send single header lines before an answer is known."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

EARLY_HEADER = "chdb_http.early_header"


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
    """Gives each request's scope the extension ``EARLY_HEADER``: a function of one header line.

    As on the server, lines sent with it stand between the status line and the other headers, at
    once, so that a long statement's progress keeps its connection alive.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport))  # type: ignore[arg-type]

    def on_message_begin(self) -> None:
        super().on_message_begin()
        early_header: Any = self.transport.early_header  # type: ignore[attr-defined]
        self.scope["extensions"] = {EARLY_HEADER: {"send": early_header}}
