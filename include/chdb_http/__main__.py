"""``python -m chdb_http --config FILE``: run the endpoint until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn
import uvloop

from chdb_http.config import Config, ConfigError, load_config
from chdb_http.engine import Engine, StartError, keep_memory, remove_leftovers
from chdb_http.protocol import HeaderProtocol
from chdb_http.server import App

log = logging.getLogger("chdb_http")

_LAST_SECONDS = 15


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: stopping is ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(config: Config) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Without it each small answer waits for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}"
        ) from error
    return listener


def _give_up() -> None:
    # What is acknowledged is on disk, so ending like this loses nothing.
    log.error("statements did not end when they were cancelled: ending without them")
    logging.shutdown()
    os._exit(1)


def _limits() -> None:
    """As many open files as allowed, and no rows in a file of a crash."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


async def _run(config: Config, engine: Engine, listener: socket.socket) -> None:
    app = App(config, engine)
    HeaderProtocol.most_connections = config.max_connections
    HeaderProtocol.receive_timeout = config.receive_timeout
    HeaderProtocol.send_timeout = config.send_timeout
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            proxy_headers=False,
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=False,
            http=HeaderProtocol,
            ws="none",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=None,
        )
    )
    loop = asyncio.get_running_loop()

    def stop() -> None:
        app.stopping = True
        server.should_exit = True
        loop.call_later(config.stop_timeout, app.cancel)
        loop.call_later(config.stop_timeout + _LAST_SECONDS, _give_up)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    tending = asyncio.create_task(app.tend())
    await server.serve(sockets=[listener])
    tending.cancel()
    await loop.run_in_executor(None, app.close)


def main(argv: list[str] | None = None) -> int:
    """Run the endpoint; the exit code is 0 after a graceful stop, else 1."""
    parser = argparse.ArgumentParser(prog="chdb_http", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the JSON configuration file")
    options = parser.parse_args(argv)
    _limits()
    keep_memory()
    try:
        config = load_config(options.config)
        listener = _bind(config)
        engine = Engine(config)
        engine.lock()
        remove_leftovers(config.tmp)
        logging.basicConfig(
            filename=config.log.with_suffix(".http.log"),
            level=logging.WARNING,
            format="%(asctime)s %(levelname)s %(name)s %(message)s",
        )
        engine.open()
    except (ConfigError, StartError) as error:
        sys.stderr.write(f"chdb_http: {error}\n")
        return 1
    for part in engine.broken:
        database, table, name = part.split("\t")
        message = (
            f"table {database}.{table} misses the rows of a damaged part, which was set aside as"
            f" detached/{name}: restore the table from a backup, then drop that part"
        )
        log.error(message)
        sys.stderr.write(f"chdb_http: {message}\n")
        sys.stderr.flush()
    try:
        # A short question costs an eighth less than on Python's own loop.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(config, engine, listener))
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
