"""Generated passwords and the master key, as files only their owner can read."""

import os
import secrets
import stat
from pathlib import Path

from tidemark.errors import TidemarkError

CLICKHOUSE_OWNER = "clickhouse_owner"
CLICKHOUSE_ANALYST = "clickhouse_analyst"
POSTGRES_SUPERUSER = "postgres_superuser"
POSTGRES_OWNER = "postgres_owner"
POSTGRES_ANALYST = "postgres_analyst"
POSTGRES_AIRFLOW = "postgres_airflow"
PASSWORDS = (
    CLICKHOUSE_OWNER,
    CLICKHOUSE_ANALYST,
    POSTGRES_SUPERUSER,
    POSTGRES_OWNER,
    POSTGRES_ANALYST,
    POSTGRES_AIRFLOW,
)
MASTER_KEY = "master.key"


def ensure_secrets(folder: Path) -> None:
    """Create the folder and every secret that is missing; existing ones stay as they are.

    Raises:
        TidemarkError: the folder or a secret in it is open to other accounts.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_closed(folder)
    for name in PASSWORDS:
        _create(folder / name, secrets.token_urlsafe(32).encode())
    _create(folder / MASTER_KEY, secrets.token_bytes(32))


def ensure_secret(folder: Path, name: str, content: bytes) -> bool:
    """Create one more secret, unless it exists; whether it is new.

    Raises:
        TidemarkError: it is open to other accounts.
    """
    return _create(folder / name, content)


def read_password(folder: Path, name: str) -> str:
    """Read one generated password.

    Raises:
        TidemarkError: it is missing, or open to other accounts.
    """
    return _read(folder / name).decode().strip()


def read_master_key(folder: Path) -> bytes:
    """Read the 32 bytes that wrap every key kept in PostgreSQL.

    Raises:
        TidemarkError: the key is missing, open to other accounts, or not 32 bytes long.
    """
    key = _read(folder / MASTER_KEY)
    if len(key) != 32:
        raise TidemarkError(f"{folder / MASTER_KEY} must hold 32 bytes, not {len(key)}")
    return key


def _read(path: Path) -> bytes:
    try:
        _check_closed(path)
        return path.read_bytes()
    except FileNotFoundError:
        raise TidemarkError(f"{path} is missing: run `tidemark up` first") from None


def _check_closed(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise TidemarkError(f"{path} is open to other accounts ({mode:04o}): chmod go= {path}")


def _create(path: Path, content: bytes) -> bool:
    if path.exists():
        _check_closed(path)
        return False
    # A link appears whole or not at all, and never over a secret that another process just made.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            _check_closed(path)
            return False
    finally:
        draft.unlink()
    return True
