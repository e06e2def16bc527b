"""What was destroyed, when and on what proof, and whether the evidence is as it was written."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg

from tidemark import clickhouse, cold, exports, ledger, policy, postgres, purge
from tidemark import plan as planning
from tidemark.config import Settings
from tidemark.ledger import Finding
from tidemark.postgres import Connection

# Every workspace and day that the chain says is closed: those of the ranges of a step.
_CHAINED_DAYS = """
    select distinct
        begun.document -> 'step' ->> 'data_class' as class,
        part.range ->> 'workspace_id' as workspace_id,
        days.day::date as local_date,
        exists (
            select from control.ledger as done
            where done.kind = 'step_done'
                and done.document ->> 'step_id' = begun.document -> 'step' ->> 'step_id'
        ) as is_done
    from control.ledger as begun
    cross join lateral jsonb_array_elements(begun.document -> 'step' -> 'ranges') as part (range)
    cross join lateral generate_series(
        (begun.document -> 'step' ->> 'month')::timestamp,
        least(
            (part.range ->> 'cutoff')::timestamp,
            (begun.document -> 'step' ->> 'month')::timestamp + interval '1 month'
        ) - interval '1 day',
        interval '1 day'
    ) as days (day)
    where begun.kind = 'step_begun'
        and begun.document -> 'step' ->> 'data_class' = any(%(classes)s)
"""

# The first of each class and workspace is enough to act on.
_DIFFERING_DAYS = f"""
    with chained as (
        select class, workspace_id, local_date from ({_CHAINED_DAYS}) as days
    ), kept as (
        select class, workspace_id, local_date from control.purge_ledger
    ), differing as (
        select *, true as is_chained from (table chained except table kept) as missing
        union all
        select *, false from (table kept except table chained) as unknown
    )
    select class, workspace_id, is_chained, count(*) as days, min(local_date) as first_day
    from differing
    group by class, workspace_id, is_chained
    order by class, workspace_id, is_chained
"""  # noqa: S608

# A month's days as bits: exact, and few rows however many workspaces there are.
_CHAINED_MONTHS = f"""
    select class, workspace_id, date_trunc('month', local_date)::date as month,
        bit_or(1 << (extract(day from local_date)::int - 1)) as begun,
        coalesce(
            bit_or(1 << (extract(day from local_date)::int - 1)) filter (where is_done), 0
        ) as done
    from ({_CHAINED_DAYS}) as days
    group by class, workspace_id, month
"""  # noqa: S608

# Where an entry that counted rows in control.purged_rows has what it did.
_STEPS = {"step_begun": "step", "erasure_begun": "removal"}

_FROZEN_MONTHS = """
    select workspace_id, measure_group, toStartOfMonth(local_date) as month,
        groupBitOr(bitShiftLeft(toUInt32(1), toDayOfMonth(local_date) - 1)) as days
    from retention.frozen_days
    group by workspace_id, measure_group, month
