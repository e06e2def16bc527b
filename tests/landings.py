"""Deliveries for the tests: files in a landing folder of one's own, and what became of them."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import zstandard

from homes import Warehouse
from tidemark import clickhouse, flows, policy, postgres, workspaces
from tidemark import load as loading

FIXTURES = Path(__file__).parent / "fixtures"
AS_OF = date(2026, 11, 20)
DAY = date(2026, 11, 19)

Line = dict[str, Any] | bytes | str

_numbers = count(1)


def fixture(source: str) -> list[dict[str, Any]]:
    """The small cases of a source, a fresh copy each time."""
    text = (FIXTURES / source / "lines.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def changed(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with some fields changed; a value of `...` takes the field away."""
    new = copy.deepcopy(document)
    for name, value in changes.items():
        if value is ...:
            new.pop(name, None)
        else:
            new[name] = value
    return new


def packed(lines: Iterable[Line], name: str = ".jsonl") -> bytes:
    """The bytes of a file of that name with these lines."""
    data = b"".join(
        (
            line
            if isinstance(line, bytes)
            else (line if isinstance(line, str) else json.dumps(line)).encode()
        )
        + b"\n"
        for line in lines
    )
    if name.endswith(".gz"):
        return gzip.compress(data, mtime=0)
    if name.endswith(".zst"):
        return zstandard.compress(data)
    return data


@dataclass
class Tenant:
    """A workspace with a landing folder of its own."""

    warehouse: Warehouse
    workspace_id: str
    landing: Path
    as_of: date = AS_OF
    #: What the newest load said.
    report: loading.Report = field(init=False)

    def deliver(
        self,
        source: str,
        lines: Iterable[Line] | None = None,
        *,
        data: bytes | None = None,
        name: str = "part.jsonl",
        day: date | str = DAY,
        workspace: str | None = None,
    ) -> Path:
        """Put a file into landing: of lines, or with these very bytes."""
        own = "_" if source == "fx_rates" else self.workspace_id
        path = self.landing / source / (workspace or own) / str(day) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed(lines or [], name) if data is None else data)
        return path

    def load(self, *, as_of: date | None = None, retry: bool = False) -> loading.Report:
        """Load what stands in landing and is not loaded yet."""
        as_of = as_of or self.as_of
        self.report = flows.load(
            self.warehouse.settings,
            as_of=as_of,
            now=datetime(as_of.year, as_of.month, as_of.day, 12, tzinfo=UTC),
            landing=str(self.landing),
            retry=retry,
        )
        return self.report

    def load_lines(self, source: str, lines: Sequence[Line], **where: Any) -> loading.Counts:
        """Deliver one file, load it, and give its counts."""
        self.deliver(source, lines, **where)
        report = self.load()
        assert len(report.files) == 1
        assert report.files[0].error is None
        return report.files[0].counts

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Rows of a query in which `{workspace}` stands for this workspace."""
        return clickhouse.rows(
            self.warehouse.settings, query.replace("{workspace}", f"'{self.workspace_id}'")
        )

    def table(self, table: str, order: str = "load_id, line_number") -> list[dict[str, Any]]:
        """This workspace's rows of a table."""
        return self.rows(
            f"select * from {table} where workspace_id = {{workspace}} order by {order}"
        )

    def quarantine(self) -> dict[int, str]:
        """Line number and reason of what is in quarantine; for one file."""
        return {row["line_number"]: row["reason"] for row in self.table("raw.quarantine")}

    def ledger(self, query: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows of a query to PostgreSQL."""
        with postgres.connect(self.warehouse.settings) as connection:
            return list(connection.execute(query, list(parameters)))

    def counts(self) -> list[dict[str, Any]]:
        """What the load ledger says of each file of this workspace, in the order of loading."""
        return self.ledger(
            "select lines, stored, duplicate, quarantined, refused, retryable from control.loads"
            " where workspace_id = %s and status = 'loaded' order by load_id",
            [self.workspace_id],
        )

    def assert_ties_out(self) -> None:
        """Hold the load ledger against raw: files against lines, days against rows."""
        assert self.counts(), "nothing was loaded"
        settings = self.warehouse.settings
        quarantined = self.rows(
            "select count() as n from raw.quarantine where workspace_id = {workspace}"
        )
        assert sum(row["quarantined"] for row in self.counts()) == quarantined[0]["n"]
        in_ledger = {
            (r["local_date"].isoformat(), r["measure"], r["currency"]): (
                r["events"],
                r["ids"],
                Decimal(r["money"]),
            )
            for r in self.ledger(
                "select local_date, measure, currency, sum(event_count)::bigint as events,"
                " sum(distinct_ids)::bigint as ids, sum(money) as money from control.load_days"
                " where workspace_id = %s group by 1, 2, 3"
                " having sum(event_count) <> 0 or sum(distinct_ids) <> 0 or sum(money) <> 0",
                [self.workspace_id],
            )
        }
        in_raw: dict[tuple[str, str, str], tuple[int, int, Decimal]] = {}
        for name in policy.read(settings).loaded:
            own = loading.effects(settings, name, lambda _table: "workspace_id = {workspace}")
            for measure, effects in own.items():
                for row in self.rows(
                    "select local_date, currency, count() as events, uniqExact(id) as ids,"
                    f" sum(money) as money from ({effects}) group by 1, 2"
                ):
                    in_raw[row["local_date"], measure, row["currency"]] = (
                        row["events"],
                        row["ids"],
                        Decimal(row["money"]),
                    )
        assert in_ledger == in_raw


def tenant(
    warehouse: Warehouse,
    landing: Path,
    *,
    timezone: str = "Europe/London",
    currency: str = "GBP",
    plan: str = "pro",
    revenue_source: str = "orders",
    workspace_id: str | None = None,
    exists: bool = True,
) -> Tenant:
    """A new workspace; with `exists=False` its name alone."""
    made = Tenant(warehouse, workspace_id or f"shop{next(_numbers)}", landing)
    if exists:
        add(made, timezone=timezone, currency=currency, plan=plan, revenue_source=revenue_source)
    return made


def add(
    wanted: Tenant,
    *,
    timezone: str = "Europe/London",
    currency: str = "GBP",
    plan: str = "pro",
    revenue_source: str = "orders",
) -> None:
    """Make a tenant's workspace."""
    settings = wanted.warehouse.settings
    with postgres.connect(settings) as connection:
        workspaces.add(
            connection,
            settings,
            workspaces.Workspace(wanted.workspace_id, timezone, currency, plan, revenue_source),
            datetime(2026, 1, 1, tzinfo=UTC),
        )
