"""Building: dbt recomputes the days that loads have touched, and nothing else."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from psycopg.conninfo import conninfo_to_dict

from tidemark import availability, clickhouse, frozen, overrides, policy, postgres
from tidemark.config import Settings
from tidemark.errors import TidemarkError, UsageError
from tidemark.postgres import Connection

if TYPE_CHECKING:
    from dbt.cli.main import dbtRunnerResult
    from dbt.contracts.graph.manifest import Manifest

#: Which store dbt works on; None is the warehouse.
_Target = Literal["postgres"] | None

#: A rate serves its own day and up to this many days after it.
RATE_DAYS = 7
SEED_TABLES = ("currencies", "paid_mediums", "source_hosts", "source_rules")


@dataclass(frozen=True, slots=True)
class ScopeDay:
    """A day to recompute: of one workspace, for one measure group."""

    workspace_id: str
    measure_group: str
    local_date: date


@dataclass(frozen=True, slots=True)
class Scope:
    """What a build recomputes, and the last load batch it knows of."""

    days: frozenset[ScopeDay]
    last_batch_id: int


@dataclass(frozen=True, slots=True)
class ModelRun:
    """What became of one dbt node."""

    name: str
    status: str
    #: Seconds.
    seconds: float
    message: str
    #: dbt's id of it, unique in the project.
    node: str = ""


def scope(
    connection: Connection, ladder: policy.Policy, from_date: date | None, to_date: date | None
) -> Scope:
    """The days touched since the last build that held, and those of a range asked for.

    Purged days are none of them.

    Raises:
        UsageError: the range ends before it begins.
    """
    if from_date and to_date and to_date < from_date:
        raise UsageError(f"--to {to_date} lies before --from {from_date}")
    row = connection.execute(
        "select coalesce((select max(last_batch_id) from control.builds where success), 0) as done,"
        " coalesce((select max(batch_id) from control.load_batches where status = 'done'), 0)"
        " as last"
    ).fetchone()
    assert row is not None
    touched = connection.execute(
        "select distinct workspace_id, measure, local_date from control.touched_days"
        " where batch_id > %s and batch_id <= %s",
        [row["done"], row["last"]],
    ).fetchall()
    # A build that did not hold leaves its days due, also those that were asked for by name.
    touched += connection.execute(
        "select distinct days.workspace_id, days.measure, days.local_date"
        " from control.build_days inner join control.load_days as days"
        " using (workspace_id, local_date)"
        " where build_id > coalesce((select max(build_id) from control.builds where success), 0)"
    ).fetchall()
    if from_date or to_date:
        touched += connection.execute(
            "select distinct workspace_id, measure, local_date from control.load_days"
            " where local_date between %s and %s",
            [from_date or date.min, to_date or date.max],
        ).fetchall()
    days: set[ScopeDay] = set()
    rate_days: set[date] = set()
    for day in touched:
        group = ladder.measure_group(day["measure"])
        if group == "fx":
            rate_days |= {day["local_date"] + timedelta(days=n) for n in range(RATE_DAYS + 1)}
        else:
            days.add(ScopeDay(day["workspace_id"], group, day["local_date"]))
    if rate_days:
        # A new rate matters where money of another currency lies.
        for day in connection.execute(
            "select distinct workspace_id, measure, local_date from control.load_days"
            " inner join app.workspaces using (workspace_id)"
            " where local_date = any(%s) and load_days.currency not in ('', workspaces.currency)",
            [sorted(rate_days)],
        ):
            group = ladder.measure_group(day["measure"])
            days.add(ScopeDay(day["workspace_id"], group, day["local_date"]))
    # A purged day's figures stay as they are, whatever touches its neighbours or its rates.
    closed = frozen.groups(connection, ladder, ((day.workspace_id, day.local_date) for day in days))
    return Scope(
        frozenset(
            day
            for day in days
            if (day.workspace_id, day.measure_group, day.local_date) not in closed
        ),
        row["last"],
    )


def publish_scope(settings: Settings, days: frozenset[ScopeDay]) -> None:
    """Write the scope where dbt reads it: all of it or, if killed, what the rerun replaces."""
    clickhouse.execute(settings, "truncate table reference.build_scope")
    clickhouse.insert_rows(
        settings,
        "reference.build_scope",
        [
            {
                "workspace_id": day.workspace_id,
                "measure_group": day.measure_group,
                "local_date": day.local_date.isoformat(),
            }
            for day in days
        ],
    )


def published(settings: Settings, connection: Connection, build_id: int) -> Scope:
    """The scope of the build that was begun last, as dbt reads it."""
    row = connection.execute(
        "select scope_batch_id from control.builds where build_id = %s", [build_id]
    ).fetchone()
    assert row is not None
    days = clickhouse.rows(
        settings, "select workspace_id, measure_group, local_date from reference.build_scope"
    )
    return Scope(
        frozenset(
            ScopeDay(
                day["workspace_id"], day["measure_group"], date.fromisoformat(day["local_date"])
            )
            for day in days
        ),
        row["scope_batch_id"],
    )


def publish_windows(settings: Settings, connection: Connection, ladder: policy.Policy) -> None:
    """Write the windows, what figures need and the smallest cell where the marts read them."""
    tenants = [
        row["workspace_id"] for row in connection.execute("select workspace_id from app.workspaces")
    ]
    own = overrides.in_force(connection, ladder)
    for table, rows in (
        ("reference.windows", availability.windows(ladder, tenants, own)),
        ("reference.figures", availability.requirements(ladder)),
        ("reference.limits", [{"name": "k", "value": ladder.purge.k}]),
    ):
        clickhouse.execute(settings, f"truncate table {table}")
        clickhouse.insert_rows(settings, table, rows)


def sync_workspaces(settings: Settings, connection: Connection) -> None:
    """Copy the tenants to ClickHouse, where the load and the marts read them."""
    exponents = _exponents(settings)
    rows = [
        {**row, "currency_exponent": exponents[row["currency"]]}
        for row in connection.execute(
            "select workspace_id, timezone, currency, plan, revenue_source from app.workspaces"
            " where deleted_at is null order by workspace_id"
        )
    ]
    known = clickhouse.rows(
        settings,
        "select workspace_id, timezone, currency, plan, revenue_source, currency_exponent"
        " from reference.workspaces final order by workspace_id",
    )
    if known != rows:
        clickhouse.execute(settings, "truncate table reference.workspaces")
        clickhouse.insert_rows(settings, "reference.workspaces", rows)


def _exponents(settings: Settings) -> dict[str, int]:
    from tidemark import workspaces

    return workspaces.currencies(settings.dbt_project / "seeds" / "currencies.csv")


def seed(settings: Settings) -> bool:
    """Bring the seeds into ClickHouse where their files changed; whether they had."""
    applied = _Applied(settings, "seeds", [settings.dbt_project / "seeds"])
    tables = clickhouse.rows(
        settings, "select name from system.tables where database = 'reference'"
    )
    if applied.unchanged and {row["name"] for row in tables}.issuperset(SEED_TABLES):
        return False
    dbt(settings, ["seed"])
    topology = clickhouse.topology(settings)
    for table in SEED_TABLES:
        for statement in topology.synced(f"reference.{table}"):
            clickhouse.execute(settings, statement)
    for name in ("source_hosts_lookup", "paid_mediums_lookup", "currencies_lookup"):
        clickhouse.execute(
            settings, f"system reload dictionary{topology.on_cluster} reference.{name}"
        )
    applied.note()
    return True


def models(settings: Settings) -> list[ModelRun]:
    """Run dbt's models and data tests on the published scope.

    Views change with the project alone, so a build between two changes leaves them as they are,
    those of the operational store too.

    Raises:
        TidemarkError: a model or a test failed; the message names each with its error.
    """
    applied = _models_applied(settings)
    arguments = ["build", "--exclude-resource-type", "unit_test", "seed", "snapshot"]
    if applied.unchanged:
        # Cautious: else a test would be left out with the one view among its parents.
        arguments += [
            "--exclude", "config.materialized:view", "--indirect-selection", "cautious"
        ]  # fmt: skip
    else:
        # The operational store has views alone.
        dbt(settings, ["run"], target="postgres")
    runs = dbt(settings, arguments)
    applied.note()
    return runs


def models_unchanged(settings: Settings) -> bool:
    """Whether models and views stand as the dbt project says."""
    return _models_applied(settings).unchanged


def note_models(settings: Settings) -> None:
    """Remember the project as built, views too."""
    _models_applied(settings).note()


def _models_applied(settings: Settings) -> "_Applied":
    # Contracts depend on the types of what the models read, too.
    parts = [settings.dbt_project / name for name in ("models", "macros", "dbt_project.yml")]
    return _Applied(settings, "models", [*parts, settings.sql / "clickhouse"])


def _digest(parts: Sequence[Path]) -> str:
    """Of the names and bytes of some files and folders, SHA-256 in hex."""
    digest = hashlib.sha256()
    for root in parts:
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file():
                digest.update(str(path.relative_to(root.parent)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


class _Applied:
    """Whether some files and folders are as this home applied them last."""

    def __init__(self, settings: Settings, name: str, parts: Sequence[Path]) -> None:
        self._digest = _digest(parts)
        self._mark = settings.home / "dbt" / f"{name}.sha256"

    @property
    def unchanged(self) -> bool:
        """Whether nothing changed since `note`."""
        return self._mark.is_file() and self._mark.read_text(encoding="ascii") == self._digest

    def note(self) -> None:
        """Remember this state as applied."""
        self._mark.parent.mkdir(mode=0o700, exist_ok=True)
        self._mark.write_text(self._digest, encoding="ascii")


def dbt(
    settings: Settings,
    arguments: Sequence[str],
    *,
    target: _Target = None,
    finished: Callable[[ModelRun], None] | None = None,
) -> list[ModelRun]:
    """Run dbt in this process.

    Args:
        target: another store than the warehouse.
        finished: called with each node as it ends, from dbt's own threads.

    Returns:
        What became of each node.

    Raises:
        TidemarkError: a node failed; the message names each with its error.
    """

    said: list[str] = []

    def heard(event: Any) -> None:
        # A macro that was run alone is no node, and its error is told this way only.
        if event.info.name == "RunningOperationCaughtError":
            said.append(event.data.exc)
        if finished is not None and event.info.name == "NodeFinished":
            node, result = event.data.node_info, event.data.run_result
            finished(
                ModelRun(node.node_name, result.status, result.execution_time, "", node.unique_id)
            )

    outcome = _invoke(settings, arguments, target, parse(settings, target), heard)
    runs = [
        ModelRun(
            result.node.name,
            str(result.status),
            result.execution_time,
            str(result.message or ""),
            result.node.unique_id,
        )
        for result in getattr(outcome.result, "results", None) or []
        if hasattr(result, "node")
    ]
    if not outcome.success:
        broken = [run for run in runs if run.status in ("error", "fail", "runtime error")]
        text = "; ".join(f"{run.name}: {_first_lines(run.message)}" for run in broken)
        told = text or _first_lines("\n".join(said) or str(outcome.exception))
        raise TidemarkError(f"dbt {arguments[0]} failed: {told}")
    return runs


#: The project as dbt read it in this process, by what that depends on. In bytes: a command leaves
#: its marks in what it is given, so each is given its own.
_read: dict[str, bytes] = {}


def read_ahead(settings: Settings) -> None:
    """Read the dbt project, and compile its macros, for this process and each forked from it.

    Raises:
        TidemarkError: dbt cannot read it.
    """
    from dbt.adapters.factory import reset_adapters
    from dbt_common.clients.jinja import template_cache

    # A command compiles each macro that it calls, a quarter of its processor time. Of dbt's own
    # few are called.
    for macro in parse(settings).macros.values():
        if macro.package_name != "dbt":
            template_cache.get_node_template(macro)
    # The locks of an adapter are shared by the processes that inherit it. dbt leaves this untyped.
    reset_adapters()  # type: ignore[no-untyped-call]


def parse(settings: Settings, target: _Target = None) -> "Manifest":
    """The dbt project as dbt reads it, once in a process as long as it does not change.

    Raises:
        TidemarkError: dbt cannot read it.
    """
    from dbt.contracts.graph.manifest import Manifest
    from dbt.parser import manifest as reading

    key = _read_as(settings, target)
    if key not in _read:
        outcome = _invoke(settings, ["parse"], target, None, lambda _: None)
        if not outcome.success or outcome.result is None:
            raise TidemarkError(f"dbt parse failed: {_first_lines(str(outcome.exception))}")
        # As dbt itself keeps it between runs; it does not survive being pickled.
        found = cast("Manifest", outcome.result)
        _read[key] = found.to_msgpack(reading.extended_mashumaro_encoder)
    return Manifest.from_msgpack(_read[key], decoder=reading.extended_mashumuro_decoder)


def _read_as(settings: Settings, target: _Target) -> str:
    """What the project, as read, depends on: its files, the store, the topology's words in them."""
    words = json.dumps(clickhouse.topology(settings).words, sort_keys=True)
    return f"{_digest([settings.dbt_project])} {target} {words}"


