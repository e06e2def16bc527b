"""Kills purges on the real engines and compares what they end in with a purge left alone.

    make faults            300 kills
    make faults KILLS=20   fewer

Each round restores one history, and purges it in children that kill themselves with SIGKILL: at
the first boundary of a step that no child has died at yet, else at a random moment; now and then an
engine dies too. When a child comes to its end, the stores have to be what an undisturbed purge
leaves. The last line counts the kills and what was lost.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psutil

import history
from homes import Warehouse, new_home
from tidemark import audit, clickhouse, engines, gate, postgres, retention

AS_OF = date(2026, 11, 10)
LOADED = date(2025, 1, 20)
DAYS = [date(2024, 8, 9), date(2024, 9, 9), date(2024, 9, 10), date(2024, 12, 9), date(2025, 1, 9)]
#: Of the kills at random moments, one in so many takes an engine along.
ENGINE_KILLS = 8


def now() -> datetime:
    """The clock of every purge here."""
    return datetime.now(UTC)


def prepare(home: Warehouse) -> None:
    """Load and build the history that every round begins with."""
    home.run("up", "--no-airflow")
    history.add_shops(home)
    history.deliver(home, *DAYS)
    assert home.run("load", "--as-of", str(LOADED), "--json").json["stored"] > 0
    assert home.run("build", "--as-of", str(LOADED), "--json").json["gate"]["success"]
    home.run("override", "set", "shop", "pixel_events", "300d")


def state(home: Warehouse) -> dict[str, str]:
    """A hash of everything that has to be the same in the end, by what it is of."""
    found: dict[str, Any] = {}
    tables = clickhouse.rows(
        home.settings,
        "select concat(database, '.', name) as name from system.tables"
        " where database in ('raw', 'intermediate', 'marts', 'anonymised', 'retention')"
        " and engine not like '%View' and name not in ('permits') order by name",
    )
    for table in (row["name"] for row in tables):
        columns = clickhouse.rows(
            home.settings,
            "select name, type from system.columns"
            f" where concat(database, '.', table) = '{table}' order by position",
        )
        # What only says when or under which number something was written.
        hashed = ", ".join(
            f"finalizeAggregation({row['name']})"
            if row["type"].startswith("AggregateFunction")
            else f"`{row['name']}`"
            for row in columns
            if not row["name"].startswith("dbt_") and row["name"] not in ("version", "step_id")
        )
        final = "final" if "Replacing" in engine_of(home, table) else ""
        found[table] = clickhouse.rows(
            home.settings,
            f"select count() as n, toString(sum(sipHash64(tuple({hashed})))) as h"
            f" from {table} {final}",
        )
    with postgres.connect(home.settings) as connection:
        for name, query in {
            "purge ledger": "select class, workspace_id, local_date from control.purge_ledger",
            "purged rows": "select class, measure, workspace_id, local_date, currency, event_count,"
            " distinct_ids, money from control.purged_rows",
            "done": "select document ->> 'class' as class, document ->> 'month' as month,"
            " document ->> 'rows' as rows from control.ledger where kind = 'step_done'",
            "cold": "select class, workspace_id, month, table_name, manifest ->> 'rows' as rows"
            " from control.cold_files where deleted_at is null",
        }.items():
            rows = connection.execute(f"{query} order by 1, 2, 3".encode()).fetchall()
            found[name] = sorted(json.dumps(row, default=str, sort_keys=True) for row in rows)
    return {
        name: hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
        for name, value in found.items()
    }


def engine_of(home: Warehouse, table: str) -> str:
    """The engine of a table."""
    [row] = clickhouse.rows(
        home.settings,
        f"select engine from system.tables where concat(database, '.', name) = '{table}'",
    )
    return str(row["engine"])


def purge(home: Warehouse, killed_at: set[str], report: int, delay: float | None) -> None:
    """In a child: purge, and die at a boundary that is new, or after a while.

    Args:
        report: a file descriptor that hears of each boundary.
        delay: seconds to the random death; None lets it come to its end.
    """

    def note(line: str) -> None:
        if delay is not None and line not in killed_at:
            os.write(report, f"{line}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    if delay is not None:
        timer = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    try:
        retention.purge(home.settings, as_of=AS_OF, clock=now, gate=gate, note=note)
    except Exception as error:
        # A store that was killed along is no loss: the next run has to finish.
        os.write(report, f"!{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def run_child(home: Warehouse, killed_at: set[str], delay: float | None) -> tuple[int, str]:
    """Fork a purge: its exit code, negative for a signal, and what it said last."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        purge(home, killed_at, writer, delay)
    os.close(writer)
    with os.fdopen(reader, "rb") as heard:
        said = heard.read().decode().strip()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said


