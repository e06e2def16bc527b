"""A build in layers: each one dbt run of its own, so that a retry reruns only what failed."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, cast

from tidemark import build as building
from tidemark import clickhouse
from tidemark.config import Settings
from tidemark.errors import Refused, TidemarkError
from tidemark.postgres import Connection

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest
    from dbt.contracts.graph.nodes import ManifestNode

Layer = Literal["staging", "intermediate", "marts"]
LAYERS: tuple[Layer, ...] = ("staging", "intermediate", "marts")

_DONE = ("success", "pass", "warn")


@dataclass(frozen=True, slots=True)
class NodeRun:
    """What became of one model or test of a layer."""

    node: str
    name: str
    status: str
    #: Seconds.
    seconds: float
    #: In the table afterwards; None for views and tests.
    rows: int | None


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What a layer ran now."""

    build_id: int
    layer: Layer
    nodes: tuple[NodeRun, ...]
    #: Nodes that an earlier try had done.
    done_before: int

    def as_dict(self) -> dict[str, Any]:
        """The report as one JSON document."""
        return asdict(self)


class Superseded(Refused):
    """A newer build took this one's days over, so there is nothing left for it to do."""


def check_open(connection: Connection, build_id: int) -> None:
    """Refuse to go on with a build whose scope is no longer the published one.

    Raises:
        Superseded: a newer build began, or this one has tied out.
        TidemarkError: it ended without tying out.
    """
    row = connection.execute(
        "select max(build_id) as newest,"
        " bool_or(success) filter (where build_id = %(own)s) as held,"
        " bool_or(finished_at is not null) filter (where build_id = %(own)s) as ended"
        " from control.builds",
        {"own": build_id},
    ).fetchone()
    assert row is not None
    if row["newest"] != build_id:
        raise Superseded(f"build {row['newest']} has taken over the days of build {build_id}")
    if row["held"]:
        raise Superseded(f"build {build_id} has tied out: there is nothing left to do")
    if row["ended"]:
        raise TidemarkError(f"build {build_id} did not tie out: a new build takes its days")


def missing(connection: Connection, build_id: int) -> list[Layer]:
    """The layers of the build that have not been finished."""
    found = connection.execute(
        "select layer from control.build_layers where build_id = %s", [build_id]
    )
    finished = {row["layer"] for row in found}
    return [layer for layer in LAYERS if layer not in finished]


def run(
    settings: Settings,
    connection: Connection,
    build_id: int,
    layer: Layer,
    clock: Callable[[], datetime],
) -> LayerReport:
    """Run what of the layer is not done yet; each node is on record as soon as it ends.

    Args:
        connection: commits by itself.

    Raises:
        TidemarkError: an earlier layer is not finished, or a node failed; the message names it.
    """
    for earlier in LAYERS[: LAYERS.index(layer)]:
        if earlier in missing(connection, build_id):
            raise TidemarkError(
                f"layer {earlier} of build {build_id} is not finished: run it first"
            )
    done = {
        row["node"]
        for row in connection.execute(
            "select node from control.build_models"
            " where build_id = %s and layer = %s and status = any(%s)",
            [build_id, layer, list(_DONE)],
        )
    }
    changed = not building.models_unchanged(settings)
    if layer == "staging" and changed:
        building.dbt(settings, ["run"], target="postgres")
    # Staging is views, which change with the project alone.
    runs = layer != "staging" or changed
    wanted = _nodes(building.parse(settings), layer, with_views=changed) if runs else {}
    # Steps are emptied at the end of each run, so what failed needs them again.
    due = {node for node in wanted if node not in done}
    if due:
        due |= {node for node, own in wanted.items() if own.is_step}
    ended: list[building.ModelRun] = []

    def finished(run: building.ModelRun) -> None:
        ended.append(run)
        _record(connection, build_id, layer, run, clock())

    if due:
        try:
            building.dbt(
                settings,
                [
                    # Unit tests need no warehouse; they run where the project is tested.
                    "build", "--exclude-resource-type", "unit_test",
                    "--indirect-selection", "empty",
                    "--select", *sorted(wanted[node].selector for node in due),
                ],
                finished=finished,
            )  # fmt: skip
        finally:
            _count_rows(settings, connection, build_id, layer)
    with connection.transaction():
        if layer == LAYERS[-1]:
            # Only a whole and faultless build may forget the days it found on the way.
            clickhouse.execute(settings, "truncate table if exists intermediate.pending_days")
            building.note_models(settings)
        connection.execute(
            "insert into control.build_layers (build_id, layer, finished_at)"
            " values (%s, %s, %s) on conflict do nothing",
            [build_id, layer, clock()],
        )
    names = {run.node for run in ended}
    nodes = [node for node in recorded(connection, build_id, layer) if node.node in names]
    return LayerReport(build_id, layer, tuple(nodes), len(done - due))


