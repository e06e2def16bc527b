"""The chDB engine: its configuration, its lock, its connections."""

from __future__ import annotations

import fcntl
import importlib
import importlib.metadata
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote as url_quote
from xml.sax.saxutils import escape

from chdb_http.config import Config
from chdb_http.errors import EngineError
from chdb_http.sql import quote

# What clickhouse-local changes from the server's defaults, set back; and reads of pipes must be
# plain read() calls.
_DEFAULTS = {
    "implicit_select": "0",
    "allow_introspection_functions": "0",
    "storage_file_read_method": "read",
    # What stands in rows of the format Values is evaluated only where the guard has read it.
    "input_format_values_interpret_expressions": "0",
    "input_format_values_deduce_templates_of_expressions": "0",
}


def keep_memory() -> None:
    """Have this process keep for a minute what its statements free, and not for five seconds.

    The next insert then finds its memory there, and takes an eighth less of the processors. To be
    called before an engine is opened: its allocator reads it once. What stands there already is
    left.
    """
    os.environ.setdefault("JE_MALLOC_CONF", "dirty_decay_ms:60000")


class StartError(Exception):
    """The engine could not be opened: the folder is taken, damaged or not writable."""


def _xml(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = []
        for key, item in value.items():
            for one in item if isinstance(item, list) else [item]:
                parts.append(f"<{key}>{_xml(one)}</{key}>")
        return "".join(parts)
    if isinstance(value, bool):
        return "1" if value else "0"
    return escape(str(value))


def _newer(version: str, than: str) -> bool:
    """Is a version of a later release than another? The last number is for corrections."""

    def release(text: str) -> list[int]:
        return [int(part) for part in text.split(".")[:2] if part.isdigit()]

    return release(version) > release(than)


def server_config(config: Config) -> str:
    """ClickHouse's own configuration file for these settings, as XML."""
    tree: dict[str, Any] = {
        "timezone": "UTC",
        "logger": {
            "level": "warning",
            # It logs the text of statements and, with errors, rows of data.
            "levels": {"executeQuery": "none"},
            "log": str(config.log),
            "errorlog": str(config.log.with_suffix(".err.log")),
            "size": "100M",
            "count": 3,
        },
        "user_files_path": str(config.user_files or config.data / "user_files") + "/",
        "tmp_path": str(config.data / "tmp") + "/",
        # Disks that statements define; the guard refuses them.
        "custom_local_disks_base_directory": str(config.data / "disks") + "/",
        "send_crash_reports": {"enabled": False},
        "max_server_memory_usage_to_ram_ratio": 0.8,
        "mark_cache_size": 256 << 20,
        "uncompressed_cache_size": 0,
        **config.settings,
    }
    if config.backups:
        tree["backups"] = {"allowed_path": [str(path) for path in config.backups]}
    for key, value in config.server.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), Mapping):
            tree[key] = {**tree[key], **value}
        else:
            tree[key] = value
    return f"<clickhouse>{_xml(tree)}</clickhouse>\n"


