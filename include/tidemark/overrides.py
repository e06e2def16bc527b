"""Windows that workspaces set for themselves, shorter than the ladder's; the next purge obeys."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tidemark import ledger, policy
from tidemark.errors import Refused, UsageError
from tidemark.keys import Keyring
from tidemark.policy import Policy, Window
from tidemark.postgres import Connection


@dataclass(frozen=True, slots=True)
class Override:
    """A workspace's own window of a class."""

    workspace_id: str
    data_class: str
    window: Window
    set_at: datetime
    withdrawn_at: datetime | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "workspace_id": self.workspace_id,
            "class": self.data_class,
            "window": str(self.window),
            "set_at": self.set_at,
            "withdrawn_at": self.withdrawn_at,
        }


def check(
    connection: Connection, ladder: Policy, workspace_id: str, data_class: str, window: Window
) -> None:
    """Whether a workspace may have a window, set already or not.

    Raises:
        UsageError: there is no such workspace, or no such class in the policy.
        Refused: its plan may not, the window is below the floor or no shorter than the default,
            or a mart would leave before the rows that its figures are made of.
    """
    plan = _plan(connection, workspace_id)
    own = _class(ladder, data_class)
    if own.window is None or not ladder.plans_that_override(data_class):
        raise Refused(f"the window of {data_class} cannot be shortened")
    allowed = ladder.plans_that_override(data_class)
    if plan not in allowed:
        raise Refused(
            f"workspace {workspace_id} is on plan {plan}; a window of {data_class} comes with"
            f" {' or '.join(allowed)}"
        )
    if own.floor is not None and window.is_shorter_than(own.floor):
        raise Refused(
            f"{window} is below the floor of {data_class}, {own.floor}{_in_days(own.floor, window)}"
        )
    if not window.is_shorter_than(own.window):
        raise Refused(
            f"{window} is no shorter than the {own.window} that {data_class} stays anyway"
            f"{_in_days(own.window, window)}"
        )
    in_force = {
        name: found
        for (workspace, name), found in policy.overrides(connection).items()
        if workspace == workspace_id
    }
    _check_order(ladder, {**in_force, data_class: window})


def put(
    connection: Connection,
    keyring: Keyring,
    ladder: Policy,
    *,
    workspace_id: str,
    data_class: str,
    window: Window,
    now: datetime,
) -> tuple[Override, bool]:
    """Set a window instead of the one in force, in the caller's transaction.

    Returns:
        The override, and whether it is new; the same window again changes nothing.

    Raises:
        UsageError, Refused: as `check` does.
    """
    # Two at once would each find the other's window missing.
    _lock(connection, workspace_id)
    check(connection, ladder, workspace_id, data_class, window)
    standing = _in_force(connection, workspace_id, data_class)
    if standing is not None and standing.window == window:
        return standing, False
    _end(connection, workspace_id, data_class, now)
    connection.execute(
        "insert into control.overrides"
        " (workspace_id, class, window_value, window_unit, set_at) values (%s, %s, %s, %s, %s)",
        [workspace_id, data_class, window.value, window.unit, now],
    )
    ledger.append(
        connection,
        keyring,
        "override_set",
        {
            "workspace_id": workspace_id,
            "class": data_class,
            "window": str(window),
            "replaced": str(standing.window) if standing else None,
        },
        now,
    )
    return Override(workspace_id, data_class, window, now), True


def withdraw(
    connection: Connection,
    keyring: Keyring,
    ladder: Policy,
    *,
    workspace_id: str,
    data_class: str,
    now: datetime,
) -> bool:
    """Go back to the ladder's window, in the caller's transaction; what is purged stays purged.

    Returns:
        Whether there was an override.

    Raises:
        UsageError: there is no such workspace, or no such class in the policy.
        Refused: a mart would then leave before the rows that its figures are made of.
    """
    _lock(connection, workspace_id)
    _plan(connection, workspace_id)
    _class(ladder, data_class)
    standing = _in_force(connection, workspace_id, data_class)
    if standing is None:
        return False
    _check_order(
        ladder,
        {
            name: window
            for (workspace, name), window in policy.overrides(connection).items()
            if workspace == workspace_id and name != data_class
        },
    )
    _end(connection, workspace_id, data_class, now)
    ledger.append(
        connection,
        keyring,
        "override_withdrawn",
        {"workspace_id": workspace_id, "class": data_class, "window": str(standing.window)},
        now,
    )
    return True


