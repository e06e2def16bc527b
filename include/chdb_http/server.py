"""The ASGI application: one HTTP request in, one statement run, one answer out."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import logging
import re
import secrets
import socket
import string
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any
from urllib.parse import parse_qsl

from chdb_http.codec import (
    BlockEncoder,
    Decoder,
    Encoder,
    PlainDecoder,
    decoded,
    decoder,
    encoder,
    shared,
)
from chdb_http.config import Config, User
from chdb_http.engine import Connection, Engine
from chdb_http.errors import ClickHouseError, EngineError
from chdb_http.guard import VALUES_SETTINGS, Guard
from chdb_http.lanes import Lanes
from chdb_http.multipart import External, read_form
from chdb_http.pipe import Pipe
from chdb_http.protocol import BODY, EARLY_HEADER, Rest
from chdb_http.session import Session, Sessions
from chdb_http.sql import (
    Insert,
    Statement,
    ends_early,
    find_insert,
    identifier,
    names,
    quote,
    read_statement,
    tokens,
    unquote,
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("chdb_http")

# As the server: an answer up to this size waits for the statement's end, so that its status and
# its summary are final.
ANSWER_BUFFER = 1 << 20
ANSWER_PATIENCE = 0.1
MAX_PREFIX = 1 << 20
SOCKET_TIMEOUT = 209
MAX_QUERY = 64 << 20
_KILL_SECONDS = 0.2
_KILL_PAUSE = 0.01
# As the server's replace_running_query_max_wait_ms.
_REPLACE_SECONDS = 5.0

_NOT_SETTINGS = names(
    """query database default_format session_id session_timeout session_check close_session
    query_id user password compress decompress quota_key wait_end_of_query buffer_size role
    stacktrace client_protocol_version add_http_cors_header max_result_bytes_in_header
    enable_http_compression http_zlib_compression_level send_progress_in_http_headers
    http_headers_progress_interval_ms"""
)
_PLAIN_TEXT = "text/plain; charset=UTF-8"
_BUFFER_SIZES = ("buffer_size", "http_response_buffer_size")
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Disconnected(Exception):
    """The client went away."""


@dataclass
class Request:
    """One request, read from the ASGI scope."""

    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    user: User
    query_id: str
    version: str = "1.1"
    started: float = field(default_factory=time.monotonic)

    def flag(self, name: str) -> bool:
        """A parameter that means yes."""
        return self.params.get(name, "0").lower() not in ("0", "", "false")

    def number(self, name: str, default: int) -> int:
        """A parameter that is a whole number."""
        text = self.params.get(name, "")
        return int(text) if text.isascii() and text.isdigit() else default

    @property
    def settings(self) -> dict[str, str]:
        """The ClickHouse settings of this request."""
        return {
            name: value
            for name, value in self.params.items()
            if name not in _NOT_SETTINGS and not name.startswith("param_")
        }

    @property
    def read_only(self) -> str:
        """The level of ``readonly``, if any: a GET does not write."""
        level = self.params.get("readonly", "0")
        return level if level != "0" else "2" if self.method in ("GET", "HEAD") else ""

    @property
    def database(self) -> str:
        """The database the request names, if any."""
        return self.params.get("database") or self.headers.get("x-clickhouse-database", "")

    @property
    def bound(self) -> dict[str, str]:
        """The query parameters of this request."""
        # A value is read as a tab separated field, with its escapes.
        return {
            name[6:]: value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            for name, value in self.params.items()
            if name.startswith("param_")
        }


@dataclass
class Plan:
    """What to run: a statement, or an insert whose rows stream in."""

    text: str
    statement: Statement | None = None
    insert: Insert | None = None
    # Of an insert's rows: what is decoded here, and what the engine inflates.
    decode: Decoder = field(default_factory=PlainDecoder)
    compression: str = "none"
    # What was read with the statement: decoded, and yet to be.
    head: bytes = b""
    rest: Iterator[bytes] = field(default_factory=lambda: iter(()))
    # The rows of INSERT … VALUES, if they are few enough to be looked through.
    values: bytes | None = None
    externals: list[External] = field(default_factory=list)

    @property
    def word(self) -> str:
        """The statement's first word."""
        return self.statement.word if self.statement else "INSERT"

    def may_share(self, read_only: str) -> bool:
        """May it run on a connection that others use, as it needs no setting there?"""
        if self.statement is not None:
            return self.statement.rows and not self.externals
        # What only reads needs none to be held to that; an insert does, and one of expressions too.
        return not read_only and self.values is None


