"""Bodies: decoding requests, framing what goes into the engine's pipe, encoding answers."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import lz4.block  # type: ignore[import-untyped]
import lz4.frame  # type: ignore[import-untyped]
import zstandard
from clickhouse_cityhash.cityhash import CityHash128  # type: ignore[import-untyped]

from chdb_http.errors import ClickHouseError

try:
    import brotli  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    brotli = None


_PIECE = 1 << 20


def _corrupt(message: str) -> ClickHouseError:
    return ClickHouseError(354, "ZLIB_INFLATE_FAILED", message)


class Decoder(Protocol):
    """Turns a request's encoded body into its bytes."""

    # How much to take at a time, in bytes: what that unpacks to at most can be held in memory.
    step: int

    def feed(self, data: bytes) -> bytes:
        """Decode a piece. Raises ClickHouseError for a corrupt one."""

    def finish(self) -> None:
        """Raises ClickHouseError if the stream is not whole."""


def decoded(decode: Decoder, data: bytes) -> Iterator[bytes]:
    """A piece of a body, decoded in pieces that stay small however much it unpacks to.

    Raises ClickHouseError for a corrupt one.
    """
    held: list[bytes] = []
    size = 0
    for at in range(0, len(data), decode.step):
        piece = decode.feed(data[at : at + decode.step])
        held.append(piece)
        size += len(piece)
        if size >= _PIECE:
            yield b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)


class PlainDecoder:
    """The body as it is."""

    step = 1 << 30

    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> None:
        return None


class ZlibDecoder:
    """gzip with any number of members, or deflate (zlib or raw)."""

    step = 1 << 14

    def __init__(self, name: str) -> None:
        self._window = 31 if name == "gzip" else 47
        self._raw = name == "deflate"
        self._stream = zlib.decompressobj(self._window)
        self._fed = False

    def feed(self, data: bytes) -> bytes:
        out = []
        while data:
            if self._stream.eof:
                self._stream = zlib.decompressobj(self._window)
            try:
                out.append(self._stream.decompress(data))
            except zlib.error as error:
                if not (self._raw and not self._fed):
                    raise _corrupt(f"inflate failed: {error}") from None
                self._window = -15
                self._stream = zlib.decompressobj(self._window)
                out.append(self._stream.decompress(data))
            self._fed = True
            data = self._stream.unused_data if self._stream.eof else b""
        return b"".join(out)

    def finish(self) -> None:
        if self._fed and not self._stream.eof:
            raise _corrupt("inflate failed: the body ends in the middle of the stream")


