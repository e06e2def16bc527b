"""What the command line and the DAGs run: each flow takes the warehouse's lock and its clock."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from tidemark import build as building
from tidemark import (
    coverage,
    frozen,
    ladder_page,
    layers,
    ledger,
    policy,
    postgres,
    rebuild,
    reference,
)
from tidemark import load as loading
from tidemark.config import Settings
from tidemark.errors import Refused, TidemarkError, UsageError
from tidemark.frozen import Closed
from tidemark.keys import Keyring
from tidemark.postgres import Connection

# Load, build and purge change the same tables, so one at a time holds this advisory lock.
_WAREHOUSE_LOCK = 0x7469_6466

Note = Callable[[str], None]


class Verdict(Protocol):
    """What a gate answers."""

    @property
    def success(self) -> bool:
        """Whether everything tied out."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON, without a row of data."""
        ...


#: Ties out some days: settings, connection, days, as_of, now.
Gate = Callable[[Settings, Connection, frozenset[building.ScopeDay], date, datetime], Verdict]


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did."""

    as_of: date
    #: (workspace, day) pairs touched.
    days: int
    models: tuple[building.ModelRun, ...]
    verdict: Verdict | None
    #: What the range asked for and is purged: it was left as it is.
    closed: tuple[Closed, ...] = ()
    #: What became of the figures of purged days of the range that are recalled.
    recalled: tuple[rebuild.Rebuilt, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON document."""
        return {
            "as_of": self.as_of,
            "days": self.days,
            "models": [asdict(model) for model in self.models],
            "gate": self.verdict.as_dict() if self.verdict else None,
            "closed": [own.as_dict() for own in self.closed],
            "recalled": [own.as_dict() for own in self.recalled],
        }

    def check(self) -> None:
        """Raise TidemarkError where figures of recalled days could not be brought back."""
        lost = [str(own) for own in self.recalled if own.outcome == "lost"]
        if lost:
            raise TidemarkError(f"damaged figures were left as they are: {'; '.join(lost)}")


@contextmanager
def warehouse(
    settings: Settings, note: Note = lambda _: None, *, is_restore: bool = False
) -> Iterator[Connection]:
    """A connection that holds the warehouse's lock; it waits while another run holds it.

    Raises:
        Refused: a restore was begun and not finished, and this is not it.
    """
    with postgres.connect(settings, autocommit=True) as connection:
        row = connection.execute(
            "select pg_try_advisory_lock(%s) as held", [_WAREHOUSE_LOCK]
        ).fetchone()
        if row is not None and not row["held"]:
            note("another load or build is running: waiting for it")
            connection.execute("select pg_advisory_lock(%s)", [_WAREHOUSE_LOCK])
        if not is_restore:
            ledger.refuse_half_restored(settings)
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
        _before_load(settings, connection)
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


def _before_load(settings: Settings, connection: Connection) -> None:
    frozen.publish(settings, connection, policy.read(settings))
    building.seed(settings)
    reference.refresh_geo(settings)
    building.sync_workspaces(settings, connection)


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
        RangeClosed: days of the range are purged for some class and not recalled; what is not
            purged is rebuilt all the same.
        TidemarkError: dbt failed, or the gate found a difference; the days stay due.
    """
    with warehouse(settings, note) as connection:
        report = _build(settings, connection, as_of, clock, gate, from_date, to_date)
    report.check()
    if report.closed:
        raise RangeClosed(report.closed, report)
    return report


def _build(
    settings: Settings,
    connection: Connection,
    as_of: date,
    clock: Callable[[], datetime],
    gate: Gate,
    from_date: date | None = None,
    to_date: date | None = None,
) -> BuildReport:
    recalled = _recalled(settings, connection, from_date, to_date, as_of, clock)
    opened = _open(settings, connection, as_of, clock, from_date, to_date)
    if opened is None:
        closed = _closed(settings, connection, from_date, to_date, as_of)
        return BuildReport(as_of, 0, (), None, closed, recalled)
    build_id, wanted = opened
    success = False
    try:
        models = building.models(settings)
        verdict = gate(settings, connection, wanted.days, as_of, clock())
        success = verdict.success
    finally:
        building.finish(connection, build_id, wanted, success, clock())
    closed = _closed(settings, connection, from_date, to_date, as_of)
    told = _told(as_of, wanted, tuple(models), verdict)
    return replace(told, closed=closed, recalled=recalled)


def _recalled(
    settings: Settings,
    connection: Connection,
    from_date: date | None,
    to_date: date | None,
    as_of: date,
    clock: Callable[[], datetime],
) -> tuple[rebuild.Rebuilt, ...]:
    """The figures of a range's recalled days, before a build takes them from where they lie."""
    if from_date is None and to_date is None:
        return ()
    recalled = frozen.recalled(connection, from_date, to_date, as_of)
    # Who only builds may not read the ledger.
    if not recalled:
        return ()
    with ledger.kept_outside(settings, connection, clock):
        return rebuild.rebuild(
            settings, connection, policy.read(settings), recalled, from_date, clock()
        )


