"""dbt's own unit tests, which give each rule of the marts its rows and its answer."""

from homes import Warehouse
from tidemark import build


def test_every_unit_test_of_the_project_passes(warehouse: Warehouse) -> None:
    settings = warehouse.settings
    build.seed(settings)
    # Unit tests read the types of the tables they stand in for, so the models must exist.
    build.publish_scope(settings, frozenset())
    build.dbt(settings, ["run"])
    runs = build.dbt(settings, ["test", "--select", "test_type:unit"])
    # dbt lists its hooks among the results.
    tests = [run for run in runs if not run.name.startswith("tidemark-on-run")]
    assert len(tests) > 30
    assert {run.status for run in tests} == {"pass"}


def test_the_views_of_the_operational_store_build(warehouse: Warehouse) -> None:
    runs = build.dbt(
        warehouse.settings, ["build", "--exclude-resource-type", "seed"], target="postgres"
    )
    assert {run.status for run in runs} <= {"success", "pass", "no-op"}
    assert {"stg_control__loads", "stg_control__load_days"} <= {run.name for run in runs}