class Connection:
    """One chDB connection: one statement at a time, its own SET and temporary tables."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def run(
        self, sql: str, output_format: str = "TabSeparated", params: Mapping[str, str] | None = None
    ) -> Any:
        """Run one statement and return chDB's result. Raises EngineError."""
        try:
            return self._raw.query(sql, output_format, params=dict(params or {}))
        except RuntimeError as error:
            raise EngineError(str(error)) from None
        except UnicodeDecodeError as error:
            # A message that quotes bytes of the data, of which Python makes no text.
            raise EngineError(error.object.decode(errors="surrogateescape")) from None

    def watch(self, progress: Callable[[Mapping[str, int]], None] | None) -> None:
        """Call this with the figures so far while a statement runs, from any thread."""
        self._raw.set_progress_callback(progress)

    def text(self, sql: str, params: Mapping[str, str] | None = None) -> str:
        """A statement's result as tab separated text, with bytes that are no UTF-8 as surrogates.

        Raises EngineError.
        """
        found = bytes(self.run(sql, "TabSeparatedRaw", params).bytes())
        return found.decode(errors="surrogateescape")

    def pairs(self, sql: str) -> dict[str, str]:
        """A result of two columns of text, by the first. Raises EngineError."""
        rows = bytes(self.run(sql, "JSONCompactEachRow").bytes()).splitlines()
        return dict(json.loads(row) for row in rows)

    def classify(self, sql: str) -> tuple[str, int]:
        """The class of a statement by the engine's parser, and how many statements there are."""
        answer = self._raw.classify_query(sql)
        return answer["query_class"].name, answer["statement_count"]

    def set(self, settings: Mapping[str, str | None]) -> None:
        """SET settings; None gives a setting its default back. Raises EngineError."""
        if settings:
            pairs = (
                f"{name} = {'DEFAULT' if value is None else quote(value)}"
                for name, value in settings.items()
            )
            self.run(f"SET {', '.join(pairs)}")

    def close(self) -> None:
        """Close the connection; its temporary tables go."""
        self._raw.close()


