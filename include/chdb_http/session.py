"""HTTP sessions: a connection kept between requests, one request at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from chdb_http.engine import Connection, Engine
from chdb_http.errors import ClickHouseError
from chdb_http.sql import quote, split, tokens, unquote


@dataclass
class Session:
    """One session's connection, what it has set, and the settings its last request laid over it.

    Nothing is asked of the connection: the client's settings would rule the answer.
    """

    key: tuple[str, str]
    connection: Connection
    timeout: float
    #: The settings of a fresh connection that are no defaults, as SQL.
    first: Mapping[str, str]
    busy: bool = True
    expires: float = 0.0
    database: str = "default"
    own: dict[str, str] = field(default_factory=dict)
    laid: dict[str, str] = field(default_factory=dict)

    def lay(self, settings: Mapping[str, str]) -> None:
        """Make a request's settings hold, taking the last request's back. Raises EngineError."""
        if self.laid == settings:
            return
        changes = {name: self._before(name) for name in self.laid} | {
            name: quote(value) for name, value in settings.items()
        }
        # All of it is refused or nothing.
        self.connection.run(f"SET {', '.join(f'{n} = {value}' for n, value in changes.items())}")
        self.laid = dict(settings)

    def _before(self, name: str) -> str:
        return self.own.get(name) or self.first.get(name, "DEFAULT")

    @property
    def timezone(self) -> str:
        """The zone that it has set, if any."""
        return unquote(self.own.get("session_timezone", ""))

    def bound(self, given: Mapping[str, str]) -> dict[str, str]:
        """The parameters of a request: what it brings, and what the session has SET besides.

        The engine forgets the session's for those of a statement.
        """
        kept = {
            name[6:]: _field(value) for name, value in self.own.items() if name.startswith("param_")
        }
        return kept | dict(given)

    def learn(self, text: str, bound: Mapping[str, str]) -> None:
        """Remember what a SET or USE of the client's has changed."""
        items = [item for item in tokens(text) if item.text != ";"]
        word = items[0].word
        if word == "USE":
            name = items[-1].text
            self.database = bound.get(items[2].text, "") if name == "}" else unquote(name)
        elif word == "SET" and [item.word for item in items[1:3]] == ["TIME", "ZONE"]:
            self.own["session_timezone"] = items[-1].text
        elif word == "SET":
            for change in split(items[1:]):
                name = unquote(change[0].text)
                value = text[change[2].start : change[-1].end] if len(change) > 2 else "1"
                if value.upper() == "DEFAULT":
                    self.own.pop(name, None)
                else:
                    self.own[name] = value


def _field(literal: str) -> str:
    """A literal as a tab separated field, which has the same escapes."""
    if not literal.startswith("'"):
        return literal
    return literal[1:-1].replace("''", "'").replace("\t", "\\t").replace("\n", "\\n")


class Sessions:
    """Every open session of the endpoint."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[tuple[str, str], Session] = {}
        self._mutex = threading.Lock()

    def acquire(self, user: str, name: str, timeout: float, check: bool) -> Session:
        """The session of that name for this request alone.

        Raises ClickHouseError 372 if it must exist and does not, 373 if another request has it.
        """
        key = (user, name)
        with self._mutex:
            session = self._open.get(key)
            if session is not None:
                if session.busy:
                    raise ClickHouseError(
                        373, "SESSION_IS_LOCKED", f"Session {name} is locked by a concurrent client"
                    )
                session.busy = True
                session.timeout = timeout
                return session
            if check:
                raise ClickHouseError(372, "SESSION_NOT_FOUND", f"Session {name} not found")
            session = Session(key, self._engine.connect(), timeout, self._engine.settings)
            self._open[key] = session
            return session

    def release(self, session: Session) -> None:
        """Hand the session back; its time to live begins."""
        with self._mutex:
            session.expires = time.monotonic() + session.timeout
            session.busy = False

    def close_one(self, user: str, name: str) -> None:
        """End a session now, if it is open and idle."""
        with self._mutex:
            session = self._open.get((user, name))
            if session is None or session.busy:
                return
            del self._open[session.key]
        session.connection.close()

    def expire(self) -> None:
        """Close what has been idle past its timeout."""
        now = time.monotonic()
        with self._mutex:
            old = [s for s in self._open.values() if not s.busy and s.expires <= now]
            for session in old:
                del self._open[session.key]
        for session in old:
            session.connection.close()

    def close(self) -> None:
        """Close every session."""
        with self._mutex:
            sessions = list(self._open.values())
            self._open.clear()
        for session in sessions:
            session.connection.close()