def list_all(connection: Connection, *, withdrawn: bool = False) -> list[Override]:
    """The overrides by workspace, class and time.

    Args:
        withdrawn: those that no longer hold too.
    """
    return [
        Override(
            row["workspace_id"],
            row["class"],
            Window(row["window_value"], row["window_unit"]),
            row["set_at"],
            row["withdrawn_at"],
        )
        for row in connection.execute(
            "select workspace_id, class, window_value, window_unit, set_at, withdrawn_at"
            " from control.overrides where withdrawn_at is null or %s"
            " order by workspace_id, class, set_at, override_id",
            [withdrawn],
        )
    ]


def faults(connection: Connection, ladder: Policy) -> list[str]:
    """What is wrong with overrides in force: a policy changed since, or a row set by hand.

    Each would destroy more than the policy allows, so nothing is planned until it is withdrawn.
    """
    found = []
    for own in list_all(connection):
        try:
            check(connection, ladder, own.workspace_id, own.data_class, own.window)
        except (Refused, UsageError) as error:
            found.append(
                f"override of {own.workspace_id} and {own.data_class}: {error}; `tidemark override"
                f" withdraw {own.workspace_id} {own.data_class}` ends it"
            )
    return found


def _check_order(ladder: Policy, own: Mapping[str, Window]) -> None:
    """A mart that left before the rows behind it could not be tied out when those go."""
    in_force = {
        name: own.get(name, data_class.window)
        for name, data_class in ladder.classes.items()
        if data_class.window is not None
    }
    for mart, window in own.items():
        groups = {
            group
            for table in ladder.classes[mart].tables
            if table.startswith("marts.")
            for column in ladder.columns[table].values()
            for group in column.groups
        }
        for name, data_class in ladder.loaded.items():
            behind = in_force.get(name)
            if (
                behind is not None
                and groups & set(data_class.measures.values())
                and window.is_shorter_than(behind)
            ):
                raise Refused(
                    f"{mart} would leave after {window}, before the rows of {name} that it is"
                    f" made of, which stay {behind}"
                )


def _in_days(limit: Window, window: Window) -> str:
    return f" (up to {limit.days} days)" if limit.unit != window.unit else ""


def _class(ladder: Policy, name: str) -> policy.DataClass:
    if name not in ladder.classes:
        known = ", ".join(ladder.classes)
        raise UsageError(f"no class {name}; include/policy.yml has {known}")
    return ladder.classes[name]


def _plan(connection: Connection, workspace_id: str) -> str:
    row = connection.execute(
        "select plan from app.workspaces where workspace_id = %s and deleted_at is null",
        [workspace_id],
    ).fetchone()
    if row is None:
        raise UsageError(f"no workspace {workspace_id}; `tidemark workspace list` names them")
    return str(row["plan"])


def _lock(connection: Connection, workspace_id: str) -> None:
    connection.execute(
        "select from app.workspaces where workspace_id = %s for update", [workspace_id]
    )


def _in_force(connection: Connection, workspace_id: str, data_class: str) -> Override | None:
    found = (own for own in list_all(connection) if own.workspace_id == workspace_id)
    return next((own for own in found if own.data_class == data_class), None)


def _end(connection: Connection, workspace_id: str, data_class: str, now: datetime) -> None:
    connection.execute(
        "update control.overrides set withdrawn_at = %s"
        " where workspace_id = %s and class = %s and withdrawn_at is null",
        [now, workspace_id, data_class],
    )
