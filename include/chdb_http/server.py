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
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from chdb_http import guard
from chdb_http.codec import Encoder, Feed, PlainDecoder, StoredFeed, decoder, encoder, feed_for
from chdb_http.config import Config, User
from chdb_http.engine import Connection, Engine
from chdb_http.errors import ClickHouseError, EngineError
from chdb_http.multipart import External, read_form
from chdb_http.pipe import Pipe
from chdb_http.session import Session, Sessions
from chdb_http.sql import Insert, Statement, find_insert, names, quote, read_statement, tokens

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("chdb_http")

# As the server: an answer up to this size waits for the statement's end, so that its status and
# its summary are final.
ANSWER_BUFFER = 1 << 20
ANSWER_PATIENCE = 0.1
MAX_PREFIX = 1 << 20
MAX_QUERY = 256 << 20

_NOT_SETTINGS = names(
    """query database default_format session_id session_timeout session_check close_session
    query_id user password compress decompress quota_key wait_end_of_query buffer_size role
    stacktrace client_protocol_version add_http_cors_header max_result_bytes_in_header
    enable_http_compression http_zlib_compression_level send_progress_in_http_headers
    http_headers_progress_interval_ms"""
)
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_CONTENT_TYPES = {
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "JSONStrings": "application/json; charset=UTF-8",
    "JSONColumns": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present",
    "XML": "application/xml; charset=UTF-8",
    "Native": "application/octet-stream",
    "RowBinary": "application/octet-stream",
    "RowBinaryWithNames": "application/octet-stream",
    "RowBinaryWithNamesAndTypes": "application/octet-stream",
    "Parquet": "application/octet-stream",
    "Arrow": "application/octet-stream",
    "ArrowStream": "application/octet-stream",
    "ORC": "application/octet-stream",
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "TabSeparatedWithNames": "text/tab-separated-values; charset=UTF-8",
    "TabSeparatedWithNamesAndTypes": "text/tab-separated-values; charset=UTF-8",
}


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
    started: float = field(default_factory=time.monotonic)

    def flag(self, name: str) -> bool:
        """A parameter that means yes."""
        return self.params.get(name, "0").lower() not in ("0", "", "false")

    @property
    def settings(self) -> dict[str, str]:
        """The ClickHouse settings of this request."""
        return {
            name: value
            for name, value in self.params.items()
            if name not in _NOT_SETTINGS and not name.startswith("param_")
        }

    @property
    def bound(self) -> dict[str, str]:
        """The query parameters of this request."""
        return {n[6:]: v for n, v in self.params.items() if n.startswith("param_")}


@dataclass
class Plan:
    """What to run: a statement, or an insert whose rows stream in."""

    text: str
    statement: Statement | None = None
    insert: Insert | None = None
    feed: Feed | None = None
    head: bytes = b""
    externals: list[External] = field(default_factory=list)


class Run:
    """A statement in a worker thread, and the means to stop it."""

    def __init__(self, query_id: str) -> None:
        self.query_id = query_id
        self._thread: int | None = None
        self._stopped = False
        self._mutex = threading.Lock()

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

    def stop(self, engine: Engine) -> None:
        """Cancel it, wherever it stands. Blocks for a moment."""
        with self._mutex:
            self._stopped = True
            if self._thread is not None:
                engine.kill(self._thread)

    def engine_id(self, engine: Engine) -> str | None:
        """The engine's own id of it, while it runs."""
        with self._mutex:
            return engine.query_id(self._thread) if self._thread is not None else None


