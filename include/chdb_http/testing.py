"""A daemon over a throwaway folder, for tests of whatever speaks to ClickHouse over HTTP."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import clickhouse_connect
from clickhouse_connect.driver.client import Client

OWNER = ("owner", "owner-secret")
READER = ("reader", "reader-secret")


def basic_auth(user: tuple[str, str]) -> dict[str, str]:
    """The header that says who asks."""
    return {"Authorization": "Basic " + base64.b64encode(":".join(user).encode()).decode()}


class Reply:
    """An HTTP answer, read whole."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def summary(self) -> dict[str, int]:
        return {k: int(v) for k, v in json.loads(self.headers["X-ClickHouse-Summary"]).items()}

    @property
    def code(self) -> int:
        return int(self.headers.get("X-ClickHouse-Exception-Code", "0"))


class Daemon:
    """One daemon process and how to talk to it."""

    def __init__(self, root: Path, port: int = 0, **own: Any) -> None:
        """Over a folder; what else is given stands in its configuration."""
        self.root = root
        self.port = port or free_port()
        for name, (_, password) in {"owner": OWNER, "reader": READER}.items():
            (root / name).write_text(password)
        self.config = root / "config.json"
        self.config.write_text(
            json.dumps(
                {
                    "data": str(root / "data"),
                    "port": self.port,
                    "users": {
                        OWNER[0]: {"password_file": str(root / "owner"), "read_only": False},
                        READER[0]: {"password_file": str(root / "reader"), "read_only": True},
                    },
                    "user_files": str(root / "files"),
                    "backups": [str(root / "backups")],
                    "tmp": str(root / "tmp"),
                    "log": str(root / "log" / "engine.log"),
                    **own,
                }
            )
        )
        self.process: subprocess.Popen[str] | None = None

    def spawn(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "chdb_http", "--config", str(self.config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start(self, patience: float = 120) -> Daemon:
        """Start it and wait until it answers, so many seconds: the machine may be busy."""
        self.process = self.spawn()
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                output = self.process.stdout.read() if self.process.stdout else ""
                raise AssertionError(f"the daemon ended: {output}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
                connection.request("GET", "/ping")
                if connection.getresponse().read() == b"Ok.\n":
                    return self
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.05)
        raise AssertionError("the daemon did not become ready")

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(120)
        if self.process.stdout:
            self.process.stdout.close()
        return code

    def client(self, user: tuple[str, str] = OWNER, **options: Any) -> Client:
        return clickhouse_connect.get_client(
            host="127.0.0.1", port=self.port, username=user[0], password=user[1], **options
        )

    def send(
        self,
        query: str | None = None,
        body: bytes | None = None,
        user: tuple[str, str] | None = OWNER,
        headers: dict[str, str] | None = None,
        method: str = "POST",
        **params: Any,
    ) -> Reply:
        if query is not None:
            params["query"] = query
        fields = dict(headers or {})
        if user:
            fields |= basic_auth(user)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, f"/?{urlencode(params)}", body, fields)
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def value(self, query: str) -> str:
        reply = self.send(query)
        assert reply.status == 200, reply.body
        return reply.body.decode().rstrip("\n")

    def pipes(self) -> int:
        """How many pipe ends the daemon has open."""
        assert self.process is not None
        found = 0
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found += str(entry.readlink()).startswith("pipe:")
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
