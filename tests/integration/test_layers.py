"""A build in layers: what a retry reruns, and what comes in between."""

import multiprocessing
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from homes import Warehouse
from landings import AS_OF, DAY, Tenant, fixture, tenant
from tidemark import build as building
from tidemark import clickhouse, flows, gate, layers, postgres
from tidemark.config import Settings
from tidemark.errors import TidemarkError


def clock() -> datetime:
    """The clock of the builds."""
    return datetime(2026, 11, 20, 12, tzinfo=UTC)


def begun(shop: Tenant) -> int:
    """A build of what is due."""
    build_id = flows.open_build(shop.warehouse.settings, as_of=AS_OF, clock=clock)
    assert build_id is not None
    return build_id


def run(shop: Tenant, build_id: int, layer: layers.Layer) -> layers.LayerReport:
    """A layer of it."""
    return flows.build_layer(shop.warehouse.settings, build_id, layer, clock=clock)


def close(shop: Tenant, build_id: int) -> flows.BuildReport:
    """Its end."""
    return flows.close_build(
        shop.warehouse.settings, build_id, as_of=AS_OF, clock=clock, gate=gate.tie_out
    )


def pageviews(shop: Tenant) -> list[dict[str, Any]]:
    """What the mart says of the workspace."""
    return shop.rows(
        "select sum(pageviews) as n from marts.summary_kpis_daily where workspace_id = {workspace}"
    )


def break_a_table(warehouse: Warehouse, table: str) -> None:
    """Put something under a model's name that dbt cannot replace days in."""
    clickhouse.execute(warehouse.settings, f"rename table {table} to {table}_aside")
    clickhouse.execute(warehouse.settings, f"create table {table} (x UInt8) engine = Memory")


def mend(warehouse: Warehouse, table: str) -> None:
    """Take it away again."""
    clickhouse.execute(warehouse.settings, f"drop table {table}")
    clickhouse.execute(warehouse.settings, f"rename table {table}_aside to {table}")


def test_layers_build_what_one_build_would(fresh_warehouse: Warehouse, tmp_path: Path) -> None:
    settings = fresh_warehouse.settings
    shop = tenant(fresh_warehouse, tmp_path / "landing")
    assert not flows.is_due(settings)
    assert flows.open_build(settings, as_of=AS_OF, clock=clock) is None
    shop.load_lines("pixel", fixture("pixel"), day=DAY)
    assert flows.is_due(settings)

    # Nothing opens a later layer, or the gate, before the earlier ones are done.
    build_id = begun(shop)
    with pytest.raises(TidemarkError, match=r"layer staging .* is not finished"):
        run(shop, build_id, "marts")
    with pytest.raises(TidemarkError, match=r"layer staging .* is not finished"):
        close(shop, build_id)
    ran = {layer: run(shop, build_id, layer) for layer in layers.LAYERS}
    names = {layer: {node.name for node in report.nodes} for layer, report in ran.items()}
    assert "stg_pixel__events" in names["staging"]
    assert "int_pixel_daily" in names["intermediate"]
    assert "summary_kpis_daily" in names["marts"]
    assert names["marts"].isdisjoint(names["staging"] | names["intermediate"])
    rows = {node.name: node.rows for node in ran["intermediate"].nodes}
    assert rows["int_pixel_daily"]
    assert close(shop, build_id).days > 0
    assert not flows.is_due(settings)
    assert int(pageviews(shop)[0]["n"]) > 0
    with pytest.raises(layers.Superseded, match="has tied out"):
        close(shop, build_id)

    # All of dbt's models ran, and with the tests no more and no less than in one build.
    layered = {
        row["node"]
        for row in shop.ledger(
            "select node from control.build_models where build_id = %s", [build_id]
        )
    }
    ran_at_once = {run.node for run in _models_of_one_build(shop)}
    whole = {node for node in ran_at_once if node.startswith(("model.", "test."))}
    assert layered
    assert layered == whole


