"""A load that is killed, whenever: the rerun leaves what an undisturbed load leaves, once."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from homes import Warehouse
from landings import AS_OF, DAY, Tenant, changed, fixture, tenant
from tidemark import clickhouse, engines
from tidemark.errors import TidemarkError

EVENT = fixture("pixel")[4]
ORDER = fixture("shopify_orders")[0]

# Runs a load and kills itself at one point of it: before or after the nth call of a function.
CHILD = """
import os, signal, sys
from datetime import UTC, date, datetime
from tidemark import clickhouse, config, flows, load

where, name, nth, as_of, landing = sys.argv[1:]
owner = clickhouse if name == "_post" else load._Loader
real, calls = getattr(owner, name), 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def killed(*arguments, **options):
    global calls
    calls += 1
    if where == "before" and calls == int(nth):
        die()
    result = real(*arguments, **options)
    if where == "after" and calls == int(nth):
        die()
    return result

setattr(owner, name, killed)
day = date.fromisoformat(as_of)
flows.load(
    config.Settings.from_env(os.environ),
    as_of=day,
    now=datetime(day.year, day.month, day.day, 12, tzinfo=UTC),
    landing=landing,
)
"""

# Where a load may be killed, and the nth call there.
STEPS = [
    ("before", "_parse", 1),
    ("after", "_parse", 1),
    ("after", "_judge", 1),
    ("after", "_prepare", 1),
    ("before", "_publish", 1),
    ("before", "_enter", 1),
    ("after", "_enter", 1),
    ("after", "_publish", 1),
    # The batch of the second source, when the first is published.
    ("after", "_prepare", 2),
    ("before", "_publish", 2),
]


def _load(
    shop: Tenant, where: str = "never", name: str = "_post", nth: int = 0
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, where, name, str(nth), str(shop.as_of), str(shop.landing)],
        env=dict(shop.warehouse.env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _deliver(shop: Tenant, round_: int) -> None:
    """A file of two months, one of orders that replace some of the round before, one retold."""
    months = (DAY, DAY - timedelta(days=40))
    shop.deliver(
        "pixel",
        [
            changed(EVENT, event_id=f"{round_}-{n}", timestamp=f"{months[n % 2]}T12:00:00Z")
            for n in range(40)
        ]
        + [changed(EVENT, event_id=f"{round_ - 1}-1", timestamp=f"{months[1]}T12:00:00Z"), "bad"],
        name=f"part-{round_:02}.jsonl.gz",
    )
    shop.deliver(
        "shopify_orders",
        [
            changed(
                ORDER,
                id=number,
                total_price=f"{round_}.50",
                updated_at=f"{AS_OF}T00:00:{round_:02}Z",
            )
            for number in range(round_ % 3, 5)
        ],
        name=f"orders-{round_:02}.jsonl",
    )


def _outcome(shop: Tenant) -> dict[str, Any]:
    """What a load left, without what names the load or the workspace."""
    tables = {
        table: shop.rows(
            f"select {columns} from raw.{table} where workspace_id = {{workspace}} order by all"
        )
        for table, columns in (
            ("pixel_events", "event_id, event_at, local_date, delivery_date, line_number"),
            ("orders", "order_id, updated_at, total, delivery_date, line_number"),
            ("order_refunds", "order_id, refund_id, amount, delivery_date, line_number"),
            ("quarantine", "source, line_number, reason, file_name_hash, line_hash"),
        )
    }
    return {
        **tables,
        "counts": sorted(json.dumps(row) for row in shop.counts()),
        "days": shop.ledger(
            "select measure, local_date::text as day, sum(event_count)::bigint as events,"
            " sum(distinct_ids)::bigint as ids, sum(money)::text as money"
            " from control.load_days where workspace_id = %s group by 1, 2 order by 1, 2",
            [shop.workspace_id],
        ),
    }


def _assert_nothing_is_left_over(shop: Tenant) -> None:
    assert shop.rows("select name from system.tables where database = 'load'") == []
    assert shop.ledger("select 1 as n from control.load_batches where status <> 'done'") == []
    assert shop.ledger(
        "select load_id from control.loads where status <> 'loaded' and workspace_id = %s",
        [shop.workspace_id],
    ) == []  # fmt: skip


@pytest.mark.faults
def test_killed_at_each_step_and_rerun(warehouse: Warehouse, tmp_path: Path) -> None:
    calm, shop = tenant(warehouse, tmp_path / "calm"), tenant(warehouse, tmp_path / "killed")
    for round_, (where, name, nth) in enumerate(STEPS, 1):
        for each in (calm, shop):
            _deliver(each, round_)
        child = _load(shop, where, name, nth)
        assert child.wait(120) == -signal.SIGKILL, (where, name, nth)
        events = {
            row["n"]
            for row in shop.rows(
                "select count() as n from raw.pixel_events where workspace_id = {workspace}"
            )
        }
        # One more than the forty of each round: what the first round tells of the round before it.
        assert events <= {40 * (round_ - 1) + (round_ > 1), 40 * round_ + 1}, (where, name, nth)
        shop.load()
        shop.assert_ties_out()
    # All at once, and undisturbed, comes to the same: fates don't depend on the order of loads.
    calm.load()
    assert _outcome(shop) == _outcome(calm)
    _assert_nothing_is_left_over(shop)


def test_a_killed_load_leaves_no_user_agent_that_can_be_read(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path)
    agent = "Mozilla/5.0 (X11; Linux x86_64; Canary 417) Gecko/20100101 Firefox/128.0"
    shop.deliver("pixel", [changed(EVENT, user_agent=agent), changed(EVENT, event_id="other")])
    assert _load(shop, "after", "_parse", 1).wait(120) == -signal.SIGKILL
    left = [
        row["name"] for row in shop.rows("select name from system.tables where database = 'load'")
    ]
    assert {"stage", "user_agents_seen"} <= set(left)
    (seen,) = shop.rows("select count() as n from load.user_agents_seen")
    assert seen["n"] == 1
    told = [
        clickhouse.execute(warehouse.settings, f"select * from load.{name}").body
        for name in left
        if "_to_" not in name
    ]
    assert any(told)
    assert b"Canary" not in b"".join(told)
    assert b"Mozilla" not in b"".join(told)
    shop.load()
    (row,) = shop.rows(
        "select device_type, os from raw.pixel_events"
        f" where workspace_id = {{workspace}} and event_id = '{EVENT['event_id']}'"
    )
    assert row == {"device_type": "desktop", "os": "linux"}
    _assert_nothing_is_left_over(shop)


def test_killed_between_any_two_statements_and_rerun(warehouse: Warehouse, tmp_path: Path) -> None:
    calm, shop = tenant(warehouse, tmp_path / "calm"), tenant(warehouse, tmp_path / "killed")
    for each in (calm, shop):
        _deliver(each, 1)
    calm.load()
    dice = random.Random(7)
    # Each run begins with what the one before left; together they come ever further.
    kills = 0
    for nth in sorted(dice.sample(range(4, 90), 5)):
        child = _load(shop, dice.choice(("before", "after")), "_post", nth)
        kills += child.wait(120) == -signal.SIGKILL
    assert kills >= 3
    shop.load()
    assert _outcome(shop) == _outcome(calm)
    _assert_nothing_is_left_over(shop)
    shop.assert_ties_out()


def test_readers_see_a_file_whole_or_not_at_all_whatever_dies(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path)
    lines = [
        changed(EVENT, event_id=str(n), timestamp=f"2026-{10 + n % 2}-15T12:00:00Z")
        for n in range(30_000)
    ]
    shop.deliver("pixel", lines, name="part.jsonl.gz")
    query = (
        "select countIf(toMonth(local_date) = 10) as a, countIf(toMonth(local_date) = 11) as b"
        " from raw.pixel_events where workspace_id = {workspace}"
    )
    seen: set[tuple[int, int]] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                (row,) = shop.rows(query)
            except TidemarkError:
                # The daemon is down just now.
                time.sleep(0.05)
            else:
                seen.add((row["a"], row["b"]))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        # Past the start of the process, so that its work is met.
        for wait in (1.6, 2.2):
            child = _load(shop)
            time.sleep(wait)
            child.kill()
            child.wait(60)
        child = _load(shop)
        time.sleep(2.0)
        (pid,) = [
            status.pid
            for status in engines.status(warehouse.settings)
            if status.name == "clickhouse"
        ]
        daemon = psutil.Process(pid)
        daemon.send_signal(signal.SIGKILL)
        daemon.wait(30)
        child.wait(120)
        warehouse.run("up", "--no-airflow")
        shop.load()
    finally:
        done.set()
        reader.join(60)
    seen.add(tuple(shop.rows(query)[0].values()))
    assert seen == {(0, 0), (15_000, 15_000)}
    _assert_nothing_is_left_over(shop)
    shop.assert_ties_out()


def test_two_loads_at_once_take_turns(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    shop.deliver("pixel", [EVENT])
    first, second = _load(shop), _load(shop)
    assert (first.wait(120), second.wait(120)) == (0, 0)
    assert [row["stored"] for row in shop.counts()] == [1]
