"""Where tables lie: on one machine, or on the shards and replicas of a cluster.

The one place that knows engines, sharding keys, ON CLUSTER, and the name under which a host keeps
its own rows. Statements are written around what it gives; on one machine that is nothing, and the
table itself. `docs/decisions/0008-cluster.md` says why it is so.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tidemark.errors import TidemarkError

#: Appended to a table's name for a host's own rows, as dbt-clickhouse does with its `local_suffix`.
SUFFIX = "_local"

# A table of these databases is cut by workspace and these columns: what is compared, counted or
# erased together lies together. Every other table is whole on each host.
_SHARDED = {
    # A visitor's events, sessions and links.
    "raw.pixel_events": "anonymous_id",
    "intermediate.int_session_days": "anonymous_id",
    "intermediate.int_sessions": "anonymous_id",
    "intermediate.int_purchase_links": "anonymous_id",
    # An order or payment with its refunds.
    "raw.orders": "order_key",
    "raw.order_refunds": "order_key",
    "raw.payments": "order_key",
    "raw.payment_refunds": "order_key",
    "intermediate.int_orders": "order_key",
    "intermediate.int_refunds": "order_key",
    "intermediate.int_scope_sales": "order_key",
    "intermediate.int_dirty_sales": "order_key",
    # A customer, whose newest version `final` has to find on one shard.
    "intermediate.int_customers": "customer_key",
    "intermediate.int_customer_changes": "customer_key",
    # A profile of the e-mail vendor.
    "raw.email_events": "profile_key",
    "intermediate.int_email_orders": "order_id",
    "intermediate.int_email_refunds": "event_id",
    # Without a visitor.
    "raw.ad_spend": "ad_id",
    "raw.fx_rates": "base, quote",
    "raw.quarantine": "file_name_hash",
    "intermediate.int_cohort_months": "date_day",
    "intermediate.int_days_before": "date_day",
    "intermediate.int_dirty_days_marketing": "date_day",
    "intermediate.int_dirty_order_days": "date_day",
    "intermediate.int_dirty_pixel_days": "date_day",
    "intermediate.int_dirty_refund_days": "date_day",
    "intermediate.int_scope_days": "date_day",
    "intermediate.int_email_daily": "date_day",
    "intermediate.int_email_messages_daily": "date_day",
    "intermediate.int_fx_rates": "date_day",
    "intermediate.int_orders_daily": "date_day",
    "intermediate.int_pixel_daily": "date_day",
    "intermediate.int_refunds_daily": "date_day",
    "intermediate.int_spend_daily": "date_day",
    "marts.summary_kpis_daily": "date_day",
    "marts.email_revenue_daily": "date_day",
}
_SHARDED_DATABASES = ("raw", "intermediate", "marts")
#: Of those databases, but read and written as a whole.
_WHOLE = ("intermediate.pending_days",)
#: A raw table as it shall be, before it takes its place.
_NEXT = "load.next_"
#: What follows the name of the work table in which days of a table are replaced, as dbt names it.
WORK = "__replace_days"

_ONE_SHARD = ("'/clickhouse/tables/{uuid}/{shard}'", "'{replica}'")
#: All hosts are replicas of each other.
_ALL_HOSTS = ("'/clickhouse/tables/{uuid}/all'", "'{shard}-{replica}'")

_NAME = r"(?P<name>[a-z_.0-9]+)"
_HEAD = re.compile(
    r"(?P<before>(?:\s*--[^\n]*\n)*\s*)"
    r"(?P<verb>create (?:or replace )?(?P<kind>database|table|dictionary|function)"
    r"(?: if not exists)?) " + _NAME
)
_ENGINE = re.compile(r"\bengine = (?P<engine>\w*MergeTree(?:\([^)]*\))?)")


@dataclass(frozen=True, slots=True, order=True)
class Host:
    """A server; its name is empty where there is one alone."""

    shard: int
    replica: int
    name: str

    def __str__(self) -> str:
        # Without its name, which may be an address: a refusal goes into the ledger.
        return f"replica {self.replica} of shard {self.shard}"


@dataclass(frozen=True, slots=True)
class Topology:
    """One machine, or a cluster that the servers know by its name."""

    #: Empty on one machine.
    cluster: str = ""
    hosts: tuple[Host, ...] = (Host(1, 1, ""),)

    def __post_init__(self) -> None:
        sizes = {len([own for own in self.hosts if own.shard == shard]) for shard in self.shards}
        if len(sizes) != 1:
            raise TidemarkError(
                f"the shards of cluster {self.cluster} have to have as many replicas each"
            )

    @property
    def shards(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(sorted({own.shard for own in self.hosts}))

    @property
    def on_cluster(self) -> str:
        """The clause of a statement that makes, renames or drops something everywhere.

        Changes of rows carry it for a table that is cut, where each shard has to make them; those
        of a whole table go from replica to replica by themselves.
        """
        return f" on cluster `{self.cluster}`" if self.cluster else ""

    @property
    def settings(self) -> dict[str, str]:
        """What statements need that reach several hosts; a host that is behind stops them."""
        if not self.cluster:
            return {}
        return {
            # A set or the right side of a join is made once, out of all shards.
            "distributed_product_mode": "global",
            # The default would insert past the sharding key, and a group of each shard by itself.
            "parallel_distributed_insert_select": "0",
            # What is written is there for the next statement, on every replica of its shard.
            "distributed_foreground_insert": "1",
            "insert_quorum": str(len(self.hosts) // len(self.shards)),
            # A table that was emptied and filled again has blocks that were seen before.
            "insert_deduplicate": "0",
            "alter_sync": "2",
            "mutations_sync": "2",
            "load_balancing": "in_order",
            "fallback_to_stale_replicas_for_distributed_queries": "0",
            "distributed_ddl_task_timeout": "600",
        }

    @property
    def words(self) -> dict[str, str]:
        """The same for dbt's profile and macros, as variables of its environment."""
        cut, whole = (", ".join(own) if self.cluster else "" for own in (_ONE_SHARD, _ALL_HOSTS))
        return {
            "TIDEMARK_DBT_TARGET": "cluster" if self.cluster else "clickhouse",
            "TIDEMARK_DBT_CLUSTER": self.cluster,
            "TIDEMARK_DBT_LOCAL_SUFFIX": SUFFIX if self.cluster else "",
            "TIDEMARK_DBT_TABLE": "distributed_table" if self.cluster else "table",
            "TIDEMARK_DBT_ONE_SHARD": cut,
            "TIDEMARK_DBT_ALL_HOSTS": whole,
            "TIDEMARK_DBT_SHARDING": json.dumps(sharding_keys() if self.cluster else {}),
            "TIDEMARK_DBT_SETTINGS": json.dumps(self.settings),
        }

    @property
    def broadcast(self) -> str:
        """What stands before `in` and `join` where only the host that asks has the other table."""
        return "global " if self.cluster else ""

    def written(self, table: str) -> dict[str, str]:
        """Settings of an insert after which every host that has the table has the rows."""
        if not self.cluster or is_sharded(table):
            return {}
        return {"insert_quorum": str(len(self.hosts))}

    # -- names -------------------------------------------------------------------------------------

    def local(self, table: str) -> str:
        """The table that holds a host's own rows."""
        return f"{table}{SUFFIX}" if self.cluster and is_sharded(table) else table

    def logical(self, table: str) -> str:
        """The name under which all rows of a host's own table are read."""
        name = table.removesuffix(SUFFIX)
        return name if self.local(name) == table else table

    def each_shard(self, table: str) -> str:
        """A system table of one replica of each shard."""
        return f"cluster('{self.cluster}', {table})" if self.cluster else table

    def each_host(self, table: str) -> str:
        """A system table of all hosts."""
        return f"clusterAllReplicas('{self.cluster}', {table})" if self.cluster else table

    def drops(self, table: str) -> tuple[str, ...]:
        """Statements that drop a table from one host."""
        names = dict.fromkeys((table, self.local(table)))
        return tuple(f"drop table if exists {name}" for name in names)

    # -- making tables -----------------------------------------------------------------------------

    def made(self, statement: str) -> tuple[str, ...]:
        """The statements that make everywhere what a statement makes on one machine.

        Args:
            statement: `create` of a database, table, dictionary or function, as one machine has it.

        Raises:
            TidemarkError: it is none of these, or its table has no sharding key.
        """
        if not self.cluster:
            return (statement,)
        head = _HEAD.match(statement)
        if head is None:
            raise TidemarkError(f"include/tidemark/topology.py cannot place: {statement[:80]}")
        name = head["name"]
        rest = statement[head.end() :]
        if head["kind"] != "table":
            return (f"{head['before']}{head['verb']} {name}{self.on_cluster}{rest}",)
        engine = _ENGINE.search(rest)
        if engine is None:
            raise TidemarkError(f"include/tidemark/topology.py knows no engine for {name}")
        rest = (
            f"{rest[: engine.start('engine')]}{self.engine(engine['engine'], name)}"
            f"{rest[engine.end('engine') :]}"
        )
        own = f"{head['before']}{head['verb']} {self.local(name)}{self.on_cluster}{rest}"
        return (own, *self._distributed(head["verb"], name))

    def made_like(self, table: str, other: str) -> tuple[str, ...]:
        """The statements that make a table of the same structure, empty."""
        own = f"create table {self.local(table)}{self.on_cluster} as {self.local(other)}"
        return (own, *self._distributed("create table", table))

    def engine(self, engine: str, table: str) -> str:
        """The engine of a table, given the one that it has on one machine."""
        if not self.cluster:
            return engine
        name, _, arguments = engine.partition("(")
        place = _ONE_SHARD if is_sharded(table) else _ALL_HOSTS
        own = [*place, *filter(None, [arguments.removesuffix(")")])]
        return f"Replicated{name}({', '.join(own)})"

    def synced(self, table: str) -> tuple[str, ...]:
        """Statements after which every host has the rows of a whole table."""
        return (f"system sync replica{self.on_cluster} {table}",) if self.cluster else ()

    def caught_up(self, table: str) -> tuple[str, ...]:
        """Statements to a host after which it has done what other replicas did before."""
        return (f"system sync replica {self.local(table)}",) if self.cluster else ()

    def _distributed(self, verb: str, table: str) -> Iterator[str]:
        if self.cluster and is_sharded(table):
            database, name = table.split(".")
            yield (
                f"{verb} {table}{self.on_cluster} as {self.local(table)} engine ="
                f" Distributed('{self.cluster}', '{database}', '{name}{SUFFIX}',"
                f" {sharding_key(table)})"
            )


ONE_MACHINE = Topology()


def is_sharded(table: str) -> bool:
    """Whether the rows of a table are cut over the shards; else each host has them all."""
    in_place = table.partition(".")[0] in _SHARDED_DATABASES or table.startswith(_NEXT)
    return in_place and table not in _WHOLE


def sharding_key(table: str) -> str:
    """SQL of the number by which a row finds its shard.

    Raises:
        TidemarkError: the table has none; the message names the file to edit.
    """
    known = table.replace(_NEXT, "raw.").removesuffix(WORK)
    if known not in _SHARDED:
        raise TidemarkError(f"{table} has no sharding key: name it in include/tidemark/topology.py")
    return f"sipHash64(workspace_id, {_SHARDED[known]})"


def sharding_keys() -> dict[str, str]:
    """The same of every table that is cut, by name."""
    return {table: sharding_key(table) for table in _SHARDED}