def _closed(
    settings: Settings,
    connection: Connection,
    from_date: date | None,
    to_date: date | None,
    as_of: date,
) -> tuple[Closed, ...]:
    if from_date is None and to_date is None:
        return ()
    return frozen.closed(connection, policy.read(settings), from_date, to_date, as_of)


def _open(
    settings: Settings,
    connection: Connection,
    as_of: date,
    clock: Callable[[], datetime],
    from_date: date | None,
    to_date: date | None,
) -> tuple[int, building.Scope] | None:
    """Publish what is to be built where dbt reads it; None where nothing is due."""
    ladder = policy.read(settings)
    coverage.check(settings, ladder)
    frozen.publish(settings, connection, ladder)
    wanted = building.scope(connection, ladder, from_date, to_date)
    if not wanted.days:
        return None
    building.seed(settings)
    building.sync_workspaces(settings, connection)
    building.publish_windows(settings, connection, ladder)
    building.publish_scope(settings, wanted.days)
    return building.start(connection, as_of, clock(), wanted), wanted


def _told(
    as_of: date,
    wanted: building.Scope,
    models: tuple[building.ModelRun, ...],
    verdict: Verdict,
) -> BuildReport:
    pairs = {(day.workspace_id, day.local_date) for day in wanted.days}
    report = BuildReport(as_of, len(pairs), models, verdict)
    if not verdict.success:
        raise GateFailed(report)
    return report


def is_due(settings: Settings) -> bool:
    """Whether a build would find days to recompute."""
    with postgres.connect(settings) as connection:
        return bool(building.scope(connection, policy.read(settings), None, None).days)


def open_build(
    settings: Settings,
    *,
    as_of: date,
    clock: Callable[[], datetime],
    from_date: date | None = None,
    to_date: date | None = None,
    note: Note = lambda _: None,
) -> int | None:
    """Begin a build that goes on with `build_layer` and ends with `close_build`.

    Between its parts the warehouse is free: a load may come in between, a newer build may take its
    days over; both are noticed.

    Returns:
        The build's number; None where nothing is due.
    """
    with warehouse(settings, note) as connection:
        for found in _recalled(settings, connection, from_date, to_date, as_of, clock):
            note(f"recalled: {found}")
        opened = _open(settings, connection, as_of, clock, from_date, to_date)
        closed = _closed(settings, connection, from_date, to_date, as_of)
    for own in closed:
        note(f"left as it is: {own}")
    return opened[0] if opened else None


def build_layer(
    settings: Settings,
    build_id: int,
    layer: layers.Layer,
    *,
    clock: Callable[[], datetime],
    note: Note = lambda _: None,
) -> layers.LayerReport:
    """Run what of a layer is not done yet; run again after a failure, it runs what failed.

    Raises:
        layers.Superseded: a newer build took over.
        TidemarkError: an earlier layer is not finished, or dbt failed.
    """
    with warehouse(settings, note) as connection:
        layers.check_open(connection, build_id)
        return layers.run(settings, connection, build_id, layer, clock)


def layer_nodes(settings: Settings, build_id: int, layer: layers.Layer) -> list[layers.NodeRun]:
    """What became of a layer's models and tests so far."""
    with postgres.connect(settings) as connection:
        return layers.recorded(connection, build_id, layer)


def close_build(
    settings: Settings,
    build_id: int,
    *,
    as_of: date,
    clock: Callable[[], datetime],
    gate: Gate,
    note: Note = lambda _: None,
) -> BuildReport:
    """Tie out a build whose layers are finished; one that a load overtook is built again first.

    Raises:
        layers.Superseded: a newer build took over.
        TidemarkError: a layer is not finished, or the gate found a difference; the days stay due.
    """
    with warehouse(settings, note) as connection:
        layers.check_open(connection, build_id)
        unfinished = layers.missing(connection, build_id)
        if unfinished:
            raise TidemarkError(
                f"layer {unfinished[0]} of build {build_id} is not finished: run it first"
            )
        built = building.published(settings, connection, build_id)
        now_due = building.scope(connection, policy.read(settings), None, None)
        if now_due.last_batch_id != built.last_batch_id:
            note("a load came in between: building its days and these again")
            return _build(settings, connection, as_of, clock, gate)
        success = False
        try:
            verdict = gate(settings, connection, built.days, as_of, clock())
            success = verdict.success
        finally:
            building.finish(connection, build_id, built, success, clock())
        return _told(as_of, built, (), verdict)


class GateFailed(TidemarkError):
    """Load, raw and marts differ; `report` holds the verdict."""

    def __init__(self, report: BuildReport) -> None:
        assert report.verdict is not None
        self.report = report
        verdict = report.verdict.as_dict()
        first = "; ".join(str(failure) for failure in verdict["failures"][:3])
        super().__init__(f"the gate failed: {first}; see {verdict['data_docs']}")


class RangeClosed(Refused):
    """Days of a range are purged; `report` tells what was done for the rest of it."""

    def __init__(self, closed: tuple[Closed, ...], report: "BuildReport | BackfillReport") -> None:
        self.report = report
        super().__init__(f"purged days stay as they are: {_listed(closed, 'months')}")