class Engine:
    """The engine of one data folder, open in this process."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._lock_file: Any = None
        self._keeper: Any = None
        self._mending = threading.Lock()
        self._string = ""
        self.version = ""
        # Tab separated: database, table and name of parts that could not be loaded.
        self.broken: list[str] = []
        self.timezone = "UTC"
        # Settings of a fresh connection that are no defaults, as SQL.
        self.settings: dict[str, str] = {}
        # By the name of an output format in lower case.
        self.content_types: dict[str, str] = {}

    def lock(self) -> None:
        """Take the data folder for this process. Raises StartError if another has it."""
        config = self.config
        try:
            for folder in (config.data, config.tmp, config.log.parent):
                folder.mkdir(parents=True, exist_ok=True)
            config.data.chmod(0o700)
            self._lock_file = (config.data / "chdb_http.lock").open("a+")
        except OSError as error:
            raise StartError(f"cannot use {error.filename}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.seek(0)
            owner = self._lock_file.read().strip() or "unknown"
            raise StartError(
                f"{config.data} is in use by another daemon (process {owner})"
            ) from None
        self._lock_file.truncate(0)
        self._lock_file.write(f"{os.getpid()}\n")
        self._lock_file.flush()

    def open(self) -> None:
        """Start the engine. Raises StartError with the engine's reason."""
        config = self.config
        written_by = config.data / "chdb_http.version"
        installed = importlib.metadata.version("chdb-core")
        if written_by.exists() and _newer(written := written_by.read_text().strip(), installed):
            raise StartError(
                f"{config.data} was written by chdb-core {written}, and {installed} is installed:"
                " install that version or a later one, or restore a backup into another folder"
            )
        path = config.data / "chdb_http.xml"
        path.write_text(server_config(config))
        path.chmod(0o600)
        files = config.user_files or config.data / "user_files"
        files.mkdir(parents=True, exist_ok=True)
        # The engine's relative paths start at the working directory, whatever user_files_path says.
        os.chdir(files)
        query = "&".join(f"{name}={value}" for name, value in _DEFAULTS.items())
        # The level in the configuration file is not looked at.
        self._string = f"{config.data}?config-file={url_quote(str(path))}&log-level=warning&{query}"
        # An empty database has a definition and no folder yet. chDB passes over such a one when it
        # starts, and it could not be attached again.
        metadata = config.data / "metadata"
        if not (metadata / "default").exists():
            (metadata / "default.sql").unlink(missing_ok=True)
        # clickhouse-local takes its timezone from here, not from its configuration.
        os.environ["TZ"] = "UTC"
        try:
            chdb: Any = importlib.import_module("chdb._chdb")
            self._connect = chdb.connect
            chdb.set_signal_handlers_enabled(False)
            self._keeper = chdb.connect(self._string)
        except RuntimeError as error:
            raise StartError(f"the engine did not open {config.data}: {error}") from error
        keeper = Connection(self._keeper)
        try:
            self._own_default(keeper)
            self.broken = keeper.text(
                "SELECT database, table, name FROM system.detached_parts"
                " WHERE startsWith(reason, 'broken')"
            ).splitlines()
            self.version, self.timezone = keeper.text("SELECT version(), timezone()").split()
            changed = keeper.pairs("SELECT name, value FROM system.settings WHERE changed")
            self.settings = {name: quote(value) for name, value in changed.items()}
            self.content_types = keeper.pairs(
                "SELECT lower(name), content_type FROM system.formats WHERE is_output"
            )
        except EngineError as error:
            raise StartError(f"the engine did not open {config.data}: {error}") from error
        written_by.write_text(f"{installed}\n")

    def _own_default(self, keeper: Connection) -> None:
        """Make ``default`` an ordinary database.

        chDB opens it as an overlay over the file system, in which every readable file is a table.
        """
        if not self._has_default() and keeper.text("SHOW TABLES FROM default").strip():
            raise StartError(
                f"{self.config.data}: chDB itself made its database 'default', which mirrors"
                " the file system; move its tables to another database first"
            )
        keeper.run("DETACH DATABASE default")
        self._bring_default(keeper)

    def _has_default(self) -> bool:
        return (self.config.data / "metadata" / "default.sql").exists()

    def _bring_default(self, keeper: Connection) -> None:
        attach, create = "ATTACH DATABASE IF NOT EXISTS default", "CREATE DATABASE IF NOT EXISTS"
        keeper.run(attach if self._has_default() else f"{create} default ENGINE = Atomic")

    def connect(self) -> Connection:
        """A fresh connection: no session state but the defaults. Raises EngineError."""
        try:
            return self._connected()
        except EngineError as error:
            if error.name != "UNKNOWN_DATABASE":
                raise
        # Every connection begins in it, so without it nobody could make it again.
        with self._mending:
            self._bring_default(Connection(self._keeper))
        return self._connected()

    def _connected(self) -> Connection:
        try:
            return Connection(self._connect(self._string))
        except RuntimeError as error:
            raise EngineError(str(error)) from None

    def pool(self, settings: Mapping[str, str]) -> Pool:
        """Connections with these settings, for statements that leave nothing behind on them."""
        return Pool(self, settings)

    def kill(self, thread_id: int) -> bool:
        """Cancel what a thread of this process runs in the engine; False if it runs nothing.

        Raises EngineError.
        """
        connection = self.connect()
        try:
            killed = connection.run(f"KILL QUERY WHERE has(thread_ids, {thread_id:d}) ASYNC")
            return bool(bytes(killed.bytes()))
        finally:
            connection.close()

    def running(self) -> dict[int, str]:
        """The engine's own ids of what runs, by the threads of this process that run it."""
        connection = self.connect()
        try:
            found = connection.text("SELECT arrayJoin(thread_ids), query_id FROM system.processes")
        finally:
            connection.close()
        return {int(thread): query for thread, query in map(str.split, found.splitlines())}

    def close(self) -> None:
        """Close the engine; merges stop and everything is on disk."""
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None


class Pool:
    """Connections kept between requests: opening one takes a third of a trivial query's time."""

    _MOST = 8

    def __init__(self, engine: Engine, settings: Mapping[str, str]) -> None:
        self._engine = engine
        self._settings = settings
        self._idle: list[Connection] = []
        self._mutex = threading.Lock()

    def take(self) -> Connection:
        """A connection for one statement. Raises EngineError."""
        with self._mutex:
            if self._idle:
                return self._idle.pop()
        connection = self._engine.connect()
        connection.set(self._settings)
        return connection

    def give(self, connection: Connection) -> None:
        """Take it back; only one whose statement ended well and changed nothing of it."""
        with self._mutex:
            if len(self._idle) < self._MOST:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close the idle ones."""
        with self._mutex:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def remove_leftovers(folder: Path) -> None:
    """Delete spooled answers a killed daemon left in its temporary folder."""
    for path in folder.glob("chdb_http-*"):
        path.unlink(missing_ok=True)
