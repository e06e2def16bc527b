"""What must hold of the frame that a tie-out compares."""

from collections.abc import Iterator

import great_expectations.expectations as gxe
from great_expectations import ExpectationSuite
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.row_conditions import Column, RowConditionType

#: What identifies a row. kind: `measure`, `figure` or `condition`; name: `orders`, `revenue`, …
KEY = ("kind", "name", "workspace_id", "local_date", "currency")
SIDES = ("ledger", "raw", "marts")
COLUMNS = (
    *KEY,
    # Whether raw can still tell: not where its rows are purged.
    "is_recounted",
    # Of a measure: rows, distinct ids and money that a side knows of, in one exact text. Each
    # expectation costs a twentieth of a second, so a side is one column and not three.
    *SIDES,
    # Of a figure: a number each, as exact text.
    "recount",
    "facts",
    "mart",
    # Of a condition: how many things are open.
    "open",
)

_IS_MEASURE = Column("kind") == "measure"
_IS_FIGURE = Column("kind") == "figure"
_IS_CONDITION = Column("kind") == "condition"
_IS_RECOUNTED = Column("is_recounted") == True  # noqa: E712 - builds a condition
#: No count is negative.
_TOLD = r"^\d+ rows of \d+ ids -?\d+(?:\.\d+)?$"


def tie_out(name: str = "tie_out") -> ExpectationSuite:
    """Ledger, raw and marts tell the same of every measure, and the daily marts of every figure.

    A measure is what the load ledger counts: per workspace, day and currency its rows, distinct
    ids and money. A figure is a column of a daily mart, summed per workspace and day; it has to
    equal what the facts behind it give and, where raw alone can tell, a recount of raw. A side
    that does not know of a row counts as zero there, so what is missing fails as what differs.
    """
    return ExpectationSuite(name, expectations=list(_expectations()))


def _expectations() -> Iterator[Expectation]:
    # Without it a frame that came out empty would pass everything else.
    yield gxe.ExpectTableRowCountToBeBetween(min_value={"$PARAMETER": "asked_rows"})
    yield gxe.ExpectCompoundColumnsToBeUnique(column_list=list(KEY))
    yield gxe.ExpectColumnValuesToBeInSet(
        column="kind", value_set=["measure", "figure", "condition"]
    )
    # Each by itself: raw is compared with nothing where it cannot tell.
    for side in SIDES:
        yield gxe.ExpectColumnValuesToMatchRegex(
            column=side, regex=_TOLD, row_condition=_IS_MEASURE
        )
    yield _equal("ledger", "marts", _IS_MEASURE)
    yield _equal("ledger", "raw", _IS_MEASURE & _IS_RECOUNTED)
    yield _equal("facts", "mart", _IS_FIGURE)
    yield gxe.ExpectColumnValuesToBeInSet(
        column="open", value_set=["0"], row_condition=_IS_CONDITION
    )
    yield _equal("recount", "mart", _IS_FIGURE & _IS_RECOUNTED)


def _equal(one: str, other: str, where: RowConditionType) -> Expectation:
    return gxe.ExpectColumnPairValuesToBeEqual(
        column_A=one, column_B=other, ignore_row_if="neither", row_condition=where
    )
