"""The ledger: append-only, hash-chained and signed, with its head copied outside the database.

An entry's hash is the SHA-256 of its canonical JSON, which holds the hash of the entry before; its
signature is Ed25519 over that hash. The signing key lies wrapped in the database and is unwrapped
by the master key outside it, so that the database's owner can neither forge an entry nor, because
of the copied heads, rewrite or cut what was there when a run ended.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from psycopg import sql
from psycopg.types.json import Jsonb

from tidemark import privacy, workspaces
from tidemark.config import Settings
from tidemark.errors import Refused, TidemarkError, UsageError
from tidemark.keys import LEDGER_WORKSPACE, Keyring
from tidemark.postgres import Connection

#: What the first entry holds as the hash of the one before.
GENESIS = "0" * 64
#: A reason has at most as many.
REASON_CHARACTERS = 500

# Two appends at once would both follow the same head.
_APPEND_LOCK = 0x7469_6467
_KIND = re.compile(r"[a-z][a-z_]*", re.ASCII)
# Separates these signatures from any other use of the key.
_SIGNED = b"tidemark ledger entry\n"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What stands under these names is no identifier of a person, though its digits may look like one.
_FIGURES = frozenset(("fingerprint", "money", "sums"))
_WORKSPACES = frozenset(("workspace_id", "workspaces"))
_TRIGGERS = ("refuse_ledger_change", "chain_ledger_entry")

# A step's rows, one a line, in an order that no setting of the database changes.
_EVIDENCE = {
    "control.purged_rows": """
        select step_id, encode(sha256(convert_to(string_agg(
            concat_ws(
                '|', class, measure, workspace_id, local_date - date '1970-01-01', currency,
                event_count, distinct_ids, money
            ),
            E'\\n'
            order by
                measure collate "C", workspace_id collate "C", local_date, currency collate "C"
        ), 'UTF8')), 'hex') as digest
        from control.purged_rows
        where %(step_id)s::text is null or step_id = %(step_id)s
        group by step_id
    """,
    "control.cold_files": """
        select step_id, encode(sha256(convert_to(string_agg(
            concat_ws('|', class, workspace_id, table_name, path, manifest::text),
            E'\\n' order by path collate "C"
        ), 'UTF8')), 'hex') as digest
        from control.cold_files
        where sealed_at is not null
            and (%(step_id)s::text is null or step_id = %(step_id)s)
        group by step_id
    """,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as it is stored; hashes and signature are hexadecimal."""

    entry_id: int
    kind: str
    document: Mapping[str, Any]
    at: datetime
    previous_hash: str
    hash: str
    signature: str

    def as_dict(self) -> dict[str, Any]:
        """The entry as a line of an export holds it."""
        return {**self._content(), "hash": self.hash, "signature": self.signature}

    def content_hash(self) -> str:
        """SHA-256 of what the entry says.

        Raises:
            ValueError: it holds what no entry can, like a number that is not whole.
        """
        return hashlib.sha256(_canonical(self._content()).encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        return {
            "entry_id": self.entry_id,
            "kind": self.kind,
            "document": self.document,
            "at": self.at.astimezone(UTC).isoformat(timespec="microseconds"),
            "previous_hash": self.previous_hash,
        }


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain when a run ended, as `heads.jsonl` holds it."""

    entry_id: int
    hash: str
    signature: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as the ledger was written; `entry_id` is None for the whole of it."""

    entry_id: int | None
    problem: str

    def __str__(self) -> str:
        where = "ledger" if self.entry_id is None else f"entry {self.entry_id}"
        return f"{where}: {self.problem}"


def append(
    connection: Connection,
    keyring: Keyring,
    kind: str,
    document: Mapping[str, Any],
    now: datetime,
) -> Entry:
    """Write an entry behind the last one, in the caller's transaction.

    Until that transaction ends no other can append, so append last. Decimals, dates and times of
    the document become text.

    Args:
        kind: lower-case words joined by _.
        document: request codes, counts, hashes; never a subject's identifiers.
        now: the clock of the run, with its time zone.

    Raises:
        TidemarkError: the document holds a float, or text that looks like an e-mail address,
            phone number or IP address; or entries stand there but the key that signed them is gone.
    """
    if not _KIND.fullmatch(kind):
        raise TidemarkError(f"{kind!r} is no kind of ledger entry: lower-case words joined by _")
    if now.tzinfo is None:
        raise TidemarkError("a ledger entry needs a time with its zone")
    plain = _plain(document, kind)
    with _transaction(connection):
        connection.execute("select pg_catalog.pg_advisory_xact_lock(%s)", [_APPEND_LOCK])
        head = _head(connection)
        if head is None:
            keyring.create_key(connection, LEDGER_WORKSPACE, "signature", now)
        signing_key = _signing_key(connection, keyring)
        entry = Entry(
            entry_id=head.entry_id + 1 if head else 1,
            kind=kind,
            document=plain,
            at=now.astimezone(UTC),
            previous_hash=head.hash if head else GENESIS,
            hash="",
            signature="",
        )
        digest = entry.content_hash()
        signature = signing_key.sign(_SIGNED + bytes.fromhex(digest)).hex()
        connection.execute(
            "insert into control.ledger"
            " (entry_id, kind, document, at, previous_hash, hash, signature)"
            " values (%s, %s, %s, %s, %s, %s, %s)",
            [
                entry.entry_id, kind, Jsonb(plain), entry.at, entry.previous_hash, digest,
                signature,
            ],
        )  # fmt: skip
    return Entry(entry.entry_id, kind, plain, entry.at, entry.previous_hash, digest, signature)


def checked_reason(text: str) -> str:
    """A person's reason as the ledger keeps it: on one line, and naming nobody.

    Raises:
        UsageError: it is empty or longer than `REASON_CHARACTERS`.
        Refused: it holds what looks like an e-mail address, phone number or IP address.
    """
    reason = " ".join(text.split())
    if not 0 < len(reason) <= REASON_CHARACTERS:
        raise UsageError(f"the reason must have 1 to {REASON_CHARACTERS} characters")
    if privacy.holds_identifier(reason):
        raise Refused(
            "the reason holds what looks like an e-mail address, phone number or IP address: name"
            " the case by its file number"
        )
    return reason


def restore_marker(settings: Settings) -> Path:
    """The file that stands in the home while a restore is under way; it names the backup."""
    return settings.home / "restoring"


def refuse_half_restored(settings: Settings) -> None:
    """Refuse to write where a restore would take it away.

    Raises:
        Refused: a restore was begun and not finished.
    """
    if restore_marker(settings).exists():
        raise Refused("a restore was begun and not finished: run `tidemark restore` again")


@contextmanager
def kept_outside(
    settings: Settings,
    connection: Connection,
    clock: Callable[[], datetime],
    *,
    is_restore: bool = False,
) -> Iterator[None]:
    """Copy the head before and after what writes entries, also where that fails; see `copy_head`.

    Raises:
        Refused: a restore was begun and not finished, and this is not it.
        TidemarkError: as `copy_head`.
    """
    if not is_restore:
        refuse_half_restored(settings)
    copy_head(settings, connection, clock())
    try:
        yield
    finally:
        copy_head(settings, connection, clock())


def copy_head(settings: Settings, connection: Connection, now: datetime) -> Head | None:
    """Copy the committed head to `heads.jsonl`, and the public key beside it.

    Call it before and after every run that writes entries: before, it refuses to go on behind a
    chain that was cut or signed anew. The same head is copied once.

    Returns:
        The head; None where the ledger is empty and was never copied.

    Raises:
        TidemarkError: the last copied head is no longer in the ledger, or the signing key is not
            the one whose public half lies beside the heads.
    """
    with _heads_file(settings) as (file, heads):
        last = heads[-1] if heads else None
        if last is not None:
            stood = connection.execute(
                "select hash, signature from control.ledger where entry_id = %s", [last.entry_id]
            ).fetchone()
            if stood is None or (stood["hash"], stood["signature"]) != (last.hash, last.signature):
                raise TidemarkError(
                    f"entry {last.entry_id} of the ledger is not what {heads_path(settings)}"
                    " holds: run `tidemark audit`"
                )
        head = _head(connection)
        if head is None:
            return None
        _keep_public_key(settings, connection)
        if head != last:
            line = {
                "entry_id": head.entry_id,
                "hash": head.hash,
                "signature": head.signature,
                "copied_at": now.astimezone(UTC).isoformat(),
            }
            os.write(file, (_canonical(line) + "\n").encode())
            os.fsync(file)
        return head


def verify(settings: Settings, connection: Connection) -> tuple[Finding, ...]:
    """Check every entry, signature and copied head, and the triggers that guard them.

    Needs no secret: the public key and the heads lie in `$TIDEMARK_HOME/ledger`.

    Returns:
        What is wrong; empty when all is as it was written.
    """
    # The heads first: what is copied meanwhile must not look cut off.
    heads = read_heads(settings)
    if isinstance(heads, Finding):
        return (heads,)
    try:
        with connection.transaction():
            findings = list(_unguarded(connection))
            findings += verify_entries(
                stored(connection), _public_key(public_key_path(settings)), heads
            )
    except psycopg.Error as error:
        reason = error.diag.message_primary or type(error).__name__
        findings = [Finding(None, f"control.ledger cannot be read: {reason}")]
    return tuple(findings)


def verify_entries(
    entries: Iterable[Entry | Finding],
    public_key: Ed25519PublicKey | None,
    heads: Iterable[Head],
) -> Iterator[Finding]:
    """Check a chain from its first entry on.

    Args:
        entries: in the order of their ids; a finding stands for one that cannot be read.
        public_key: None where it is not at hand, which is a finding unless there is no entry.
        heads: heads that were copied while the chain grew.
    """
    copied: dict[int, set[tuple[str, str]]] = {}
    for head in heads:
        copied.setdefault(head.entry_id, set()).add((head.hash, head.signature))
    previous_id, previous_hash = 0, GENESIS
    for entry in entries:
        if isinstance(entry, Finding):
            yield entry
            continue
        if previous_id == 0 and public_key is None:
            yield Finding(None, "the public key is missing, so no signature can be checked")
        if entry.entry_id <= previous_id:
            yield Finding(entry.entry_id, "stands there twice or out of order")
        elif entry.entry_id > previous_id + 1:
            missing = f"{previous_id + 1} to {entry.entry_id - 1}"
            yield Finding(entry.entry_id, f"the entries before it are missing ({missing})")
        if entry.previous_hash != previous_hash:
            yield Finding(entry.entry_id, "does not follow the entry before it")
        try:
            edited = entry.content_hash() != entry.hash
        except ValueError:
            edited = True
        if edited:
            yield Finding(entry.entry_id, "was edited: its content does not give its hash")
        if public_key is not None and not _is_signed(public_key, entry.hash, entry.signature):
            yield Finding(entry.entry_id, "is not signed with the ledger's key")
        expected = copied.pop(entry.entry_id, None)
        if expected is not None and expected != {(entry.hash, entry.signature)}:
            yield Finding(entry.entry_id, "was rewritten: its copied head differs")
        previous_id, previous_hash = entry.entry_id, entry.hash
    for entry_id in sorted(copied):
        yield Finding(entry_id, "was cut off: its head was copied, the entry is gone")
    if previous_id == 0 and public_key is not None and not copied:
        yield Finding(None, "is empty, but has been signed before")


def stored(connection: Connection, *kinds: str) -> Iterator[Entry | Finding]:
    """The entries as they stand, first to last; with `kinds`, those alone.

    An entry that cannot be read is given as a finding.
    """
    # A cursor of the server's: a ledger grows without limit.
    with _transaction(connection), connection.cursor(name="ledger") as cursor:
        cursor.execute(
            # Exact whatever the session's time zone and date style.
            "select entry_id, kind, document::text as document,"
            " (extract(epoch from at) * 1000000)::text as microseconds,"
            " previous_hash, hash, signature from control.ledger"
            " where %(kinds)s::text[] is null or kind = any(%(kinds)s)"
            " order by entry_id, hash",
            {"kinds": list(kinds) or None},
        )
        for row in cursor:
            try:
                yield Entry(
                    entry_id=int(row["entry_id"]),
                    kind=_text(row["kind"]),
                    document=json.loads(_text(row["document"])),
                    at=_EPOCH + timedelta(microseconds=_whole(row["microseconds"])),
                    previous_hash=_text(row["previous_hash"]),
                    hash=_text(row["hash"]),
                    signature=_text(row["signature"]),
                )
            except (TypeError, ValueError, ArithmeticError):
                yield Finding(row["entry_id"], "cannot be read")


def unended(
    connection: Connection, begun: str, done: str, same: LiteralString
) -> list[Mapping[str, Any]]:
    """The documents of entries of the first kind that none of the second answers, in order.

    Args:
        same: SQL that holds where entry `done` answers entry `begun`.
    """
    return [
        row["document"]
        for row in connection.execute(
            sql.SQL(
                "select document from control.ledger as begun where kind = %s and not exists ("
                "select from control.ledger as done where done.kind = %s and {})"
                " order by entry_id"
            ).format(sql.SQL(same)),
            [begun, done],
        )
    ]


def evidence(connection: Connection, step_id: str | None = None) -> dict[str, dict[str, str]]:
    """What tables say of each step, or of one: by step, SHA-256 in hexadecimal by table.

    The entry that begins a step holds it, so that the figures of what went, and the manifests of
    its cold copies, are as safe as the chain. A table without rows of a step is left out.
    """
    found: dict[str, dict[str, str]] = {}
    for table, statement in _EVIDENCE.items():
        for row in connection.execute(statement.encode(), {"step_id": step_id}):
            found.setdefault(row["step_id"], {})[table] = row["digest"]
    return found


def export(connection: Connection, path: Path) -> int:
    """Write the whole ledger as JSON lines, which `read_export` reads back; 0600.

    Returns:
        The number of entries.

    Raises:
        TidemarkError: an entry cannot be read, or the file cannot be written.
    """
    count = 0
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            for entry in stored(connection):
                if isinstance(entry, Finding):
                    raise TidemarkError(f"{entry}: run `tidemark audit`")
                file.write(_canonical(entry.as_dict()) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:
        raise TidemarkError(f"{path} cannot be written: {error}") from error
    return count


def read_export(path: Path) -> Iterator[Entry | Finding]:
    """The entries of an export; a line that is not as `export` writes it is given as a finding.

    Raises:
        TidemarkError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                try:
                    fields = json.loads(line)
                    entry = Entry(**{**fields, "at": datetime.fromisoformat(fields["at"])})
                    # A key given twice reads otherwise to other readers.
                    if _canonical(entry.as_dict()) + "\n" != line:
                        raise ValueError
                    yield entry
                except (TypeError, ValueError, KeyError, AttributeError):
                    yield Finding(None, f"line {number} of the export cannot be read")
    except (OSError, UnicodeDecodeError) as error:
        raise TidemarkError(f"{path} cannot be read: {error}") from error


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key in PEM.

    Raises:
        TidemarkError: there is none in that file.
    """
    key = _public_key(path)
    if key is None:
        raise TidemarkError(f"{path} holds no public key of a ledger")
    return key


def read_heads(settings: Settings) -> tuple[Head, ...] | Finding:
    """The copied heads, oldest first; a finding where the file is not as it was written."""
    path = heads_path(settings)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        return Finding(None, f"{path} cannot be read: {error.strerror}")
    heads = _parsed(content)
    return heads if heads is not None else Finding(None, f"{path} was altered")


def heads_path(settings: Settings) -> Path:
    """The file of the copied heads, one JSON object a line."""
    return settings.ledger / "heads.jsonl"


def public_key_path(settings: Settings) -> Path:
    """The public half of the signing key, in PEM."""
    return settings.ledger / "public_key.pem"


def _transaction(connection: Connection) -> AbstractContextManager[object]:
    # Elsewhere the caller's transaction begins by itself, and psycopg's block would commit it.
    return connection.transaction() if connection.autocommit else nullcontext()


def _head(connection: Connection) -> Head | None:
    row = connection.execute(
        "select entry_id, hash, signature from control.ledger order by entry_id desc limit 1"
    ).fetchone()
    return Head(row["entry_id"], row["hash"], row["signature"]) if row else None


def _signing_key(connection: Connection, keyring: Keyring) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(
        keyring.key(connection, LEDGER_WORKSPACE, "signature")
    )


def _keep_public_key(settings: Settings, connection: Connection) -> None:
    signing_key = _signing_key(connection, Keyring.from_settings(settings))
    pem = signing_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path = public_key_path(settings)
    if not path.exists():
        draft = path.with_suffix(".draft")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
    elif path.read_bytes() != pem:
        raise TidemarkError(
            f"the ledger's signing key is not the one of {path}: run `tidemark audit`"
        )


def _public_key(path: Path) -> Ed25519PublicKey | None:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError):
        return None
    return key if isinstance(key, Ed25519PublicKey) else None


def _is_signed(public_key: Ed25519PublicKey, digest: str, signature: str) -> bool:
    try:
        public_key.verify(bytes.fromhex(signature), _SIGNED + bytes.fromhex(digest))
    except (InvalidSignature, ValueError):
        return False
    return True


def _unguarded(connection: Connection) -> Iterator[Finding]:
    rows = connection.execute(
        "select tgname, tgenabled from pg_catalog.pg_trigger"
        " where tgrelid = pg_catalog.to_regclass('control.ledger') and not tgisinternal"
    ).fetchall()
    enabled = {row["tgname"] for row in rows if row["tgenabled"] == "A"}
    for name in _TRIGGERS:
        if name not in enabled:
            yield Finding(None, f"the trigger {name} that keeps it append-only is off")


@contextmanager
def _heads_file(settings: Settings) -> Iterator[tuple[int, tuple[Head, ...]]]:
    """The open file, to append to, and the heads in it, while no other process appends."""
    path = heads_path(settings)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_new = not path.exists()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        if is_new:
            _sync_folder(path.parent)
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            # A line that a killed run began was never a copy.
            os.ftruncate(file, len(whole))
        heads = _parsed(whole)
        if heads is None:
            raise TidemarkError(f"{path} was altered: run `tidemark audit`")
        yield file, heads
    finally:
        os.close(file)


def _parsed(content: bytes) -> tuple[Head, ...] | None:
    heads: list[Head] = []
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            fields = json.loads(line)
            head = Head(fields["entry_id"], fields["hash"], fields["signature"])
        except (ValueError, TypeError, KeyError):
            return None
        if not isinstance(head.entry_id, int) or (heads and head.entry_id <= heads[-1].entry_id):
            return None
        heads.append(head)
    return tuple(heads)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any, where: str) -> Any:
    match value:
        case None | bool() | int():
            return value
        case str():
            if "\0" in value or (privacy.holds_identifier(value) and not _is_exempt(value, where)):
                raise TidemarkError(
                    f"the ledger takes no personal data: {where} looks like an e-mail address,"
                    " phone number or IP address"
                )
            return value
        case Decimal() if value.is_finite():
            return f"{value:f}"
        case datetime() | date():
            return value.isoformat()
        case Mapping():
            return {_key(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, where) for item in value]
        case _:
            raise TidemarkError(f"the ledger takes no {type(value).__name__}: {where}")


def _is_exempt(value: str, where: str) -> bool:
    # A SHA-256, among whose digits there may be a run that would make a phone number.
    if re.fullmatch(r"[0-9a-f]{64}", value, re.ASCII):
        return True
    names = set(where.split("."))
    if names & _FIGURES:
        return re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value, re.ASCII) is not None
    if names & _WORKSPACES:
        return workspaces.ID.fullmatch(value) is not None
    return False


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise TidemarkError(f"the ledger takes no {type(key).__name__} as a key: {where}")
    return str(_plain(key, where))


def _canonical(value: Any) -> str:
    _check_exact(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _check_exact(value: Any) -> None:
    match value:
        case None | bool() | int() | str():
            return
        case dict():
            for item in value.values():
                _check_exact(item)
        case list():
            for item in value:
                _check_exact(item)
        case _:
            raise ValueError(f"no {type(value).__name__} in a ledger entry")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _whole(value: Any) -> int:
    number = Decimal(_text(value))
    whole = int(number)
    if whole != number:
        raise ValueError("not a whole number")
    return whole
