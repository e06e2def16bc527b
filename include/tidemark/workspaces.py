"""Tenants: what is fixed about them when they are made."""

import csv
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

from tidemark.config import Settings
from tidemark.errors import Refused, UsageError
from tidemark.keys import Keyring
from tidemark.postgres import Connection

PLANS = ("starter", "growth", "pro", "scale", "enterprise", "platform")
REVENUE_SOURCES = ("orders", "payments")

#: What an id of a workspace looks like.
ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)


class UnknownWorkspace(UsageError):
    """There is no workspace of that id."""

    def __init__(self, workspace_id: str) -> None:
        super().__init__(f"no workspace {workspace_id}; `tidemark workspace list` names them")


@dataclass(frozen=True, slots=True)
class Workspace:
    """A tenant; its timezone and currency never change."""

    workspace_id: str
    timezone: str
    currency: str
    plan: str
    revenue_source: str = "orders"

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def check(workspace: Workspace, settings: Settings) -> None:
    """Check a workspace before it is made.

    Raises:
        UsageError: a value is not one that Tidemark knows; the message names it.
    """
    if not ID.fullmatch(workspace.workspace_id):
        raise UsageError(
            f"workspace id {workspace.workspace_id!r} must be 1 to 63 of a-z, 0-9, _ and -,"
            " beginning with a letter or digit"
        )
    if workspace.timezone not in available_timezones():
        raise UsageError(
            f"timezone {workspace.timezone!r} is not in the IANA database, like Europe/Berlin"
        )
    if workspace.currency not in currencies(settings.dbt_project / "seeds" / "currencies.csv"):
        raise UsageError(f"currency {workspace.currency!r} is not an ISO 4217 code, like EUR")
    if workspace.plan not in PLANS:
        raise UsageError(f"plan {workspace.plan!r} is not one of {', '.join(PLANS)}")
    if workspace.revenue_source not in REVENUE_SOURCES:
        raise UsageError(
            f"revenue source {workspace.revenue_source!r} is not one of"
            f" {', '.join(REVENUE_SOURCES)}"
        )


@cache
def currencies(seed: Path) -> dict[str, int]:
    """ISO 4217 codes and the decimal places of their minor unit, from the dbt seed."""
    with seed.open(encoding="utf-8", newline="") as file:
        return {row["code"]: int(row["exponent"]) for row in csv.DictReader(file)}


def add(connection: Connection, settings: Settings, workspace: Workspace, now: datetime) -> bool:
    """Make a workspace and the key behind its pseudonyms, in the caller's transaction.

    Returns:
        Whether it is new; the same workspace again is fine.

    Raises:
        UsageError: a value is not one that Tidemark knows.
        Refused: a workspace of this id exists with other values.
    """
    check(workspace, settings)
    made = connection.execute(
        "insert into app.workspaces"
        " (workspace_id, timezone, currency, plan, revenue_source, created_at)"
        " values (%(workspace_id)s, %(timezone)s, %(currency)s, %(plan)s, %(revenue_source)s,"
        " %(now)s) on conflict (workspace_id) do nothing",
        {**workspace.as_dict(), "now": now},
    ).rowcount
    if not made:
        row = connection.execute(
            "select workspace_id, timezone, currency, plan, revenue_source from app.workspaces"
            " where workspace_id = %s",
            [workspace.workspace_id],
        ).fetchone()
        assert row is not None
        found = Workspace(**row)
        other = [
            f"{name} {value}"
            for name, value in found.as_dict().items()
            if value != workspace.as_dict()[name]
        ]
        if other:
            raise Refused(
                f"workspace {workspace.workspace_id} exists with {', '.join(other)};"
                " timezone and currency never change"
            )
    Keyring.from_settings(settings).create_key(connection, workspace.workspace_id, "pseudonym", now)
    return bool(made)


def list_all(connection: Connection) -> list[dict[str, Any]]:
    """Every workspace with its times, deleted ones included, by id."""
    return connection.execute(
        "select workspace_id, timezone, currency, plan, revenue_source, created_at, cancelled_at,"
        " deleted_at from app.workspaces order by workspace_id"
    ).fetchall()
