"""What the page *Retention* shows, read from the real stores."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from homes import Warehouse
from tidemark import clickhouse, postgres
from tidemark.overview import Overview, overview

NOW = datetime(2026, 11, 20, 9, tzinfo=UTC)
TODAY = NOW.date()


def seen(warehouse: Warehouse, now: datetime = NOW) -> Overview:
    """The overview at a moment."""
    with postgres.connect(warehouse.settings) as connection:
        return overview(warehouse.settings, connection, now.date(), now)


def test_the_next_purge_is_tonights_or_tomorrows(warehouse: Warehouse) -> None:
    assert seen(warehouse).next_purge_at == datetime(2026, 11, 21, 3, 30, tzinfo=UTC)
    early = datetime(2026, 11, 20, 2, tzinfo=UTC)
    assert seen(warehouse, early).next_purge_at == datetime(2026, 11, 20, 3, 30, tzinfo=UTC)


def test_an_empty_warehouse_has_a_ladder_and_nothing_on_it(fresh_warehouse: Warehouse) -> None:
    empty = seen(fresh_warehouse)
    assert empty.workspaces == 0
    names = [own.name for own in empty.classes]
    assert names[0] == "pixel_events"
    assert "summary_kpis_daily" in names
    assert {own.hot for own in empty.classes} == {None}
    assert {own.due for own in empty.classes} == {0}
    pixel = empty.classes[0]
    assert (pixel.window, pixel.edge, pixel.next_edge) == (
        "13 months",
        date(2025, 10, 20),
        date(2025, 10, 1),
    )
    assert (empty.waiting, empty.requests, empty.build) == ((), (), None)
    assert len(empty.sources) == 11
    assert {source.newest_delivery for source in empty.sources} == {None}
    assert empty.span.last == TODAY


def add_shops(warehouse: Warehouse, first: int, last: int) -> None:
    """Shops with a window of their own and a delivery a day of each source, but for one."""
    shops = {"first": first, "last": last}
    with postgres.connect(warehouse.settings) as connection:
        connection.execute(
            "insert into app.workspaces (workspace_id, timezone, currency, plan)"
            " select 'shop-' || n, 'UTC', 'EUR', 'enterprise'"
            " from generate_series(%(first)s::integer, %(last)s) as n",
            shops,
        )
        # One of a source that forgets is missing.
        connection.execute(
            "insert into control.loads (source, workspace_id, delivery_date, file_name_hash,"
            " file_sha256, bytes, status, lines, stored, duplicate, quarantined, refused, as_of,"
            " started_at, loaded_at)"
            " select source, 'shop-' || n, day::date, 'name', 'content', 1, 'loaded', 1, 1, 0, 0,"
            " 0, day::date, day, day from generate_series(%(first)s::integer, %(last)s) as n,"
            " unnest(array['pixel', 'shopify_orders', 'payments', 'meta_ads', 'google_ads',"
            "  'amazon_ads', 'klaviyo_events']) as source,"
            " generate_series(%(today)s::date - 180, %(today)s::date, interval '1 day') as day"
            " where not (source = 'amazon_ads' and n = 7 and day = %(gap)s)",
            {**shops, "today": TODAY, "gap": TODAY - timedelta(days=20)},
        )
        connection.execute(
            "insert into control.overrides (workspace_id, class, window_value, window_unit, set_at)"
            " select 'shop-' || n, 'pixel_events', 190 + n, 'day', %(now)s"
            " from generate_series(%(first)s::integer, %(last)s) as n",
            {**shops, "now": NOW},
        )


def statements(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Overview]:
    """How many statements an overview sends to both stores."""
    sent: list[Any] = []

    def counted(send: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*arguments: Any, **named: Any) -> Any:
            sent.append(arguments)
            return send(*arguments, **named)

        return spy

    with monkeypatch.context() as patch, postgres.connect(warehouse.settings) as connection:
        patch.setattr(connection, "execute", counted(connection.execute))
        patch.setattr(clickhouse, "execute", counted(clickhouse.execute))
        found = overview(warehouse.settings, connection, TODAY, NOW)
    return len(sent), found


def test_two_hundred_workspaces_cost_no_statement_more_than_two(
    fresh_warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_shops(fresh_warehouse, 1, 2)
    few, _ = statements(fresh_warehouse, monkeypatch)
    add_shops(fresh_warehouse, 3, 200)
    many, found = statements(fresh_warehouse, monkeypatch)
    assert few == many > 5
    assert found.workspaces == 200
    assert found.classes[0].overrides == 200
    sources = {source.name: source for source in found.sources}
    amazon = sources["amazon_ads"]
    assert (amazon.workspaces, amazon.gaps) == (200, 1)
    assert amazon.oldest_gap == TODAY - timedelta(days=20)
    assert amazon.permanent_on == TODAY + timedelta(days=40)
    assert (sources["pixel"].gaps, sources["pixel"].permanent_on) == (0, None)
    assert {source.alarm for source in found.sources} == {None}


def deliver_daily(warehouse: Warehouse, sources: list[str], last: date, gap: date) -> None:
    """Note a delivery a day of a shop, but for one day."""
    warehouse.run(
        "workspace", "add", "shop", "--timezone", "UTC", "--currency", "EUR", "--plan", "growth"
    )
    with postgres.connect(warehouse.settings) as connection:
        connection.execute(
            "insert into control.loads (source, workspace_id, delivery_date, file_name_hash,"
            " file_sha256, bytes, status, lines, stored, duplicate, quarantined, refused, as_of,"
            " started_at, loaded_at) select source, 'shop', day::date, 'name', 'content', 1,"
            " 'loaded', 1, 1, 0, 0, 0, day::date, day, day"
            " from unnest(%(sources)s::text[]) as source,"
            " generate_series(%(first)s::date, %(last)s, interval '1 day') as day"
            " where day <> %(gap)s",
            {"sources": sources, "first": last - timedelta(days=1300), "last": last, "gap": gap},
        )


def test_a_gap_alarms_before_the_platform_forgets_it(fresh_warehouse: Warehouse) -> None:
    gap = TODAY - timedelta(days=50)
    names = ["amazon_ads", "pinterest_ads", "meta_ads", "pixel"]
    deliver_daily(fresh_warehouse, names, TODAY, gap)
    sources = {source.name: source for source in seen(fresh_warehouse).sources}
    # 60 days, of which the day before the delivery has used up 51.
    assert (sources["amazon_ads"].gaps, sources["amazon_ads"].oldest_gap) == (1, gap)
    assert sources["amazon_ads"].permanent_on == TODAY + timedelta(days=10)
    assert sources["amazon_ads"].alarm == (
        f"amazon_ads: the delivery of {gap} is missing and can be fetched until"
        f" {TODAY + timedelta(days=9)} only: the platform answers no further back"
    )
    # 90 days, and 37 months to the day: there is time. The pixel's past does not go.
    assert sources["pinterest_ads"].permanent_on == TODAY + timedelta(days=40)
    assert (gap, sources["meta_ads"].permanent_on) == (date(2026, 10, 1), date(2029, 11, 1))
    assert {sources[name].alarm for name in names[1:]} == {None}
    assert sources["pixel"].gaps == 0
    # What is lost is no gap any more: nobody can fill it.
    later = {own.name: own for own in seen(fresh_warehouse, NOW + timedelta(days=10)).sources}
    assert later["amazon_ads"].oldest_gap == TODAY + timedelta(days=1)


def test_the_status_tells_of_a_gap_that_soon_cannot_be_filled(fresh_warehouse: Warehouse) -> None:
    today = datetime.now(UTC).date()
    gap = today - timedelta(days=50)
    deliver_daily(fresh_warehouse, ["amazon_ads"], today, gap)
    told = fresh_warehouse.run("status", "--no-airflow", "--json")
    assert [state["answering"] for state in told.json] == [True, True]
    assert f"amazon_ads: the delivery of {gap} is missing" in told.stderr
