"""The policy: what it says is checked on reading, and its windows end on the day they should."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tidemark import cli, policy, workspaces
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


def test_the_plans_are_the_same_wherever_they_are_named() -> None:
    ladder = policy.read(SETTINGS)
    assert tuple(cli.Plan) == workspaces.PLANS == ladder.plans
    schema = (SETTINGS.sql / "postgres" / "010_app.sql").read_text(encoding="utf-8")
    assert f"plan in ({', '.join(repr(plan) for plan in ladder.plans)})" in " ".join(schema.split())


def test_the_shorter_window_decides() -> None:
    pixel = policy.read(SETTINGS).classes["pixel_events"]
    as_of = date(2026, 11, 20)
    assert pixel.oldest_day(as_of) == date(2025, 10, 20)
    assert pixel.oldest_day(as_of, policy.Window(6, "month")) == date(2026, 5, 20)
    assert pixel.oldest_day(as_of, policy.Window(200, "day")) == date(2026, 5, 4)
    # Longer than the ladder's is not longer.
    assert pixel.oldest_day(as_of, policy.Window(60, "month")) == date(2025, 10, 20)
    assert policy.read(SETTINGS).classes["fx_rates"].oldest_day(as_of) is None
    assert policy.Window(30, "day").end(as_of) == date(2026, 12, 20)
    assert policy.Window(1, "month").end(date(2026, 1, 31)) == date(2026, 2, 28)
    assert (policy.Window(65, "day").months, policy.Window(6, "month").months) == (2, 6)


def test_every_source_and_class_has_its_sql() -> None:
    ladder = policy.read(SETTINGS)
    load = SETTINGS.sql / "load"
    assert {path.stem for path in load.glob("*.sql")} == set(ladder.sources)
    assert {path.stem for path in (load / "classes").glob("*.sql")} == set(ladder.loaded)
    groups = {ladder.measure_group(m) for c in ladder.classes.values() for m in c.measures}
    assert groups == {"pixel", "orders", "refunds", "payments", "spend", "email", "fx"}


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("13 months", policy.Window(13, "month")),
        ("1 month", policy.Window(1, "month")),
        ("8m", policy.Window(8, "month")),
        ("200 days", policy.Window(200, "day")),
        (" 200d ", policy.Window(200, "day")),
    ],
)
def test_windows_are_read_and_written(text: str, window: policy.Window) -> None:
    assert policy.Window.parse(text) == window
    assert policy.Window.parse(str(window)) == window


@pytest.mark.parametrize("text", ["", "8", "0m", "-1d", "8 years", "8 months more", "١٢ months"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no window"):
        policy.Window.parse(text)


def test_days_are_shorter_than_months_while_some_month_is_longer() -> None:
    def is_shorter(window: str, other: str) -> bool:
        return policy.Window.parse(window).is_shorter_than(policy.Window.parse(other))

    # From 1 March to 1 September it takes 184 days.
    assert is_shorter("183 days", "6 months")
    assert not is_shorter("184 days", "6 months")
    assert is_shorter("6 months", "185 days")
    assert is_shorter("12 months", "13 months")
    assert not is_shorter("13 months", "13 months")
    # The longest year is a leap year.
    assert policy.Window(12, "month").days == 366


def test_every_column_is_one_thing_and_is_found_by_it() -> None:
    ladder = policy.read(SETTINGS)
    assert ladder.columns_of("raw.quarantine", "pseudonym") == ("file_name_hash", "line_hash")
    assert ladder.columns["marts.summary_kpis_daily"]["orders"] == policy.ColumnClass(
        "measure", ("orders", "payments")
    )
    # Of each group at least one mart has figures, but for the rates.
    groups = {g for c in ladder.loaded.values() for g in c.measures.values()} - {"fx"}
    assert {g for g in groups if ladder.mart_measures(g)} == groups
    assert ladder.mart_measures("email") == {
        "marts.summary_kpis_daily": ("email_revenue",),
        "marts.email_revenue_daily": (
            "received", "opened", "clicked", "orders", "revenue", "refunds",
        ),
    }  # fmt: skip
    with pytest.raises(TidemarkError, match=r"raw\.unknown .*policy\.yml"):
        ladder.columns_of("raw.unknown", "personal")


def test_what_a_cold_file_must_not_hold_is_personal() -> None:
    ladder = policy.read(SETTINGS)
    tables = [t for c in ladder.classes.values() if "cold" in c.expiry for t in c.tables]
    assert "raw.pixel_events" in tables
    assert {"customer_key", "user_key", "ip_hash"} <= set(
        ladder.columns_of("raw.pixel_events", "personal")
    )
    for table in tables:
        if table.startswith("marts."):
            assert not ladder.columns_of(table, "personal")
            assert not ladder.columns_of(table, "pseudonym")


def test_a_quarantined_line_stays_as_long_as_its_source() -> None:
    ladder = policy.read(SETTINGS)
    assert dict(ladder.window_classes("quarantine")) == {
        source: own.data_class for source, own in ladder.sources.items()
    }
    assert ladder.window_classes("orders") == (("", "orders"),)
    assert ladder.sources_of("orders") == ("shopify_orders", "woocommerce_orders")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 1", "version: 2", "version"),
        (
            "  pixel: {class: pixel_events}",
            "  pixel: {class: pixels}",
            "sources.pixel.class: .*pixels",
        ),
        ("  pixel: {class: pixel_events}", "  pixel: {class: recalled}", "lacks versions"),
        ("    window: 13 months", "    window: 13", "classes.pixel_events.window"),
        (
            "    window: 13 months",
            "    window: 13 years",
            "classes.pixel_events.window: .*13 years",
        ),
        ("    window: 13 months", "    windw: 13 months", "windw"),
        ("    window: 13 months", "    window: 5 months", "shorter than its floor"),
        ("    window: 13 months\n", "", "classes.pixel_events.floor"),
        ("override_plans: [enterprise", "override_plans: [gold", "override_plans.0: .*gold"),
        ("    subjects: [customer_key, user", "    subjects: [country, user", "country"),
        ("columns: [order_key]}", "columns: [visitor]}", "visitor is no column"),
        ("      raw.payment_refunds: {", "      raw.ad_spend: {", "must be the class's"),
        ("[raw.payments, anonymised.p", "[raw.ad_spend, anonymised.p", "raw.ad_spend"),
        ("    cold_pseudonyms: rehash\n", "", "cold_pseudonyms"),
        ("[roll_up, anonymise, drop]", "[roll_up, drop, anonymise]", "drop is the last"),
        ("[roll_up, anonymise, drop]", "[roll_up, anonymise]", "dropped at its end"),
        ("[roll_up, anonymise, drop]", "[anonymise, drop]", "roll_up stands"),
        ("[roll_up, anonymise, drop]", "[roll_up, drop]", "anonymise stands"),
        ("[roll_up, cold, drop]", "[roll_up, drop_personal_columns, cold, drop]", "nowhere else"),
        ("[roll_up, drop_personal_columns, cold, drop]", "[roll_up, cold, drop]", "left out of"),
        ("    day: delivery_date", "    day: happened_at", "happened_at"),
        ("tables: [raw.ad_spend]", "tables: [raw.ad_spends]", "raw.ad_spends is not in columns"),
        ("tables: [raw.ad_spend]", "tables: [raw.quarantine]", "belongs to class ad_spend"),
        ("derived: [intermediate.int_orders", "derived: [marts.kpis_daily", "not of intermediate"),
        ("classes: [pixel_events]", "classes: [fx_rates]", "figures.trailing_12_months.classes.0"),
        ("    measure pixel: [", "    measure pixels: [", "measure group pixels"),
        ("    personal: [order_id]", "    secret: [order_id]", "secret is not one of"),
        ("    personal: [order_id]", "    personal: [order_id, total]", "total is in personal"),
        ("  k: 5", "  k: 1", "purge.k"),
        ("version: 1", "version: 1\nversion: 1", "version is there twice"),
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


def test_a_fault_is_named_with_its_line(tmp_path: Path) -> None:
    lines = policy.path(SETTINGS).read_text(encoding="utf-8").splitlines()
    wrong = lines.index("    window: 13 months")
    lines[wrong] = "    window: 13 moons"
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "policy.yml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(TidemarkError, match=rf"policy\.yml:{wrong + 1}: classes\.pixel_events"):
        policy.read(replace(SETTINGS, root=tmp_path))
