"""The plan is pure: what it takes is past its window, what it leaves out is held or not due."""

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tidemark import clickhouse, policy
from tidemark import plan as planning
from tidemark.config import Settings
from tidemark.plan import Plan, Standing, State, Table
from tidemark.policy import Hold, Window

LADDER = policy.read(Settings.from_env({}))
WORKSPACES = ("a", "b", "c'\\")
CLASSES = planning.due_classes(LADDER)


def tables() -> dict[str, Table]:
    """Every table of every class, with room for more rows than any step has."""
    names = {
        table
        for name in CLASSES
        for table in (*LADDER.classes[name].tables, *LADDER.classes[name].derived)
    }
    return {name: Table(name, True, ("workspace_id",), {}) for name in names}


@st.composite
def states(draw: st.DrawFn) -> tuple[State, date]:
    """Stores in which something is past its window, as `observe` would have read them."""
    as_of = draw(st.dates(date(2026, 1, 1), date(2027, 12, 31)))
    windows = {}
    for workspace in WORKSPACES:
        if draw(st.booleans()):
            windows[workspace, "pixel_events"] = Window(draw(st.integers(190, 380)), "day")
    holds = tuple(
        Hold(number, draw(st.sampled_from(WORKSPACES)), draw(st.sampled_from([None, *CLASSES])),
             False)
        for number in range(draw(st.integers(0, 2)))
    )  # fmt: skip
    standing = []
    for name in draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=4, unique=True)):
        data_class = LADDER.classes[name]
        bounds = {
            (workspace, source): cutoff
            for workspace, source, cutoff in planning.cutoffs(LADDER, name, as_of, windows)
        }
        for source in sorted({source for _, source in bounds}):
            for workspace in WORKSPACES:
                cutoff = bounds.get((workspace, source), bounds["", source])
                last = cutoff - timedelta(days=draw(st.integers(1, 70)))
                is_held = any(
                    hold.workspace_id == workspace and hold.data_class in (None, name)
                    for hold in holds
                )
                rows = draw(st.integers(1, 9))
                standing.append(
                    Standing(
                        name, data_class.tables[0], last.replace(day=1), workspace, source,
                        is_held, rows, last, last, {}, rows,
                    )
                )  # fmt: skip
    return State(windows, holds, tables(), tuple(standing)), as_of


@given(states())
def test_a_plan_takes_what_is_due_and_names_what_it_leaves(given_: tuple[State, date]) -> None:
    state, as_of = given_
    found = planning.decide(LADDER, state, as_of)
    assert found == planning.decide(LADDER, state, as_of)
    assert Plan.from_dict(found.as_dict()) == found
    planned = sum(step.rows for step in found.steps)
    held = sum(own.rows for own in found.held)
    assert planned + held == sum(own.rows for own in state.standing) > 0
    for step in found.steps:
        assert step.targets
        bounds = {
            (workspace, source): cutoff
            for workspace, source, cutoff in planning.cutoffs(
                LADDER, step.data_class, as_of, state.windows
            )
        }
        for own in step.ranges:
            limit = bounds.get((own.workspace_id, own.source), bounds["", own.source])
            assert own.first_day < own.cutoff <= limit
            assert not any(
                hold.workspace_id == own.workspace_id and hold.data_class in (None, step.data_class)
                for hold in state.holds
            )
        assert tuple(sorted(step.closing)) == step.workspaces
        for days in step.closing.values():
            last = step.month + timedelta(days=days - 1)
            assert last < max(limit for (_, _), limit in bounds.items())
            assert (last.year, last.month) == (step.month.year, step.month.month)


@given(states(), st.integers(1, 400))
def test_what_is_due_stays_due(given_: tuple[State, date], later: int) -> None:
    state, as_of = given_
    name = state.standing[0].data_class
    before = {
        (workspace, source): cutoff
        for workspace, source, cutoff in planning.cutoffs(LADDER, name, as_of, state.windows)
    }
    after = {
        (workspace, source): cutoff
        for workspace, source, cutoff in planning.cutoffs(
            LADDER, name, as_of + timedelta(days=later), state.windows
        )
    }
    for (workspace, source), cutoff in before.items():
        assert after.get((workspace, source), after["", source]) >= cutoff


def test_a_row_goes_no_earlier_than_its_window_and_no_later_than_31_days_after() -> None:
    for offset in range(800):
        as_of = date(2026, 1, 1) + timedelta(days=offset)
        for name in CLASSES:
            for _, _, cutoff in planning.cutoffs(LADDER, name, as_of, {}):
                window = LADDER.classes[name].window
                if window is not None:
                    assert cutoff <= window.start(as_of)
                    assert (window.start(as_of) - cutoff).days < 31


def test_a_workspaces_own_window_counts_only_where_it_is_shorter() -> None:
    as_of = date(2026, 11, 20)
    own = {("a", "pixel_events"): Window(500, "day"), ("b", "pixel_events"): Window(200, "day")}
    bounds = list(planning.cutoffs(LADDER, "pixel_events", as_of, own))
    assert bounds == [("", "", date(2025, 10, 1)), ("b", "", date(2026, 5, 4))]


def test_marts_wait_for_raw_rows_that_stay() -> None:
    as_of = date(2026, 11, 20)
    month = date(2024, 9, 1)
    standing = (
        Standing("orders", "raw.orders", month, "a", "", True, 3, month, month, {}, 1),
        Standing(
            "summary_kpis_daily", "marts.summary_kpis_daily", month, "a", "", False, 2, month,
            month, {}, 1,
        ),
    )  # fmt: skip
    state = State({}, (Hold(4, "a", "orders", False),), tables(), standing)
    found = planning.decide(LADDER, state, as_of)
    assert found.steps == ()
    assert [(own.data_class, own.reason) for own in found.held] == [
        ("orders", "hold 4"),
        ("summary_kpis_daily", "raw rows of orders stay"),
    ]


def test_a_predicate_names_whichever_are_fewer_those_that_go_or_those_that_stay() -> None:
    as_of = date(2026, 11, 20)
    due, recent = date(2024, 9, 1), date(2026, 1, 1)
    standing = tuple(
        Standing("orders", "raw.orders", month, name, "", name == "a", 1, month, month, {}, 1)
        for month in (due, recent)
        for name in ("a", "b", "c", "d")
        if month == due or name == "b"
    )
    windows = {("b", "orders"): Window(6, "month")}

    def predicates(holds: tuple[Hold, ...], rows: tuple[Standing, ...]) -> list[str]:
        found = planning.decide(LADDER, State(windows, holds, tables(), rows), as_of)
        return [target.predicate for step in found.steps for target in step.targets]

    held = predicates((Hold(1, "a", "orders", False),), standing)
    assert "workspace_id not in ('a'))" in held[0]
    # In a month that is due by a window of its own, the others are not known.
    assert "workspace_id in ('b'))" in held[1]
    assert "workspace_id" not in predicates((), standing[1:4])[0]


def test_sources_and_values_are_quoted() -> None:
    assert clickhouse.literal("c'\\") == "'c\\'\\\\'"
    assert clickhouse.identifier("a`b") == "`a\\`b`"