def _models_of_one_build(shop: Tenant) -> list[Any]:
    # As after a change of the project, so that views run too.
    (shop.warehouse.settings.home / "dbt" / "models.sha256").unlink()
    return building.models(shop.warehouse.settings)


def _changed_and_read(settings: Settings, answer: "multiprocessing.SimpleQueue[bool]") -> None:
    ahead = building.parse(settings)
    model = next(settings.dbt_project.rglob("int_pixel_daily.sql"))
    model.write_text(model.read_text(encoding="utf-8") + "-- changed\n", encoding="utf-8")
    # So that it reads every file, not the changed one alone.
    shutil.rmtree(settings.home / "dbt" / "target", ignore_errors=True)
    name = "model.tidemark.int_pixel_daily"
    found = [own.nodes[name].raw_code for own in (ahead, building.parse(settings))]
    answer.put(["-- changed" in text for text in found] == [False, True])


def test_a_project_that_was_read_ahead_serves_what_is_forked(
    fresh_warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = fresh_warehouse.settings
    for part in ("dbt_project", "include/sql"):
        shutil.copytree(own.root / part, tmp_path / part)
    settings = replace(own, root=tmp_path)
    building.read_ahead(settings)

    # A task of Airflow is such a process. One that finds the project changed reads it itself: a
    # parser with threads of its own would wait there for ever.
    fork = multiprocessing.get_context("fork")
    answer = fork.SimpleQueue()
    process = fork.Process(target=_changed_and_read, args=(settings, answer), daemon=True)
    process.start()
    process.join(300)
    assert process.exitcode == 0, "it hangs, or has failed"
    assert answer.get()

    shutil.copytree(own.dbt_project, settings.dbt_project, dirs_exist_ok=True)
    monkeypatch.setattr(building, "_invoke", None)
    # Nothing is asked of dbt, and what one command changes, the next does not see.
    building.parse(settings).nodes.clear()
    assert building.parse(settings).nodes


def test_a_retry_runs_what_failed_and_a_load_in_between_is_built(
    fresh_warehouse: Warehouse, tmp_path: Path
) -> None:
    settings = fresh_warehouse.settings
    shop = tenant(fresh_warehouse, tmp_path / "landing")
    shop.load_lines("pixel", fixture("pixel"), day=DAY)
    flows.build(settings, as_of=AS_OF, clock=clock, gate=gate.tie_out)
    before = int(pageviews(shop)[0]["n"])
    more = [
        {**line, "event_id": f"more-{number}"}
        for number, line in enumerate(fixture("pixel"))
        if line.get("event_name") == "$pageview"
    ]
    shop.load_lines("pixel", more, day=DAY, name="more.jsonl")
    build_id = begun(shop)
    run(shop, build_id, "staging")
    break_a_table(fresh_warehouse, "intermediate.int_pixel_daily")
    with pytest.raises(TidemarkError, match="int_pixel_daily"):
        run(shop, build_id, "intermediate")
    failed = {
        node.name: node.status for node in flows.layer_nodes(settings, build_id, "intermediate")
    }
    assert failed["int_pixel_daily"] == "error"
    mend(fresh_warehouse, "intermediate.int_pixel_daily")
    again = run(shop, build_id, "intermediate")
    names = {node.name for node in again.nodes}
    assert "int_pixel_daily" in names
    assert "int_sessions" not in names
    assert again.done_before > 0
    run(shop, build_id, "marts")

    late = [{**line, "event_id": f"late-{n}"} for n, line in enumerate(more)]
    shop.load_lines("pixel", late, day=DAY, name="late.jsonl")
    report = close(shop, build_id)
    assert report.verdict is not None
    assert report.verdict.success
    assert not flows.is_due(settings)
    assert int(pageviews(shop)[0]["n"]) > before
    with postgres.connect(settings) as connection:
        newest = connection.execute("select max(build_id) as n from control.builds").fetchone()
    assert newest is not None
    assert newest["n"] > build_id
    with pytest.raises(layers.Superseded, match="has taken over"):
        run(shop, build_id, "marts")
