"""What every host holds of a table: each is asked by itself, for a cluster asks one replica."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tidemark import clickhouse
from tidemark.clickhouse import literal
from tidemark.config import Settings
from tidemark.errors import Refused, TidemarkError
from tidemark.plan import Target, fingerprint
from tidemark.topology import Host, Topology

#: Each host, with the settings that reach it alone.
Hosts = Sequence[tuple[Host, Settings]]


@dataclass(frozen=True, slots=True)
class Standing:
    """Rows of a partition on all shards together."""

    #: Those that are to go.
    rows: int
    #: Of the rows to go, as text.
    fingerprint: str
    #: Those that stay.
    others: int


def standing(hosts: Hosts, topology: Topology, target: Target) -> Standing:
    """Count a target's rows on each host: replicas have to agree, shards add up.

    Raises:
        Refused: a replica has other rows than another of its shard.
        TidemarkError: a host does not answer.
    """
    partition = f"_partition_id = {literal(target.partition)}"
    statement = (
        f"select countIf({target.predicate}) as rows,"
        f" {fingerprint(target.columns, target.predicate)} as fingerprint,"
        f" countIf(not ({target.predicate})) as others"
        f" from {topology.local(target.table)}"
        f" where {'true' if target.partition == 'all' else partition}"
    )
    by_shard: dict[int, dict[Standing, Host]] = defaultdict(dict)
    for host, settings in hosts:
        (row,) = clickhouse.rows(settings, statement)
        found = Standing(int(row["rows"]), row["fingerprint"], int(row["others"]))
        by_shard[host.shard].setdefault(found, host)
    for answers in by_shard.values():
        if len(answers) > 1:
            told = ", ".join(
                f"{host} has {own.rows} rows to go and {own.others} that stay"
                for own, host in answers.items()
            )
            raise Refused(f"replicas of {target.table} {target.partition} differ: {told}")
    shards = [next(iter(answers)) for answers in by_shard.values()]
    return Standing(
        sum(own.rows for own in shards),
        str(sum(int(own.fingerprint) for own in shards) % 2**128),
        sum(own.others for own in shards),
    )


def settle(hosts: Hosts, topology: Topology, table: str, patience: float) -> None:
    """Wait until every host has done what it was told of a table; `is_done` is no proof of it.

    Args:
        patience: seconds.

    Raises:
        TidemarkError: a mutation fails or does not end, or a host does not answer or catch up.
    """
    deadline = time.monotonic() + patience
    database, name = topology.local(table).split(".")
    for host, settings in hosts:
        for statement in topology.caught_up(table):
            clickhouse.execute(settings, statement, timeout=patience)
        while True:
            found = clickhouse.rows(
                settings,
                "select mutation_id, latest_fail_reason from system.mutations where not is_done"
                f" and database = {literal(database)}"
                f" and table = {literal(name)}",
            )
            if not found:
                break
            failed = [row for row in found if row["latest_fail_reason"]]
            if failed or time.monotonic() > deadline:
                raise TidemarkError(
                    f"mutation {found[0]['mutation_id']} of {table} does not end{_at(host)};"
                    " see system.mutations"
                )
            time.sleep(0.2)


def left(hosts: Hosts, topology: Topology, target: Target) -> Iterator[str]:
    """A line for every host that still has rows of a target."""
    for host, settings in hosts:
        # A condition on columns: a bare count would be answered from metadata.
        (row,) = clickhouse.rows(
            settings,
            f"select count() as rows from {topology.local(target.table)} where {target.predicate}",
        )
        if row["rows"]:
            yield (
                f"{row['rows']} rows of {target.table} {target.partition} still stand{_at(host)}"
            )


def dead(hosts: Hosts, topology: Topology, target: Target) -> Iterator[str]:
    """A line for every host on whose disk parts lie that a purge replaced."""
    database, name = topology.local(target.table).split(".")
    partition = f"partition_id = {literal(target.partition)}"
    for host, settings in hosts:
        parts = clickhouse.rows(
            settings,
            "select name, active from system.parts"
            f" where database = {literal(database)}"
            f" and table = {literal(name)}"
            f" and {'true' if target.partition == 'all' else partition}",
        )
        old = [part["name"] for part in parts if not part["active"]]
        if old:
            yield f"{len(old)} old parts of {target.table} still lie on the disk{_at(host)}"


def sweep(hosts: Hosts, topology: Topology, table: str) -> None:
    """Make every host take parts that were replaced off its disk, and not minutes later."""
    for _, settings in hosts:
        # A month without rows: dropping it sweeps.
        clickhouse.execute(
            settings, f"alter table {topology.local(table)} drop partition id '190001'"
        )


def _at(host: Host) -> str:
    return f" on {host}" if host.name else ""
