"""A stand-in for a ClickHouse cluster: one shard, as many embedded engines as replicas.

The embedded engine has no Keeper, no replication and no Distributed tables that reach another
host. So a gate stands before each engine, takes every statement down as it was sent, and does by
itself what a cluster would: ON CLUSTER runs on every host, what is written to a replicated table
is carried to the other replicas, and a Distributed table is another name for its one shard. A
replica can be told to fail.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from chdb_http.testing import Daemon
from homes import Outcome, Warehouse, free_ports, new_home
from tidemark import clickhouse, postgres
from tidemark.config import Settings

CLUSTER = "tidemark"
_ON_CLUSTER = re.compile(r"\s+on\s+cluster\s+(?:`\w+`|\"\w+\"|\w+)", re.IGNORECASE)
_REPLICATED = re.compile(r"\bReplicated(\w*MergeTree)\('[^']*', '[^']*'(?:, )?")
_DISTRIBUTED = re.compile(
    r"(?P<head>create (?:or replace )?table (?:if not exists )?(?P<name>[\w.`]+))\s+as\s+[\w.`]+\s+"
    r"engine = Distributed\(\s*'(?P<cluster>\w+)', '(?P<database>\w+)', '(?P<table>\w+)',.*",
    re.IGNORECASE | re.DOTALL,
)
_CREATED = re.compile(
    r"create (?:or replace )?table (?:if not exists )?(?P<name>[\w.`]+)\s", re.IGNORECASE
)
_LIKE = re.compile(r"\sas\s+(?P<other>[\w.`]+)\s*$", re.IGNORECASE)
_WRITTEN = re.compile(
    r"\s*(?:(?:--[^\n]*\n|/\*.*?\*/)\s*)*"
    r"(?:insert into|alter table|truncate table(?: if exists)?)\s+(?P<name>[\w.`]+)",
    re.IGNORECASE | re.DOTALL,
)
_SYNCED = re.compile(r"\s*(?:/\*.*?\*/\s*)?system sync replica\b", re.IGNORECASE | re.DOTALL)
_DROPPED = re.compile(
    r"\s*(?:/\*.*?\*/\s*)?drop table (?:if exists )?(?P<name>[\w.`]+)", re.IGNORECASE | re.DOTALL
)
_MOVED = re.compile(r"\s*(?:/\*.*?\*/\s*)?(?:exchange|rename) table", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Sent:
    """A statement as it left Tidemark or dbt."""

    #: Of the replica that it was sent to, from 1.
    replica: int
    statement: str
    parameters: Mapping[str, str]
    #: Of the command line that sent it; empty where a test did.
    verb: str = ""


@dataclass
class Replica:
    """One host: its engine, and what is wrong with it."""

    number: int
    #: The port of its engine.
    engine: int
    login: tuple[str, str]
    #: It refuses every statement, is down, or lies: it says it has what was written, and has not.
    fault: str = ""
    #: Tables that were written since it was asked last.
    behind: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return f"127.0.0.{self.number}"

    def ask(self, statement: str, body: bytes = b"", **more: str) -> bytes:
        """Run a statement on its engine, past the gate."""
        connection = http.client.HTTPConnection("127.0.0.1", self.engine, timeout=600)
        user, password = self.login
        try:
            connection.request(
                "POST",
                f"/?{urlencode({'query': statement, **more})}",
                body,
                {"X-ClickHouse-User": user, "X-ClickHouse-Key": password},
            )
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        assert response.status == 200, (statement, content)
        return content


@dataclass
class Cluster:
    """The replicas of the one shard, and what was sent to them."""

    replicas: list[Replica]
    port: int
    sent: list[Sent] = field(default_factory=list)
    #: Tables under whose name all rows are read, by what holds them.
    distributed: dict[str, str] = field(default_factory=dict)
    replicated: set[str] = field(default_factory=set)
    #: What the command line is at.
    verb: str = ""
    lock: Any = field(default_factory=threading.RLock)

    @property
    def seat(self) -> Replica:
        """The host that connections go to."""
        return self.replicas[0]

    def statements(self) -> list[str]:
        """Everything that was sent, in order."""
        return [sent.statement for sent in self.sent]

    # -- what a cluster does -----------------------------------------------------------------------

    def rewritten(self, statement: str) -> str:
        """What one engine runs instead."""
        self._note(statement)
        text = _ON_CLUSTER.sub("", statement)
        text = _REPLICATED.sub(r"\1(", text)
        text = _DISTRIBUTED.sub(r"\g<head> engine = Alias('\g<database>', '\g<table>')", text)
        hosts = ", ".join(f"('{CLUSTER}', 1, {own.number}, '{own.name}')" for own in self.replicas)
        text = text.replace(
            "from system.clusters",
            "from values('cluster String, shard_num UInt32, replica_num UInt32, host_name String',"
            f" {hosts})",
        )
        text = re.sub(r"\bcluster\('\w+', (system\.\w+)\)", r"\1", text)
        text = re.sub(
            r"\bclusterAllReplicas\(['\"]\w+['\"], (system\.\w+)\)",
            r"(select *, toUInt32(1) as _shard_num from \1)",
            text,
        )
        if _SYNCED.match(text):
            text = "select 1"
        # The engine's other names know no FINAL.
        for name, own in tuple(self.distributed.items()):
            quoted = ".".join(f"`{part}`" for part in name.split("."))
            text = re.sub(
                rf"(?:{re.escape(name)}|{re.escape(quoted)}) final\b", f"{own} final", text
            )
        return text

    def _note(self, statement: str) -> None:
        made = _DISTRIBUTED.search(_ON_CLUSTER.sub("", statement))
        if made is not None:
            self.distributed[_plain(made["name"])] = f"{made['database']}.{made['table']}"
            return
        created = _CREATED.search(statement)
        if created is None:
            return
        like = _LIKE.search(_ON_CLUSTER.sub("", statement))
        if "Replicated" in statement or (like and _plain(like["other"]) in self.replicated):
            self.replicated.add(_plain(created["name"]))

    def wrote(self, statement: str) -> None:
        """Note what the seat wrote: the others have it when they are asked next."""
        dropped = _DROPPED.match(statement)
        written = _WRITTEN.match(statement)
        if dropped is not None:
            for other in self.replicas:
                other.behind.discard(_plain(dropped["name"]))
        elif written is not None and "modify comment" not in statement:
            name = _plain(written["name"])
            name = self.distributed.get(name, name)
            if name in self.replicated:
                for other in self.replicas[1:]:
                    other.behind.add(name)

    def catch_up(self) -> None:
        """Bring what was written to every replica that is well."""
        with self.lock:
            for other in self.replicas:
                while other.behind and not other.fault:
                    name = other.behind.pop()
                    rows = self.seat.ask(f"select * from {name} format Native")
                    other.ask(f"truncate table {name}")
                    if rows:
                        other.ask(f"insert into {name} format Native", rows)


def _plain(name: str) -> str:
    return name.replace("`", "")


class _Gate(BaseHTTPRequestHandler):
    """Stands before an engine."""

    protocol_version = "HTTP/1.1"
    cluster: Cluster
    replica: Replica

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self._pass(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._pass(body)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _pass(self, body: bytes) -> None:
        cluster, replica = self.cluster, self.replica
        if replica.fault == "down":
            self.close_connection = True
            self.connection.close()
            return
        if replica.fault == "refuses":
            self._answer(500, {"X-ClickHouse-Exception-Code": "241"}, b"Code: 241. No memory.\n")
            return
        parts = urlsplit(self.path)
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
        in_url = "query" in parameters
        statement = parameters.get("query") or body.decode()
        if not statement:
            self._answer(*self._forward(replica, self.path, body))
            return
        cluster.sent.append(Sent(replica.number, statement, parameters, cluster.verb))
        text = cluster.rewritten(statement)
        if in_url:
            path, data = f"{parts.path}?{urlencode({**parameters, 'query': text})}", body
        else:
            path, data = self.path, text.encode()
        if replica is not cluster.seat or _MOVED.match(statement):
            cluster.catch_up()
        with cluster.lock if _ON_CLUSTER.search(statement) else contextlib.nullcontext():
            answer = self._forward(replica, path, data)
            if answer[0] == 200 and _ON_CLUSTER.search(statement):
                answer = self._on_the_others(statement, path, data) or answer
        if answer[0] == 200 and replica is cluster.seat:
            cluster.wrote(statement)
        self._answer(*answer)

    def _on_the_others(
        self, statement: str, path: str, data: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        """What ON CLUSTER does besides; an error where it does not get through."""
        for other in self.cluster.replicas[1:]:
            if other.fault in ("down", "refuses"):
                return 500, {"X-ClickHouse-Exception-Code": "159"}, b"Code: 159. Too late.\n"
            # Changes of rows go from replica to replica.
            if _WRITTEN.match(statement) is None:
                status, _, content = self._forward(other, path, data)
                assert status == 200, (statement, content)
        return None

    def _forward(
        self, replica: Replica, path: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", replica.engine, timeout=600)
        left_out = {"host", "content-length", "transfer-encoding", "connection"}
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in left_out
        }
        try:
            connection.request(self.command, path, body, headers)
            response = connection.getresponse()
            kept = {
                name: value
                for name, value in response.getheaders()
                if name.lower().startswith(("x-clickhouse", "content-type", "content-encoding"))
            }
            return response.status, kept, response.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@dataclass(frozen=True)
class Watched(Warehouse):
    """A warehouse on a cluster, which is told the verb that runs."""

    cluster: Cluster

    def run(self, *arguments: str, check: bool = True) -> Outcome:
        """As on a laptop."""
        self.cluster.verb = arguments[0]
        try:
            return super().run(*arguments, check=check)
        finally:
            self.cluster.verb = ""


@contextlib.contextmanager
def new_cluster(replicas: int = 2) -> Iterator[tuple[Warehouse, Cluster]]:
    """A home whose profile is a cluster's, over a laptop's PostgreSQL and its engine as first."""
    with contextlib.ExitStack() as stack:
        laptop = stack.enter_context(new_home())
        laptop.run("up", "--no-airflow")
        root = Path(tempfile.mkdtemp(prefix="tm-cluster-"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        login = clickhouse.endpoint(laptop.settings)
        (port,) = free_ports(1)
        cluster = Cluster([], port)
        for number in range(1, replicas + 1):
            engine = laptop.settings.clickhouse_port
            if number > 1:
                engine = stack.enter_context(_engine(root / str(number), laptop.settings))
            replica = Replica(number, engine, (login.user, login.password))
            cluster.replicas.append(replica)
            own = type("Own", (_Gate,), {"cluster": cluster, "replica": replica})
            server = ThreadingHTTPServer((replica.name, port), own)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        for line in cluster.seat.ask("show databases").decode().split():
            if line not in ("default", "system", "information_schema", "INFORMATION_SCHEMA"):
                cluster.seat.ask(f"drop database {line} sync")
        url = replace(login, host=cluster.seat.name, port=port).url
        # Every replica reads the list into a dictionary: a whole one would take most of the time.
        geo = root / "geo.csv"
        geo.parent.mkdir(exist_ok=True)
        geo.write_text("prefix,country\n192.0.2.0/24,DE\n2001:db8::/32,FR\n")
        env = {
            **laptop.env,
            "TIDEMARK_GEO": str(geo),
            "TIDEMARK_PROFILE": "cluster",
            "TIDEMARK_CLICKHOUSE_CLUSTER": CLUSTER,
            "TIDEMARK_CLICKHOUSE_URL": url,
            "TIDEMARK_CLICKHOUSE_ANALYST_URL": url,
            "TIDEMARK_POSTGRES_URL": postgres.url(laptop.settings),
        }
        yield Watched(Settings.from_env(env), env, cluster), cluster


@contextlib.contextmanager
def _engine(root: Path, settings: Settings) -> Iterator[int]:
    """Another engine with the logins of a home's; its port."""
    root.mkdir()
    engine = Daemon(root)
    own = json.loads(engine.config.read_text())
    config = json.loads((settings.run / "clickhouse.json").read_text())
    engine.config.write_text(
        json.dumps({**config, **{name: own[name] for name in ("data", "port", "tmp", "log")}})
    )
    engine.start()
    try:
        yield engine.port
    finally:
        engine.stop(signal.SIGKILL)
