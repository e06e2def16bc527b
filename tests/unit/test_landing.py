"""Landing files: which they are, their lines in pieces, and what a message may say of them."""

import gzip
from datetime import date
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from tidemark import policy
from tidemark.config import Settings
from tidemark.errors import UsageError
from tidemark.landing import LandingFile, discover


def _file(path: Path, data: bytes) -> LandingFile:
    path.write_bytes(data)
    return LandingFile("pixel", "shop", date(2026, 11, 19), path.name, UPath(path), len(data))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
@given(
    lines=st.lists(st.binary(max_size=60).map(lambda line: line.replace(b"\n", b"")), min_size=1),
    most=st.integers(1, 200),
    ends=st.booleans(),
)
def test_pieces_are_whole_lines_and_together_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    lines: list[bytes],
    most: int,
    ends: bool,
) -> None:
    text = b"\n".join(lines) + (b"\n" if ends else b"")
    packed = {".jsonl": text, ".jsonl.gz": gzip.compress(text), ".jsonl.zst": None}[suffix]
    data = zstandard.compress(text) if packed is None else packed
    file = _file(tmp_path_factory.mktemp("landing") / f"part{suffix}", data)
    pieces = list(file.lines(most))
    assert all(piece.endswith(b"\n") for piece in pieces)
    whole = text if text.endswith(b"\n") or not text else text + b"\n"
    assert b"".join(pieces) == whole.removeprefix(b"\xef\xbb\xbf")


def test_progress_adds_up_to_the_bytes_that_lie_there(tmp_path: Path) -> None:
    for suffix, pack in ((".jsonl", bytes), (".jsonl.gz", gzip.compress)):
        read: list[int] = []
        file = _file(tmp_path / f"part{suffix}", pack(b"{}\n" * 1_000_000))
        assert sum(len(piece) for piece in file.lines(1 << 18, read.append)) == 3_000_000
        assert sum(read) == file.size


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_what_is_cut_short_never_ends_quietly(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    suffix = ".gz" if pack is gzip.compress else ".zst"
    data = pack(b'{"a": 1}\n' * 10_000)
    for length in (*range(1, 12), len(data) // 2, len(data) - 1):
        file = _file(tmp_path / f"part.jsonl{suffix}", data[:length])
        with pytest.raises((EOFError, OSError, zstandard.ZstdError)):
            list(file.lines(1000))


def test_frames_behind_each_other_are_one_file(tmp_path: Path) -> None:
    for suffix, pack in ((".gz", gzip.compress), (".zst", zstandard.compress)):
        file = _file(tmp_path / f"part.jsonl{suffix}", pack(b"1\n") + pack(b"2\n"))
        assert b"".join(file.lines(100)) == b"1\n2\n"


@pytest.mark.parametrize(
    "name",
    [
        "ada@example.org.jsonl",
        "ada%40example.org.jsonl",
        "ada\uff20example.org.jsonl",
        "call +44 20 7946 0958.jsonl.gz",
        "caller_02079460958_1.jsonl.gz",
        "from_192.0.2.17.jsonl.zst",
    ],
)
def test_a_name_that_looks_personal_is_shown_redacted(tmp_path: Path, name: str) -> None:
    file = _file(tmp_path / name, b"")
    assert file.shown.startswith("pixel/shop/2026-11-19/")
    assert "[redacted]" in file.shown
    assert name not in file.shown
    assert name not in repr(file)


@pytest.mark.parametrize("name", ["orders_2026-11-19.jsonl", "events_20261119T101500.jsonl.gz"])
def test_a_name_with_a_day_is_shown_as_it_is(tmp_path: Path, name: str) -> None:
    assert _file(tmp_path / name, b"").shown.endswith(f"/{name}")


def test_files_come_in_the_order_of_their_loading(tmp_path: Path) -> None:
    ladder = policy.read(Settings.from_env({}))
    for path in (
        "pixel/b/2026-11-18/z.jsonl",
        "pixel/a/2026-11-19/a.jsonl",
        "pixel/a/2026-11-18/b.jsonl.zst",
        "pixel/a/2026-11-18/a.jsonl.gz",
        "fx_rates/_/2026-11-19/rates.jsonl",
        "shopify_orders/a/2026-11-19/o.jsonl",
        "pixel/a/2026-11-18/.a.jsonl",
        "pixel/a/2026-11-18/a.jsonl.part",
        "pixel/a/18.11.2026/a.jsonl",
        "pixel/a/2026-W47-4/a.jsonl",
        "pixel/a/2026-13-45/a.jsonl",
        "elsewhere/a/2026-11-18/a.jsonl",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    files, notes = discover(str(tmp_path), ladder, [], None)
    assert [file.shown for file in files] == [
        "fx_rates/_/2026-11-19/rates.jsonl",
        "shopify_orders/a/2026-11-19/o.jsonl",
        "pixel/a/2026-11-18/a.jsonl.gz",
        "pixel/a/2026-11-18/b.jsonl.zst",
        "pixel/b/2026-11-18/z.jsonl",
        "pixel/a/2026-11-19/a.jsonl",
    ]
    assert len(notes) == 4
    # Who mistyped it must find it.
    assert "pixel/a/2026-13-45: the folder must be a day of delivery, YYYY-MM-DD" in notes
    files, _ = discover(str(tmp_path), ladder, ["pixel", "fx_rates"], "b")
    # The rates serve every workspace.
    assert [file.source for file in files] == ["fx_rates", "pixel"]
    with pytest.raises(UsageError, match="no source pixels"):
        discover(str(tmp_path), ladder, ["pixels"], None)
    assert discover(str(tmp_path / "nowhere"), ladder, [], None)[0] == []
