"""Options that several verbs of the command line share."""

from datetime import UTC, date, datetime
from typing import Annotated

import typer

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout; logs go to stderr.")
]
AsOfOption = Annotated[
    datetime | None,
    typer.Option(
        "--as-of",
        formats=["%Y-%m-%d"],
        metavar="D",
        help="The day that decides, as YYYY-MM-DD; by default today in UTC.",
    ),
]


def as_of_date(value: datetime | None) -> date:
    """The day an `AsOfOption` stands for: the one given, else today in UTC."""
    return value.date() if value is not None else datetime.now(UTC).date()
