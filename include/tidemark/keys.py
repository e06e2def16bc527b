"""Keys and salts behind every pseudonym: kept in PostgreSQL, wrapped by a key outside it."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tidemark import secrets_store
from tidemark.config import Settings
from tidemark.errors import Refused, TidemarkError
from tidemark.postgres import Connection

Purpose = Literal["pseudonym", "erasure", "ledger", "signature"]

LEDGER_WORKSPACE = "_"
_NONCE_BYTES = 12
# A day's salt goes once 48 hours have passed since that day ended in UTC.
_SALT_DAYS = 3


@dataclass(frozen=True, slots=True)
class Keyring:
    """Makes, reads and destroys keys and salts; the caller's transaction decides when they hold.

    Keys and salts are 32 bytes. They may reach ClickHouse only in the body of an insert into a
    temporary table, and never a log, an argument or the text of a query.
    """

    master: bytes = field(repr=False)

    @classmethod
    def from_settings(cls, settings: Settings) -> "Keyring":
        """Read the master key of this home.

        Raises:
            TidemarkError: it is missing or open to other accounts.
        """
        return cls(secrets_store.read_master_key(settings.secrets))

    def wrap(self, secret: bytes, bound_to: str) -> bytes:
        """Encrypt with AES-256-GCM; `bound_to` says what it belongs to and must match on unwrap."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + AESGCM(self.master).encrypt(nonce, secret, bound_to.encode())

    def unwrap(self, wrapped: bytes, bound_to: str) -> bytes:
        """Decrypt what `wrap` returned.

        Raises:
            TidemarkError: it was altered, moved to another row, or wrapped by another master key.
        """
        nonce, ciphertext = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        try:
            return AESGCM(self.master).decrypt(nonce, ciphertext, bound_to.encode())
        except (InvalidTag, ValueError):
            raise TidemarkError(
                f"the key of {bound_to} cannot be unwrapped: "
                "another home's master.key, or the row was altered"
            ) from None

    def create_key(
        self, connection: Connection, workspace_id: str, purpose: Purpose, now: datetime
    ) -> None:
        """Make the key unless it exists, or once did: a destroyed key is never made again."""
        connection.execute(
            "insert into control.keys (workspace_id, purpose, wrapped_key, created_at)"
            " values (%s, %s, %s, %s) on conflict (workspace_id, purpose) do nothing",
            [
                workspace_id,
                purpose,
                self.wrap(secrets.token_bytes(32), _key_name(workspace_id, purpose)),
                now,
            ],
        )

    def key(self, connection: Connection, workspace_id: str, purpose: Purpose) -> bytes:
        """Read a key.

        Raises:
            TidemarkError: there is none.
            Refused: it has been destroyed.
        """
        row = connection.execute(
            "select wrapped_key from control.keys where workspace_id = %s and purpose = %s",
            [workspace_id, purpose],
        ).fetchone()
        if row is None:
            raise TidemarkError(f"{workspace_id} has no {purpose} key")
        if row["wrapped_key"] is None:
            raise Refused(f"the {purpose} key of {workspace_id} has been destroyed")
        return self.unwrap(row["wrapped_key"], _key_name(workspace_id, purpose))

    def pseudonym_key(self, connection: Connection, workspace_id: str) -> bytes:
        """The key behind the workspace's pseudonyms; raises as `key` does."""
        return self.key(connection, workspace_id, "pseudonym")

    def ledger_key(self, connection: Connection, now: datetime) -> bytes:
        """The key behind the hashes of file names and quarantined lines, made when missing."""
        self.create_key(connection, LEDGER_WORKSPACE, "ledger", now)
        return self.key(connection, LEDGER_WORKSPACE, "ledger")

    def salt_for(
        self, connection: Connection, day: date, as_of: date, now: datetime
    ) -> bytes | None:
        """The salt of a UTC day, or None when it is destroyed or the day is past.

        A salt is made only for `as_of` and later days: one made for a past day would outlive what
        was promised for it.
        """
        return self.daily_salts(connection, [day], as_of, now).get(day)

    def daily_salts(
        self, connection: Connection, days: Iterable[date], as_of: date, now: datetime
    ) -> dict[date, bytes]:
        """The salts of several UTC days; days that have none are left out."""
        wanted = sorted(set(days))
        for day in wanted:
            if day >= as_of:
                connection.execute(
                    "insert into control.salts (day, wrapped_salt, created_at)"
                    " values (%s, %s, %s) on conflict (day) do nothing",
                    [day, self.wrap(secrets.token_bytes(32), _salt_name(day)), now],
                )
        rows = connection.execute(
            "select day, wrapped_salt from control.salts"
            " where day = any(%s) and wrapped_salt is not null",
            [wanted],
        ).fetchall()
        return {
            row["day"]: self.unwrap(row["wrapped_salt"], _salt_name(row["day"])) for row in rows
        }


def destroy_salts(connection: Connection, as_of: date, now: datetime) -> tuple[date, ...]:
    """Destroy the salts of days that ended 48 hours or more before `as_of` began in UTC.

    Returns:
        The days whose salts were destroyed now; the caller tells the ledger.
    """
    rows = connection.execute(
        "update control.salts set wrapped_salt = null, destroyed_at = %s"
        " where destroyed_at is null and day <= %s returning day",
        [now, as_of - timedelta(days=_SALT_DAYS)],
    ).fetchall()
    return tuple(sorted(row["day"] for row in rows))


def _key_name(workspace_id: str, purpose: Purpose) -> str:
    return f"{workspace_id}:{purpose}"


def _salt_name(day: date) -> str:
    return f"salt:{day.isoformat()}"
