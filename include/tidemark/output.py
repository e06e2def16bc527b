"""What the command line prints: one JSON document, a table, or tab-separated text."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tidemark.load import Report


def to_json(value: Any) -> str:
    """Write a value as JSON on one line.

    Decimals become numbers written digit for digit, never through a float; dates and times become
    ISO 8601 text, bytes hexadecimal text; numbers that JSON cannot say become null.
    """
    match value:
        case None | bool():
            return json.dumps(value)
        case int():
            return int.__repr__(value)
        case Decimal():
            # 'f' keeps every digit and never writes an exponent.
            return f"{value:f}" if value.is_finite() else "null"
        case float():
            return float.__repr__(value) if math.isfinite(value) else "null"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case Mapping():
            items = (
                f"{json.dumps(str(k), ensure_ascii=False)}: {to_json(v)}" for k, v in value.items()
            )
            return "{" + ", ".join(items) + "}"
        case datetime() | date() | time():
            return json.dumps(value.isoformat())
        case bytes() | bytearray() | memoryview():
            return json.dumps(bytes(value).hex())
        case timedelta():
            return f"{value.total_seconds()!r}"
        case list() | tuple() | set() | frozenset():
            return "[" + ", ".join(to_json(item) for item in value) + "]"
        case _:
            return json.dumps(str(value), ensure_ascii=False)


def emit(document: Any, human: Callable[[], None], *, as_json: bool) -> None:
    """Print a verb's result: the document as JSON, or whatever `human` prints."""
    if as_json:
        print(to_json(document))
    else:
        human()


def load_table(report: "Report") -> tuple[tuple[str, ...], list[list[Any]]]:
    """A load as a table: column names, then a row for each source and one for all."""
    columns = ("lines", "stored", "duplicate", "quarantined", "refused")
    by_source: dict[str, list[int]] = {}
    for file in report.files:
        for name in (file.file.split("/")[0], "all"):
            total = by_source.setdefault(name, [0] * (len(columns) + 1))
            total[0] += 1
            for position, column in enumerate(columns, start=1):
                total[position] += getattr(file.counts, column)
    last = by_source.pop("all", [0] * (len(columns) + 1))
    rows = [[source, *total] for source, total in by_source.items()]
    return ("source", "files", *columns), [*rows, ["all", *last]]


def note(line: str) -> None:
    """Tell the person what is going on, on stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int], Callable[[int], None]]]:
    """A bar on stderr for long work on a terminal, and nothing elsewhere.

    Gives a function that is told the total bytes and returns what to call with each step's bytes.
    """
    if not sys.stderr.isatty():
        yield lambda _total: lambda _bytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    ) as progress:

        def track(total: int) -> Callable[[int], None]:
            task = progress.add_task(label, total=total)
            return lambda step: progress.update(task, advance=step)

        yield track


def print_rows(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], file: TextIO | None = None
) -> None:
    """Print a table on a terminal, and tab-separated lines with a heading elsewhere."""
    file = file or sys.stdout
    if file.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for index, column in enumerate(columns):
            numeric = any(isinstance(row[index], int | float | Decimal) for row in rows)
            table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_plain(value)) for value in row))
        Console(file=file).print(table)
        return
    for line in (columns, *rows):
        print("\t".join(_escaped(_plain(value)) for value in line), file=file)


def _plain(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case Decimal():
            return f"{value:f}"
        case bool():
            return "true" if value else "false"
        case datetime() | date() | time():
            return value.isoformat()
        case bytes() | memoryview():
            return bytes(value).hex()
        case _:
            text = to_json(value)
            return json.loads(text) if text.startswith('"') else text


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n")