class FrameDecoder:
    """zstd, lz4 or br: streams of frames with an end mark."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.step = 1 << 16 if name == "lz4" else 1 << 10
        self._stream = self._make()
        self._fed = False

    def _make(self) -> Any:
        if self._name == "zstd":
            return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        if self._name == "lz4":
            return lz4.frame.LZ4FrameDecompressor()
        return brotli.Decompressor()

    def feed(self, data: bytes) -> bytes:
        out = []
        try:
            if self._name == "br":
                self._fed = self._fed or bool(data)
                return bytes(self._stream.process(data))
            while data:
                if self._stream.eof:
                    self._stream = self._make()
                out.append(self._stream.decompress(data))
                self._fed = True
                data = self._stream.unused_data or b"" if self._stream.eof else b""
        except (zstandard.ZstdError, RuntimeError, EOFError, ValueError) as error:
            raise _corrupt(f"{self._name} decompression failed: {error}") from None
        except Exception as error:
            if brotli is None or not isinstance(error, brotli.error):
                raise
            raise _corrupt(f"br decompression failed: {error}") from None
        return b"".join(out)

    def finish(self) -> None:
        whole = self._stream.is_finished() if self._name == "br" else self._stream.eof
        if self._fed and not whole:
            raise _corrupt(f"{self._name}: the body ends in the middle of the stream")


# A block of ClickHouse's own compressed format: a checksum of what follows, the method, the block's
# size with these nine bytes, its size unpacked.
_BLOCK = struct.Struct("<BII")
_CHECKSUM = 16
_MAX_BLOCK = 128 << 20
_BLOCK_PLAIN, _BLOCK_LZ4, _BLOCK_ZSTD = 0x02, 0x82, 0x90


def _checksum(block: bytes) -> bytes:
    number = CityHash128(block)
    return struct.pack("<QQ", number >> 64, number & 0xFFFFFFFFFFFFFFFF)


class BlockDecoder:
    """ClickHouse's own compressed blocks (``decompress=1``), inside another encoding if any."""

    step = 1 << 10

    def __init__(self, source: Decoder) -> None:
        self._source = source
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes:
        self._buffer += self._source.feed(data)
        out = []
        at = 0
        while len(self._buffer) - at >= _CHECKSUM + _BLOCK.size:
            method, size, unpacked = _BLOCK.unpack_from(self._buffer, at + _CHECKSUM)
            if max(size, unpacked) > _MAX_BLOCK or size < _BLOCK.size:
                raise ClickHouseError(
                    39,
                    "TOO_LARGE_SIZE_COMPRESSED",
                    f"A compressed block of {size} bytes, {unpacked} unpacked: at most"
                    f" {_MAX_BLOCK} are allowed. Most likely corrupted data",
                )
            end = at + _CHECKSUM + size
            if len(self._buffer) < end:
                break
            block = bytes(self._buffer[at + _CHECKSUM : end])
            if _checksum(block) != self._buffer[at : at + _CHECKSUM]:
                raise ClickHouseError(
                    40, "CHECKSUM_DOESNT_MATCH", "Checksum doesn't match: corrupted data"
                )
            out.append(self._unpack(method, block[_BLOCK.size :], unpacked))
            at = end
        del self._buffer[:at]
        return b"".join(out)

    def _unpack(self, method: int, data: bytes, size: int) -> bytes:
        try:
            if method == _BLOCK_LZ4:
                unpacked = lz4.block.decompress(data, uncompressed_size=size)
            elif method == _BLOCK_ZSTD:
                unpacked = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
            elif method == _BLOCK_PLAIN:
                unpacked = data
            else:
                raise ClickHouseError(
                    432, "UNKNOWN_CODEC", f"Unknown codec of a compressed block: 0x{method:02x}"
                )
        except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
            raise ClickHouseError(271, "CANNOT_DECOMPRESS", f"Cannot decompress: {error}") from None
        if len(unpacked) != size:
            raise ClickHouseError(271, "CANNOT_DECOMPRESS", "Cannot decompress: a wrong size")
        return bytes(unpacked)

    def finish(self) -> None:
        self._source.finish()
        if self._buffer:
            raise ClickHouseError(
                33, "CANNOT_READ_ALL_DATA", "The body ends in the middle of a compressed block"
            )


def decoder(encoding: str, blocks: bool = False) -> Decoder:
    """The decoder for a Content-Encoding, with ClickHouse's compressed blocks inside or not.

    Raises ClickHouseError for an unknown encoding.
    """
    if blocks:
        return BlockDecoder(decoder(encoding))
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return PlainDecoder()
    if name in ("gzip", "x-gzip"):
        return ZlibDecoder("gzip")
    if name == "deflate":
        return ZlibDecoder("deflate")
    if name in ("zstd", "lz4") or (name == "br" and brotli is not None):
        return FrameDecoder(name)
    raise ClickHouseError(
        48, "NOT_IMPLEMENTED", f"Unknown compression method '{encoding}' in Content-Encoding"
    )


class ZstdFrames:
    """A zstd body as it came: only whether it is whole is looked at.

    The engine, which inflates it, takes one that ends in the middle for a complete one.
    """

    step = 1 << 20
    _MAGIC = 0xFD2FB528

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._state = "frame"
        self._checksum = False

    def _need(self) -> tuple[int, str]:
        """How many buffered bytes make the next whole unit, and the state behind it; 0 for more."""
        data = self._buffer
        if self._state == "checksum":
            return 4, "frame"
        if self._state == "block":
            if len(data) < 3:
                return 0, ""
            head = int.from_bytes(data[:3], "little")
            kind, size = head >> 1 & 3, head >> 3
            if kind == 3:
                raise _corrupt("zstd: reserved block type")
            after = "block" if not head & 1 else "checksum" if self._checksum else "frame"
            return 3 + (1 if kind == 1 else size), after
        if len(data) < 8:
            return 0, ""
        magic = int.from_bytes(data[:4], "little")
        if magic & 0xFFFFFFF0 == 0x184D2A50:
            size = int.from_bytes(data[4:8], "little")
            if size > _PIECE:
                raise _corrupt("zstd: a frame to be skipped is too large")
            return 8 + size, "frame"
        if magic != self._MAGIC:
            raise _corrupt("zstd: not a zstd frame")
        flags = data[4]
        self._checksum = bool(flags & 4)
        single = flags & 0x20
        size = (1 if single else 0, 2, 4, 8)[flags >> 6]
        return 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3] + size, "block"

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        out = bytearray()
        while self._buffer:
            need, after = self._need()
            if not need or len(self._buffer) < need:
                break
            out += self._buffer[:need]
            del self._buffer[:need]
            self._state = after
        return bytes(out)

    def finish(self) -> None:
        if self._buffer or self._state != "frame":
            raise _corrupt("zstd: the body ends in the middle of the stream")