def kill_engine(home: Warehouse, name: str) -> None:
    """Kill an engine the hard way."""
    for state_of in engines.status(home.settings):
        if state_of.name == name and state_of.pid is not None:
            psutil.Process(state_of.pid).kill()


def start(home: Warehouse) -> None:
    """Start the engines; a port that somebody's connection took meanwhile comes free again."""
    for _ in range(20):
        if home.run("up", "--no-airflow", check=False).code == 0:
            return
        time.sleep(3)
    home.run("up", "--no-airflow")


def restored(base: Path, home: Warehouse) -> None:
    """Put the history back as it was, engines stopped before and started after."""
    home.run("down", "--no-airflow")
    shutil.rmtree(home.settings.home)
    shutil.copytree(base, home.settings.home, symlinks=True)
    start(home)


def main() -> int:
    """Run the rounds; 0 where nothing was lost."""
    parser = argparse.ArgumentParser(prog="make faults")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    # Children that are killed leave semaphores of their libraries behind, and are meant to.
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    chance = random.Random(arguments.seed)
    kills = lost = rounds = 0
    killed_at: set[str] = set()
    with new_home() as home:
        prepare(home)
        home.run("down", "--no-airflow")
        base = home.settings.home.with_name(home.settings.home.name + ".base")
        shutil.copytree(home.settings.home, base, symlinks=True)
        try:
            start(home)
            # What a purge needs, so that the children are born with it.
            importlib.import_module("great_expectations")
            importlib.import_module("dbt.cli.main")
            code, said = run_child(home, killed_at, None)
            assert code == 0, said
            undisturbed = state(home)
            assert not audit.audit(home.settings).findings
            while kills < arguments.kills:
                restored(base, home)
                rounds += 1
                while True:
                    began = time.monotonic()
                    delay = chance.uniform(0.05, 20.0) if kills < arguments.kills else None
                    code, said = run_child(home, killed_at, delay)
                    if code == -signal.SIGKILL:
                        kills += 1
                        where = said or f"after {time.monotonic() - began:.1f} s"
                        killed_at |= {said} - {""}
                        print(f"kill {kills}, round {rounds}: {where}", flush=True)
                        if not said and chance.randrange(ENGINE_KILLS) == 0:
                            name = chance.choice(["clickhouse", "postgres"])
                            kill_engine(home, name)
                            start(home)
                            print(f"        {name} with it", flush=True)
                        continue
                    if code != 0:
                        print(f"        round {rounds} failed: {said}", flush=True)
                        lost += 1
                    break
                final = state(home)
                differs = sorted(
                    name for name in undisturbed | final if undisturbed.get(name) != final.get(name)
                )
                findings = audit.audit(home.settings).findings
                if differs or findings:
                    lost += 1
                    print(f"        round {rounds} differs: {differs} {findings}", flush=True)
        finally:
            shutil.rmtree(base, ignore_errors=True)
    print(f"{rounds} rounds, {len(killed_at)} boundaries of steps died at")
    print(f"{kills} kills, {lost} lost")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
