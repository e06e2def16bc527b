"""Legal holds: what they cover is neither purged nor erased until they are released."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from tidemark import ledger, privacy
from tidemark.errors import UsageError
from tidemark.keys import Keyring
from tidemark.policy import Policy
from tidemark.postgres import Connection
from tidemark.workspaces import UnknownWorkspace


@dataclass(frozen=True, slots=True)
class HoldRecord:
    """A hold as it is shown: of whom never, only that it is of one person."""

    hold_id: int
    workspace_id: str
    #: None for every class.
    data_class: str | None
    is_of_subject: bool
    reason: str
    added_at: datetime
    released_at: datetime | None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        own = asdict(self)
        return {"class" if name == "data_class" else name: value for name, value in own.items()}


def add(
    connection: Connection,
    keyring: Keyring,
    ladder: Policy,
    *,
    workspace_id: str,
    data_class: str | None = None,
    subject: str | None = None,
    reason: str,
    now: datetime,
) -> tuple[HoldRecord, bool]:
    """Put a hold on a workspace, a class of it, or a person, in the caller's transaction.

    Args:
        data_class: every class by default.
        subject: as `privacy.subject_hashes` reads it; kept as keyed hashes alone.
        reason: shown in plans and kept in the ledger, so it names nobody.

    Returns:
        The hold, and whether it is new: the same while one is in force is that one.

    Raises:
        UsageError: there is no such workspace or class, the class holds no people, or the reason
            is empty or too long.
        Refused: the reason holds what looks like an e-mail address, phone number or IP address.
    """
    _check(connection, ladder, workspace_id, data_class, subject)
    reason = ledger.checked_reason(reason)
    hashes = subject_hashes(connection, keyring, ladder, workspace_id, subject)
    return put(
        connection,
        keyring,
        workspace_id=workspace_id,
        data_class=data_class,
        hashes=hashes,
        reason=reason,
        now=now,
    )


def put(
    connection: Connection,
    keyring: Keyring,
    *,
    workspace_id: str,
    data_class: str | None,
    hashes: Sequence[str],
    reason: str,
    now: datetime,
) -> tuple[HoldRecord, bool]:
    """Put a hold whose parts were checked, in the caller's transaction; see `add`.

    Args:
        hashes: of the person, sorted; none for nobody.
    """
    # Two at once would both find none.
    connection.execute("lock table control.holds in share row exclusive mode")
    row = connection.execute(
        "select hold_id from control.holds where released_at is null and workspace_id = %s"
        " and class is not distinct from %s and subject_hashes = %s::text[] and reason = %s",
        [workspace_id, data_class, list(hashes), reason],
    ).fetchone()
    if row is not None:
        return _one(connection, row["hold_id"]), False
    row = connection.execute(
        "insert into control.holds (workspace_id, class, subject_hashes, reason, added_at)"
        " values (%s, %s, %s, %s, %s) returning hold_id",
        [workspace_id, data_class, list(hashes), reason, now],
    ).fetchone()
    assert row is not None
    hold = _one(connection, row["hold_id"])
    ledger.append(connection, keyring, "hold_added", _entry(hold), now)
    return hold, True


def subject_hashes(
    connection: Connection,
    keyring: Keyring,
    ladder: Policy,
    workspace_id: str,
    subject: str | None,
) -> list[str]:
    """Every value by which rows of a workspace may name a person, in order; none for nobody.

    Args:
        subject: as `privacy.subject_hashes` reads it.

    Raises:
        UsageError: there is no such workspace, or the subject is empty.
    """
    _check_workspace(connection, workspace_id)
    if subject is None:
        return []
    key = keyring.pseudonym_key(connection, workspace_id)
    return sorted(privacy.subject_hashes(key, subject, _customer_sources(ladder)))


def release(
    connection: Connection, keyring: Keyring, hold_id: int, now: datetime
) -> tuple[HoldRecord, bool]:
    """End a hold, in the caller's transaction; the next purge catches up with what was due.

    Returns:
        The hold, and whether it was in force.

    Raises:
        UsageError: there is no such hold.
    """
    released = connection.execute(
        "update control.holds set released_at = %s where hold_id = %s and released_at is null",
        [now, hold_id],
    ).rowcount
    hold = _one(connection, hold_id)
    if released:
        ledger.append(connection, keyring, "hold_released", _entry(hold), now)
    return hold, bool(released)


def list_all(connection: Connection, *, released: bool = False) -> list[HoldRecord]:
    """The holds by id.

    Args:
        released: those that no longer hold too.
    """
    return [
        HoldRecord(**row)
        for row in connection.execute(
            f"{_SELECT} where released_at is null or %s order by hold_id", [released]
        )
    ]


_SELECT = (
    "select hold_id, workspace_id, class as data_class, subject_hashes <> '{}' as is_of_subject,"
    " reason, added_at, released_at from control.holds"
)


def _one(connection: Connection, hold_id: int) -> HoldRecord:
    row = connection.execute(f"{_SELECT} where hold_id = %s", [hold_id]).fetchone()
    if row is None:
        raise UsageError(f"no hold {hold_id}; `tidemark hold list` names them")
    return HoldRecord(**row)


def _entry(hold: HoldRecord) -> dict[str, Any]:
    return {
        "hold_id": hold.hold_id,
        "workspace_id": hold.workspace_id,
        "class": hold.data_class,
        "is_of_subject": hold.is_of_subject,
        "reason": hold.reason,
    }


def _check(
    connection: Connection,
    ladder: Policy,
    workspace_id: str,
    data_class: str | None,
    subject: str | None,
) -> None:
    _check_workspace(connection, workspace_id)
    if data_class is None:
        return
    if data_class not in ladder.classes:
        names = ", ".join(ladder.classes)
        raise UsageError(f"no class {data_class}; include/policy.yml has {names}")
    if subject is not None and not ladder.classes[data_class].subjects:
        raise UsageError(f"{data_class} has no column that names a person: hold the whole class")


def _check_workspace(connection: Connection, workspace_id: str) -> None:
    known = connection.execute(
        "select from app.workspaces where workspace_id = %s", [workspace_id]
    ).fetchone()
    if known is None:
        raise UnknownWorkspace(workspace_id)


def _customer_sources(ladder: Policy) -> tuple[str, ...]:
    """Sources whose customers may be known by the vendor's id alone."""
    return tuple(
        name for name in ladder.sources if "customer_key" in ladder.class_of(name)[1].subjects
    )