class Run:
    """A statement in a worker thread, and the means to stop it."""

    def __init__(self, query_id: str, user: str) -> None:
        self.query_id = query_id
        self.user = user
        self._thread: int | None = None
        self._stopped = False
        self._mutex = threading.Lock()
        # Ends the feeding of its rows after so many seconds: the engine waits for them even when
        # it is cancelled.
        self.stop_feeding: Callable[[float], object] = lambda _: None

    def begin(self) -> None:
        """Called by the thread that runs it. Raises ClickHouseError if it was stopped before."""
        with self._mutex:
            if self._stopped:
                raise ClickHouseError(394, "QUERY_WAS_CANCELLED", "Query was cancelled")
            self._thread = threading.get_native_id()

    def end(self) -> None:
        """After this the thread belongs to another statement."""
        with self._mutex:
            self._thread = None

    def _cancel(self, engine: Engine) -> bool:
        with self._mutex:
            self._stopped = True
            return self._thread is None or engine.kill(self._thread)

    def stop(self, engine: Engine) -> None:
        """Cancel it, wherever it stands. Blocks for a moment."""
        self._cancel(engine)
        self.stop_feeding(0)

    def cut_off(self, engine: Engine) -> None:
        """Cancel it for certain; blocks until it is cancelled, or over, or will not begin."""
        while True:
            # The engine does not know of it at once, and may have no memory left for a KILL.
            with contextlib.suppress(EngineError):
                if self._cancel(engine):
                    return
            time.sleep(_KILL_PAUSE)

    @property
    def thread(self) -> int | None:
        """The thread that runs it, if it runs."""
        with self._mutex:
            return self._thread


class Body:
    """The request's body as it comes."""

    def __init__(
        self,
        receive: Receive,
        timeout: float,
        rest: Callable[[], AbstractContextManager[Rest]] | None = None,
    ) -> None:
        self._receive = receive
        self._timeout = timeout
        self._rest = rest
        self.done = False

    async def next(self) -> bytes:
        """The next piece; nothing at the end.

        Raises Disconnected, and ClickHouseError for a client that sends nothing for too long.
        """
        while not self.done:
            try:
                async with asyncio.timeout(self._timeout):
                    message = await self._receive()
            except TimeoutError:
                raise self._late() from None
            if message["type"] == "http.disconnect":
                raise Disconnected
            self.done = not message.get("more_body", False)
            if data := message.get("body", b""):
                return bytes(data)
        return b""

    def _late(self) -> ClickHouseError:
        return ClickHouseError(
            SOCKET_TIMEOUT,
            "SOCKET_TIMEOUT",
            f"Nothing of the request's body came for {self._timeout:g} s",
        )

    async def pour(self, pipe: Pipe) -> bool:
        """Let the kernel move the rest of a body into a pipe as it is, if its length is known.

        False if the engine stopped reading. Raises as ``next``.
        """
        if self._rest is None or self.done:
            return True
        with self._rest() as rest:
            self.done = rest.left > 0
            if not await pipe.write(rest.come):
                return False
            if not rest.left:
                return True
            try:
                await pipe.pour(rest, self._timeout)
            except TimeoutError:
                raise self._late() from None
            except (EOFError, ConnectionError):
                raise Disconnected from None
            return not rest.left

    async def gone(self) -> None:
        """Return when the client has gone away; only once the body is read."""
        while True:
            if (await self._receive())["type"] == "http.disconnect":
                return


