"""Windows of one's own: who may set which, what is on record, and what the marts say of it."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from homes import Warehouse
from landings import Tenant, changed, fixture, tenant
from tidemark import availability, build, overrides, policy, postgres

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def _entries(shop: Tenant) -> list[dict[str, Any]]:
    return shop.ledger(
        "select kind, document from control.ledger where document ->> 'workspace_id' = %s"
        " order by entry_id",
        [shop.workspace_id],
    )


def _in_force(shop: Tenant) -> dict[str, str]:
    rows = shop.warehouse.run("override", "list", "--json").json
    assert isinstance(rows, list)
    return {r["class"]: r["window"] for r in rows if r["workspace_id"] == shop.workspace_id}


def test_a_window_is_set_replaced_and_withdrawn_on_record(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path, plan="enterprise")
    own = ("override", "set", shop.workspace_id, "pixel_events")
    first = warehouse.run(*own, "8m", "--json").json
    assert (first["window"], first["changed"]) == ("8 months", True)
    assert [figure["figure"] for figure in first["darkened"]] == ["trailing_12_months"]
    assert warehouse.run(*own, "8 months", "--json").json["changed"] is False
    assert warehouse.run(*own, "12 months", "--json").json["darkened"] == []
    assert _in_force(shop) == {"pixel_events": "12 months"}
    gone = warehouse.run("override", "withdraw", shop.workspace_id, "pixel_events", "--json").json
    again = warehouse.run("override", "withdraw", shop.workspace_id, "pixel_events", "--json").json
    assert (gone["changed"], again["changed"]) == (True, False)
    assert _in_force(shop) == {}
    every = warehouse.run("override", "list", "--all", "--json").json
    ended = [row for row in every if row["workspace_id"] == shop.workspace_id]
    assert [row["window"] for row in ended] == ["8 months", "12 months"]
    assert all(row["withdrawn_at"] for row in ended)
    assert [(e["kind"], e["document"]["window"]) for e in _entries(shop)] == [
        ("override_set", "8 months"),
        ("override_set", "12 months"),
        ("override_withdrawn", "12 months"),
    ]
    heads = warehouse.run("audit", "--json", check=False)
    assert heads.code == 0, heads.stderr


@pytest.mark.parametrize(
    ("plan", "data_class", "window", "code", "said"),
    [
        ("pro", "pixel_events", "8m", 3, "enterprise or platform"),
        ("enterprise", "pixel_events", "5 months", 3, "below the floor of pixel_events, 6 months"),
        ("platform", "pixel_events", "183 days", 3, "below the floor"),
        ("platform", "orders", "11m", 3, "12 months"),
        ("platform", "orders", "365d", 3, "below the floor"),
        ("platform", "orders", "25m", 3, "no shorter than the 25 months"),
        ("platform", "orders", "3 months more", 2, "no window"),
        ("platform", "quarantine", "3m", 3, "cannot be shortened"),
        ("platform", "fx_rates", "3m", 3, "cannot be shortened"),
        ("platform", "recalled", "3d", 3, "cannot be shortened"),
        ("platform", "summary_kpis_daily", "24m", 3, "before the rows of"),
        ("platform", "wishes", "3m", 2, "no class wishes"),
    ],
)
def test_a_window_that_must_not_be_is_refused(
    warehouse: Warehouse,
    tmp_path: Path,
    plan: str,
    data_class: str,
    window: str,
    code: int,
    said: str,
) -> None:
    shop = tenant(warehouse, tmp_path, plan=plan)
    outcome = warehouse.run("override", "set", shop.workspace_id, data_class, window, check=False)
    assert (outcome.code, said in outcome.stderr) == (code, True), outcome.stderr
    assert _in_force(shop) == {}
    assert _entries(shop) == []


def test_an_unknown_workspace_is_wrong_usage(warehouse: Warehouse) -> None:
    outcome = warehouse.run("override", "set", "nobody", "orders", "12m", check=False)
    assert (outcome.code, "no workspace nobody" in outcome.stderr) == (2, True)


def test_a_mart_never_leaves_before_its_rows(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path, plan="platform")
    run = warehouse.run
    run("override", "set", shop.workspace_id, "email_events", "12m")
    run("override", "set", shop.workspace_id, "email_revenue_daily", "13m")
    for change in (
        ("withdraw", shop.workspace_id, "email_events"),
        ("set", shop.workspace_id, "email_events", "14m"),
        ("set", shop.workspace_id, "email_revenue_daily", "11m"),
    ):
        outcome = run("override", *change, check=False)
        assert (outcome.code, "before the rows of email_events" in outcome.stderr) == (3, True)
    assert _in_force(shop) == {"email_events": "12 months", "email_revenue_daily": "13 months"}


def test_what_is_no_longer_allowed_is_shown_and_not_obeyed(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    by_hand, demoted, fine = (tenant(warehouse, tmp_path, plan="platform") for _ in range(3))
    for shop in (demoted, fine):
        warehouse.run("override", "set", shop.workspace_id, "orders", "13m")
    with postgres.connect(warehouse.settings) as connection:
        connection.execute(
            "insert into control.overrides (workspace_id, class, window_value, window_unit, set_at)"
            " values (%s, 'orders', 1, 'day', %s)",
            [by_hand.workspace_id, NOW],
        )
        connection.execute(
            "update app.workspaces set plan = 'pro' where workspace_id = %s",
            [demoted.workspace_id],
        )
    with postgres.connect(warehouse.settings) as connection:
        obeyed = overrides.in_force(connection, policy.read(warehouse.settings))
    shown = {
        row["workspace_id"]: row["fault"]
        for row in warehouse.run("override", "list", "--json").json
    }
    assert shown[fine.workspace_id] is None
    assert "below the floor" in shown[by_hand.workspace_id]
    assert "on plan pro" in shown[demoted.workspace_id]
    assert obeyed[fine.workspace_id, "orders"] == policy.Window(13, "month")
    for shop in (by_hand, demoted):
        assert (shop.workspace_id, "orders") not in obeyed
        warehouse.run("override", "withdraw", shop.workspace_id, "orders")


def test_the_load_obeys_a_window_of_days(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path, plan="platform", timezone="UTC")
    warehouse.run("override", "set", shop.workspace_id, "pixel_events", "200 days")
    event = fixture("pixel")[0]
    counts = shop.load_lines(
        "pixel",
        [
            changed(event, event_id="in", timestamp="2026-05-04T12:00:00Z"),
            changed(event, event_id="out", timestamp="2026-05-03T12:00:00Z"),
        ],
    )
    assert (counts.stored, counts.quarantined) == (1, 1)
    assert shop.quarantine() == {2: "past_retention"}


def test_the_mart_says_what_the_what_if_said(warehouse: Warehouse, tmp_path: Path) -> None:
    settings = warehouse.settings
    ladder = policy.read(settings)
    tenants = {
        (source, window): tenant(warehouse, tmp_path, plan="platform", revenue_source=source)
        for source in ("orders", "payments")
        for window in ("12m", "24m", "740d", "744d")
    }
    for (_, window), shop in tenants.items():
        warehouse.run("override", "set", shop.workspace_id, "orders", window)
    with postgres.connect(settings) as connection:
        build.sync_workspaces(settings, connection)
        build.publish_windows(settings, connection, ladder)
    build.seed(settings)
    build.dbt(settings, ["run", "--select", "+kpi_availability"])
    told = set()
    for (source, window), shop in tenants.items():
        (row,) = shop.rows(
            "select is_supported, reason, window_months, required_months"
            " from marts.kpi_availability"
            " where workspace_id = {workspace} and figure = 'cohort_ltv_24_months'"
        )
        darkened = availability.darkened(
            ladder,
            "orders",
            policy.Window.parse(window),
            source,  # type: ignore[arg-type]
        )
        assert row["is_supported"] is not bool(darkened)
        assert row["reason"] == ("insufficient retention" if darkened else "")
        assert row["required_months"] == ladder.figures["cohort_ltv_24_months"].needs.months
        for figure in darkened:
            assert figure.window_months == row["window_months"]
        told.add((source, window, bool(darkened)))
    assert {own[:2] for own in told if own[2]} == {("orders", "12m"), ("orders", "740d")}


def test_a_policy_is_kept_once_per_version_of_its_file(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    ladder = policy.read(warehouse.settings)
    text = policy.path(warehouse.settings).read_text(encoding="utf-8")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "policy.yml").write_text(
        text.replace("window: 13 months", "window: 12 months"), encoding="utf-8"
    )
    other = policy.read(replace(warehouse.settings, root=tmp_path))
    assert other.sha256 != ladder.sha256
    with postgres.connect(warehouse.settings) as connection:
        for own in (ladder, other, ladder):
            policy.record(connection, own, NOW)
        rows = connection.execute(
            "select sha256, document -> 'classes' -> 'pixel_events' ->> 'window' as window"
            " from control.policy where sha256 = any(%s) order by 2",
            [[ladder.sha256, other.sha256]],
        ).fetchall()
        assert [row["window"] for row in rows] == ["12 months", "13 months"]
        connection.rollback()