class Body:
    """The request's body as it comes."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.done = False

    async def next(self) -> bytes:
        """The next piece; nothing at the end. Raises Disconnected."""
        while not self.done:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            self.done = not message.get("more_body", False)
            if data := message.get("body", b""):
                return bytes(data)
        return b""

    async def gone(self) -> None:
        """Return when the client has gone away; only once the body is read."""
        while True:
            if (await self._receive())["type"] == "http.disconnect":
                return


class Answer:
    """The response: holds back what it can, then streams."""

    def __init__(self, app: App, request: Request, send: Send) -> None:
        self._app = app
        self._request = request
        self._send = send
        self._held: list[bytes] = []
        self.size = 0
        self.started = False
        self.format = "TabSeparated"
        self._tag = secrets.token_hex(8)
        self._encoder: Encoder | None = None
        if request.flag("enable_http_compression"):
            level = request.params.get("http_zlib_compression_level", "3")
            self._encoder = encoder(
                request.headers.get("accept-encoding", ""), int(level) if level.isdigit() else 3
            )
        self.patient = request.flag("wait_end_of_query")

    def _headers(self, summary: dict[str, str]) -> list[tuple[str, str]]:
        return [
            ("X-ClickHouse-Summary", json.dumps(summary, separators=(",", ":"))),
            ("X-ClickHouse-Query-Id", self._request.query_id),
            ("X-ClickHouse-Server-Display-Name", self._app.display_name),
            ("X-ClickHouse-Timezone", self._app.engine.timezone),
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

    async def _begin(self, summary: dict[str, str]) -> None:
        kind = _CONTENT_TYPES.get(self.format, "text/plain; charset=UTF-8")
        headers = [
            *self._headers(summary),
            ("Content-Type", kind),
            ("X-ClickHouse-Format", self.format),
            ("X-ClickHouse-Exception-Tag", self._tag),
        ]
        if self._encoder:
            headers.append(("Content-Encoding", self._encoder.name))
        await self._start(200, headers)

    async def _encode(self, data: bytes) -> bytes:
        if self._encoder is None:
            return data
        if len(data) < 16384:
            return self._encoder.feed(data)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._app.helpers, self._encoder.feed, data)

    async def add(self, data: bytes) -> None:
        """More of the result."""
        self.size += len(data)
        if self.started:
            if out := await self._encode(data):
                await self._send({"type": "http.response.body", "body": out, "more_body": True})
            return
        self._held.append(data)
        if self.size >= ANSWER_BUFFER and not self.patient:
            await self.flush()

    async def flush(self) -> None:
        """Start sending what is held."""
        if not self.started:
            await self._begin(_summary(None, self._request.started))
            held, self._held = b"".join(self._held), []
            if out := await self._encode(held):
                await self._send({"type": "http.response.body", "body": out, "more_body": True})

    async def finish(self, result: Any) -> None:
        """The statement has ended well."""
        if not self.started:
            await self._begin(_summary(result, self._request.started))
        out = await self._encode(b"".join(self._held)) if self._held else b""
        if self._encoder:
            out += self._encoder.finish()
        await self._send({"type": "http.response.body", "body": out, "more_body": False})

    async def fail(self, error: ClickHouseError) -> None:
        """The statement has failed: an error answer, or the error inside a begun one.

        Raises Disconnected after the latter, so that the connection closes without the answer's
        regular end, as the server does.
        """
        text = error.text
        if "(version " not in text:
            text += f" (version {self._app.engine.version} (chDB))"
        if not self.started:
            body = (text + "\n").encode()
            await self._start(
                error.status,
                [
                    *self._headers(_summary(None, self._request.started)),
                    ("Content-Type", "text/plain; charset=UTF-8"),
                    ("X-ClickHouse-Exception-Code", str(error.code)),
                    ("Content-Length", str(len(body))),
                ],
            )
            await self._send({"type": "http.response.body", "body": body, "more_body": False})
            return
        message = (text + "\n").encode()
        block = b"\r\n__exception__\r\n%s\r\n%s%d %s\r\n__exception__\r\n" % (
            self._tag.encode(),
            message,
            len(message),
            self._tag.encode(),
        )
        out = await self._encode(block)
        if self._encoder:
            out += self._encoder.finish()
        with contextlib.suppress(Exception):
            await self._send({"type": "http.response.body", "body": out, "more_body": True})
        raise Disconnected


def _summary(result: Any, started: float) -> dict[str, str]:
    figures = {
        "read_rows": 0,
        "read_bytes": 0,
        "written_rows": 0,
        "written_bytes": 0,
        "total_rows_to_read": 0,
        "result_rows": 0,
        "result_bytes": 0,
        "elapsed_ns": int((time.monotonic() - started) * 1e9),
    }
    if result is not None:
        written = result.rows_written()
        figures["read_rows"] = result.storage_rows_read()
        figures["read_bytes"] = result.storage_bytes_read()
        figures["written_rows"] = written
        figures["written_bytes"] = result.bytes_written()
        # As on the server, an insert's result is what it wrote.
        figures["result_rows"] = written or result.rows_read()
        figures["result_bytes"] = result.bytes_written() if written else result.bytes_read()
        figures["elapsed_ns"] = int(result.elapsed() * 1e9)
    return {name: str(value) for name, value in figures.items()}


class App:
    """The endpoint as an ASGI application over one open engine."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self.config = config
        self.engine = engine
        self.sessions = Sessions(engine)
        self.display_name = socket.gethostname()
        self.workers = ThreadPoolExecutor(config.max_workers, "statement")
        self.helpers = ThreadPoolExecutor(4, "helper")
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
        if method not in ("GET", "POST", "HEAD"):
            await _plain(send, 501, b"Only GET and POST are available.\n")
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        params = dict(
            parse_qsl(
                scope["query_string"].decode("latin-1"),
                keep_blank_values=True,
                errors="surrogateescape",
            )
        )
        query_id = params.get("query_id") or str(uuid.uuid4())
        nobody = User("", b"", True)
        request = Request(method, path, params, headers, nobody, query_id)
        answer = Answer(self, request, send)
        body = Body(receive)
        try:
            request.user = self._authenticate(request)
            if method == "GET" and not params.get("query"):
                await _plain(send, 200, b"Ok.\n")
                return
            await self._serve(request, body, answer)
        except ClickHouseError as error:
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

    def _authenticate(self, request: Request) -> User:
        name, password = "default", ""
        headers = request.headers
        if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
            name = headers.get("x-clickhouse-user", name)
            password = headers.get("x-clickhouse-key", "")
        elif headers.get("authorization", "").lower().startswith("basic "):
            try:
                pair = base64.b64decode(headers["authorization"][6:], validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                pair = ""
            name, _, password = pair.partition(":")
        elif "user" in request.params or "password" in request.params:
            name = request.params.get("user", name)
            password = request.params.get("password", "")
        user = self.config.users.get(name)
        expected = user.password if user else b"\0"
        same = hmac.compare_digest(password.encode("utf-8", "surrogateescape"), expected)
        if user is None or not same:
            raise ClickHouseError(
                516,
                "AUTHENTICATION_FAILED",
                f"{name}: Authentication failed: password is incorrect, or there is no user with"
                " such name.",
            )
        return user

    async def _plan(self, request: Request, body: Body) -> Plan:
        if request.flag("compress") or request.flag("decompress"):
            raise ClickHouseError(
                48,
                "NOT_IMPLEMENTED",
                "compress=1 and decompress=1 (native blocks) are not available: use"
                " enable_http_compression=1 with Accept-Encoding, and Content-Encoding",
            )
        query = request.params.get("query", "")
        encoding = request.headers.get("content-encoding", "")
        kind = request.headers.get("content-type", "")
        if request.method != "POST":
            return _planned(query)
        if kind.startswith("multipart/form-data"):
            form = await read_form(body.next, kind, decoder(encoding), self.config.tmp)
            request.params.update(form.fields)
            form.describe(request.params)
            plan = _planned(query + form.fields.get("query", ""))
            plan.externals = form.externals
            return plan
        raw = query.encode("utf-8", "surrogateescape")
        if raw and (insert := find_insert(raw.decode("latin-1"))):
            if insert.data < len(raw):
                head, feed = raw[insert.data :], StoredFeed(decoder(encoding))
                return Plan(_text(raw[: insert.data]), insert=insert, feed=feed, head=head)
            return Plan(_text(raw), insert=insert, feed=feed_for(encoding))
        decode = decoder(encoding)
        text = bytearray(raw + b"\n" if raw else b"")
        insert = None
        while True:
            piece = await body.next()
            if piece:
                text += decode.feed(piece)
            if len(text) <= MAX_PREFIX or not piece:
                insert = find_insert(bytes(text[:MAX_PREFIX]).decode("latin-1"))
                if insert and (insert.data < len(text) or not piece):
                    feed = StoredFeed(decode)
                    head = bytes(text[insert.data :])
                    return Plan(_text(text[: insert.data]), insert=insert, feed=feed, head=head)
            if not piece:
                break
            if len(text) > MAX_QUERY:
                raise ClickHouseError(
                    161, "QUERY_IS_TOO_LARGE", f"The query is larger than {MAX_QUERY} bytes"
                )
        decode.finish()
        return _planned(_text(text))

    async def _serve(self, request: Request, body: Body, answer: Answer) -> None:
        if self.stopping:
            raise ClickHouseError(210, "NETWORK_ERROR", "The endpoint is shutting down")
        plan = await self._plan(request, body)
        run = Run(request.query_id)
        self.runs[id(run)] = run
        entrance = Pipe(engine_reads=True) if plan.feed else None
        exit_ = Pipe(engine_reads=False)
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[Any]] = []
        try:
            job = partial(self._work, request, plan, run, entrance, exit_, answer)
            work = loop.run_in_executor(self.workers, job)
            work.add_done_callback(lambda _: exit_.close_theirs())
            pump: asyncio.Task[ClickHouseError | None] | None = None
            if entrance is not None:
                pump = asyncio.create_task(self._pump(plan, body, entrance))
                tasks.append(pump)
            watch = asyncio.create_task(self._watch(body, pump, plan, run, exit_))
            tasks.append(watch)
            result, error = await self._collect(work, exit_, answer)
            if entrance is not None:
                entrance.close_theirs()
            if pump is not None:
                cause = await pump
                error = cause or error if error or cause else None
            if error is not None:
                await answer.fail(error)
            else:
                await answer.finish(result)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if entrance is not None:
                entrance.close()
            exit_.close()
            del self.runs[id(run)]
            for external in plan.externals:
                external.remove()

    async def _collect(
        self, work: asyncio.Future[Any], exit_: Pipe, answer: Answer
    ) -> tuple[Any, ClickHouseError | None]:
        """Bring the result to the answer while the statement runs; its outcome."""
        sending = True
        reading = asyncio.ensure_future(exit_.read())
        try:
            while True:
                patience = ANSWER_PATIENCE if answer.size and not answer.started else None
                done, _ = await asyncio.wait({reading}, timeout=patience)
                if not done:
                    if not answer.patient:
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
                reading = asyncio.ensure_future(exit_.read())
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            outcome = (await asyncio.gather(work, return_exceptions=True))[0]
        if isinstance(outcome, ClickHouseError):
            return None, outcome
        if isinstance(outcome, BaseException):
            raise outcome
        result, said = outcome
        if said:
            await answer.add(said)
        return result, None

    async def _pump(self, plan: Plan, body: Body, entrance: Pipe) -> ClickHouseError | None:
        """Feed the body to the engine; the reason if it could not be fed whole."""
        feed = plan.feed
        assert feed is not None
        loop = asyncio.get_running_loop()
        failure: ClickHouseError | None = None
        try:
            if plan.head:
                # What stood with the query is decoded already.
                head = feed.frame(plan.head) if isinstance(feed, StoredFeed) else plan.head
                await entrance.write(head)
            while data := await body.next():
                if isinstance(feed, StoredFeed) and not feed.cheap:
                    data = await loop.run_in_executor(self.helpers, feed.feed, data)
                else:
                    data = feed.feed(data)
                if not await entrance.write(data):
                    return None
            await entrance.write(feed.finish())
        except Disconnected:
            failure = ClickHouseError(
                210, "NETWORK_ERROR", "The client went away before the end of its body"
            )
        except ClickHouseError as error:
            failure = error
        finally:
            if failure is not None:
                await entrance.write(feed.abort())
            entrance.close_ours()
        return failure

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

    def _work(
        self,
        request: Request,
        plan: Plan,
        run: Run,
        entrance: Pipe | None,
        exit_: Pipe,
        answer: Answer,
    ) -> tuple[Any, bytes]:
        """Run the statement in this thread; what it says outside a pipe comes second."""
        params = request.params
        name = params.get("session_id", "")
        session: Session | None = None
        for setting in request.settings:
            if not _SETTING_NAME.match(setting):
                raise ClickHouseError(115, "UNKNOWN_SETTING", f"Unknown setting {setting!r}")
            if setting in guard.PATH_SETTINGS:
                raise ClickHouseError(291, "DATABASE_ACCESS_DENIED", f"{setting} names a file")
        reader = request.user.read_only
        if name and not reader:
            session = self.sessions.acquire(
                request.user.name, name, self._timeout(params), request.flag("session_check")
            )
            connection = session.connection
        else:
            connection = self.engine.connect()
        try:
            word = plan.statement.word if plan.statement else "INSERT"
            if reader:
                guard.check_reader_settings(request.settings)
            if session is not None:
                session.lay({} if word == "SET" else request.settings)
            else:
                connection.set(request.settings)
            return self._execute(request, plan, run, entrance, exit_, answer, connection)
        finally:
            if session is not None:
                self.sessions.release(session)
                if request.flag("close_session"):
                    self.sessions.close_one(request.user.name, name)
            else:
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
        self,
        request: Request,
        plan: Plan,
        run: Run,
        entrance: Pipe | None,
        exit_: Pipe,
        answer: Answer,
        connection: Connection,
    ) -> tuple[Any, bytes]:
        bound = request.bound
        database = request.params.get("database") or request.headers.get("x-clickhouse-database")
        previous = None
        if database:
            if request.params.get("session_id"):
                previous = connection.text("SELECT currentDatabase()").rstrip("\n")
            if previous != database:
                connection.run(f"USE `{database.replace(chr(92), chr(92) * 2).replace('`', '``')}`")
        try:
            for external in plan.externals:
                external.load(connection)
            if request.user.read_only:
                current = connection.text("SELECT currentDatabase()").rstrip("\n")
                self._read_only(request, plan, connection, current)
            else:
                guard.check_owner(
                    connection, plan.text, bound, self.config.user_files, self.config.readable
                )
            answer.format = request.params.get("default_format") or request.headers.get(
                "x-clickhouse-format", "TabSeparated"
            )
            if not _IDENTIFIER.match(answer.format):
                raise ClickHouseError(73, "UNKNOWN_FORMAT", f"Unknown format {answer.format}")
            if plan.statement is not None and plan.statement.word == "KILL":
                plan.statement = read_statement(self._real_ids(plan.statement.text))
            run.begin()
            try:
                return self._run(plan, entrance, exit_, answer, connection, bound)
            finally:
                run.end()
        finally:
            if previous is not None and previous != database:
                with contextlib.suppress(EngineError):
                    connection.run(f"USE `{previous}`")

    def _run(
        self,
        plan: Plan,
        entrance: Pipe | None,
        exit_: Pipe,
        answer: Answer,
        connection: Connection,
        bound: dict[str, str],
    ) -> tuple[Any, bytes]:
        if plan.insert is not None:
            assert entrance is not None
            assert plan.feed is not None
            sql = _insert_sql(plan.text, plan.insert, entrance.path, plan.feed.compression)
            return connection.run(sql, params=bound), b""
        statement = plan.statement
        assert statement is not None
        if statement.format:
            answer.format = statement.format
        if not statement.rows:
            result = connection.run(statement.text, answer.format, bound)
            return result, bytes(result.bytes())
        return connection.run(statement.into(exit_.path, answer.format), params=bound), b""

    def _read_only(
        self, request: Request, plan: Plan, connection: Connection, database: str
    ) -> None:
        if plan.statement is None or plan.externals:
            raise ClickHouseError(164, "READONLY", "Cannot execute query in readonly mode.")
        statement = plan.statement
        if statement.word == "USE":
            return
        if statement.word == "SET":
            guard.check_reader_settings(
                item.text.strip('`"')
                for item in tokens(statement.text)
                if item.kind in ("word", "quoted")
            )
            return
        guard.check_reader(connection, statement.text, request.bound, database, self.engine.outside)
        connection.run("SET readonly = 1")

    def _real_ids(self, text: str) -> str:
        """A KILL statement with clients' query ids replaced by the engine's."""
        known = {quote(run.query_id): run for run in list(self.runs.values())}
        for item in reversed(list(tokens(text))):
            if item.kind == "string" and (run := known.get(item.text)):
                engine_id = run.engine_id(self.engine)
                if engine_id:
                    text = text[: item.start] + quote(engine_id) + text[item.end :]
        return text

    async def tend(self) -> None:
        """Close sessions as they time out; runs until cancelled."""
        while True:
            await asyncio.sleep(1)
            await asyncio.get_running_loop().run_in_executor(self.helpers, self.sessions.expire)

    def close(self) -> None:
        """Let running statements end, then close every session."""
        self.stopping = True
        self.workers.shutdown(wait=True)
        self.helpers.shutdown(wait=True)
        self.sessions.close()


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
        feed = StoredFeed(PlainDecoder())
        return Plan(_text(raw[: insert.data]), insert=insert, feed=feed, head=raw[insert.data :])
    text = _text(raw)
    return Plan(text, statement=read_statement(text))


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
