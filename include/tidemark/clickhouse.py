"""Connections to ClickHouse, streamed inserts, and the schema that Tidemark keeps there."""

import http.client
import json
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cache
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote, urlencode, urlsplit

from tidemark import secrets_store
from tidemark.config import Settings
from tidemark.errors import TidemarkError, UsageError
from tidemark.topology import ONE_MACHINE, Host, Topology

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

Role = Literal["owner", "analyst"]

CHUNK_BYTES = 1 << 20

# Without it an error after the first rows arrives as text in the middle of a 200 response.
_WHOLE = {"wait_end_of_query": "1"}
_ALWAYS: dict[Role, dict[str, str]] = {
    # A statement may name a hundred thousand workspaces; a server reads 256 KiB of text by default.
    "owner": {**_WHOLE, "max_query_size": str(1 << 28)},
    # Who may only read may change no setting.
    "analyst": _WHOLE,
}

_LOGINS: dict[Role, tuple[str, str]] = {
    "owner": ("tidemark", secrets_store.CLICKHOUSE_OWNER),
    "analyst": ("analyst", secrets_store.CLICKHOUSE_ANALYST),
}


class ClickHouseError(TidemarkError):
    """ClickHouse refused or failed a statement; `code` is its error number, 0 if it gave none.

    The message may quote the data that it failed on: show it to the person who sent the
    statement, and keep it out of logs where rows were sent.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def kind(self) -> str:
        """The kind of the error without its text, which may quote a value."""
        name = re.search(r"\(([A-Z0-9_]+)\)", str(self))
        number = f"ClickHouse error {self.code}"
        return f"{number}, {name[1]}" if name else number


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one role connects; the password is left out of the representation."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    secure: bool = False

    @property
    def url(self) -> str:
        """The URL with its password: never log it or pass it as an argument."""
        scheme = "https" if self.secure else "http"
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"{scheme}://{login}@{self.host}:{self.port}/"


@dataclass(frozen=True, slots=True)
class Response:
    """What a statement returned: the body, its format, and the engine's summary of the work."""

    body: bytes
    format: str | None
    summary: dict[str, Any]


def endpoint(settings: Settings, role: Role = "owner") -> Endpoint:
    """Find where a role connects.

    Raises:
        TidemarkError: the password file is missing (laptop).
        UsageError: the cluster has no URL for this role.
    """
    if settings.profile == "cluster":
        text = settings.clickhouse_url if role == "owner" else settings.clickhouse_analyst_url
        if text is None:
            raise UsageError("TIDEMARK_CLICKHOUSE_ANALYST_URL is not set")
        parts = urlsplit(text)
        secure = parts.scheme == "https"
        return Endpoint(
            host=parts.hostname or "",
            port=parts.port or (8443 if secure else 8123),
            user=unquote(parts.username or "default"),
            password=unquote(parts.password or ""),
            secure=secure,
        )
    user, secret = _LOGINS[role]
    password = secrets_store.read_password(settings.secrets, secret)
    return Endpoint("127.0.0.1", settings.clickhouse_port, user, password)


def topology(settings: Settings) -> Topology:
    """Where tables lie; a cluster is asked for its hosts once in a process.

    Raises:
        TidemarkError: ClickHouse does not answer, or knows no such cluster.
    """
    return _asked(settings) if settings.clickhouse_cluster else ONE_MACHINE


@cache
def _asked(settings: Settings) -> Topology:
    found = rows(
        replace(settings, clickhouse_cluster=None),
        "select shard_num, replica_num, host_name from system.clusters"
        " where cluster = {cluster:String} order by shard_num, replica_num",
        params={"param_cluster": settings.clickhouse_cluster or ""},
    )
    if not found:
        raise TidemarkError(
            f"ClickHouse knows no cluster {settings.clickhouse_cluster}: see"
            " TIDEMARK_CLICKHOUSE_CLUSTER and the servers' remote_servers"
        )
    hosts = (Host(row["shard_num"], row["replica_num"], row["host_name"]) for row in found)
    return Topology(settings.clickhouse_cluster or "", tuple(hosts))


def hosts(settings: Settings) -> tuple[tuple[Host, Settings], ...]:
    """Every host, and the settings with which statements reach it alone.

    All listen on the port of the connection's URL, and know its login.

    Raises:
        TidemarkError: see `topology`.
    """
    own = topology(settings)
    if not own.cluster:
        return tuple((host, settings) for host in own.hosts)
    target = endpoint(settings)
    return tuple(
        (
            host,
            replace(
                settings,
                clickhouse_cluster=None,
                clickhouse_url=replace(target, host=host.name).url,
            ),
        )
        for host in own.hosts
    )