def _invoke(
    settings: Settings,
    arguments: Sequence[str],
    target: _Target,
    manifest: "Manifest | None",
    heard: Callable[[Any], None],
) -> "dbtRunnerResult":
    from dbt.cli.main import dbtRunner

    folder = settings.home / "dbt"
    folder.mkdir(mode=0o700, exist_ok=True)
    options = [
        "--project-dir", str(settings.dbt_project),
        "--profiles-dir", str(settings.dbt_project),
        *(("--target", target) if target else ()),
        # What dbt keeps of its reading is of one store.
        "--target-path", str(folder / (f"target-{target}" if target else "target")),
        "--log-path", str(settings.logs / "dbt"),
        # The caller tells what failed; stdout is for its own document.
        "--log-level", "none", "--log-level-file", "debug",
        # Of dbt's files, only those of its docs are read by anybody: it writes these anyway.
        "--no-write-json",
        # A process forked from one that has parsed would wait for ever for this parser's threads.
        "--no-static-parser",
        "--cache-selected-only",
    ]  # fmt: skip
    # dbt's files are as closed as the rest of the home.
    umask = os.umask(0o077)
    try:
        with environment(settings):
            return dbtRunner(manifest, callbacks=[heard]).invoke([*arguments, *options])
    finally:
        os.umask(umask)


