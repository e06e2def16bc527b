"""What a window darkens, before anybody sets it."""

import pytest

from tidemark import availability, policy
from tidemark.config import Settings

LADDER = policy.read(Settings.from_env({}))


@pytest.mark.parametrize(
    ("data_class", "window", "figures"),
    [
        ("pixel_events", "12 months", []),
        ("pixel_events", "11 months", ["trailing_12_months"]),
        # A month that nothing proves to be whole does not count.
        ("pixel_events", "371 days", ["trailing_12_months"]),
        ("pixel_events", "372 days", []),
        ("orders", "24 months", []),
        ("orders", "23 months", ["cohort_ltv_24_months"]),
        ("ad_spend", "12 months", ["cohort_ltv_24_months"]),
        ("email_events", "12 months", []),
    ],
)
def test_a_window_darkens_what_needs_more(data_class: str, window: str, figures: list[str]) -> None:
    found = availability.darkened(LADDER, data_class, policy.Window.parse(window))
    assert [own.figure for own in found] == figures


def test_the_revenue_that_a_workspace_does_not_count_darkens_nothing() -> None:
    window = policy.Window(12, "month")
    assert not availability.darkened(LADDER, "payments", window, "orders")
    assert not availability.darkened(LADDER, "orders", window, "payments")
    assert availability.darkened(LADDER, "orders", window, "orders")


def test_the_shorter_window_is_published() -> None:
    rows = availability.windows(LADDER, ["w"], {("w", "pixel_events"): policy.Window(200, "day")})
    by_class = {row["class"]: (row["window_months"], row["is_override"]) for row in rows}
    assert by_class["pixel_events"] == (6, True)
    assert by_class["orders"] == (25, False)
    assert "fx_rates" not in by_class
    assert {row["class"] for row in availability.requirements(LADDER)} <= by_class.keys()
