"""Each expectation of the suites holds on a frame that is right and fails on one that is not."""

import socket
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from expectations import pages, suites, tie_out
from tidemark import gate

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
MEASURE: dict[str, Any] = {
    "kind": "measure",
    "name": "orders",
    "workspace_id": "tidal",
    "local_date": "2026-11-19",
    "currency": "GBP",
    "is_recounted": True,
    **dict.fromkeys(suites.SIDES, "2 rows of 2 ids 239.65"),
}
FIGURE: dict[str, Any] = {
    "kind": "figure",
    "name": "revenue",
    "workspace_id": "tidal",
    "local_date": "2026-11-19",
    "currency": "",
    "is_recounted": True,
    "recount": "239.65",
    "facts": "239.65",
    "mart": "239.65",
}
PAIR = "expect_column_pair_values_to_be_equal"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("expectations")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        pytest.fail("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def moments() -> Iterator[datetime]:
    return (NOW + timedelta(seconds=n) for n in range(1000))


def test_equal_sides_pass(folder: Path, moments: Iterator[datetime]) -> None:
    outcome = tie_out.run(folder, [MEASURE, FIGURE], 2, next(moments))
    assert outcome.success
    assert outcome.failures == ()
    assert outcome.evaluated == len(suites.tie_out().expectations) > 10
    result = folder / "validation_results" / f"{outcome.validation_result_id}.json"
    assert '"success": true' in result.read_text()
    page = outcome.data_docs.parent / "validations" / f"{outcome.validation_result_id}.html"
    assert "ledger" in page.read_text()
    assert outcome.validation_result_id in outcome.data_docs.read_text()


#: A change to a row that is right, and the expectation that it breaks.
BROKEN: list[tuple[dict[str, Any], dict[str, Any], str, tuple[str, ...]]] = [
    *(
        (MEASURE, {side: told}, PAIR, ("ledger", side))
        for side in ("raw", "marts")
        for told in (
            "1 rows of 2 ids 239.65",
            "2 rows of 1 ids 239.65",
            "2 rows of 2 ids 239.650001",
            # What stands twice, or not at all, differs too.
            "4 rows of 2 ids 479.3",
            "0 rows of 0 ids 0",
            None,
        )
    ),
    (MEASURE, {"ledger": None}, PAIR, ("ledger", "raw")),
    # Nobody knows of it.
    (MEASURE, dict.fromkeys(suites.SIDES), PAIR, ("ledger", "marts")),
    # Further than a float reaches.
    (
        {**MEASURE, **dict.fromkeys(suites.SIDES, "2 rows of 2 ids 12345678901234567890.000002")},
        {"raw": "2 rows of 2 ids 12345678901234567890.000001"},
        PAIR,
        ("ledger", "raw"),
    ),
    *(
        (
            MEASURE,
            {side: told},
            "expect_column_values_to_match_regex",
            (side,),
        )
        for side in suites.SIDES
        for told in ("-1 rows of 2 ids 239.65", "2 rows of -1 ids 239.65", "2 rows of 2 ids ", "2")
    ),
    (MEASURE, {"kind": "row"}, "expect_column_values_to_be_in_set", ("kind",)),
    (FIGURE, {"mart": "239.66"}, PAIR, ("facts", "mart")),
    (FIGURE, {"mart": "239.66"}, PAIR, ("recount", "mart")),
    (FIGURE, {"facts": "0"}, PAIR, ("facts", "mart")),
    (FIGURE, {"recount": "0"}, PAIR, ("recount", "mart")),
    (FIGURE, {"mart": None}, PAIR, ("facts", "mart")),
    (FIGURE, {"mart": None, "facts": None}, PAIR, ("facts", "mart")),
]


def test_each_row_that_differs_fails_its_expectation(
    folder: Path, moments: Iterator[datetime]
) -> None:
    right = [{**row, "workspace_id": f"w{number:02}"} for number, (row, *_) in enumerate(BROKEN)]
    wrong = [{**row, **change} for row, (_, change, *_) in zip(right, BROKEN, strict=True)]
    assert tie_out.run(folder, right, len(right), next(moments)).success
    outcome = tie_out.run(folder, wrong, len(wrong), next(moments))
    assert not outcome.success
    broken = {(failure.expectation, failure.columns): failure for failure in outcome.failures}
    for row, (_, _, expectation, columns) in zip(wrong, BROKEN, strict=True):
        failure = broken[expectation, columns]
        assert tuple(str(row[column]) for column in suites.KEY) in failure.keys
        assert failure.count == len(failure.keys)


def test_what_is_purged_is_not_asked_of_raw(folder: Path, moments: Iterator[datetime]) -> None:
    gone = {"is_recounted": False, "raw": "0 rows of 0 ids 0"}
    figure = {**FIGURE, "is_recounted": False, "recount": None}
    assert tie_out.run(folder, [{**MEASURE, **gone}, figure], 2, next(moments)).success
    differing = {**MEASURE, **gone, "marts": "1 rows of 2 ids 239.65"}
    assert not tie_out.run(folder, [differing, figure], 2, next(moments)).success
    negative = {**MEASURE, **gone, "raw": "-1 rows of 0 ids 0"}
    assert not tie_out.run(folder, [negative, figure], 2, next(moments)).success


def test_rows_that_lack_or_stand_twice_fail(folder: Path, moments: Iterator[datetime]) -> None:
    missing = tie_out.run(folder, [MEASURE], 2, next(moments))
    assert [failure.expectation for failure in missing.failures] == [
        "expect_table_row_count_to_be_between"
    ]
    assert not tie_out.run(folder, [], 1, next(moments)).success
    twice = tie_out.run(folder, [MEASURE, MEASURE, FIGURE], 3, next(moments))
    assert [failure.expectation for failure in twice.failures] == [
        "expect_compound_columns_to_be_unique"
    ]


def test_pages_call_nobody_home(folder: Path, moments: Iterator[datetime]) -> None:
    tie_out.run(folder, [MEASURE, FIGURE], 2, next(moments))
    pages = list((folder / "data_docs").rglob("*.html"))
    assert pages
    for page in pages:
        assert "dataContextId" not in page.read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("68.200000"), "68.2"),
        ("199.65", "199.65"),
        ("-0.000000", "0"),
        (Decimal("-0"), "0"),
        (100, "100"),
        ("1000.0", "1000"),
        (Decimal("1E+3"), "1000"),
        (Decimal("12345678901234567890123456789012.000001"),) * 2,
    ],
)
def test_exact_has_one_form(value: Decimal | int | str, text: Any) -> None:
    assert gate.exact(value) == str(text)