def client(
    settings: Settings,
    role: Role = "owner",
    *,
    session: bool = False,
    timeout: float = 600.0,
    **query_settings: Any,
) -> "Client":
    """Open a clickhouse-connect client; `query_settings` go with every statement it sends.

    Args:
        session: give the client a session of its own, for temporary tables; such a client runs
            one statement at a time.
        timeout: seconds without a byte from the server after which a statement counts as lost.

    Raises:
        TidemarkError: ClickHouse does not answer or turns the role away.
    """
    # Slow to import, and most verbs of the command line do without it.
    import clickhouse_connect
    from clickhouse_connect.driver.exceptions import ClickHouseError as DriverError

    target = endpoint(settings, role)
    try:
        return clickhouse_connect.get_client(
            host=target.host,
            port=target.port,
            username=target.user,
            password=target.password,
            secure=target.secure,
            autogenerate_session_id=session,
            connect_timeout=10,
            send_receive_timeout=timeout,
            query_limit=0,
            settings={**topology(settings).settings, **query_settings},
        )
    except DriverError as error:
        raise _unreachable(target, str(error).strip().splitlines()[0]) from error


def execute(
    settings: Settings,
    query: str,
    role: Role = "owner",
    *,
    params: Mapping[str, str] | None = None,
    timeout: float = 600.0,
) -> Response:
    """Run one statement over plain HTTP and return its body whole.

    Args:
        params: HTTP parameters such as settings, `default_format`, `session_id`, `param_name`.
        timeout: seconds without a byte from the server.

    Raises:
        ClickHouseError: the statement failed.
        TidemarkError: ClickHouse does not answer.
    """
    return _post(settings, role, params or {}, [query.encode()], None, timeout)


def rows(
    settings: Settings,
    query: str,
    role: Role = "owner",
    *,
    params: Mapping[str, str] | None = None,
    timeout: float = 3600.0,
) -> list[dict[str, Any]]:
    """Run a query and read its rows as JSON objects: integers whole, Decimals as text.

    Raises:
        ClickHouseError: the query failed.
        TidemarkError: ClickHouse does not answer.
    """
    settings_of_format = {
        "default_format": "JSONEachRow",
        "output_format_json_quote_64bit_integers": "0",
        "output_format_json_quote_decimals": "1",
    }
    response = execute(
        settings, query, role, params={**settings_of_format, **(params or {})}, timeout=timeout
    )
    return [json.loads(line) for line in response.body.splitlines() if line]


def stream_insert(
    settings: Settings,
    query: str,
    body: IO[bytes] | Iterable[bytes],
    *,
    content_encoding: Literal["gzip", "zstd"] | None = None,
    params: Mapping[str, str] | None = None,
    role: Role = "owner",
    timeout: float = 3600.0,
) -> dict[str, Any]:
    """Send an insert and its data as a stream; memory stays at one chunk.

    Args:
        query: the insert, up to its format; it travels in the URL, so it must hold no secret.
        body: a file, read in chunks of 1 MiB, or the chunks themselves.
        content_encoding: how the body is compressed as it stands; the server unpacks it.
        params: HTTP parameters such as settings, `session_id`, `query_id`, `param_name`.
        timeout: seconds without a byte from the server.

    Returns:
        The engine's summary: `written_rows`, `read_bytes` and so on as decimal text, `query_id`.

    Raises:
        ClickHouseError: the insert failed; nothing, or only whole blocks, went in.
        TidemarkError: ClickHouse does not answer.
    """
    parameters = {**(params or {}), "query": query}
    return _post(settings, role, parameters, _chunks(body), content_encoding, timeout).summary


def insert_rows(
    settings: Settings,
    table: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    params: Mapping[str, str] | None = None,
) -> None:
    """Insert a few rows of plain values, by name; nothing where there are none.

    A table that each host has whole has them on every host afterwards.

    Args:
        params: HTTP parameters such as `session_id`.

    Raises:
        ClickHouseError: the insert failed.
        TidemarkError: ClickHouse does not answer.
    """
    if rows:
        body = "\n".join(json.dumps(row) for row in rows).encode()
        wanted = {**topology(settings).written(table), **(params or {})}
        stream_insert(settings, f"insert into {table} format JSONEachRow", [body], params=wanted)