def recorded(connection: Connection, build_id: int, layer: Layer) -> list[NodeRun]:
    """What became of the layer's nodes in this build, in the order they ended."""
    return [
        NodeRun(**row)
        for row in connection.execute(
            "select node, name, status, seconds, rows from control.build_models"
            " where build_id = %s and layer = %s order by finished_at, node",
            [build_id, layer],
        )
    ]


@dataclass(frozen=True, slots=True)
class _Node:
    selector: str
    #: Emptied at the end of each run.
    is_step: bool


def _nodes(manifest: "Manifest", layer: Layer, *, with_views: bool) -> Mapping[str, _Node]:
    """The models and data tests of a layer."""
    layer_of: dict[str, Layer] = {}
    views: set[str] = set()
    found: dict[str, tuple[Layer, _Node]] = {}
    for node in manifest.nodes.values():
        if str(node.resource_type) != "model" or not node.config.enabled:
            continue
        folder = node.fqn[1]
        own: Layer = cast(Layer, folder) if folder in LAYERS else LAYERS[-1]
        layer_of[node.unique_id] = own
        if node.config.materialized == "view":
            views.add(node.unique_id)
        if with_views or node.unique_id not in views:
            found[node.unique_id] = (
                own,
                _Node(_selector(node), bool(node.config.meta.get("is_step"))),
            )
    for node in manifest.nodes.values():
        parents = [parent for parent in node.depends_on_nodes if parent in layer_of]
        if str(node.resource_type) != "test" or not parents:
            continue
        if with_views or not views.issuperset(parents):
            # A test waits for the last of its models.
            own = LAYERS[max(LAYERS.index(layer_of[parent]) for parent in parents)]
            found[node.unique_id] = (own, _Node(_selector(node), is_step=False))
    return {name: node for name, (own, node) in found.items() if own == layer}


def _selector(node: "ManifestNode") -> str:
    return "fqn:" + ".".join(node.fqn)


def _record(
    connection: Connection, build_id: int, layer: Layer, run: building.ModelRun, now: datetime
) -> None:
    # Without dbt's message, which may quote a value.
    connection.execute(
        "insert into control.build_models"
        " (build_id, node, name, layer, status, seconds, finished_at)"
        " values (%s, %s, %s, %s, %s, %s, %s)"
        " on conflict (build_id, node) do update set status = excluded.status,"
        " seconds = excluded.seconds, finished_at = excluded.finished_at",
        [build_id, run.node, run.name, layer, run.status, run.seconds, now],
    )


def _count_rows(settings: Settings, connection: Connection, build_id: int, layer: Layer) -> None:
    topology = clickhouse.topology(settings)
    tables = clickhouse.rows(
        settings,
        "select name, total_rows, database"
        f" from {topology.each_shard('system.tables')} where total_rows is not null"
        " and database in ('staging', 'intermediate', 'marts', 'retention', 'anonymised')",
    )
    rows: Counter[str] = Counter()
    for row in tables:
        _, _, name = topology.logical(f"{row['database']}.{row['name']}").partition(".")
        rows[name] += int(row["total_rows"])
    with connection.cursor() as cursor:
        cursor.executemany(
            "update control.build_models set rows = %s"
            " where build_id = %s and layer = %s and name = %s and node like 'model.%%'",
            [(count, build_id, layer, name) for name, count in rows.items()],
        )
