"""Days whose raw rows are purged: nothing rebuilds them, and whoever asks is told what stands."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from tidemark import clickhouse
from tidemark.config import Settings
from tidemark.policy import Policy
from tidemark.postgres import Connection


@dataclass(frozen=True, slots=True)
class Closed:
    """Purged days of one class in one workspace, within one month."""

    data_class: str
    workspace_id: str
    #: First day of it.
    month: date
    first_day: date
    last_day: date
    days: int
    #: Whether its rows lie in cold files, from which they can be recalled.
    is_cold: bool

    def __str__(self) -> str:
        way = (
            f"tidemark recall {self.data_class} --workspace {self.workspace_id}"
            f" --month {self.month:%Y-%m}"
            if self.is_cold
            else "no cold copy is kept"
        )
        return (
            f"{self.data_class} of workspace {self.workspace_id} is purged from {self.first_day}"
            f" to {self.last_day} ({way})"
        )

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        own = asdict(self)
        return {"class" if name == "data_class" else name: value for name, value in own.items()}


#: Whether a purged day's month was brought back and its time is not over, removed yet or not.
_RECALLED = (
    "exists (select from control.recalls where recalls.class = purged.class"
    " and recalls.workspace_id = purged.workspace_id"
    " and recalls.month = date_trunc('month', purged.local_date)::date"
    " and recalls.recalled_at is not null and recalls.removed_at is null"
    " and recalls.expires_on > %s)"
)


def closed(
    connection: Connection,
    ladder: Policy,
    from_date: date | None,
    to_date: date | None,
    as_of: date,
) -> tuple[Closed, ...]:
    """The purged days of a range that are not recalled, by class, workspace and month.

    Args:
        from_date, to_date: both ends belong to it; None has no end on that side.
        as_of: the day by which a recall has expired or not.
    """
    rows = connection.execute(
        "select purged.class, purged.workspace_id,"
        " date_trunc('month', purged.local_date)::date as month,"
        " min(purged.local_date) as first_day, max(purged.local_date) as last_day,"
        " count(*) as days from control.purge_ledger as purged"
        " where purged.local_date between %s and %s and purged.class = any(%s)"
        f" and not {_RECALLED} group by 1, 2, 3 order by 1, 2, 3",
        [
            from_date or date.min,
            to_date or date.max,
            [name for name, own in ladder.classes.items() if own.measures],
            as_of,
        ],
    )
    return tuple(
        Closed(
            row["class"],
            row["workspace_id"],
            row["month"],
            row["first_day"],
            row["last_day"],
            row["days"],
            "cold" in ladder.classes[row["class"]].expiry,
        )
        for row in rows
    )


def recalled(
    connection: Connection, from_date: date | None, to_date: date | None, as_of: date
) -> tuple[tuple[str, str, date], ...]:
    """The class, workspace and month of purged days of a range that are recalled; see `closed`."""
    rows = connection.execute(
        "select distinct purged.class, purged.workspace_id,"
        " date_trunc('month', purged.local_date)::date as month"
        f" from control.purge_ledger as purged where purged.local_date between %s and %s"
        f" and {_RECALLED} order by 1, 2, 3",
        [from_date or date.min, to_date or date.max, as_of],
    )
    return tuple((row["class"], row["workspace_id"], row["month"]) for row in rows)


def publish(settings: Settings, connection: Connection, ladder: Policy) -> None:
    """Close every purged day where load and dbt look for it.

    The purge does so itself; one that was killed between the two stores, or a store that came back
    from a backup, must not leave a day open that the ledger has closed.
    """
    known = {
        (row["workspace_id"], row["measure_group"]): int(row["days"])
        for row in clickhouse.rows(
            settings,
            "select workspace_id, measure_group, uniqExact(local_date) as days"
            " from retention.frozen_days group by workspace_id, measure_group",
        )
    }
    for row in connection.execute(
        "select class, workspace_id, count(*) as days from control.purge_ledger group by 1, 2"
    ).fetchall():
        own = ladder.closed_groups(row["class"])
        if all(known.get((row["workspace_id"], group), 0) >= row["days"] for group in own):
            continue
        days = connection.execute(
            "select local_date from control.purge_ledger where class = %s and workspace_id = %s",
            [row["class"], row["workspace_id"]],
        ).fetchall()
        clickhouse.insert_rows(
            settings,
            "retention.frozen_days",
            [
                {
                    "workspace_id": row["workspace_id"],
                    "measure_group": group,
                    "local_date": day["local_date"].isoformat(),
                }
                for day in days
                for group in own
            ],
        )


def groups(
    connection: Connection, ladder: Policy, days: Iterable[tuple[str, date]]
) -> set[tuple[str, str, date]]:
    """The workspaces, measure groups and days that are closed for ever among these days."""
    pairs = sorted(set(days))
    found = set()
    for row in connection.execute(
        "select class, workspace_id, local_date from control.purge_ledger"
        " where (workspace_id, local_date) in (select * from unnest(%s::text[], %s::date[]))",
        [[workspace_id for workspace_id, _ in pairs], [day for _, day in pairs]],
    ):
        own = ladder.closed_groups(row["class"])
        found |= {(row["workspace_id"], group, row["local_date"]) for group in own}
    return found