def shared(encoding: str, blocks: bool = False) -> tuple[Decoder, str]:
    """What is left to decode here of a body that the engine reads, and the compression it inflates.

    The body is told as for ``decoder``. Raises ClickHouseError likewise.
    """
    name = "" if blocks else encoding.strip().lower()
    if name in ("gzip", "x-gzip"):
        return PlainDecoder(), "gzip"
    if name == "zstd":
        return ZstdFrames(), "zstd"
    return decoder(encoding, blocks), "none"


class Encoder(Protocol):
    """Turns an answer's bytes into what its Content-Encoding, the name, says."""

    name: str

    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class ZlibEncoder:
    """gzip or deflate (zlib)."""

    def __init__(self, name: str, level: int) -> None:
        self.name = name
        self._stream = zlib.compressobj(level, zlib.DEFLATED, 31 if name == "gzip" else 15)

    def feed(self, data: bytes) -> bytes:
        return self._stream.compress(data)

    def finish(self) -> bytes:
        return self._stream.flush()


class ZstdEncoder:
    """zstd."""

    name = "zstd"

    def __init__(self, level: int) -> None:
        self._stream = zstandard.ZstdCompressor(level=level).compressobj()

    def feed(self, data: bytes) -> bytes:
        return self._stream.compress(data)

    def finish(self) -> bytes:
        return self._stream.flush()


class Lz4Encoder:
    """An lz4 frame."""

    name = "lz4"

    def __init__(self) -> None:
        self._stream = lz4.frame.LZ4FrameCompressor()
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        head = b"" if self._begun else self._stream.begin()
        self._begun = True
        return bytes(head + self._stream.compress(data))

    def finish(self) -> bytes:
        head = b"" if self._begun else self._stream.begin()
        return bytes(head + self._stream.flush())


class BrotliEncoder:
    """br."""

    name = "br"

    def __init__(self, level: int) -> None:
        self._stream = brotli.Compressor(quality=level)

    def feed(self, data: bytes) -> bytes:
        return bytes(self._stream.process(data))

    def finish(self) -> bytes:
        return bytes(self._stream.finish())


class BlockEncoder:
    """ClickHouse's own compressed blocks, LZ4 as the server's (``compress=1``)."""

    name = ""
    _SIZE = 1 << 20

    def __init__(self, outer: Encoder | None) -> None:
        self._outer = outer
        if outer:
            self.name = outer.name

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        for at in range(0, len(data), self._SIZE):
            piece = data[at : at + self._SIZE]
            packed = lz4.block.compress(piece, store_size=False)
            block = _BLOCK.pack(_BLOCK_LZ4, _BLOCK.size + len(packed), len(piece)) + packed
            out += (_checksum(block), block)
        joined = b"".join(out)
        return self._outer.feed(joined) if self._outer else joined

    def finish(self) -> bytes:
        return self._outer.finish() if self._outer else b""


def encoder(accept: str, level: int) -> Encoder | None:
    """The encoder a client's Accept-Encoding asks for, by the server's order of preference."""
    names = {
        name.split(";")[0].strip().lower()
        for name in accept.split(",")
        if not name.replace(" ", "").endswith(";q=0")
    }
    if "br" in names and brotli is not None and not names & {"zstd", "lz4", "gzip"}:
        return BrotliEncoder(min(level, 11))
    if "lz4" in names and "zstd" not in names:
        return Lz4Encoder()
    if "zstd" in names:
        return ZstdEncoder(level)
    for name in ("gzip", "deflate"):
        if name in names:
            return ZlibEncoder(name, min(level, 9))
    return None
