"""HTTP sessions: a connection kept between requests, one request at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from chdb_http.engine import Connection, Engine
from chdb_http.errors import ClickHouseError


@dataclass
class Session:
    """One session's connection and the settings its current request lays over it."""

    key: tuple[str, str]
    connection: Connection
    timeout: float
    busy: bool = True
    expires: float = 0.0
    overlay: dict[str, str | None] = field(default_factory=dict)
    current: dict[str, str] = field(default_factory=dict)

    def lay(self, settings: Mapping[str, str]) -> None:
        """Make a request's settings hold, taking the last request's back. Raises EngineError."""
        if self.current == settings:
            return
        restore = {name: value for name, value in self.overlay.items() if name not in settings}
        fresh = [name for name in settings if name not in self.overlay]
        if fresh:
            wanted = ",".join(f"'{name}'" for name in fresh)
            rows = self.connection.text(
                "SELECT name, changed, value FROM system.settings"
                " WHERE has({wanted:Array(String)}, name) FORMAT TabSeparated",
                {"wanted": f"[{wanted}]"},
            )
            for row in rows.splitlines():
                name, changed, value = row.split("\t")
                self.overlay[name] = _unescape(value) if changed == "1" else None
        self.connection.set({**restore, **settings})
        for name in restore:
            del self.overlay[name]
        self.current = dict(settings)


def _unescape(text: str) -> str:
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape")


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
            session = Session(key, self._engine.connect(), timeout)
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
