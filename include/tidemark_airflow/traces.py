"""Airflow's own traces go by the ladder too: runs, messages between tasks, logs, failures."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pendulum
from airflow.configuration import initialize_config
from airflow.utils.db_cleanup import run_cleanup
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from tidemark import policy
from tidemark.config import Settings
from tidemark.errors import TidemarkError

CLASS = "airflow_traces"
#: What Airflow sets in a task's process, which is not to write into its database by itself.
_BLOCKED = ("AIRFLOW__CORE__SQL_ALCHEMY_CONN", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN")


def forget(settings: Settings, as_of: date) -> dict[str, Any]:
    """Delete what is past the window; how many files, and from which day on the rest is.

    The last scheduled run of each DAG stays in Airflow's database, which needs it to go on.

    Raises:
        TidemarkError: Airflow's database cannot be cleaned; the message says why.
    """
    cutoff = policy.read(settings).classes[CLASS].oldest_day(as_of)
    if cutoff is None:
        raise TidemarkError(f"{policy.path(settings)}: {CLASS} has no window")
    _clean_database(cutoff)
    # A file's last line decides: one that is still written to stays.
    files = [path for path in _files(settings.airflow / "logs") if _written(path) < cutoff]
    for path in files:
        path.unlink(missing_ok=True)
    _prune(settings.airflow / "logs")
    for path in settings.logs.glob("airflow-*.log"):
        _rotate(path, as_of, (as_of - cutoff) / 2)
    _forget_failures(settings.logs / "failures.jsonl", cutoff)
    return {"files": len(files), "from": cutoff.isoformat()}


def _clean_database(cutoff: date) -> None:
    # As `airflow db clean` does, without four seconds of a processor to start it.
    engine = create_engine(_database_url(), poolclass=NullPool)
    try:
        with Session(engine) as session:
            run_cleanup(
                clean_before_timestamp=pendulum.datetime(cutoff.year, cutoff.month, cutoff.day),
                confirm=False,
                skip_archive=True,
                error_on_cleanup_failure=True,
                session=session,
            )
    except (RuntimeError, SQLAlchemyError) as error:
        why = str(error).splitlines()[0]
        raise TidemarkError(f"Airflow's database cannot be cleaned: {why}") from error


def _database_url() -> str:
    """Where Airflow's processes find their database; a task is given settings that name none."""
    blocked = {name: os.environ.pop(name, None) for name in _BLOCKED}
    try:
        return str(initialize_config().get("database", "sql_alchemy_conn"))
    finally:
        os.environ.update({name: value for name, value in blocked.items() if value is not None})


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _written(path: Path) -> date:
    return datetime.fromtimestamp(path.stat().st_mtime).astimezone().date()


def _prune(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            # Not empty, or a task has just begun to write into it.
            with contextlib.suppress(OSError):
                path.rmdir()


def _rotate(path: Path, as_of: date, keep: timedelta) -> None:
    """Processes keep their log open for years: at half the window its text moves to a second file.

    Whatever was written before then goes with that file, at most a window later.
    """
    old = path.with_suffix(".log.1")
    mark = path.with_suffix(".log.since")
    since = date.fromisoformat(mark.read_text(encoding="ascii")) if mark.exists() else None
    if since is not None and as_of - since < keep:
        return
    if since is not None:
        old.write_bytes(path.read_bytes())
        old.chmod(0o600)
        with path.open("r+b") as file:
            file.truncate(0)
    mark.write_text(as_of.isoformat(), encoding="ascii")


def _forget_failures(path: Path, cutoff: date) -> None:
    if not path.exists():
        return
    with path.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lines = file.readlines()
        kept = [line for line in lines if json.loads(line)["at"][:10] >= cutoff.isoformat()]
        if len(kept) < len(lines):
            file.seek(0)
            file.writelines(kept)
            file.truncate()
