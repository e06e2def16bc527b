"""What the command line and the DAGs run: each flow takes the warehouse's lock and its clock."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any, Protocol

from tidemark import build as building
from tidemark import load as loading
from tidemark import policy, postgres, reference
from tidemark.config import Settings
from tidemark.errors import TidemarkError
from tidemark.postgres import Connection

# Load, build and purge change the same tables, so one at a time holds this advisory lock.
_WAREHOUSE_LOCK = 0x7469_6466

Note = Callable[[str], None]


class Verdict(Protocol):
    """What a gate answers."""

    success: bool

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON, without a row of data."""
        ...


#: Ties out some days: settings, connection, days, as_of, now.
Gate = Callable[
    [Settings, Connection, frozenset[building.ScopeDay], date, datetime], Verdict
]


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did."""

    as_of: date
    #: (workspace, day) pairs touched.
    days: int
    models: tuple[building.ModelRun, ...]
    verdict: Verdict | None

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON document."""
        return {
            "as_of": self.as_of,
            "days": self.days,
            "models": [asdict(model) for model in self.models],
            "gate": self.verdict.as_dict() if self.verdict else None,
        }


@contextmanager
def warehouse(settings: Settings, note: Note = lambda _: None) -> Iterator[Connection]:
    """A connection that holds the warehouse's lock; it waits while another run holds it."""
    with postgres.connect(settings, autocommit=True) as connection:
        row = connection.execute(
            "select pg_try_advisory_lock(%s) as held", [_WAREHOUSE_LOCK]
        ).fetchone()
        if row is not None and not row["held"]:
            note("another load or build is running: waiting for it")
            connection.execute("select pg_advisory_lock(%s)", [_WAREHOUSE_LOCK])
        # Closing the connection lets the lock go, also when the process is killed.
        yield connection


def load(
    settings: Settings,
    *,
    as_of: date,
    now: datetime,
    sources: Sequence[str] = (),
    workspace: str | None = None,
    landing: str | None = None,
    retry: bool = False,
    note: Note = lambda _: None,
    track: loading.Track = lambda _total: lambda _bytes: None,
) -> loading.Report:
    """Load every landing file not loaded yet; see `load.run`."""
    with warehouse(settings, note) as connection:
        building.seed(settings)
        reference.refresh_geo(settings)
        building.sync_workspaces(settings, connection)
        return loading.run(
            settings,
            connection,
            as_of=as_of,
            now=now,
            sources=sources,
            workspace=workspace,
            landing=landing,
            retry=retry,
            track=track,
        )


def build(
    settings: Settings,
    *,
    as_of: date,
    clock: Callable[[], datetime],
    gate: Gate,
    from_date: date | None = None,
    to_date: date | None = None,
    note: Note = lambda _: None,
) -> BuildReport:
    """Recompute the touched days with dbt, then tie load, raw and marts out.

    Args:
        from_date, to_date: recompute the days of this range too, from raw.

    Raises:
        TidemarkError: dbt failed, or the gate found a difference; the days stay due.
    """
    ladder = policy.read(settings)
    with warehouse(settings, note) as connection:
        wanted = building.scope(connection, ladder, from_date, to_date)
        if not wanted.days:
            return BuildReport(as_of, 0, (), None)
        building.seed(settings)
        building.sync_workspaces(settings, connection)
        building.publish_windows(settings, connection, ladder)
        building.publish_scope(settings, wanted.days)
        build_id = building.start(connection, as_of, clock(), wanted)
        success = False
        try:
            models = building.dbt(settings, ["build", "--exclude-resource-type", "unit_test", "seed"])
            verdict = gate(settings, connection, wanted.days, as_of, clock())
            success = verdict.success
        finally:
            building.finish(connection, build_id, wanted, success, clock())
        pairs = {(day.workspace_id, day.local_date) for day in wanted.days}
        report = BuildReport(as_of, len(pairs), tuple(models), verdict)
        if not success:
            raise GateFailed(report)
        return report


class GateFailed(TidemarkError):
    """Load, raw and marts differ; `report` holds the verdict."""

    def __init__(self, report: BuildReport) -> None:
        assert report.verdict is not None
        self.report = report
        failures = report.verdict.as_dict().get("failures", [])
        first = "; ".join(str(failure) for failure in failures[:3])
        super().__init__(f"the gate failed: {first}")
