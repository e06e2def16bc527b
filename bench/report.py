"""What a benchmark says: figures with their goals, as a table, as Markdown and as JSON."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    name: str
    value: str
    goal: str = ""
    #: None where there is no goal.
    met: bool | None = None

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The line, from left to right."""
        mark = {None: "", True: "yes", False: "no"}[self.met]
        return self.name, self.value, self.goal, mark


def at_most(name: str, value: float, goal: float, unit: str = " times") -> Figure:
    """A figure that must not be more than its goal."""
    return Figure(name, f"{value:.2f}{unit}", f"at most {goal:g}{unit}", value <= goal)


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def keep(console: Console, name: str, heading: str, figures: list[Figure], **sizes: int) -> None:
    """Show the figures, and keep them as `bench/results/<name>.md` and `.json`.

    Args:
        heading: a Markdown heading, without its mark.
        sizes: what was measured, for the JSON.
    """
    columns = ("figure", "value", "goal", "met")
    table = Table(*columns)
    for figure in figures:
        table.add_row(*figure.cells)
    console.print(table)
    cores = psutil.cpu_count()
    lines = [columns, ("---",) * len(columns), *(figure.cells for figure in figures)]
    page = RESULTS / f"{name}.md"
    page.write_text(
        f"# {heading}\n\nOn {cores} cores, in one run.\n\n"
        + "".join(f"| {' | '.join(cells)} |\n" for cells in lines),
        encoding="utf-8",
    )
    document: dict[str, Any] = {
        **sizes, "cores": cores, "figures": [asdict(figure) for figure in figures],
    }  # fmt: skip
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console.print(f"kept in {page}")