class Answer:
    """The response: holds back what it can, then streams."""

    def __init__(
        self, app: App, request: Request, send: Send, early: Callable[[bytes], None] | None
    ) -> None:
        self._app = app
        self._request = request
        self._send = send
        self._held: IO[bytes] | None = None
        self.size = 0
        self.started = False
        # Empty, if the statement has no result.
        self.format = ""
        self.timezone = app.engine.timezone
        self._tag = "".join(secrets.choice(string.ascii_lowercase) for _ in range(16))
        self._encoder: Encoder | None = None
        if request.flag("enable_http_compression") and request.version != "1.0":
            self._encoder = encoder(
                request.headers.get("accept-encoding", ""),
                request.number("http_zlib_compression_level", 3),
            )
        if request.flag("compress"):
            self._encoder = BlockEncoder(self._encoder)
        # Before HTTP/1.1 an answer's size stands before it.
        self._sized = request.version == "1.0" and self._encoder is None
        self.patient = (
            self._sized
            or request.flag("wait_end_of_query")
            or request.flag("http_wait_end_of_query")
        )
        # How much is held at most, and whether that is held however long it takes.
        given = max(request.number(name, 0) for name in _BUFFER_SIZES)
        self.room, self.unhurried = max(given, ANSWER_BUFFER), self.patient or given > 0
        self.closing = False
        self._figures: Mapping[str, int] = {}
        self._early = early if request.flag("send_progress_in_http_headers") else None
        self._interval = request.number("http_headers_progress_interval_ms", 100) / 1000
        self._progressed = request.started
        self._begun = False

    def _headers(self, figures: Mapping[str, int]) -> list[tuple[str, str]]:
        return [
            ("X-ClickHouse-Summary", _summary(figures, self._request.started)),
            ("X-ClickHouse-Query-Id", self._request.query_id),
            ("X-ClickHouse-Server-Display-Name", self._app.display_name),
            ("X-ClickHouse-Timezone", self.timezone),
            ("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())),
        ]

    async def _start(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.started = True
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (n.lower().encode(), v.encode("latin-1", "replace")) for n, v in headers
                ],
            }
        )

    async def _begin(self, figures: Mapping[str, int], *more: tuple[str, str]) -> None:
        kind = self._app.engine.content_types.get(self.format.lower(), _PLAIN_TEXT)
        headers = [
            *self._headers(figures),
            ("Content-Type", kind),
            *([("X-ClickHouse-Format", self.format)] if self.format else []),
            ("X-ClickHouse-Exception-Tag", self._tag),
            *more,
        ]
        if self._encoder and self._encoder.name:
            headers.append(("Content-Encoding", self._encoder.name))
        await self._start(200, headers)

    async def _help(self, work: Callable[[bytes], Any], data: bytes) -> Any:
        """Work on bytes: in another thread when they are many."""
        if len(data) < 16384:
            return work(data)
        return await asyncio.get_running_loop().run_in_executor(self._app.helpers, work, data)

    async def _body(self, data: bytes) -> None:
        """Send a piece of the result."""
        out = await self._help(self._encoder.feed, data) if self._encoder else data
        if out:
            await self._send({"type": "http.response.body", "body": out, "more_body": True})

    async def _release(self) -> None:
        """Send what is held."""
        if self._held is not None:
            held, self._held = self._held, None
            with held:
                held.seek(0)
                loop = asyncio.get_running_loop()
                while self.size > ANSWER_BUFFER:
                    data = await loop.run_in_executor(self._app.helpers, held.read, ANSWER_BUFFER)
                    if not data:
                        return
                    await self._body(data)
                await self._body(held.read())

    def progress(self, figures: Mapping[str, int]) -> None:
        """How far the statement is, for a header of its own and for the summary."""
        if self.started:
            return
        self._figures = figures
        now = time.monotonic()
        if self._early is not None and now - self._progressed >= self._interval:
            self._progressed = now
            self._begun = True
            text = _summary({n: v for n, v in figures.items() if v}, self._request.started)
            self._early(b"X-ClickHouse-Progress: " + text.encode())

    async def add(self, data: bytes) -> None:
        """More of the result. Raises ClickHouseError if there is no room to hold it."""
        self.size += len(data)
        if self.started:
            await self._body(data)
            return
        if self._held is None:
            limit = ANSWER_BUFFER if self.unhurried else 0
            # Closed when it is sent or discarded.
            self._held = tempfile.SpooledTemporaryFile(  # noqa: SIM115
                limit, dir=str(self._app.config.tmp)
            )
        try:
            await self._help(self._held.write, data)
        except OSError as error:
            raise ClickHouseError(
                243, "NOT_ENOUGH_SPACE", f"Cannot hold the answer back: {error.strerror}"
            ) from error
        if self.size >= self.room and not self.patient:
            await self.flush()

    async def flush(self) -> None:
        """Start sending what is held."""
        if not self.started:
            await self._begin({**_NO_FIGURES, **self._figures})
            await self._release()

    async def finish(self, figures: Mapping[str, int]) -> None:
        """The statement has ended well."""
        if not self.started:
            sized = [("Content-Length", str(self.size))] if self._sized else []
            await self._begin(figures, *sized)
        await self._release()
        out = self._encoder.finish() if self._encoder else b""
        await self._send({"type": "http.response.body", "body": out, "more_body": False})

    async def fail(self, error: ClickHouseError) -> None:
        """The statement has failed: an error answer, or the error inside a begun one.

        Raises Disconnected after the latter, so that the connection closes without the answer's
        regular end, as the server does.
        """
        self.discard()
        self.closing |= error.code == SOCKET_TIMEOUT
        text = error.text
        if "(version " not in text:
            text += f" (version {self._app.engine.version} (chDB))"
        message = (text + "\n").encode(errors="surrogateescape")
        figures = {**_NO_FIGURES, **self._figures}
        code = ("X-ClickHouse-Exception-Code", str(error.code))
        if not self.started and not self._begun:
            # Clients with compress=1 read every error in blocks, but for those of their password.
            blocks = isinstance(self._encoder, BlockEncoder) and error.status not in (401, 403)
            body = BlockEncoder(None).feed(message) if blocks else message
            await self._start(
                error.status,
                [
                    *self._headers(figures),
                    ("Content-Type", _PLAIN_TEXT),
                    code,
                    ("Content-Length", str(len(body))),
                    # The rest of a body that does not come is not waited for.
                    *([("Connection", "close")] if self.closing else []),
                ],
            )
            await self._send({"type": "http.response.body", "body": body, "more_body": False})
            return
        if not self.started:
            await self._begin(figures, code, ("Connection", "close"))
        block = b"\r\n__exception__\r\n%s\r\n%s%d %s\r\n__exception__\r\n" % (
            self._tag.encode(),
            message,
            len(message),
            self._tag.encode(),
        )
        with contextlib.suppress(Exception):
            await self._body(block)
            if self._encoder and (out := self._encoder.finish()):
                await self._send({"type": "http.response.body", "body": out, "more_body": True})
        raise Disconnected

    def discard(self) -> None:
        """Forget what is held."""
        if self._held is not None:
            self._held.close()
            self._held = None


_NO_FIGURES = dict.fromkeys(
    (
        "read_rows",
        "read_bytes",
        "written_rows",
        "written_bytes",
        "total_rows_to_read",
        "result_rows",
        "result_bytes",
    ),
    0,
)