def apply_schema(settings: Settings) -> None:
    """Run `include/sql/clickhouse/*.sql` in order of their names; each can run any number of times.

    On a cluster everything is made on every host.

    Raises:
        TidemarkError: a statement fails; the message names its file.
    """
    own = topology(settings)
    for path in sorted((settings.sql / "clickhouse").glob("*.sql")):
        for text in split_statements(path.read_text(encoding="utf-8")):
            for statement in own.made(text):
                try:
                    execute(settings, statement)
                except ClickHouseError as error:
                    raise TidemarkError(f"{path.name} cannot be applied: {error}") from error


def literal(value: str | date) -> str:
    """A value as an SQL literal of ClickHouse."""
    if isinstance(value, date):
        return f"toDate('{value.isoformat()}')"
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def identifier(name: str) -> str:
    """A name as SQL of ClickHouse, quoted."""
    escaped = name.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"


def identifiers(names: Iterable[str]) -> str:
    """Names, quoted, with commas between."""
    return ", ".join(map(identifier, names))


def split_statements(text: str) -> list[str]:
    """Split SQL at semicolons outside quotes and comments; empty statements are left out.

    Raises:
        ValueError: a quote or comment is not closed.
    """
    statements: list[str] = []
    start = position = 0
    has_code = False
    while position < len(text):
        character = text[position]
        if text.startswith("--", position):
            end = text.find("\n", position)
            position = len(text) if end < 0 else end
        elif text.startswith("/*", position):
            position = _after(text, "*/", position + 2)
        elif text.startswith("$$", position):
            has_code = True
            position = _after(text, "$$", position + 2)
        elif character in "'\"`":
            has_code = True
            position = _after_quoted(text, position)
        elif character == ";":
            if has_code:
                statements.append(text[start:position].strip())
            position += 1
            start, has_code = position, False
        else:
            has_code = has_code or not character.isspace()
            position += 1
    if has_code:
        statements.append(text[start:].strip())
    return statements


def _after(text: str, end: str, position: int) -> int:
    found = text.find(end, position)
    if found < 0:
        raise ValueError(f"no {end} closes what opens before character {position}")
    return found + len(end)


def _after_quoted(text: str, position: int) -> int:
    quote_mark, opened = text[position], position
    position += 1
    while position < len(text):
        if text[position] == "\\":
            position += 2
        elif text[position] == quote_mark:
            # A doubled quote opens the next quoted run at once, which comes to the same.
            return position + 1
        else:
            position += 1
    raise ValueError(f"the {quote_mark} at character {opened} is not closed")


def _chunks(body: IO[bytes] | Iterable[bytes]) -> Iterator[bytes]:
    if hasattr(body, "read"):
        while chunk := body.read(CHUNK_BYTES):
            yield chunk
    else:
        # An empty chunk would end a chunked body early.
        yield from (chunk for chunk in body if chunk)


def _post(
    settings: Settings,
    role: Role,
    params: Mapping[str, str],
    body: Iterable[bytes],
    content_encoding: str | None,
    timeout: float,
) -> Response:
    target = endpoint(settings, role)
    connection: http.client.HTTPConnection
    if target.secure:
        connection = http.client.HTTPSConnection(
            target.host, target.port, timeout=timeout, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(target.host, target.port, timeout=timeout)
    headers = {
        "X-ClickHouse-User": target.user,
        "X-ClickHouse-Key": target.password,
        "Content-Type": "application/octet-stream",
        "Transfer-Encoding": "chunked",
    }
    if content_encoding:
        headers["Content-Encoding"] = content_encoding
    path = "/?" + urlencode({**_ALWAYS[role], **topology(settings).settings, **params})
    try:
        try:
            connection.request("POST", path, body=iter(body), headers=headers, encode_chunked=True)
        except (BrokenPipeError, ConnectionResetError):
            # The server may have answered and closed before it had read everything.
            if connection.sock is None:
                raise
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(target, str(error) or type(error).__name__) from error
    finally:
        connection.close()
    if response.status != 200 or response.headers.get("X-ClickHouse-Exception-Code"):
        code = response.headers.get("X-ClickHouse-Exception-Code") or "0"
        text = content.decode("utf-8", "replace").strip()
        message = text.splitlines()[0] if text else f"HTTP status {response.status}"
        raise ClickHouseError(int(code) if code.isdigit() else 0, message)
    summary = json.loads(response.headers.get("X-ClickHouse-Summary") or "{}")
    summary["query_id"] = response.headers.get("X-ClickHouse-Query-Id") or ""
    return Response(content, response.headers.get("X-ClickHouse-Format"), summary)


def _unreachable(target: Endpoint, reason: str) -> TidemarkError:
    return TidemarkError(
        f"ClickHouse on {target.host}:{target.port} does not answer ({reason}): is it up?"
    )
