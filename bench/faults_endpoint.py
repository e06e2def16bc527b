"""``python -m bench.faults_endpoint [KILLS]``: kill the ClickHouse endpoint at random points.

Four clients insert, one deletes, one updates and one merges, until the daemon is killed with
SIGKILL; then it is started again and everything is counted. What was acknowledged must be there,
what was not must be there whole or not at all, and a mutation that was acknowledged must hold. The
last line is ``N kills, M lost``; the exit code is 1 if anything was lost. SIGTERM ends it early.
"""

from __future__ import annotations

import http.client
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chdb_http.testing import Daemon

ROWS = 40
UPDATED = 4_000
INSERTERS = 4
RESULTS = Path(__file__).parent / "results"


@dataclass
class Ledger:
    """What the daemon has acknowledged, and what is open because it was killed meanwhile."""

    inserted: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)
    open: set[int] = field(default_factory=set)
    generation: int = 0
    merges: int = 0
    batch: int = 0
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def next_batch(self) -> int:
        with self.mutex:
            self.batch += 1
            self.open.add(self.batch)
            return self.batch


def _until_killed(work: Callable[[], bool]) -> None:
    while True:
        try:
            if not work():
                return
        except (OSError, http.client.HTTPException):
            return


def _insert(daemon: Daemon, ledger: Ledger) -> bool:
    batch = ledger.next_batch()
    rows = b"".join(b"%d\t%d\t%s\n" % (batch, n, b"x" * 200) for n in range(ROWS))
    if daemon.send("INSERT INTO t (batch, n, pad) FORMAT TSV", rows).status != 200:
        return False
    with ledger.mutex:
        ledger.open.discard(batch)
        ledger.inserted.add(batch)
    return True


def _delete(daemon: Daemon, ledger: Ledger, source: random.Random) -> bool:
    with ledger.mutex:
        present = sorted(ledger.inserted)
    if len(present) < 20:
        # A read instead, which fails once the daemon is dead.
        return daemon.send("SELECT 1").status == 200
    batch = source.choice(present)
    with ledger.mutex:
        ledger.inserted.discard(batch)
        ledger.open.add(batch)
    query = f"ALTER TABLE t DELETE WHERE batch = {batch} SETTINGS mutations_sync = 1"
    if daemon.send(query).status != 200:
        return False
    with ledger.mutex:
        ledger.open.discard(batch)
        ledger.deleted.add(batch)
    return True


def _update(daemon: Daemon, ledger: Ledger) -> bool:
    wanted = ledger.generation + 1
    query = f"ALTER TABLE m UPDATE generation = {wanted} WHERE 1 SETTINGS mutations_sync = 1"
    if daemon.send(query).status != 200:
        return False
    ledger.generation = wanted
    return True


def _merge(daemon: Daemon, ledger: Ledger) -> bool:
    if daemon.send("OPTIMIZE TABLE t FINAL").status != 200:
        return False
    ledger.merges += 1
    return True


