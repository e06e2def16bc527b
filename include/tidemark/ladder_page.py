"""The ladder as a page of the documentation, written from the policy alone."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tidemark.config import Settings
from tidemark.policy import DataClass, Expiry, Kind, Policy

WIDTH = 100

_EXPIRY: dict[Expiry, str] = {
    "roll_up": "rolled up",
    "drop_personal_columns": "personal columns dropped",
    "anonymise": "anonymised facts kept",
    "cold": "to a cold file",
    "drop": "rows destroyed",
}
_KINDS: tuple[Kind, ...] = ("personal", "pseudonym", "measure", "dimension")


def render(ladder: Policy) -> str:
    """The page as Markdown, the same for the same policy."""
    lines = (*_head(), *_ladder(ladder), *_limits(ladder), *_columns(ladder))
    return "\n".join(line if line.startswith("|") else _wrapped(line) for line in lines)


def path(settings: Settings) -> Path:
    """Where the page lies."""
    return settings.root / "docs" / "ladder.md"


def _head() -> Iterator[str]:
    yield from (
        "# The retention ladder",
        "",
        "`make docs` writes this page from `include/policy.yml`, the one place where these numbers"
        " stand; a test fails where the two differ. How a purge works:"
        " [decision 7](decisions/0007-purge-protocol.md).",
        "",
        "## Classes",
        "",
    )


def _ladder(ladder: Policy) -> Iterator[str]:
    yield from _table(
        ("class", "tables", "window", "clock starts at", "on expiry", "floor", "basis"),
        (
            (
                f"`{name}`",
                _names(own.tables),
                _window(own),
                f"`{own.clock}`",
                _expiry(ladder, own),
                _floor(ladder, name),
                own.basis,
            )
            for name, own in ladder.classes.items()
        ),
    )
    yield from (
        "",
        "A row goes no earlier than its window says and no later than 31 days after: whole months"
        " go by partition. A workspace's own window ends on its day.",
        "",
        f"Workspaces on {_or(ladder.override_plans)} may shorten a window down to its floor, but"
        " where the floor says `fixed`; a mart stays at least as long as the rows behind it. The"
        " next purge obeys.",
        "",
        "Rows of the same days in these tables go with the class:",
        "",
    )
    yield from _table(
        ("class", "tables"),
        ((f"`{name}`", _names(own.derived)) for name, own in ladder.classes.items() if own.derived),
    )
    yield from (
        "",
        "Tables that stay though a column of theirs looks like somebody's identifier:",
        "",
    )
    yield from _table(("table", "why"), ((f"`{table}`", why) for table, why in ladder.kept.items()))
    yield ""


def _limits(ladder: Policy) -> Iterator[str]:
    yield from (
        "## Figures that need a long history",
        "",
        "`marts.kpi_availability` says *insufficient retention* where a workspace's window is"
        " shorter. Of orders and payments the one counts that the workspace takes its revenue"
        " from.",
        "",
    )
    yield from _table(
        ("figure", "needs", "of the classes"),
        (
            (f"`{name}`", str(figure.needs), _names(figure.classes))
            for name, figure in ladder.figures.items()
        ),
    )
    backup = ladder.gate.verified_backup
    purge = ladder.purge
    yield from (
        "",
        "## Limits of a purge",
        "",
        f"- A plan over more than {purge.approval_rows:,} rows waits for a person.",
        f"- No verdict older than {purge.verdict_hours} hours opens a purge.",
        f"- The permits of a step live {purge.permit_minutes} minutes for each of its tables.",
        f"- A verified backup younger than {backup.hours} hours is required"
        f"{'' if backup.required == 'always' else ' of a home that ever made one'}.",
        f"- A cell of a mart that outlives raw data and counts customers is small below"
        f" {purge.k} of them.",
        "",
        "## Backups",
        "",
        f"A daily backup stays {ladder.backups.daily}, a monthly one {ladder.backups.monthly}. No"
        f" backup has the rows of {_names(ladder.backups.never)}; a monthly has no personal column"
        f" and of schema `app` only {_names(ladder.backups.monthly_app)}.",
        "",
        "## Requests",
        "",
        f"An erasure is due {ladder.requests.erase_days} days after it was received, an export"
        f" {ladder.requests.export_days} days.",
        "",
    )


def _columns(ladder: Policy) -> Iterator[str]:
    yield from (
        "## Columns",
        "",
        "Personal: leads to a person by itself or where the id came from; goes with the row."
        " Pseudonym: tells rows of one person, visit or thing apart, without saying whose they"
        " are. Measure: what is counted or summed. Dimension: everything else.",
        "",
    )
    yield from _table(
        ("table", *_KINDS),
        (
            (f"`{table}`", *(_names(ladder.columns_of(table, kind)) for kind in _KINDS))
            for table in ladder.columns
        ),
    )
    yield ""


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heading)} |"
    yield f"|{'---|' * len(heading)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _wrapped(line: str) -> str:
    return textwrap.fill(
        line,
        WIDTH,
        subsequent_indent="  " if line.startswith("- ") else "",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _or(names: Sequence[str]) -> str:
    return " or ".join(names)


def _window(own: DataClass) -> str:
    if own.window_of is not None:
        return "as its source"
    return str(own.window) if own.window else "no limit"


def _expiry(ladder: Policy, own: DataClass) -> str:
    text = ", ".join(_EXPIRY[action] for action in own.expiry)
    if "cold" in own.expiry:
        stays = "no limit" if own.is_mart else str(ladder.classes["cold_files"].window)
        ids = "kept" if own.cold_pseudonyms == "keep" else "hashed again under a key then destroyed"
        has_ids = any(ladder.columns_of(table, "pseudonym") for table in own.tables)
        text += f" (cold: {stays}{f', pseudonyms {ids}' if has_ids else ''})"
    return text


def _floor(ladder: Policy, name: str) -> str:
    own = ladder.classes[name]
    if own.window is None or not ladder.plans_that_override(name):
        return "" if own.window is None and own.window_of is None else "fixed"
    return str(own.floor) if own.floor else "none"
