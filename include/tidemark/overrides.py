"""Windows that workspaces set for themselves, shorter than the ladder's; the next purge obeys."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tidemark import ledger, policy
from tidemark.errors import Refused, UsageError
from tidemark.keys import Keyring
from tidemark.policy import Policy, Window
from tidemark.postgres import Connection
from tidemark.workspaces import UnknownWorkspace


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
    _judge(
        ladder,
        workspace_id,
        _plan(connection, workspace_id),
        data_class,
        window,
        _windows_of(connection, workspace_id),
    )


def _judge(
    ladder: Policy,
    workspace_id: str,
    plan: str,
    data_class: str,
    window: Window,
    in_force: Mapping[str, Window],
) -> None:
    own = _class(ladder, data_class)
    allowed = ladder.plans_that_override(data_class)
    if own.window is None or not allowed:
        raise Refused(f"the window of {data_class} cannot be shortened")
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
    standing = _in_force(connection, workspace_id, data_class)
    if standing is None:
        _class(ladder, data_class)
        return False
    rest = _windows_of(connection, workspace_id)
    del rest[data_class]
    _check_order(ladder, rest)
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


def in_force(connection: Connection, ladder: Policy) -> dict[tuple[str, str], Window]:
    """The windows that a purge obeys, by workspace and class.

    One that the policy or the workspace's plan no longer allows is left out: it would destroy more
    than they do, and the ladder's own window destroys less.
    """
    bad = faults(connection, ladder)
    return {key: own for key, own in policy.overrides(connection).items() if key not in bad}


def faults(connection: Connection, ladder: Policy) -> dict[tuple[str, str], str]:
    """What is wrong with overrides, by workspace and class.

    The policy or a plan has changed since, or a row was written by hand.
    """
    plans = {
        row["workspace_id"]: row["plan"]
        for row in connection.execute(
            "select workspace_id, plan from app.workspaces where deleted_at is null"
        )
    }
    by_workspace: dict[str, dict[str, Window]] = defaultdict(dict)
    for (workspace_id, data_class), window in policy.overrides(connection).items():
        by_workspace[workspace_id][data_class] = window
    found = {}
    for workspace_id, windows in by_workspace.items():
        for data_class, window in windows.items():
            plan = plans.get(workspace_id)
            if plan is None:
                # Its data goes by itself when the workspace does.
                continue
            try:
                _judge(ladder, workspace_id, plan, data_class, window, windows)
            except (Refused, UsageError) as error:
                found[workspace_id, data_class] = str(error)
    return found


def _check_order(ladder: Policy, own: Mapping[str, Window]) -> None:
    """A mart that left before the rows behind it could not be tied out when those go."""
    in_force = {
        name: own.get(name, data_class.window)
        for name, data_class in ladder.classes.items()
        if data_class.window is not None
    }
    for mart, window in own.items():
        if mart not in ladder.classes:
            continue
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
        raise UnknownWorkspace(workspace_id)
    return str(row["plan"])


def _windows_of(connection: Connection, workspace_id: str) -> dict[str, Window]:
    return {
        name: window
        for (workspace, name), window in policy.overrides(connection).items()
        if workspace == workspace_id
    }


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
