"""The daemon's configuration: one JSON file, read once, checked before anything opens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class ConfigError(Exception):
    """The configuration file is missing, malformed or asks for something unsafe."""


@dataclass(frozen=True)
class User:
    """One account of the endpoint."""

    name: str
    password: bytes = field(repr=False)
    read_only: bool


@dataclass(frozen=True)
class Config:
    """What the daemon needs to serve one data folder.

    Sizes are bytes, times are seconds.
    """

    data: Path
    tmp: Path
    log: Path
    users: Mapping[str, User]
    host: str = "127.0.0.1"
    port: int = 8123
    user_files: Path | None = None
    allowed_paths: tuple[Path, ...] = ()
    backups: tuple[Path, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    max_workers: int = 128
    writing_statements: int = field(default_factory=lambda: os.cpu_count() or 1)
    long_statements: int = field(default_factory=lambda: os.cpu_count() or 1)
    max_connections: int = 1024
    receive_timeout: int = 60
    send_timeout: int = 300
    stop_timeout: int = 30
    session_timeout: int = 60
    max_session_timeout: int = 3600

    @property
    def readable(self) -> tuple[Path, ...]:
        """Folders the owner's statements may name in ``file()`` and its like."""
        own = (self.user_files,) if self.user_files else ()
        return (*own, *self.allowed_paths)


KEYS = {
    "data",
    "host",
    "port",
    "users",
    "user_files",
    "allowed_paths",
    "backups",
    "tmp",
    "log",
    "settings",
    "server",
    "max_workers",
    "writing_statements",
    "long_statements",
    "max_connections",
    "receive_timeout",
    "send_timeout",
    "stop_timeout",
    "session_timeout",
    "max_session_timeout",
}
NUMBERS = {
    "port": 1,
    "max_workers": 1,
    "writing_statements": 1,
    "long_statements": 1,
    "max_connections": 1,
    "receive_timeout": 1,
    "send_timeout": 1,
    "stop_timeout": 0,
    "session_timeout": 0,
    "max_session_timeout": 0,
}


def _folder(value: Any, key: str) -> Path:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key}: a path is needed")
    return Path(value).expanduser().absolute()


def _folders(value: Any, key: str) -> tuple[Path, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise ConfigError(f"{key}: a list of paths is needed")
    return tuple(_folder(item, key) for item in value)


def _users(value: Any) -> dict[str, User]:
    if not isinstance(value, dict) or not value:
        raise ConfigError("users: at least one user is needed")
    users = {}
    for name, entry in value.items():
        if not isinstance(entry, dict) or "password_file" not in entry:
            raise ConfigError(f"users.{name}: password_file is needed")
        path = _folder(entry["password_file"], f"users.{name}.password_file")
        try:
            password = path.read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"users.{name}: cannot read {path}: {error.strerror}") from error
        if not password:
            raise ConfigError(f"users.{name}: {path} is empty")
        users[name] = User(name, password, bool(entry.get("read_only", True)))
    return users


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{key}: an object is needed")
    return value


def load_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises ConfigError naming the key that is wrong.
    """
    try:
        raw = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: an object is needed")
    if unknown := sorted(set(raw) - KEYS):
        raise ConfigError(f"{path}: unknown key {', '.join(unknown)}")
    host = raw.get("host", "127.0.0.1")
    if host not in LOOPBACK:
        raise ConfigError(f"host: {host} is not a loopback address")
    data = _folder(raw.get("data"), "data")
    numbers = {}
    for key, least in NUMBERS.items():
        if key in raw:
            if not isinstance(raw[key], int) or isinstance(raw[key], bool) or raw[key] < least:
                raise ConfigError(f"{key}: a whole number is needed, at least {least}")
            numbers[key] = raw[key]
    return Config(
        data=data,
        tmp=_folder(raw.get("tmp", str(data / "http_tmp")), "tmp"),
        log=_folder(raw.get("log", str(data / "chdb_http.log")), "log"),
        users=_users(raw.get("users")),
        host=host,
        user_files=_folder(raw["user_files"], "user_files") if raw.get("user_files") else None,
        allowed_paths=_folders(raw.get("allowed_paths"), "allowed_paths"),
        backups=_folders(raw.get("backups"), "backups"),
        settings=_mapping(raw.get("settings", {}), "settings"),
        server=_mapping(raw.get("server", {}), "server"),
        **numbers,
    )