def _load(daemon: Daemon, ledger: Ledger, seconds: float, source: random.Random) -> None:
    """Work until the daemon is killed, after so many seconds."""
    works: list[Callable[[], bool]] = [lambda: _insert(daemon, ledger)] * INSERTERS
    works += [lambda: _update(daemon, ledger), lambda: _merge(daemon, ledger)]
    works.append(lambda: _delete(daemon, ledger, source))
    threads = [threading.Thread(target=_until_killed, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    daemon.stop(signal.SIGKILL)
    for thread in threads:
        thread.join()


def _settled(daemon: Daemon) -> None:
    deadline = time.monotonic() + 120
    while daemon.value("SELECT count() FROM system.mutations WHERE NOT is_done") != "0":
        if time.monotonic() > deadline:
            raise AssertionError("a mutation does not end")
        time.sleep(0.02)


def _count(daemon: Daemon, ledger: Ledger) -> list[str]:
    """Compare the daemon's tables with the ledger, and settle what was open."""
    _settled(daemon)
    rows = daemon.value(
        "SELECT batch, count(), uniqExact(n), sum(length(pad)) FROM t GROUP BY batch"
    )
    found = {}
    lost = []
    for line in rows.splitlines():
        batch, count, distinct, size = map(int, line.split("\t"))
        found[batch] = count
        if (count, distinct, size) != (ROWS, ROWS, ROWS * 200):
            lost.append(f"batch {batch} is there with {count} rows of {ROWS}")
    lost += [f"batch {batch} is gone" for batch in sorted(ledger.inserted - set(found))]
    lost += [f"batch {batch} is back" for batch in sorted(ledger.deleted & set(found))]
    unknown = set(found) - ledger.inserted - ledger.deleted - ledger.open
    lost += [f"batch {batch} was never sent" for batch in sorted(unknown)]
    for batch in ledger.open:
        (ledger.inserted if batch in found else ledger.deleted).add(batch)
    ledger.open.clear()
    count, least, most = map(
        int, daemon.value("SELECT count(), min(generation), max(generation) FROM m").split("\t")
    )
    if count != UPDATED or least != most or least < ledger.generation:
        lost.append(f"{count} rows of generation {least} to {most}, not {ledger.generation}")
    ledger.generation = most
    for table in ("t", "m"):
        checked = daemon.send(f"CHECK TABLE {table}", check_query_single_value_result=1)
        if checked.body != b"1\n":
            lost.append(f"CHECK TABLE {table}: {checked.body.decode(errors='replace')[:200]}")
    return lost


def run(kills: int, seed: int = 1, ended: threading.Event | None = None) -> int:
    """Kill so often, print what is found, keep it in ``bench/results``; how much was lost.

    Ends earlier, at the next kill, once ``ended`` is set.
    """
    source = random.Random(seed)  # noqa: S311
    ledger = Ledger()
    lost: list[str] = []
    starts = []
    with tempfile.TemporaryDirectory(prefix="faults-endpoint-") as folder:
        daemon = Daemon(Path(folder)).start(patience=900)
        for statement in (
            "CREATE TABLE t (batch UInt64, n UInt64, pad String) ENGINE = MergeTree ORDER BY batch"
            " SETTINGS old_parts_lifetime = 1",
            "CREATE TABLE m (id UInt64, generation UInt64) ENGINE = MergeTree ORDER BY id"
            " PARTITION BY id % 4 SETTINGS old_parts_lifetime = 1",
            f"INSERT INTO m SELECT number, 0 FROM numbers({UPDATED})",  # noqa: S608
        ):
            if daemon.send(statement).status != 200:
                raise AssertionError(statement)
        done = 0
        for kill in range(1, kills + 1):
            if ended is not None and ended.is_set():
                break
            _load(daemon, ledger, source.uniform(0.1, 1.6), source)
            done = kill
            begun = time.monotonic()
            daemon.start(patience=900)
            starts.append(time.monotonic() - begun)
            found = [f"kill {kill}: {what}" for what in _count(daemon, ledger)]
            print("\n".join(found), end="\n" * bool(found), flush=True)
            lost += found
            if kill % 10 == 0:
                print(f"{kill} kills, {len(ledger.inserted)} batches stand", flush=True)
        stopped = daemon.stop()
        if stopped:
            lost.append(f"the last stop gave {stopped}")
    figures = {
        "kills": done,
        "lost": len(lost),
        "inserts_acknowledged_and_standing": len(ledger.inserted),
        "rows_per_insert": ROWS,
        "batches_deleted": len(ledger.deleted),
        "updates_of_all_rows": ledger.generation,
        "merges_of_all_parts": ledger.merges,
        "restart_seconds_median": round(sorted(starts)[len(starts) // 2], 2),
        "restart_seconds_longest": round(max(starts), 2),
    }
    if done >= 100:
        (RESULTS / "faults_endpoint.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:36} {value}")
    print(f"{done} kills, {len(lost)} lost")
    return len(lost)


def main() -> int:
    """Run as many kills as the command line says, or as fit before SIGTERM."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    return 1 if run(int(sys.argv[1]) if len(sys.argv) > 1 else 100, ended=ended) else 0


if __name__ == "__main__":
    sys.exit(main())