class FilesFailed(TidemarkError):
    """Files of a backfill could not be loaded; `report` tells what was done for the rest."""

    def __init__(self, report: "BackfillReport") -> None:
        self.report = report
        broken = [f"{file.file}: {file.error}" for file in report.load.files if file.error]
        said = f"{_listed(broken, 'files')}; the rest was loaded and rebuilt"
        if report.build.closed:
            said += f", but {RangeClosed(report.build.closed, report)}"
        super().__init__(said)


def _listed(things: Sequence[object], kind: str) -> str:
    more = f"; and {len(things) - 3} more {kind}" if len(things) > 3 else ""
    return "; ".join(map(str, things[:3])) + more


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """What a backfill loaded and rebuilt."""

    backfill_id: int
    from_date: date
    to_date: date
    reason: str
    load: loading.Report
    build: BuildReport

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON document."""
        return {
            "backfill_id": self.backfill_id,
            "from": self.from_date,
            "to": self.to_date,
            "reason": self.reason,
            "load": self.load.as_dict(),
            "build": self.build.as_dict(),
        }


def backfill(
    settings: Settings,
    *,
    from_date: date,
    to_date: date,
    reason: str,
    as_of: date,
    clock: Callable[[], datetime],
    gate: Gate,
    landing: str | None = None,
    note: Note = lambda _: None,
    track: loading.Track = lambda _total: lambda _bytes: None,
) -> BackfillReport:
    """Load what now stands in landing for a range of days, and rebuild the range from raw.

    A line of a day is delivered on that day or later, so files of older deliveries are left alone;
    lines that waited in quarantine for their time or workspace are read again. It is on record in
    `control.backfills` and on the ledger, also where a part of it was refused.

    Args:
        from_date, to_date: workspace days, both included.
        reason: why, for the record; it names nobody.

    Raises:
        UsageError: the range ends before it begins, or there is no reason.
        Refused: as_of lies in the future, or the reason holds what looks like an identifier.
        RangeClosed: days of the range are purged for some class and not recalled; what is not
            purged is loaded and rebuilt all the same.
        FilesFailed: a file could not be loaded.
        TidemarkError: a store does not answer, dbt failed, or the gate found a difference.
    """
    if to_date < from_date:
        raise UsageError(f"--to {to_date} lies before --from {from_date}")
    reason = ledger.checked_reason(reason)
    now = clock()
    policy.refuse_future(as_of, now)
    with (
        warehouse(settings, note) as connection,
        ledger.kept_outside(settings, connection, clock),
    ):
        closed = _closed(settings, connection, from_date, to_date, as_of)
        row = connection.execute(
            "insert into control.backfills (from_date, to_date, reason, as_of, started_at)"
            " values (%s, %s, %s, %s, %s) returning backfill_id",
            [from_date, to_date, reason, as_of, now],
        ).fetchone()
        assert row is not None
        backfill_id = int(row["backfill_id"])
        _before_load(settings, connection)
        note(f"loading what was delivered since {from_date}")
        load_report = loading.run(
            settings,
            connection,
            as_of=as_of,
            now=now,
            landing=landing,
            retry=True,
            # Days of the workspace begin up to 14 hours before those of UTC.
            delivered_from=from_date - timedelta(days=1),
            track=track,
        )
        note(f"rebuilding {from_date} to {to_date}")
        build_report = _build(settings, connection, as_of, clock, gate, from_date, to_date)
        totals = load_report.as_dict()
        with connection.transaction():
            connection.execute(
                "update control.backfills set finished_at = %s, files = %s, stored = %s,"
                " quarantined = %s, days = %s, closed = %s where backfill_id = %s",
                [
                    clock(), len(load_report.files), totals["stored"], totals["quarantined"],
                    build_report.days, len(closed), backfill_id,
                ],
            )  # fmt: skip
            ledger.append(
                connection,
                Keyring.from_settings(settings),
                "backfill",
                {
                    "backfill_id": backfill_id,
                    "from": from_date,
                    "to": to_date,
                    "reason": reason,
                    "files": len(load_report.files),
                    "stored": totals["stored"],
                    "quarantined": totals["quarantined"],
                    "days": build_report.days,
                    "closed": [own.as_dict() for own in closed],
                    "recalled": [own.as_dict() for own in build_report.recalled],
                },
                clock(),
            )
    report = BackfillReport(backfill_id, from_date, to_date, reason, load_report, build_report)
    if load_report.failed:
        raise FilesFailed(report)
    build_report.check()
    if build_report.closed:
        raise RangeClosed(build_report.closed, report)
    return report


def docs(settings: Settings) -> Path:
    """Write the dbt docs site as one page, and the ladder's page; the path of the first."""
    page = ladder_page.path(settings)
    # An installation may have come without its docs.
    page.parent.mkdir(exist_ok=True)
    page.write_text(ladder_page.render(policy.read(settings)), encoding="utf-8")
    building.dbt(settings, ["docs", "generate", "--static"])
    return settings.home / "dbt" / "target" / "static_index.html"