def test_a_currency_field_shows_no_other_text() -> None:
    assert [gate.shown_currency(text) for text in ("GBP", "", "ADA@EXAMPLE.ORG")] == [
        "GBP",
        "",
        "not a currency",
    ]


def test_the_frame_keeps_text_whole() -> None:
    frame = tie_out.frame([{**FIGURE, "mart": "1.10"}, MEASURE])
    assert frame["mart"].iloc[0] == "1.10"
    assert frame["mart"].iloc[1] is None


def test_days_become_few_runs() -> None:
    first = date(2026, 1, 1)
    days = gate._Days([("a", first), ("b", first + timedelta(days=1)), ("a", date(2026, 3, 1))])
    assert days.predicate("local_date") == (
        "(workspace_id in ('a', 'b') and (local_date between '2026-01-01' and '2026-01-02'"
        " or local_date between '2026-03-01' and '2026-03-01'))"
    )
    assert gate._Days().predicate("local_date") == "false"
    scattered = gate._Days([("a", first + timedelta(days=3 * n * n)) for n in range(300)])
    assert len(scattered.runs) <= gate.RUNS
    covered = scattered.runs
    assert all(any(start <= day <= end for start, end in covered) for _, day in scattered.pairs)


def test_a_template_is_compiled_once_for_all_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_compiled", pages._Compiled())
    with pytest.raises(AssertionError, match=r"page\.j2"):
        _template(monkeypatch)
    tie_out.read_ahead()
    _template(monkeypatch)


def _template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Get a page's template in an environment that compiles nothing."""
    environment = pages.Page().env

    def refuse(_: object, name: str, *__: object, **___: object) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(environment, "_generate", refuse)
    environment.get_template("page.j2")
