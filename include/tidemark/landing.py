"""The landing folder: which files stand in it, and what each is."""

import codecs
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from stat import S_ISDIR
from typing import Any, BinaryIO, Literal

import zstandard
from isal import isal_zlib
from upath import UPath

from tidemark import privacy
from tidemark.errors import UsageError
from tidemark.policy import Policy
from tidemark.workspaces import ID

Encoding = Literal["gzip", "zstd"]

_SUFFIXES: dict[str, Encoding | None] = {".jsonl": None, ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
_CHUNK_BYTES = 1 << 20
# The stubs take this class for a value.
_GzipError: type[Exception] = isal_zlib.error  # type: ignore[assignment]
_DECOMPRESSORS: dict[Encoding, Callable[[], Any]] = {
    "gzip": lambda: isal_zlib.decompressobj(wbits=31),
    "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
#: What reading a file raises that is damaged or cut short.
DAMAGED = (EOFError, OSError, zstandard.ZstdError, _GzipError)


class Unreadable(Exception):
    """A landing file's bytes could not be read to their end."""


@dataclass(frozen=True, slots=True)
class LandingFile:
    """A complete file: `<landing>/<source>/<workspace_id>/<YYYY-MM-DD>/<name>.jsonl[.gz|.zst]`."""

    source: str
    workspace_id: str
    delivery_date: date
    #: May hold personal data: no log, table or message repeats it; `shown` may be repeated.
    name: str = field(repr=False)
    path: UPath = field(repr=False)
    #: Bytes as they lie.
    size: int

    @property
    def shown(self) -> str:
        """Where the file lies below the landing folder, with what looks personal taken out."""
        return f"{self.source}/{self.workspace_id}/{self.delivery_date}/{_redacted(self.name)}"

    @property
    def encoding(self) -> Encoding | None:
        """How its bytes are compressed."""
        return next(e for s, e in reversed(_SUFFIXES.items()) if self.name.endswith(s))

    def open(self) -> BinaryIO:
        """Open its bytes as they lie."""
        return self.path.open("rb")

    def packed(self, advance: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
        """Its bytes as they lie, in chunks; `advance` is told the bytes read.

        Raises:
            Unreadable: it is gone, or reading it failed.
        """
        try:
            with self.open() as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    yield chunk
                    advance(len(chunk))
        except OSError as error:
            # No OSError: to who sends the chunks that would be the receiver's.
            raise Unreadable(self.shown) from error

    def has_mark(self) -> bool:
        """Whether its text begins with UTF-8's byte order mark.

        Raises:
            As `chunks` does.
        """
        return next(self.chunks(), b"").startswith(codecs.BOM_UTF8)

    def chunks(self, advance: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
        """Its bytes unpacked, in chunks; `advance` is told the bytes read as they lie.

        Raises:
            Those of `DAMAGED`: it is damaged or cut short.
        """
        position = 0
        with self.open() as stream:
            plain = iter(lambda: stream.read(_CHUNK_BYTES), b"")
            for chunk in _unpacked(stream, self.encoding) if self.encoding else plain:
                yield chunk
                advance(stream.tell() - position)
                position = stream.tell()

    def lines(self, most: int, advance: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
        """Its text in pieces of about `most` bytes, each of whole lines ending in a newline.

        A line longer than that comes as a piece of its own.

        Raises:
            As `chunks` does.
        """
        parts: list[bytes] = []
        size = 0
        for number, chunk in enumerate(self.chunks(advance)):
            if number == 0:
                chunk = chunk.removeprefix(codecs.BOM_UTF8)
            end = chunk.rfind(b"\n") + 1
            if end and size + len(chunk) > most:
                parts.append(chunk[:end])
                yield b"".join(parts)
                parts, size, chunk = [], 0, chunk[end:]
            parts.append(chunk)
            size += len(chunk)
        if size:
            text = b"".join(parts)
            yield text if text.endswith(b"\n") else text + b"\n"

    def readable_lines(self) -> int:
        """How many whole lines stand before its damage, or in all."""
        count = 0
        with suppress(*DAMAGED):
            for chunk in self.chunks():
                count += chunk.count(b"\n")
        return count

    def sha256(self) -> str:
        """The SHA-256 of its bytes as they lie, in hex."""
        digest = hashlib.sha256()
        with self.open() as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()


def discover(
    landing: str, policy: Policy, sources: Iterable[str], workspace: str | None
) -> tuple[list[LandingFile], list[str]]:
    """List the files of some sources, in the order they load: source, day, workspace, name.

    Args:
        sources: all of the policy's where empty.
        workspace: only this workspace's; sources that have no folder a workspace come along.

    Returns:
        The files, and a line about each thing in the folder that is no landing file.

    Raises:
        UsageError: a source is not in the policy.
    """
    wanted = list(sources) or list(policy.sources)
    for source in wanted:
        if source not in policy.sources:
            known = ", ".join(policy.sources)
            raise UsageError(f"no source {source}; include/policy.yml has {known}")
    root = UPath(landing)
    if not root.exists():
        return [], [f"{landing} does not exist: nothing to load"]
    files: list[LandingFile] = []
    problems = [
        f"{_redacted(entry.name)}/ is no source of include/policy.yml: left alone"
        for entry in _children(root)
        if entry.is_dir() and entry.name not in policy.sources
    ]
    for source in (name for name in policy.sources if name in wanted):
        for folder in _children(root / source):
            own = policy.sources[source].workspace is not None
            if not folder.is_dir() or (workspace not in (None, folder.name) and not own):
                continue
            if not own and not ID.fullmatch(folder.name) and _redacted(folder.name) != folder.name:
                # Not to quarantine, whose rows name their workspace.
                problems.append(f"{source}/{_redacted(folder.name)}/ is no workspace: left alone")
                continue
            for day in _children(folder):
                delivery_date: date | None
                try:
                    delivery_date = date.fromisoformat(day.name)
                except ValueError:
                    delivery_date = None
                # Python reads 20261119 and 2026-W47-4 too.
                if delivery_date is None or delivery_date.isoformat() != day.name:
                    problems.append(
                        f"{source}/{_redacted(folder.name)}/{_redacted(day.name)}:"
                        " the folder must be a day of delivery, YYYY-MM-DD"
                    )
                    continue
                for entry in _children(day):
                    # A name that starts with a dot or ends otherwise is a delivery still under way.
                    if entry.name.startswith(".") or not entry.name.endswith(tuple(_SUFFIXES)):
                        continue
                    size = _size(entry)
                    file = LandingFile(
                        source, folder.name, delivery_date, entry.name, entry, size or 0
                    )
                    if size is None:
                        problems.append(f"{file.shown} is no file: left alone")
                    else:
                        files.append(file)
    order = {source: position for position, source in enumerate(policy.sources)}
    files.sort(key=lambda f: (order[f.source], f.delivery_date, f.workspace_id, f.name))
    return files, problems


def _size(entry: UPath) -> int | None:
    """The bytes of a file; None where it is a folder, leads nowhere or is gone."""
    try:
        found = entry.stat()
    except OSError:
        return None
    return None if S_ISDIR(found.st_mode) else int(found.st_size)


def _children(folder: UPath) -> list[UPath]:
    if not folder.is_dir():
        return []
    return sorted(folder.iterdir(), key=lambda entry: entry.name)


def _unpacked(stream: BinaryIO, encoding: Encoding) -> Iterator[bytes]:
    """Unpack members or frames; the libraries' readers would keep what stands before damage."""
    frame, began = None, False
    # A small step: what it unpacks to is held in memory whole.
    while packed := stream.read(_CHUNK_BYTES // 16):
        while packed:
            if began and frame is None and encoding == "gzip":
                # Behind a member gzip takes zeros for padding.
                packed = packed.lstrip(b"\0")
                if not packed:
                    break
            frame, began = frame or _DECOMPRESSORS[encoding](), True
            if text := frame.decompress(packed):
                yield text
            packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None or not began:
        raise EOFError(f"the {encoding} data is cut short")


def _redacted(name: str) -> str:
    # A name may be any bytes, and what shows it speaks UTF-8.
    text = os.fsencode(name).decode(errors="replace")
    # In names an underscore stands for a space.
    words = text.replace("_", " ")
    shown = privacy.redacted(words)
    return text if shown == words else shown