"""


@dataclass(frozen=True, slots=True)
class Destroyed:
    """A step that a purge began, with the proof it was let through on."""

    entry_id: int
    step_id: str
    plan_id: str
    data_class: str
    month: date
    first_day: date
    last_day: date
    workspaces: tuple[str, ...]
    rows: int
    #: By measure and currency.
    money: Mapping[str, Mapping[str, Decimal]]
    verdict_id: int
    validation_result_id: str
    begun_at: datetime
    #: None: a run was killed in it, and the next one finishes it.
    done_at: datetime | None

    def money_text(self) -> str:
        """The money in one line."""
        return ", ".join(
            f"{measure} {amount.normalize():f} {currency}"
            for measure, amounts in self.money.items()
            for currency, amount in amounts.items()
        )


@dataclass(frozen=True, slots=True)
class Expired:
    """A copy whose time was over: a cold file, a month that was recalled, or an export."""

    entry_id: int
    #: Of the policy: `cold_files`, `recalled` or `exports`.
    data_class: str
    #: Its number in `control.cold_files`, `control.recalls` or `control.requests`.
    number: int
    #: The class the rows were of.
    of_class: str
    workspace_id: str
    month: date
    rows: int
    begun_at: datetime
    #: None: a run was killed in it, and the next one finishes it.
    done_at: datetime | None


@dataclass(frozen=True, slots=True)
class Erased:
    """Rows of a person that a request took out of one class."""

    entry_id: int
    #: Of the request.
    code: str
    data_class: str
    #: By table, copies and what was made of them too.
    tables: Mapping[str, int]
    begun_at: datetime
    #: None: a run was killed in it, and carrying the request out again finishes it.
    done_at: datetime | None


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found."""

    entries: int
    head: str
    destroyed: tuple[Destroyed, ...]
    expired: tuple[Expired, ...]
    findings: tuple[Finding, ...]
    erased: tuple[Erased, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The audit as one JSON document."""
        return {
            "entries": self.entries,
            "head": self.head,
            "destroyed": [asdict(step) for step in self.destroyed],
            "expired": [asdict(own) for own in self.expired],
            "erased": [asdict(own) for own in self.erased],
            "findings": [
                {"entry_id": finding.entry_id, "problem": finding.problem}
                for finding in self.findings
            ],
        }


def audit(settings: Settings) -> Audit:
    """Verify the ledger, and hold every table that follows from it against it.

    Raises:
        TidemarkError: a store does not answer.
    """
    ladder = policy.read(settings)
    # Before the records are read, which are there before a file is.
    files, folders = cold.standing(settings), exports.standing(settings)
    with postgres.connect(settings) as connection:
        connection.execute("set transaction isolation level repeatable read, read only")
        findings = list(ledger.verify(settings, connection))
        try:
            entries = [
                entry for entry in ledger.stored(connection) if isinstance(entry, ledger.Entry)
            ]
            findings += _emergency_writes(connection, entries)
            findings += _evidence(connection, entries)
            findings += _purge_ledger(connection, ladder)
            findings += _frozen_days(settings, connection, ladder)
            destroyed = tuple(_destroyed(entries, _money(connection)))
            expired = tuple(_expired(entries))
            findings += _deleted(connection, expired)
            for path in cold.unknown(settings, connection, files):
                findings.append(
                    Finding(None, f"cold file {path} is in no record: nobody deletes it")
                )
            for code in exports.unknown(settings, connection, folders):
                findings.append(Finding(None, f"export {code} is in no record: nobody deletes it"))
            erased = tuple(_erased(entries))
            findings += _verdicts(connection, destroyed)
            findings += _figures(settings, connection, ladder, entries)
        except (psycopg.Error, KeyError, TypeError, ValueError) as error:
            # Behind a chain that was tampered with anything may follow; else it is our fault.
            if not findings:
                raise
            findings.append(Finding(None, f"the rest was not compared: {type(error).__name__}"))
            return Audit(0, ledger.GENESIS, (), (), tuple(findings))
    return Audit(len(entries), _head(entries), destroyed, expired, tuple(findings), erased)


def audit_file(settings: Settings, file: Path, public_key: Path | None = None) -> Audit:
    """Verify an export of the ledger without its database, against this home's copied heads.

    Args:
        public_key: PEM; by default this home's, and with another's no head is compared.

    Raises:
        TidemarkError: the file or the key cannot be read.
    """
    heads = ledger.read_heads(settings) if public_key is None else ()
    key = ledger.read_public_key(public_key or ledger.public_key_path(settings))
    read = list(ledger.read_export(file))
    findings = (
        (heads,) if isinstance(heads, Finding) else tuple(ledger.verify_entries(read, key, heads))
    )
    entries = [entry for entry in read if isinstance(entry, ledger.Entry)]
    try:
        destroyed, expired = tuple(_destroyed(entries, {})), tuple(_expired(entries))
        erased = tuple(_erased(entries))
    except (KeyError, TypeError, ValueError):
        if not findings:
            raise
        destroyed, expired, erased = (), (), ()
    return Audit(len(entries), _head(entries), destroyed, expired, findings, erased)


def _head(entries: list[ledger.Entry]) -> str:
    return entries[-1].hash if entries else ledger.GENESIS


def _money(connection: Connection) -> dict[str, dict[str, dict[str, Decimal]]]:
    money: dict[str, dict[str, dict[str, Decimal]]] = {}
    for row in connection.execute(
        "select step_id, measure, currency, sum(money) as money from control.purged_rows"
        " where money <> 0 group by step_id, measure, currency order by measure, currency"
    ):
        by_measure = money.setdefault(row["step_id"], {}).setdefault(row["measure"], {})
        by_measure[row["currency"]] = row["money"]
    return money


def _destroyed(
    entries: list[ledger.Entry], money: Mapping[str, Mapping[str, Mapping[str, Decimal]]]
) -> Iterator[Destroyed]:
    done_at = {
        entry.document["step_id"]: entry.at for entry in entries if entry.kind == "step_done"
    }
    for entry in entries:
        if entry.kind != "step_begun":
            continue
        step = planning.step_from_dict(entry.document["step"])
        yield Destroyed(
            entry_id=entry.entry_id,
            step_id=step.step_id,
            plan_id=entry.document["plan_id"],
            data_class=step.data_class,
            month=step.month,
            first_day=step.first_day,
            last_day=step.last_day,
            workspaces=step.workspaces,
            rows=step.rows,
            money=money.get(step.step_id, {}),
            verdict_id=entry.document["verdict"]["verdict_id"],
            validation_result_id=entry.document["verdict"]["validation_result_id"],
            begun_at=entry.at,
            done_at=done_at.get(step.step_id),
        )


def _expired(entries: list[ledger.Entry]) -> Iterator[Expired]:
    done_at = {
        (entry.document["data_class"], entry.document["number"]): entry.at
        for entry in entries
        if entry.kind == "expiry_done"
    }
    for entry in entries:
        if entry.kind == "expiry_begun":
            own = entry.document
            yield Expired(
                entry_id=entry.entry_id,
                data_class=own["data_class"],
                number=own["number"],
                of_class=own["of_class"],
                workspace_id=own["workspace_id"],
                month=date.fromisoformat(own["month"]),
                rows=own["rows"],
                begun_at=entry.at,
                done_at=done_at.get((own["data_class"], own["number"])),
            )


def _erased(entries: list[ledger.Entry]) -> Iterator[Erased]:
    done_at = {
        entry.document["step_id"]: entry.at for entry in entries if entry.kind == "erasure_done"
    }
    for entry in entries:
        if entry.kind == "erasure_begun":
            own = entry.document
            yield Erased(
                entry_id=entry.entry_id,
                code=own["code"],
                data_class=own["class"],
                tables=own["tables"],
                begun_at=entry.at,
                done_at=done_at.get(own["removal"]["step_id"]),
            )


def _deleted(connection: Connection, expired: tuple[Expired, ...]) -> Iterator[Finding]:
    for name, what, numbers in (
        ("cold_files", "cold file", "select cold_id as number from control.cold_files"),
        ("exports", "export", "select request_id as number from control.requests"),
    ):
        deleted = {
            row["number"] for row in connection.execute(f"{numbers} where deleted_at is not null")
        }
        entered = {own.number: own for own in expired if own.data_class == name}
        for number in sorted(deleted - entered.keys()):
            yield Finding(None, f"{what} {number} was deleted, which is in no entry")
        for number, own in sorted(entered.items()):
            if own.done_at is not None and number not in deleted:
                yield Finding(own.entry_id, f"{what} {number} is not marked as deleted any more")


def _emergency_writes(connection: Connection, entries: list[ledger.Entry]) -> Iterator[Finding]:
    told = ("id", "store", "statement_kind", "query_sha256")
    rows = {
        row["id"]: row
        for row in connection.execute(
            "select id, store, statement_kind, query_sha256, success from control.emergency_writes"
        )
    }
    begun = {
        entry.document["id"]: entry for entry in entries if entry.kind == "emergency_write_begun"
    }
    done = {
        entry.document["id"]: entry.document["success"]
        for entry in entries
        if entry.kind == "emergency_write_done"
    }
    for number in sorted(rows.keys() | begun.keys()):
        row, entry = rows.get(number), begun.get(number)
        where = f"row {number} of control.emergency_writes"
        if entry is None:
            yield Finding(None, f"{where} is in no entry")
        elif row is None:
            yield Finding(entry.entry_id, f"{where} is gone")
        elif any(row[name] != entry.document[name] for name in told) or row["success"] != done.get(
            number
        ):
            yield Finding(entry.entry_id, f"{where} was changed")


def _evidence(connection: Connection, entries: list[ledger.Entry]) -> Iterator[Finding]:
    kept = ledger.evidence(connection)
    for entry in entries:
        if entry.kind not in _STEPS:
            continue
        told = entry.document["evidence"]
        found = kept.pop(entry.document[_STEPS[entry.kind]]["step_id"], {})
        for table in sorted(told.keys() | found.keys()):
            if told.get(table) != found.get(table):
                yield Finding(entry.entry_id, f"{table} is not what it was when its step began")
    for step_id, tables in sorted(kept.items()):
        for table in tables:
            yield Finding(None, f"{table} has rows of a step in no entry: {step_id}")


def _figures(
    settings: Settings,
    connection: Connection,
    ladder: policy.Policy,
    entries: list[ledger.Entry],
) -> Iterator[Finding]:
    """Whether a figure of a purged day changed, in its mart or in the cold copy of it."""
    done = {entry.document["step_id"] for entry in entries if entry.kind == "step_done"}
    steps = [
        (entry, planning.step_from_dict(entry.document["step"]))
        for entry in entries
        if entry.kind == "step_begun" and entry.document["step"]["step_id"] in done
    ]
    tiered: set[tuple[str, str, date]] = set()
    for entry, step in steps:
        tables = {target.table for target in step.targets if target.table.startswith("marts.")}
        if not tables:
            continue
        tiered |= {(table, own, step.month) for table in tables for own in step.workspaces}
        files = [
            file
            for own in step.workspaces
            for file in cold.sealed(connection, step.data_class, own, step.month)
        ]
        for read in cold.check(settings, files):
            for failure in read.failures:
                yield Finding(entry.entry_id, f"{read.path}: {failure}")
    for entry, step in steps:
        now = purge.aggregates(settings, connection, ladder, step)
        for table, workspaces in entry.document["aggregates"].items():
            for workspace_id, digest in workspaces.items():
                if (table, workspace_id, step.month) in tiered:
                    continue
                if now.get(table, {}).get(workspace_id) != digest:
                    yield Finding(
                        entry.entry_id,
                        f"figures of {table} changed for workspace {workspace_id}"
                        f" in {step.month:%Y-%m} after {step.data_class} was purged",
                    )


def _purge_ledger(connection: Connection, ladder: policy.Policy) -> Iterator[Finding]:
    classes = [name for name in ladder.classes if ladder.closed_groups(name)]
    for row in connection.execute(_DIFFERING_DAYS.encode(), {"classes": classes}):
        problem = "is missing in" if row["is_chained"] else "is in no entry, but in"
        yield Finding(
            None,
            f"{row['class']} of workspace {row['workspace_id']} {problem} control.purge_ledger"
            f" on {row['days']} days from {row['first_day']} on",
        )


def _frozen_days(
    settings: Settings, connection: Connection, ladder: policy.Policy
) -> Iterator[Finding]:
    groups = {name: ladder.closed_groups(name) for name in ladder.classes}
    begun: dict[tuple[str, str, str], int] = {}
    done: dict[tuple[str, str, str], int] = {}
    for row in connection.execute(
        _CHAINED_MONTHS.encode(), {"classes": [name for name in groups if groups[name]]}
    ):
        for group in groups[row["class"]]:
            key = (row["workspace_id"], group, row["month"].isoformat())
            begun[key] = begun.get(key, 0) | row["begun"]
            done[key] = done.get(key, 0) | row["done"]
    frozen = {
        (row["workspace_id"], row["measure_group"], row["month"]): int(row["days"])
        for row in clickhouse.rows(settings, _FROZEN_MONTHS)
    }
    for key in sorted(begun.keys() | frozen.keys()):
        workspace_id, group, month = key
        found = frozen.get(key, 0)
        where = f"{group} of workspace {workspace_id} in {month[:7]}"
        # A killed run has begun a step and may not have come to freezing its days.
        if done.get(key, 0) & ~found:
            yield Finding(None, f"{where}: purged days are missing in retention.frozen_days")
        if found & ~begun.get(key, 0):
            yield Finding(None, f"{where}: days of retention.frozen_days are in no entry")


def _verdicts(connection: Connection, destroyed: tuple[Destroyed, ...]) -> Iterator[Finding]:
    verdicts = {
        row["verdict_id"]: row
        for row in connection.execute(
            "select verdict_id, plan_id, class, success, validation_result_id"
            " from control.verdicts where plan_id is not null"
        )
    }
    for step in destroyed:
        row = verdicts.get(step.verdict_id)
        if row is None:
            yield Finding(step.entry_id, f"verdict {step.verdict_id} is gone")
        elif not row["success"] or (
            (row["plan_id"], row["class"], row["validation_result_id"])
            != (step.plan_id, step.data_class, step.validation_result_id)
        ):
            yield Finding(step.entry_id, f"verdict {step.verdict_id} is not what let it through")