def _figures(result: Any, progress: Mapping[str, int]) -> dict[str, int]:
    """A finished statement's figures."""
    written = result.rows_written()
    return {
        **_NO_FIGURES,
        "read_rows": result.storage_rows_read(),
        "read_bytes": result.storage_bytes_read(),
        "written_rows": written,
        "written_bytes": result.bytes_written(),
        "total_rows_to_read": progress.get("total_rows_to_read", 0),
        # As on the server, an insert's result is what it wrote.
        "result_rows": written or result.rows_read(),
        "result_bytes": result.bytes_written() if written else result.bytes_read(),
    }


def _summary(figures: Mapping[str, int], started: float) -> str:
    shown = {name: str(figures[name]) for name in _NO_FIGURES if name in figures}
    shown["elapsed_ns"] = str(int((time.monotonic() - started) * 1e9))
    return json.dumps(shown, separators=(",", ":"))


@dataclass
class Job:
    """All a worker thread needs to run one request's statement."""

    request: Request
    plan: Plan
    run: Run
    answer: Answer
    report: Callable[[Mapping[str, int]], object]
    entrance: Pipe | None
    exit: Pipe
    #: The query parameters: the request's, and its session's.
    bound: Mapping[str, str]


class App:
    """The endpoint as an ASGI application over one open engine."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self.config = config
        self.engine = engine
        self._key = secrets.token_bytes(32)
        self.guard = Guard(config, engine)
        self.lanes = Lanes(config.writing_statements, config.long_statements)
        self.sessions = Sessions(engine)
        # By whether the user is read-only.
        self._pools = {False: engine.pool({}), True: engine.pool({"readonly": "1"})}
        self.display_name = socket.gethostname()
        self.workers = ThreadPoolExecutor(config.max_workers, "statement")
        self.helpers = ThreadPoolExecutor(4, "helper")
        # For what may not wait until a worker is free.
        self.killers = ThreadPoolExecutor(2, "kill")
        self.runs: dict[int, Run] = {}
        self.stopping = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await self._http(scope, receive, send)

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path in ("/ping", "/replicas_status") and method in ("GET", "HEAD"):
            await _plain(send, 200, b"Ok.\n")
            return
        if path not in ("/", "/query"):
            await _plain(send, 404, f"There is no handle {path}\n\nUse / or /ping.\n".encode())
            return
        if method == "OPTIONS":
            # No page of a browser's may ask: there is no header that lets it.
            await _plain(send, 204, b"")
            return
        if method not in ("GET", "POST", "HEAD"):
            await _plain(send, 501, b"Only GET, HEAD and POST are available.\n")
            return
        if method != "POST" and path == "/" and not scope["query_string"]:
            await _plain(send, 200, b"Ok.\n")
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        params = dict(
            parse_qsl(
                scope["query_string"].decode("latin-1"),
                keep_blank_values=True,
                errors="surrogateescape",
            )
        )
        query_id = params.get("query_id") or headers.get("x-clickhouse-query-id", "")
        nobody = User("", b"", True)
        request = Request(
            method, path, params, headers, nobody, query_id or str(uuid.uuid4()),
            scope["http_version"],
        )  # fmt: skip
        early = scope.get("extensions", {}).get(EARLY_HEADER)
        answer = Answer(self, request, send, early["send"] if early else None)
        taken = scope.get("extensions", {}).get(BODY)
        body = Body(receive, self.config.receive_timeout, taken["rest"] if taken else None)
        try:
            request.user = self._authenticate(request)
            if method == "POST" and not headers.keys() & {"content-length", "transfer-encoding"}:
                raise ClickHouseError(
                    381,
                    "HTTP_LENGTH_REQUIRED",
                    "The Transfer-Encoding is not chunked and there is no Content-Length header for"
                    " POST request",
                )
            if method in ("GET", "HEAD") and not params.get("query"):
                await _plain(send, 200, b"Ok.\n")
                return
            if role := params.get("role"):
                raise ClickHouseError(511, "UNKNOWN_ROLE", f"There is no role `{role}`")
            await self._serve(request, body, answer)
        except ClickHouseError as error:
            # Who waits for a word before the body will not send it now.
            answer.closing = "expect" in headers and not body.done
            await answer.fail(error)
        except Disconnected:
            if answer.started:
                raise
        except Exception:
            log.exception("request failed")
            if answer.started:
                raise
            await answer.fail(
                ClickHouseError(1002, "UNKNOWN_EXCEPTION", "The endpoint failed; see its log")
            )
        finally:
            answer.discard()

    def _digest(self, password: bytes) -> bytes:
        return hmac.digest(self._key, password, "sha256")

    def _authenticate(self, request: Request) -> User:
        name, password = "default", ""
        headers = request.headers
        in_headers = bool(headers.keys() & {"x-clickhouse-user", "x-clickhouse-key"})
        in_params = bool(request.params.keys() & {"user", "password"})
        if in_headers + in_params + ("authorization" in headers) > 1:
            raise ClickHouseError(
                516,
                "AUTHENTICATION_FAILED",
                "Invalid authentication: a name or password may stand in X-ClickHouse headers, in"
                " Authorization or in the parameters, in one of them",
            )
        if in_headers:
            name = headers.get("x-clickhouse-user", name)
            password = headers.get("x-clickhouse-key", "")
        elif headers.get("authorization", "").lower().startswith("basic "):
            try:
                pair = base64.b64decode(headers["authorization"][6:], validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                pair = ""
            name, _, password = pair.partition(":")
        elif in_params:
            name = request.params.get("user", name)
            password = request.params.get("password", "")
        user = self.config.users.get(name)
        # Of digests, so that not even a length shows in the time it takes.
        expected = self._digest(user.password if user else b"")
        given = self._digest(password.encode("utf-8", "surrogateescape"))
        same = hmac.compare_digest(given, expected)
        if user is None or not same:
            raise ClickHouseError(
                516,
                "AUTHENTICATION_FAILED",
                f"{name}: Authentication failed: password is incorrect, or there is no user with"
                " such name.",
            )
        return user

    async def _plan(self, request: Request, body: Body) -> Plan:
        query = request.params.get("query", "")
        blocks = request.flag("decompress")
        encoding = request.headers.get("content-encoding", "")
        kind = request.headers.get("content-type", "")
        if not request.headers.keys() & {"content-length", "transfer-encoding"}:
            return _planned(query)
        if kind.startswith("multipart/form-data"):
            form = await read_form(body.next, kind, decoder(encoding, blocks), self.config.tmp)
            request.params.update(form.fields)
            form.describe(request.params)
            plan = _planned(query + form.fields.get("query", ""))
            plan.externals = form.externals
            return plan
        raw = query.encode("utf-8", "surrogateescape")
        if raw and (insert := find_insert(raw.decode("latin-1"))):
            if insert.data < len(raw):
                statement, head = _text(raw[: insert.data]), raw[insert.data :]
                decode = decoder(encoding, blocks)
                return Plan(statement, insert=insert, decode=decode, head=head)
            decode, compression = shared(encoding, blocks)
            return Plan(_text(raw), insert=insert, decode=decode, compression=compression)
        decode = decoder(encoding, blocks)
        text = bytearray(raw + b"\n" if raw else b"")
        look = 0
        piece = b"\0"
        while piece:
            piece = await body.next()
            rest = decoded(decode, piece)
            while (out := next(rest, b"")) or not piece:
                text += out
                # Not at every byte of a slow client.
                if (len(text) >= look and len(text) <= MAX_PREFIX) or not piece:
                    look = 2 * len(text)
                    insert = find_insert(bytes(text[:MAX_PREFIX]).decode("latin-1"))
                    if insert and (insert.data < len(text) or not piece):
                        statement, head = _text(text[: insert.data]), bytes(text[insert.data :])
                        return Plan(statement, insert=insert, decode=decode, head=head, rest=rest)
                if not piece:
                    break
                if len(text) > MAX_QUERY:
                    raise ClickHouseError(
                        161, "QUERY_IS_TOO_LARGE", f"The query is larger than {MAX_QUERY} bytes"
                    )
        decode.finish()
        return _planned(text.decode("utf-8", "surrogateescape"))

    async def _serve(self, request: Request, body: Body, answer: Answer) -> None:
        if self.stopping:
            raise ClickHouseError(210, "NETWORK_ERROR", "The endpoint is shutting down")
        plan = await self._plan(request, body)
        await _hold_values(plan, body)
        run = Run(request.query_id, request.user.name)
        try:
            if request.flag("replace_running_query"):
                await self._replace(run)
            if self._namesakes(run):
                raise ClickHouseError(
                    216,
                    "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
                    f"Query with id = {run.query_id} is already running.",
                )
            self.runs[id(run)] = run
            if plan.word == "KILL":
                await self._answer(request, plan, body, answer, run)
                return
            reads = plan.statement is not None and plan.statement.rows
            async with self.lanes.turn(plan.text, reads) as cost:
                cost.figures = await self._answer(request, plan, body, answer, run)
                cost.size = answer.size
        finally:
            self.runs.pop(id(run), None)
            for external in plan.externals:
                external.remove()

    def _namesakes(self, run: Run) -> list[Run]:
        return [other for other in self.runs.values() if other.query_id == run.query_id]

    async def _replace(self, run: Run) -> None:
        """Stop what its user runs under its id, and wait for that to end for a while."""
        loop = asyncio.get_running_loop()
        for other in self._namesakes(run):
            if other.user == run.user:
                await loop.run_in_executor(self.helpers, other.stop, self.engine)
        deadline = loop.time() + _REPLACE_SECONDS
        while any(other.user == run.user for other in self._namesakes(run)):
            if loop.time() > deadline:
                return
            await asyncio.sleep(0.01)

    async def _answer(
        self, request: Request, plan: Plan, body: Body, answer: Answer, run: Run
    ) -> Mapping[str, int]:
        """Run a plan and answer with its outcome; its figures."""
        entrance = Pipe(engine_reads=True) if plan.insert else None
        exit_ = Pipe(engine_reads=False)
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[Any]] = []
        try:

            def report(figures: Mapping[str, int]) -> None:
                loop.call_soon_threadsafe(answer.progress, figures)

            job = Job(request, plan, run, answer, report, entrance, exit_, request.bound)
            threads = self.killers if plan.word == "KILL" else self.workers
            work = loop.run_in_executor(threads, self._work, job)
            work.add_done_callback(lambda _: exit_.close_theirs())
            pump: asyncio.Task[ClickHouseError | None] | None = None
            if entrance is not None:
                pump = asyncio.create_task(self._pump(plan, body, entrance, run))
                tasks.append(pump)
                feeding = pump

                def stop_feeding(seconds: float) -> None:
                    later = partial(loop.call_later, seconds, feeding.cancel)
                    loop.call_soon_threadsafe(later)

                run.stop_feeding = stop_feeding
            watch = asyncio.create_task(self._watch(body, pump, plan, run, exit_))
            tasks.append(watch)
            figures, error = await self._collect(work, exit_, answer, run)
            if entrance is not None:
                entrance.close_theirs()
            if pump is not None:
                if error is not None and not pump.done():
                    # It wants no more rows, so what comes of them is not its reason.
                    pump.cancel()
                    await asyncio.wait({pump})
                else:
                    error = await pump or error
            # Whoever has the answer may use the id again.
            self.runs.pop(id(run), None)
            if error is not None:
                await answer.fail(error)
            else:
                await answer.finish(figures)
            return figures
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            run.stop_feeding = lambda _: None
            if entrance is not None:
                entrance.close()
            exit_.close()

    async def _collect(
        self, work: asyncio.Future[Any], exit_: Pipe, answer: Answer, run: Run
    ) -> tuple[Mapping[str, int], ClickHouseError | None]:
        """Bring the result to the answer while the statement runs; its figures or its error."""
        sending = True
        failure: ClickHouseError | None = None
        reading = asyncio.ensure_future(exit_.read())
        try:
            while True:
                patience = ANSWER_PATIENCE if answer.size and not answer.started else None
                done, _ = await asyncio.wait({reading}, timeout=patience)
                if not done:
                    if not answer.unhurried:
                        await answer.flush()
                        patience = None
                    else:
                        await asyncio.wait({reading})
                    continue
                data = reading.result()
                if not data:
                    break
                if sending:
                    try:
                        await answer.add(data)
                    except OSError:
                        sending = False
                    except ClickHouseError as error:
                        sending, failure = False, error
                        loop = asyncio.get_running_loop()
                        await loop.run_in_executor(self.helpers, run.stop, self.engine)
                reading = asyncio.ensure_future(exit_.read())
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            outcome = (await asyncio.gather(work, return_exceptions=True))[0]
        if isinstance(outcome, ClickHouseError):
            failure = failure or outcome
        if failure is not None:
            return {}, failure
        if isinstance(outcome, BaseException):
            raise outcome
        figures, said = outcome
        if said:
            await answer.add(said)
        return figures, None

    async def _pump(
        self, plan: Plan, body: Body, entrance: Pipe, run: Run
    ) -> ClickHouseError | None:
        """Feed the body to the engine; the reason if it could not be fed whole."""
        loop = asyncio.get_running_loop()

        def end(cut: asyncio.Future[None]) -> None:
            cut.result()
            entrance.close_ours()

        # Without decoding, handing a piece to another thread costs more than passing it on.
        plain = isinstance(plan.decode, PlainDecoder)
        pieces = plan.rest
        whole = False
        try:
            # What stood with the query is decoded already.
            await entrance.write(plan.head)
            while True:
                # A small piece may unpack to much: one at a time, and none in the loop's way.
                if plain:
                    out = next(pieces, None)
                else:
                    out = await loop.run_in_executor(self.helpers, next, pieces, None)
                if out is not None:
                    if not await entrance.write(out):
                        return None
                    if plain and not await body.pour(entrance):
                        return None
                elif data := await body.next():
                    pieces = decoded(plan.decode, data)
                else:
                    break
            plan.decode.finish()
            whole = True
            return None
        except Disconnected:
            return ClickHouseError(
                210, "NETWORK_ERROR", "The client went away before the end of its body"
            )
        except asyncio.CancelledError:
            return ClickHouseError(394, "QUERY_WAS_CANCELLED", "Query was cancelled")
        except ClickHouseError as error:
            return error
        finally:
            if whole:
                entrance.close_ours()
            else:
                # The engine would take the pipe's end for the rows': the insert's comes first.
                loop.run_in_executor(self.killers, run.cut_off, self.engine).add_done_callback(end)

    async def _watch(
        self,
        body: Body,
        pump: asyncio.Task[ClickHouseError | None] | None,
        plan: Plan,
        run: Run,
        exit_: Pipe,
    ) -> None:
        """Cancel a read whose client has gone away."""
        if pump is not None:
            await asyncio.wait({pump})
            return
        await body.gone()
        if plan.statement is not None and plan.statement.rows:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self.helpers, run.stop, self.engine)

    def _work(self, job: Job) -> tuple[Mapping[str, int], bytes]:
        """Run the statement in this thread: its figures, and what it says outside a pipe."""
        request, plan, params = job.request, job.plan, job.request.params
        name = params.get("session_id", "")
        session: Session | None = None
        for setting in request.settings:
            if not _SETTING_NAME.match(setting):
                raise ClickHouseError(115, "UNKNOWN_SETTING", f"Unknown setting {setting!r}")
        reader, kept = request.user.read_only, False
        plain = not request.settings and request.database in ("", "default")
        shared = plain and plan.may_share(request.read_only)
        pool = self._pools[reader] if shared and (reader or not name) else None
        self.guard.check_settings(request.settings, reader)
        if name and not reader:
            session = self.sessions.acquire(
                request.user.name, name, self._timeout(params), request.flag("session_check")
            )
            connection = session.connection
            job.bound = session.bound(request.bound)
        elif pool is not None:
            connection = pool.take()
        else:
            connection = self.engine.connect()
        try:
            # It would keep out what the endpoint itself does before the statement.
            given = {name: own for name, own in request.settings.items() if name != "readonly"}
            if plan.values is not None and ends_early(plan.values.decode("latin-1")):
                raise ClickHouseError(
                    62, "SYNTAX_ERROR", "Syntax error (Multi-statements are not allowed)"
                )
            if plan.values is not None and self.guard.check_values(plan.values):
                given = given | dict.fromkeys(VALUES_SETTINGS, "1")
            if session is not None:
                session.lay({} if plan.word == "SET" else given)
            elif pool is None:
                connection.set(given)
            zone = given.get("session_timezone") or (session.timezone if session else "")
            job.answer.timezone = zone or self.engine.timezone
            done = self._execute(job, connection, pool is not None, session)
            if pool is not None:
                pool.give(connection)
                kept = True
            return done
        finally:
            if session is not None:
                self.sessions.release(session)
                if request.flag("close_session"):
                    self.sessions.close_one(request.user.name, name)
            elif not kept:
                connection.close()

    def _timeout(self, params: dict[str, str]) -> float:
        text = params.get("session_timeout", "")
        if not text:
            return float(self.config.session_timeout)
        if not text.isdigit() or int(text) > self.config.max_session_timeout:
            raise ClickHouseError(
                374,
                "INVALID_SESSION_TIMEOUT",
                f"Session timeout '{text}' is not a number of seconds up to"
                f" {self.config.max_session_timeout}",
            )
        return float(text)

    def _execute(
        self, job: Job, connection: Connection, pooled: bool, session: Session | None
    ) -> tuple[Mapping[str, int], bytes]:
        request, plan, answer = job.request, job.plan, job.answer
        before = session.database if session else "default"
        moved = not pooled and request.database not in ("", before)
        if moved:
            connection.run(f"USE {identifier(request.database)}")
        loaded: list[External] = []
        try:
            for external in plan.externals:
                self.guard.check_owner(external.definition, {})
                external.load(connection)
                loaded.append(external)
            if request.user.read_only:
                self._read_only(request, plan, connection, pooled)
            else:
                self.guard.check_owner(plan.text, job.bound)
            if request.read_only and session is not None:
                # SET could not be taken back.
                self._only_read(plan, connection, request.read_only)
            elif request.read_only and not pooled and not request.user.read_only:
                connection.set({"readonly": request.read_only})
            answer.format = request.params.get("default_format") or request.headers.get(
                "x-clickhouse-format", "TabSeparated"
            )
            if not _IDENTIFIER.match(answer.format):
                raise ClickHouseError(73, "UNKNOWN_FORMAT", f"Unknown format {answer.format}")
            if plan.statement is not None and plan.word == "KILL":
                plan.statement = read_statement(self._kill(plan.statement.text, job.bound))
            job.run.begin()
            try:
                done = self._run(job, connection)
            finally:
                job.run.end()
            if session is not None and plan.word in ("SET", "USE"):
                session.learn(plan.text, job.bound)
                moved = moved and plan.word == "SET"
            return done
        finally:
            if session is not None:
                with contextlib.suppress(EngineError):
                    for external in loaded:
                        external.drop(connection)
                    if moved:
                        connection.run(f"USE {identifier(before)}")

    def _only_read(self, plan: Plan, connection: Connection, level: str) -> None:
        """Raises ClickHouseError 164 for what ``readonly`` of that level does not let pass."""
        kind, _ = connection.classify(plan.text) if plan.insert is None else ("MUTATING", 1)
        words = names("SET USE KILL CREATE DROP") if level == "2" else names("USE KILL")
        if kind != "READ_ONLY" and not (kind == "CONTROL" and plan.word in words):
            raise ClickHouseError(164, "READONLY", "Cannot execute query in readonly mode.")

    def _run(self, job: Job, connection: Connection) -> tuple[Mapping[str, int], bytes]:
        plan, answer, bound = job.plan, job.answer, job.bound
        seen: Mapping[str, int] = {}

        def progress(figures: Mapping[str, int]) -> None:
            nonlocal seen
            seen = figures
            job.report(figures)

        connection.watch(progress)
        try:
            said = b""
            if plan.insert is not None:
                assert job.entrance is not None
                sql = _insert_sql(plan.text, plan.insert, job.entrance.path, plan.compression)
                result = connection.run(sql, params=bound)
                answer.format = ""
            else:
                statement = plan.statement
                assert statement is not None
                answer.format = statement.format or answer.format
                if statement.piped:
                    sql = statement.into(job.exit.path, answer.format)
                    try:
                        result = connection.run(sql, params=bound)
                    except EngineError as error:
                        if error.name == "SYNTAX_ERROR":
                            # Said anew of the statement as it was sent.
                            connection.run(statement.text, "Null", bound)
                        raise
                else:
                    result = connection.run(statement.text, answer.format, bound)
                    said = bytes(result.bytes())
                    if not said:
                        answer.format = ""
            return _figures(result, seen), said
        finally:
            connection.watch(None)

    def _read_only(
        self, request: Request, plan: Plan, connection: Connection, pooled: bool
    ) -> None:
        if plan.statement is None or plan.externals:
            raise ClickHouseError(164, "READONLY", "Cannot execute query in readonly mode.")
        # A reader's connection is never a session's, so its database is the request's.
        database = request.database or "default"
        reads = self.guard.check_reader(connection, plan.statement.text, request.bound, database)
        if reads and not pooled:
            connection.run("SET readonly = 1")

    def _kill(self, text: str, bound: Mapping[str, str]) -> str:
        """A KILL statement by the clients' query ids, which the engine does not know.

        Stops those that it names and that wait for their turn, or for rows.
        """
        items = list(tokens(text))
        named = {unquote(item.text) for item in items if item.kind == "string"} | {*bound.values()}
        running, known = self.engine.running(), {}
        for run in list(self.runs.values()):
            engine_id = running.get(run.thread or 0)
            if engine_id is not None:
                known[engine_id] = run.query_id
            if run.query_id in named and engine_id is None:
                run.stop(self.engine)
            elif run.query_id in named:
                # Not before the statement has found it.
                run.stop_feeding(_KILL_SECONDS)
        ids, theirs = (", ".join(map(quote, own)) for own in (known, known.values()))
        for item in reversed(items if known else []):
            if item.word.lower() == "query_id":
                call = f"transform(query_id, [{ids}], [{theirs}], query_id)"
                text = text[: item.start] + call + text[item.end :]
        return text

    async def tend(self) -> None:
        """Close sessions as they time out; runs until cancelled."""
        while True:
            await asyncio.sleep(1)
            await asyncio.get_running_loop().run_in_executor(self.helpers, self.sessions.expire)

    def cancel(self) -> None:
        """Cancel what runs."""
        for run in list(self.runs.values()):
            self.helpers.submit(run.stop, self.engine)

    def close(self) -> None:
        """Let running statements end, then close every session."""
        self.stopping = True
        self.workers.shutdown(wait=True)
        self.helpers.shutdown(wait=True)
        self.killers.shutdown(wait=True)
        self.sessions.close()
        self.guard.close()
        for pool in self._pools.values():
            pool.close()


async def _hold_values(plan: Plan, body: Body) -> None:
    """Take up the rows of INSERT … VALUES while they are few: they may hold expressions."""
    insert = plan.insert
    if insert is None or insert.format.upper() != "VALUES" or plan.compression != "none":
        return
    while len(plan.head) <= MAX_PREFIX:
        if out := next(plan.rest, b""):
            plan.head += out
        elif data := await body.next():
            plan.rest = decoded(plan.decode, data)
        else:
            plan.values = plan.head
            return


def _text(raw: bytes | bytearray) -> str:
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise ClickHouseError(
            62, "SYNTAX_ERROR", f"Syntax error: the query is not UTF-8 at byte {error.start}"
        ) from None


def _planned(query: str) -> Plan:
    raw = query.encode("utf-8", "surrogateescape")
    if insert := find_insert(raw.decode("latin-1")):
        return Plan(_text(raw[: insert.data]), insert=insert, head=raw[insert.data :])
    text = _escaped(raw)
    return Plan(text, statement=read_statement(text))


def _escaped(raw: bytes) -> str:
    """A statement whose strings may hold any bytes, as text: the engine takes no other."""
    with contextlib.suppress(UnicodeDecodeError):
        return raw.decode()
    parts, at = [], 0
    for item in tokens(raw.decode("latin-1")):
        if item.kind == "string":
            string = raw[item.start : item.end].decode("utf-8", "backslashreplace")
            parts += [_text(raw[at : item.start]), string]
            at = item.end
    return "".join((*parts, _text(raw[at:])))


def _insert_sql(text: str, insert: Insert, path: str, compression: str) -> str:
    """The insert, reading its rows from a path of this process."""
    raw = text.encode().decode("latin-1")
    head = raw[: insert.clause]
    if insert.source is None:
        sql = (
            f"{head} FROM INFILE {quote(path)} COMPRESSION {quote(compression)}"
            f" {raw[insert.clause : insert.keyword]} FORMAT {insert.format}"
        )
    else:
        start, end = insert.source
        arguments = f"{quote(path)}, {quote(insert.format)}"
        structure = (insert.structure or "").strip() or "'auto'"
        call = f"file({arguments}, {structure}, {quote(compression)})"
        sql = raw[:start] + call + raw[end : insert.clause]
    return sql.encode("latin-1").decode()


async def _plain(send: Send, status: int, body: bytes) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"text/html; charset=UTF-8"),
                (b"content-length", str(len(body)).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
