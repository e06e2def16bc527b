"""The policy: what it says is checked on reading, and its windows end on the day they should."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tidemark import policy
from tidemark.config import Settings
from tidemark.errors import TidemarkError

SETTINGS = Settings.from_env({})


@pytest.mark.parametrize(
    ("day", "months", "expected"),
    [
        (date(2026, 11, 20), 13, date(2025, 10, 20)),
        (date(2026, 1, 15), 1, date(2025, 12, 15)),
        (date(2026, 3, 31), 1, date(2026, 2, 28)),
        (date(2024, 3, 31), 1, date(2024, 2, 29)),
        (date(2024, 2, 29), 12, date(2023, 2, 28)),
        (date(2026, 12, 31), 25, date(2024, 11, 30)),
    ],
)
def test_months_before_ends_within_the_month(day: date, months: int, expected: date) -> None:
    assert policy.months_before(day, months) == expected


def test_the_shorter_window_decides() -> None:
    pixel = policy.read(SETTINGS).classes["pixel_events"]
    as_of = date(2026, 11, 20)
    assert pixel.oldest_day(as_of) == date(2025, 10, 20)
    assert pixel.oldest_day(as_of, policy.Window(6, "month")) == date(2026, 5, 20)
    assert pixel.oldest_day(as_of, policy.Window(200, "day")) == date(2026, 5, 4)
    # Longer than the ladder's is not longer.
    assert pixel.oldest_day(as_of, policy.Window(60, "month")) == date(2025, 10, 20)
    assert policy.read(SETTINGS).classes["fx_rates"].oldest_day(as_of) is None
    assert (policy.Window(65, "day").months, policy.Window(6, "month").months) == (2, 6)


def test_every_source_and_class_has_its_sql() -> None:
    ladder = policy.read(SETTINGS)
    load = SETTINGS.sql / "load"
    assert {path.stem for path in load.glob("*.sql")} == set(ladder.sources)
    assert {path.stem for path in (load / "classes").glob("*.sql")} == set(ladder.loaded)
    groups = {ladder.measure_group(m) for c in ladder.classes.values() for m in c.measures}
    assert groups == {"pixel", "orders", "refunds", "payments", "spend", "email", "fx"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 1", "version: 2", "version"),
        ("  pixel: {class: pixel_events}", "  pixel: {class: pixels}", "pixels"),
        ("    window: 13 months", "    window: 13", "classes.pixel_events.window"),
        ("    window: 13 months", "    windw: 13 months", "windw"),
        ("override_plans: [enterprise", "override_plans: [gold", "gold"),
        ("version: 1", "version: [", "cannot be read"),
    ],
)
def test_a_wrong_policy_names_file_and_entry(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = policy.path(SETTINGS).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "policy.yml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(TidemarkError, match=said) as raised:
        policy.read(replace(SETTINGS, root=tmp_path))
    assert "policy.yml" in str(raised.value)
