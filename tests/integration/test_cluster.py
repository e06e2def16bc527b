"""The profile of a cluster on stand-ins for its hosts: every statement, and replicas that fail.

What only servers can show is listed in docs/deploy.md. The tests are one story, in their order, and
what it sent is looked at in the end. They take many minutes: make test-cluster.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import pytest

import history
from cluster import CLUSTER, Cluster, Sent, new_cluster
from homes import Outcome, Warehouse
from tidemark import clickhouse, replicas, roles
from tidemark.errors import Refused
from tidemark.plan import Target
from tidemark.topology import Host, Topology

LOADED = date(2024, 12, 20)
DAYS = [date(2024, month, 9) for month in (7, 8, 9, 10, 11)] + [date(2024, 7, 10)]
#: Of the load alone, on the host that parses.
WORK = re.compile(
    r"load\.`?(stage|lines|rejects|user_agents_seen|files|contested|fates|loads|lines_to_\w+)\b"
)
CUT = r"(?:raw|intermediate|marts)"
#: Who sends what a verb sends, where logins are members of roles.
ROLES = {
    "load": "tidemark_loader",
    "build": "tidemark_transformer",
    "plan": "tidemark_purger",
    "purge": "tidemark_purger",
    "recall": "tidemark_purger",
    "audit": "tidemark_auditor",
}
#: Statements that need a right over hosts, and the right.
OVER_HOSTS = {
    r"\bon cluster\b": "cluster",
    r"\bengine = Distributed\(|\b(cluster|clusterAllReplicas)\('": "remote",
    r"^system sync replica\b": "system sync replica",
    r"^system reload dictionary\b": "system reload dictionary",
}
#: Of `system`, what servers show everybody as far as they may see what it tells of.
SHOWN = ("columns", "databases", "one", "settings", "tables")
ENGINE = re.compile(r"engine\s*=\s*(\w+)(\([^)]*\))?", re.IGNORECASE)

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Stand:
    """A warehouse on a cluster, and the gates before its hosts."""

    home: Warehouse
    cluster: Cluster

    def rows(self, table: str, where: str = "1") -> list[int]:
        """How many rows of a table each replica has by itself."""
        own = self.cluster.distributed.get(table, table)
        self.cluster.catch_up()
        return [
            int(replica.ask(f"select count() from {own} where {where}"))
            for replica in self.cluster.replicas
        ]

    def purge(self, as_of: str) -> Outcome:
        return self.home.run("purge", "--as-of", as_of, "--json", check=False)


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """Five months of two shops, loaded in two deliveries and built."""
    with new_cluster(2) as (home, cluster):
        home.run("up", "--no-airflow")
        history.add_shops(home)
        history.deliver(home, *DAYS)
        loaded = home.run("load", "--as-of", str(LOADED), "--json").json
        assert loaded["stored"] == loaded["lines"] > 0
        # Restated: the order is replaced, and its month written anew.
        day = DAYS[2]
        restated = [history.order(day, 1, "150.00", updated_at=f"{day}T23:00:00Z")]
        history.put(home, "shopify_orders/shop", LOADED, restated, "late")
        assert home.run("load", "--as-of", str(LOADED), "--json").json["stored"] == 1
        built = home.run("build", "--as-of", str(LOADED), "--json").json
        assert built["gate"]["success"]
        yield Stand(home, cluster)


def test_each_replica_has_every_row(stand: Stand) -> None:
    for table in ("raw.pixel_events", "raw.orders", "intermediate.int_orders"):
        one, other = stand.rows(table)
        assert one == other > 0, table
    (total,) = clickhouse.rows(
        stand.home.settings,
        "select sum(revenue) as revenue from marts.summary_kpis_daily where workspace_id = 'shop'",
    )
    # One order restated, 199.65 and 40.00 on each of the other days.
    assert float(total["revenue"]) == pytest.approx(6 * 239.65 - 199.65 + 150)


def test_a_replica_that_misses_a_row_stops_its_step(stand: Stand) -> None:
    other = stand.cluster.replicas[1]
    other.ask(
        "alter table raw.pixel_events_local delete where event_name = 'purchase'"
        " and local_date < '2024-08-01' settings mutations_sync = 2"
    )
    before = stand.rows("raw.pixel_events")
    refused = stand.purge("2025-09-10")
    assert refused.code == 3
    assert [step["status"] for step in refused.json["steps"]] == ["refused"]
    assert "replicas of raw.pixel_events 202407 differ" in refused.json["error"]
    assert "replica 2 of shard 1 has" in refused.json["error"]
    assert stand.rows("raw.pixel_events") == before
    other.behind.add("raw.pixel_events_local")


@pytest.mark.parametrize("fault", ["refuses", "down"])
def test_a_replica_that_does_not_answer_stops_it(stand: Stand, fault: str) -> None:
    before = stand.rows("raw.pixel_events")
    stand.cluster.replicas[1].fault = fault
    try:
        stopped = stand.purge("2025-09-10")
    finally:
        stand.cluster.replicas[1].fault = ""
    assert stopped.code == 1
    assert stand.rows("raw.pixel_events") == before
    assert begun(stand) == 0


def test_a_replica_that_says_done_and_is_not_leaves_the_step_open(stand: Stand) -> None:
    month = "local_date < '2024-08-01'"
    before = figures(stand)
    one, other = stand.rows("raw.pixel_events", month)
    assert one == other > 0
    stand.cluster.replicas[1].fault = "lies"
    try:
        stopped = stand.purge("2025-09-10")
        assert begun(stand) == 1
        # It still says so: nothing more happens.
        again = stand.purge("2025-09-10")
        rows = stand.rows("raw.pixel_events", month)
    finally:
        stand.cluster.replicas[1].fault = ""
    assert stopped.code == 1
    assert f"{other} rows of raw.pixel_events 202407 still stand on replica 2" in stopped.stderr
    assert rows == [0, other]
    assert figures(stand) == before
    assert again.code != 0
    assert "differ" in again.stderr
    done = stand.purge("2025-09-10")
    assert done.code == 0, done.stderr
    assert [step["status"] for step in done.json["steps"]] == ["resumed"]
    assert stand.rows("raw.pixel_events", month) == [0, 0]
    assert figures(stand) == before


def test_a_hold_on_a_person_keeps_their_rows_on_every_replica(stand: Stand) -> None:
    held = stand.home.run(
        "hold", "add", "--workspace", "shop", "--subject", history.PERSON, "--reason", "case 1",
        "--json",
    ).json  # fmt: skip
    before = figures(stand)
    report = stand.purge("2025-10-10")
    assert report.code == 0, report.stderr
    assert [(step["action"], step["status"]) for step in report.json["steps"]] == [
        ("delete_rows", "done")
    ]
    month = "local_date between '2024-08-01' and '2024-08-31'"
    assert stand.rows("raw.pixel_events", month) == [2, 2]
    assert figures(stand) == before
    stand.home.run("hold", "release", str(held["hold_id"]))


def test_a_purge_of_everything_and_a_recall(stand: Stand) -> None:
    report = stand.purge("2026-09-10")
    assert report.code == 0, report.stderr
    gone = {step["data_class"] for step in report.json["steps"]}
    assert gone >= {"pixel_events", "orders", "payments", "ad_spend", "email_events"}
    for table in ("raw.pixel_events", "raw.orders", "raw.payments"):
        assert stand.rows(table, "local_date < '2024-08-01'") == [0, 0]
    recalled = stand.home.run(
        "recall", "payments", "--workspace", "till", "--month", "2024-07", "--reason", "audit",
        "--as-of", "2026-09-10", "--json", check=False,
    )  # fmt: skip
    assert recalled.code == 0, recalled.stderr
    one, other = stand.rows("recalled.payments")
    assert one == other > 0
    assert stand.home.run("audit", "--json", check=False).code == 0


# -- every statement of the above ------------------------------------------------------------------


def test_every_statement_parses(stand: Stand) -> None:
    seat = stand.cluster.replicas[0]
    seen: set[str] = set()
    for sent in stand.cluster.sent:
        text = re.sub(r"(?is)(\bformat csv)\b.*", r"\1", sent.statement).strip().rstrip(";")
        shape = re.sub(r"'[^']*'|\d+", "?", text)
        if shape in seen or re.match(r"(?i)\s*(explain|describe)\b", text):
            continue
        seen.add(shape)
        bound = {name: own for name, own in sent.parameters.items() if name.startswith("param_")}
        assert seat.ask(f"explain ast {text}", b"", **bound), text
    assert len(seen) > 200
    assert {sent.verb for sent in stand.cluster.sent} >= set(ROLES)
    # A hold says nothing by itself: the purge brings it there.
    assert any("insert into retention.held_subjects" in text for text in seen)


def plain(statement: str) -> str:
    """Without comments, names without quotes, blanks made one."""
    text = re.sub(r"--[^\n]*\n|/\*.*?\*/", " ", statement, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text.replace("`", "").replace('"', "")).strip()


def defining(stand: Stand) -> Iterator[tuple[Sent, str]]:
    pattern = re.compile(r"(?i)(create|drop|rename|exchange|truncate|alter|system) ")
    found = [(sent, plain(sent.statement)) for sent in stand.cluster.sent]
    found = [(sent, text) for sent, text in found if pattern.match(text)]
    assert len(found) > 200
    yield from found


def test_what_is_made_is_made_everywhere(stand: Stand) -> None:
    kinds = set()
    for _, text in defining(stand):
        verb = text.split()[0].lower()
        if verb not in ("create", "drop", "rename", "system") or "temporary table" in text.lower():
            continue
        if WORK.search(text) or re.match(r"drop table if exists load\.", text):
            assert "on cluster" not in text.lower() or "recalled_" in text, text
            continue
        assert text.lower().count(" on cluster tidemark") == 1 or "system sync replica" in text, (
            text
        )
        kinds.add(" ".join(text.lower().split()[:2]))
    assert kinds >= {"create database", "create table", "create or", "create dictionary"}


def test_engines_are_replicated_with_their_macros(stand: Stand) -> None:
    engines = defaultdict(set)
    for _, text in defining(stand):
        found = ENGINE.search(text)
        if not text.lower().startswith("create") or found is None:
            continue
        if WORK.search(text):
            assert found[1] in ("MergeTree", "Null", "Memory"), text
            continue
        name = re.search(r"(?i)table (?:if not exists )?([\w.]+)", text)
        assert name is not None, text
        cut = re.match(CUT + r"\.", name[1]) and name[1] != "intermediate.pending_days"
        if found[1] == "Distributed":
            assert re.search(r"'\w+_local\w*', sipHash64\(workspace_id, ", text), text
            engines[name[1]].add("distributed")
            continue
        place = "'/clickhouse/tables/{uuid}/{shard}', '{replica}'"
        if not cut:
            place = "'/clickhouse/tables/{uuid}/all', '{shard}-{replica}'"
        assert found[1].startswith("Replicated"), text
        assert f"{found[1]}({place}" in text, text
        assert not cut or "_local" in name[1], text
        engines[name[1]].add("rows")
    for table in ("raw.orders", "intermediate.int_orders", "intermediate.int_scope_days"):
        assert engines[table] == {"distributed"}
        assert engines[f"{table}_local"] == {"rows"}
    for table in ("retention.permits", "anonymised.orders", "recalled.payments"):
        assert engines[table] == {"rows"}
    assert engines["reference.source_rules"] == {"rows"}


def test_rows_are_changed_where_they_lie(stand: Stand) -> None:
    changed = set()
    for sent, text in defining(stand):
        found = re.match(r"(?i)(alter table|truncate table(?: if exists)?) ([\w.]+)", text)
        if found is None:
            continue
        table = found[2]
        if WORK.match(table):
            assert "on cluster" not in text, text
        elif "modify comment" in text:
            assert table.startswith("load.next_"), text
            assert "on cluster" not in text, text
        elif re.match(rf"{CUT}\.|load\.next_", table) and table != "intermediate.pending_days":
            assert "_local" in table, text
            assert " on cluster tidemark" in text, text
            assert sent.replica == 1
            changed.add(text.partition(" on cluster tidemark")[2].strip().partition(" ")[0])
        else:
            assert "on cluster" not in text, text
    assert changed >= {"attach", "add", "drop", "delete", "replace"}


def test_what_a_host_is_asked_every_host_is_asked(stand: Stand) -> None:
    asked: dict[str, list[int]] = defaultdict(list)
    for sent in stand.cluster.sent:
        text = plain(sent.statement)
        of_host = re.match(r"(?i)(exchange|alter table load\.next_\w+ modify)", text)
        if re.match(r"(?i)exchange tables load\.", text):
            assert "on cluster" not in text
        elif of_host and " on cluster " in text.lower():
            continue
        # Beside a table over all hosts, a host's own is read by each of them for itself.
        of_one = re.search(rf"from {CUT}\.\w+_local\b", text) and not re.search(
            rf"from {CUT}\.(?!\w+_local\b)\w+", text
        )
        reads = re.match(r"(?i)(select|with)", text) and (
            of_one
            or re.search(r"from system\.(mutations|parts)", text)
            or "where database = 'load'" in text
        )
        if reads or of_host or "system sync replica raw" in text:
            asked[text].append(sent.replica)
    assert len(asked) > 30
    uneven = {text for text, hosts in asked.items() if set(hosts) != {1, 2}}
    assert uneven == set()


def test_sets_of_work_tables_are_sent_along(stand: Stand) -> None:
    seen = 0
    for sent in stand.cluster.sent:
        text = plain(sent.statement)
        for found in re.finditer(
            r"(global )?in \(select (?:distinct )?[^()]*?from load\.\w+", text
        ):
            sources = re.findall(r"from ((?:raw|load)\.\w+)", text[: found.start()])
            if sources and sources[-1].startswith("raw."):
                assert found[1], text
                seen += 1
        for found in re.finditer(r"(global )?left join load\.files", text):
            assert found[1], text
    assert seen > 5


def test_statements_over_hosts_say_what_they_need(stand: Stand) -> None:
    wanted = Topology("tidemark", (Host(1, 1, "a"), Host(1, 2, "b"))).settings
    told = 0
    for sent in stand.cluster.sent:
        if re.search(rf"(?i)\b(from|into) `?{CUT}`?\.`?\w+", sent.statement) and not re.search(
            r"_local\b", sent.statement
        ):
            for name, value in wanted.items():
                assert sent.parameters.get(name) == value, (name, sent.statement[:200])
            told += 1
    assert told > 100


def test_roles_may_send_what_their_verbs_send(stand: Stand) -> None:
    """As far as one machine does not need it: that is tried in test_roles.py."""
    declared = roles.read(stand.home.settings)
    needed: dict[str, set[str]] = defaultdict(set)
    for sent in stand.cluster.sent:
        if sent.verb not in ROLES:
            continue
        text = plain(sent.statement)
        own = needed[ROLES[sent.verb]]
        own |= {right for told, right in OVER_HOSTS.items() if re.search(f"(?i){told}", text)}
        own |= {
            f"system.{table}"
            for table in re.findall(r"(?i)\b(?:from|join|,) ?system\.(\w+)", text)
            if table not in SHOWN
        }
    for name, rights in needed.items():
        granted = "; ".join(roles.clickhouse(declared, CLUSTER))
        for right in rights:
            what = f"{right} on *.*"
            if right.startswith("system."):
                what = f"select on `system`.`{right.removeprefix('system.')}`"
                if "*.*" in declared.roles[name].clickhouse.read:
                    what = "select on *.*"
            assert f"grant on cluster `{CLUSTER}` {what} to `{name}`" in granted, (name, right)
    assert needed["tidemark_loader"] >= {"cluster", "remote"}
    assert needed["tidemark_transformer"] >= {"cluster", "remote"}
    assert needed["tidemark_purger"] >= {
        "cluster", "remote", "system sync replica", "system.mutations", "system.parts",
    }  # fmt: skip


# -- several shards, by the function ---------------------------------------------------------------


def test_shards_add_up_and_replicas_have_to_agree(stand: Stand) -> None:
    """Two hosts as two shards, each also as both of its replicas; their rows are not the same."""
    one, other = stand.cluster.replicas
    for replica, count in ((one, 3), (other, 5)):
        replica.ask("create database if not exists shards")
        replica.ask(
            "create table shards.t (id UInt64, day Date) engine = MergeTree"
            " partition by toYYYYMM(day) order by id"
        )
        replica.ask(
            f"insert into shards.t select number + {10 * replica.number}, '2024-07-01'"
            f" from numbers({count})"
        )
    target = Target(
        table="shards.t", partition="202407", predicate="id % 2 = 0", whole_partition=False,
        rows=0, sums={}, columns=("id",), fingerprint="",
    )  # fmt: skip
    settings = [own for _, own in clickhouse.hosts(stand.home.settings)]
    shards = Topology("tidemark", (Host(1, 1, "a"), Host(2, 1, "b")))
    found = replicas.standing(list(zip(shards.hosts, settings, strict=True)), shards, target)
    assert (found.rows, found.others) == (2 + 3, 1 + 2)
    (whole,) = clickhouse.rows(
        settings[0],
        "select toString(sum(reinterpretAsUInt128(sipHash128(id)))) as fingerprint from"
        " (select arrayJoin([10, 12, 20, 22, 24])::UInt64 as id)",
    )
    assert found.fingerprint == whole["fingerprint"]
    mirrored = Topology("tidemark", (Host(1, 1, "a"), Host(1, 2, "b")))
    with pytest.raises(Refused, match=r"replica 1 of shard 1 has 2 rows to go and 1 that"):
        replicas.standing(list(zip(mirrored.hosts, settings, strict=True)), mirrored, target)
    hosts = list(zip(shards.hosts, settings, strict=True))
    four = Topology(
        "tidemark", tuple(Host(shard, own, f"{shard}{own}") for shard in (1, 2) for own in (1, 2))
    )
    doubled = [settings[host.shard - 1] for host in four.hosts]
    same = replicas.standing(list(zip(four.hosts, doubled, strict=True)), four, target)
    assert same == found
    astray = [*doubled[:3], settings[0]]
    with pytest.raises(Refused, match=r"replica 2 of shard 2 has 2 rows to go and 1 that"):
        replicas.standing(list(zip(four.hosts, astray, strict=True)), four, target)
    assert list(replicas.left(hosts, shards, target)) == [
        "2 rows of shards.t 202407 still stand on replica 1 of shard 1",
        "3 rows of shards.t 202407 still stand on replica 1 of shard 2",
    ]
    # One shard does what it was told: the other's rows and parts are still told of.
    one.ask("alter table shards.t delete where id % 2 = 0 settings mutations_sync = 2")
    replicas.settle(hosts, replace(shards, cluster=""), "shards.t", 10)
    assert list(replicas.left(hosts, shards, target)) == [
        "3 rows of shards.t 202407 still stand on replica 1 of shard 2",
    ]
    assert list(replicas.dead(hosts, shards, target)) == [
        "1 old parts of shards.t still lie on the disk on replica 1 of shard 1",
    ]
    left = replicas.standing(hosts, shards, target)
    assert (left.rows, left.others) == (3, 1 + 2)


def begun(stand: Stand) -> int:
    """Steps in the ledger that are begun and not done."""
    unfinished = stand.home.run("plan", "--as-of", "2024-12-21", "--json").json["unfinished"]
    return len(unfinished)


def figures(stand: Stand) -> list[Any]:
    found = clickhouse.rows(stand.home.settings, "select * from marts.kpis_daily order by all")
    assert found
    return [json.dumps(row) for row in found]
