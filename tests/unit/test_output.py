import json
from datetime import UTC, date, datetime
from decimal import Decimal
from io import StringIO

import pytest

from tidemark.clickhouse import split_statements
from tidemark.output import print_rows, to_json


def test_decimals_are_written_digit_for_digit() -> None:
    amount = "123456789012345678901234567890.123456"
    assert to_json({"revenue": Decimal(amount)}) == '{"revenue": ' + amount + "}"
    assert to_json([Decimal("199.65"), Decimal("1E+3"), Decimal("NaN")]) == "[199.65, 1000, null]"


def test_json_of_everything_a_store_returns_parses() -> None:
    document = {
        "null": None,
        "flag": True,
        "big": 2**63,
        "float": 0.1,
        "infinite": float("inf"),
        "text": 'tab\t"quoted" ü',
        "day": date(2026, 3, 29),
        "at": datetime(2026, 3, 29, 1, tzinfo=UTC),
        "bytes": b"\x00\xff",
        "nested": [{"a": (1, 2)}],
    }
    assert json.loads(to_json(document)) == {
        **document,
        "infinite": None,
        "day": "2026-03-29",
        "at": "2026-03-29T01:00:00+00:00",
        "bytes": "00ff",
        "nested": [{"a": [1, 2]}],
    }


def test_piped_rows_stay_one_line_each() -> None:
    out = StringIO()
    print_rows(("a", "b"), [("x\ny\tz", None), (Decimal("1.50"), True)], out)
    assert out.getvalue() == "a\tb\nx\\ny\\tz\t\n1.50\ttrue\n"


def test_statements_split_outside_quotes_and_comments() -> None:
    text = """
    -- a comment; with a semicolon
    create table a (x String default 'it''s; \\'fine\\''); /* ; */ select ";" , `;`;
    ; insert into t select $$ ; $$
    -- done;
    """
    statements = split_statements(text)
    assert len(statements) == 3
    assert statements[0].endswith("'it''s; \\'fine\\'')")
    assert statements[1] == '/* ; */ select ";" , `;`'
    assert statements[2].startswith("insert into t select $$ ; $$")


@pytest.mark.parametrize("text", ["select 'open", "select /* open", "select $$ open"])
def test_what_is_not_closed_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="close"):
        split_statements(text)
