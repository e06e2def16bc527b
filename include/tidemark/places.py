"""Where files that ClickHouse writes come to lie: a folder, or an object store behind one."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from upath import UPath

from tidemark.errors import TidemarkError, UsageError

Document = Mapping[str, Any] | Sequence[Mapping[str, Any]]
_CHUNK_BYTES = 1 << 20


class Place:
    """A location whose files appear whole, under paths below it, closed to other accounts."""

    def __init__(self, location: str, folder: Path, variable: str) -> None:
        """Open a location.

        Args:
            location: an absolute path or an `s3://` style URL.
            folder: where ClickHouse writes and reads: the location, or scratch space before a URL.
            variable: of the environment, which a message names.

        Raises:
            UsageError: nothing installed speaks the URL's protocol.
        """
        self.folder = folder
        self._variable = variable
        self._root = UPath(location)
        self._is_remote = "://" in location
        if self._is_remote:
            try:
                _ = self._root.fs
            except ImportError as error:
                raise UsageError(f"{variable} is {location}: {error}, or name a folder") from error

    def put(self, file: Path, path: str) -> None:
        """Bring a file that ClickHouse wrote to its place, where it appears whole."""
        if self._is_remote:
            with file.open("rb") as source, self._target(path).open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
            file.unlink()
        else:
            file.chmod(0o600)
            sync(file)
            final = self.folder / path
            make_folder(final.parent)
            file.replace(final)
            sync(final.parent)

    def put_json(self, document: Document, path: str) -> None:
        """Write a document, which appears whole."""
        text = json_bytes(document)
        if self._is_remote:
            self._target(path).write_bytes(text)
            return
        final = self.folder / path
        draft = final.with_name(f"{final.name}.new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(final)
        sync(final.parent)

    def json(self, path: str) -> Any:
        """A document; None where it is missing or no JSON."""
        try:
            return json.loads((self._root / path).read_bytes())
        except (OSError, ValueError):
            return None

    def read(self, path: str) -> bytes | None:
        """The bytes of a file; None where it is missing."""
        try:
            return bytes((self._root / path).read_bytes())
        except FileNotFoundError:
            return None

    def folders(self) -> list[str]:
        """The names of the folders at the location; none where it is missing.

        Raises:
            TidemarkError: the location is a file.
        """
        if not self._root.exists():
            return []
        if self._root.is_file():
            raise TidemarkError(f"{self._variable} is {self._root}, which is no folder")
        return sorted(own.name for own in self._root.iterdir() if own.is_dir())

    def files(self, path: str = "") -> Iterator[str]:
        """The paths of the files in a folder and below it; none where it is missing."""
        root = self._root / path if path else self._root
        for file in root.rglob("*") if root.exists() else ():
            if file.is_file():
                yield f"{path}{file.path.removeprefix(root.path)}".removeprefix("/")

    def size(self, path: str) -> int | None:
        """The bytes of a file, or of all below a folder; None where it is missing."""
        root = self._root / path
        try:
            found = root.stat()
        except OSError:
            return None
        return int(root.fs.du(root.path) if S_ISDIR(found.st_mode) else found.st_size)

    @contextmanager
    def fetched(self, paths: Iterable[str]) -> Iterator[Path]:
        """A folder in which ClickHouse can read these files, as far as they exist."""
        if not self._is_remote:
            yield self.folder
            return
        folder = self.folder / ".fetched"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            for path in paths:
                final = folder / path
                make_folder(final.parent)
                try:
                    with (self._root / path).open("rb") as source, final.open("wb") as target:
                        shutil.copyfileobj(source, target, _CHUNK_BYTES)
                except FileNotFoundError:
                    final.unlink(missing_ok=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, *paths: str) -> None:
        """Remove files of one folder, and folders that are empty then; nothing where they are gone.

        The first goes first.
        """
        for path in paths:
            for name in (path, f"{path}.new"):
                (self._root / name).unlink(missing_ok=True)
        if not self._is_remote:
            folder = (self.folder / paths[0]).parent
            if folder.is_dir():
                sync(folder)
            while folder != self.folder and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent

    def remove_folder(self, path: str) -> None:
        """Remove a folder and all in it, in scratch space too; nothing where it is gone."""
        if self._is_remote and (self._root / path).exists():
            self._root.fs.rm((self._root / path).path, recursive=True)
        folder = self.folder / path
        if folder.exists():
            shutil.rmtree(folder)
            sync(self.folder)

    def exists(self, *paths: str) -> bool:
        """Whether one of these files or folders is there."""
        return any((self._root / path).exists() for path in paths)

    def check_there(self) -> None:
        """Ask before what is not found is said to be gone.

        Raises:
            TidemarkError: the location itself is away, and who can tell what lies there.
        """
        # A bucket without files may be said to be missing.
        if not self._is_remote and not self._root.is_dir():
            raise TidemarkError(
                f"{self._root} is not there: is its disk, and is {self._variable} what it was?"
            )

    def _target(self, path: str) -> UPath:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def json_bytes(document: Document) -> bytes:
    """A document as `Place.put_json` writes it."""
    return json.dumps(document, indent=1).encode() + b"\n"


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, closed to other accounts."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        sync(path.parent)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make a file, or the entries of a folder, last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
