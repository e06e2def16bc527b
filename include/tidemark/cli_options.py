"""Options that several verbs of the command line share."""

from datetime import UTC, date, datetime
from typing import Annotated

import typer

from tidemark.errors import UsageError

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


# As the load, to which an earlier time is a bad one.
_FIRST_DAY = date(2000, 1, 1)


def as_of_date(value: datetime | None) -> date:
    """The day an `AsOfOption` stands for: the one given, else today in UTC.

    Raises:
        UsageError: a day before 2000, of which nothing is ever loaded.
    """
    if value is None:
        return datetime.now(UTC).date()
    if value.date() < _FIRST_DAY:
        raise UsageError(f"--as-of {value.date()}: days begin with {_FIRST_DAY}")
    return value.date()
