import stat
from pathlib import Path

import pytest

from tidemark import secrets_store
from tidemark.errors import TidemarkError


def test_secrets_are_made_once_and_closed(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    secrets_store.ensure_secrets(folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {*secrets_store.PASSWORDS, secrets_store.MASTER_KEY}
    assert len(set(first.values())) == len(first)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    secrets_store.ensure_secrets(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert len(secrets_store.read_master_key(folder)) == 32


def test_an_open_secret_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    secrets_store.ensure_secrets(folder)
    (folder / secrets_store.POSTGRES_OWNER).chmod(0o640)
    with pytest.raises(TidemarkError, match=r"postgres_owner is open to other accounts \(0640\)"):
        secrets_store.read_password(folder, secrets_store.POSTGRES_OWNER)
    with pytest.raises(TidemarkError, match="postgres_owner"):
        secrets_store.ensure_secrets(folder)


def test_a_missing_or_short_master_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TidemarkError, match="tidemark up"):
        secrets_store.read_master_key(tmp_path)
    key = tmp_path / secrets_store.MASTER_KEY
    key.touch(mode=0o600)
    key.write_bytes(b"short")
    with pytest.raises(TidemarkError, match="32 bytes"):
        secrets_store.read_master_key(tmp_path)