def _first_lines(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:4])


@contextmanager
def environment(settings: Settings) -> Iterator[None]:
    """The profile's variables; dbt keeps those with this prefix out of its logs."""
    warehouse = clickhouse.endpoint(settings)
    store = conninfo_to_dict(postgres.url(settings))
    wanted = {
        "TIDEMARK_CLICKHOUSE_HOST": warehouse.host,
        "TIDEMARK_CLICKHOUSE_PORT": str(warehouse.port),
        "TIDEMARK_CLICKHOUSE_SECURE": str(warehouse.secure),
        "TIDEMARK_CLICKHOUSE_USER": warehouse.user,
        "DBT_ENV_SECRET_CLICKHOUSE_PASSWORD": warehouse.password,
        "TIDEMARK_POSTGRES_HOST": str(store["host"]),
        "TIDEMARK_POSTGRES_PORT": str(store.get("port", 5432)),
        "TIDEMARK_POSTGRES_USER": str(store["user"]),
        "TIDEMARK_POSTGRES_DATABASE": str(store["dbname"]),
        "DBT_ENV_SECRET_POSTGRES_PASSWORD": str(store.get("password", "")),
        "TIDEMARK_CONTRACTS": "held" if models_unchanged(settings) else "ask",
        **clickhouse.topology(settings).words,
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def start(connection: Connection, as_of: date, now: datetime, wanted: Scope) -> int:
    """Record that a build begins; its number."""
    with connection.transaction():
        row = connection.execute(
            "insert into control.builds (started_at, as_of, from_date, to_date, scope_batch_id)"
            " values (%s, %s, %s, %s, %s) returning build_id",
            [
                now,
                as_of,
                min((day.local_date for day in wanted.days), default=None),
                max((day.local_date for day in wanted.days), default=None),
                wanted.last_batch_id,
            ],
        ).fetchone()
        assert row is not None
        with connection.cursor() as cursor:
            cursor.executemany(
                "insert into control.build_days (build_id, workspace_id, local_date)"
                " values (%s, %s, %s) on conflict do nothing",
                [(row["build_id"], day.workspace_id, day.local_date) for day in wanted.days],
            )
    return int(row["build_id"])


def finish(
    connection: Connection, build_id: int, wanted: Scope, success: bool, now: datetime
) -> None:
    """Record how a build ended; one that held moves the mark up to which loads are built."""
    with connection.transaction():
        connection.execute(
            "update control.builds set finished_at = %s, success = %s, last_batch_id = %s"
            " where build_id = %s",
            [now, success, wanted.last_batch_id if success else None, build_id],
        )
