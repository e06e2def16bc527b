"""Requests of subjects and workspaces: received once, carried out by their code, on the ledger.

A person stands here as keyed hashes alone, and only until the request is done.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal

from psycopg.types.json import Jsonb

from tidemark import holds, ledger, policy, postgres
from tidemark.config import Settings
from tidemark.errors import UsageError
from tidemark.keys import Keyring
from tidemark.policy import Policy
from tidemark.postgres import Connection

Kind = Literal["erase", "export"]
FileFormat = Literal["parquet", "jsonl", "csv"]
#: held: a hold speaks against it, until that is released. failed: the next run tries again.
Status = Literal["received", "running", "held", "failed", "done"]

# Of letters and digits that nobody mistakes for another.
_ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
_CODE_LENGTH = 12


def is_code(name: str) -> bool:
    """Whether a request may be called so."""
    return len(name) == _CODE_LENGTH and set(name) <= set(_ALPHABET)


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it stands: of whom never, only whether it is of one person."""

    code: str
    workspace_id: str
    kind: Kind
    is_of_subject: bool
    status: Status
    received_at: datetime
    #: By when the policy wants it done.
    due_at: datetime
    finished_at: datetime | None
    #: Why it is held or failed.
    reason: str | None
    #: What was done, in counts; None until then.
    outcome: dict[str, Any] | None
    #: Of an export's files, as are the two below.
    file_format: FileFormat | None = None
    #: The first day on which they are due to go; None where there are none yet.
    expires_on: date | None = None
    deleted_at: datetime | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def receive(
    settings: Settings,
    *,
    workspace_id: str,
    kind: Kind,
    subject: str | None,
    now: datetime,
    file_format: FileFormat | None = None,
) -> tuple[Request, bool]:
    """Put a request on record, in one transaction, with the ledger's head kept outside.

    Args:
        subject: as `privacy.subject_hashes` reads it; kept as keyed hashes alone. None asks for
            the whole workspace.
        file_format: of an export's files.

    Returns:
        The request, and whether it is new: the same while one is not done is that one.

    Raises:
        UsageError: there is no such workspace, or the subject is empty.
        TidemarkError: PostgreSQL does not answer.
    """
    keyring, ladder = Keyring.from_settings(settings), policy.read(settings)
    with (
        postgres.connect(settings, autocommit=True) as connection,
        ledger.kept_outside(settings, connection, lambda: now),
        connection.transaction(),
    ):
        hashes = holds.subject_hashes(connection, keyring, ladder, workspace_id, subject)
        # Two at once would both find none.
        connection.execute("lock table control.requests in share row exclusive mode")
        row = connection.execute(
            "select code from control.requests where workspace_id = %s and kind = %s"
            " and subject_hashes = %s::text[] and is_of_subject = %s and status <> 'done'"
            " and file_format is not distinct from %s",
            [workspace_id, kind, hashes, subject is not None, file_format],
        ).fetchone()
        if row is not None:
            return find(connection, row["code"]), False
        code = "".join(secrets.choice(_ALPHABET) for _ in range(_CODE_LENGTH))
        days = {"erase": ladder.requests.erase_days, "export": ladder.requests.export_days}[kind]
        connection.execute(
            "insert into control.requests (code, workspace_id, kind, status, received_at, due_at,"
            " is_of_subject, subject_hashes, file_format)"
            " values (%s, %s, %s, 'received', %s, %s, %s, %s, %s)",
            [
                code, workspace_id, kind, now, now + timedelta(days=days), subject is not None,
                hashes, file_format,
            ],
        )  # fmt: skip
        request = find(connection, code)
        _enter(connection, keyring, request, now)
        return request, True


def subject_hashes(connection: Connection, code: str) -> tuple[str, ...]:
    """Every value by which rows may name the person that a request is of.

    Empty for a request of a whole workspace, and once it is done.
    """
    row = connection.execute(
        "select subject_hashes from control.requests where code = %s", [code]
    ).fetchone()
    return tuple(row["subject_hashes"]) if row else ()


def advance(
    connection: Connection,
    keyring: Keyring,
    code: str,
    status: Status,
    now: datetime,
    *,
    reason: str | None = None,
    outcome: Mapping[str, Any] | None = None,
) -> Request:
    """Say what became of a request, here and in the ledger, in the caller's transaction.

    Args:
        reason: why it is held or failed; it names nobody.
        outcome: counts of what was done.

    Raises:
        UsageError: there is no such request.
    """
    is_done = status == "done"
    before = find(connection, code)
    connection.execute(
        "update control.requests set status = %s, reason = %s, outcome = %s, finished_at = %s,"
        " subject_hashes = case when %s then '{}' else subject_hashes end where code = %s",
        [
            status, reason, Jsonb(outcome) if outcome is not None else None,
            now if is_done else None, is_done, code,
        ],
    )  # fmt: skip
    after = find(connection, code)
    if after != before:
        _enter(connection, keyring, after, now)
    return after


def reopen(
    connection: Connection,
    keyring: Keyring,
    ladder: Policy,
    *,
    code: str,
    workspace_id: str,
    hashes: Sequence[str],
    now: datetime,
) -> Request:
    """Put a person's erasure on record again after a restore, in the caller's transaction.

    Args:
        hashes: of the person, as the request had them.
    """
    due_at = now + timedelta(days=ladder.requests.erase_days)
    connection.execute(
        "insert into control.requests (code, workspace_id, kind, status, received_at, due_at,"
        " is_of_subject, subject_hashes) values (%s, %s, 'erase', 'received', %s, %s, true, %s)"
        " on conflict (code) do update set status = 'received', finished_at = null,"
        " subject_hashes = excluded.subject_hashes",
        [code, workspace_id, now, due_at, list(hashes)],
    )
    request = find(connection, code)
    _enter(connection, keyring, request, now)
    return request


def find(connection: Connection, code: str) -> Request:
    """A request by its code.

    Raises:
        UsageError: there is none.
    """
    row = connection.execute(f"{_SELECT} where code = %s", [code]).fetchone()
    if row is None:
        raise UsageError(f"no request {code!r}")
    return Request(**row)


def waiting(connection: Connection, kind: Kind) -> tuple[Request, ...]:
    """The requests of a kind that are not done, the most urgent first."""
    rows = connection.execute(
        f"{_SELECT} where kind = %s and status <> 'done' order by due_at, code", [kind]
    )
    return tuple(Request(**row) for row in rows)


def list_all(connection: Connection, *, done: bool = False) -> tuple[Request, ...]:
    """The requests, the most urgent first.

    Args:
        done: those that are done too.
    """
    rows = connection.execute(
        f"{_SELECT} where status <> 'done' or %s order by due_at, code", [done]
    )
    return tuple(Request(**row) for row in rows)


_SELECT = (
    "select code, workspace_id, kind, is_of_subject, status, received_at, due_at, finished_at,"
    " reason, outcome, file_format, expires_on, deleted_at from control.requests"
)


def _enter(connection: Connection, keyring: Keyring, request: Request, now: datetime) -> None:
    entry = {
        "code": request.code,
        "kind": request.kind,
        "workspace_id": request.workspace_id,
        "is_of_subject": request.is_of_subject,
        "due_at": request.due_at,
        "reason": request.reason,
        "outcome": request.outcome,
    }
    ledger.append(connection, keyring, f"request_{request.status}", entry, now)
