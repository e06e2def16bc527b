"""Cold files and recalls on real engines: what goes in, what comes back, and what may go wrong."""

import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet
import pytest

from homes import Warehouse, new_home
from tidemark import (
    clickhouse,
    cold,
    engines,
    ledger,
    places,
    policy,
    postgres,
    recall,
    retention,
)
from tidemark import plan as planning
from tidemark.config import Settings
from tidemark.errors import Refused, TidemarkError, UsageError
from tidemark.plan import Plan, Step
from tidemark.postgres import Connection
from tidemark.recall import Recall

AS_OF = date(2026, 11, 20)
NOW = datetime(2026, 11, 20, 9, tzinfo=UTC)
PIXEL_MONTH = date(2025, 8, 1)
OLD_MONTH = date(2024, 3, 1)
SHOPS = ("acme", "bolt", "coda")
CANARY = "canary00canary00canary00canary00"

EVENTS = f"""
insert into raw.pixel_events (
    workspace_id, local_date, event_at, event_id, event_name, anonymous_id, session_id,
    customer_key, user_key, order_id, ip_hash, url_host, campaign, properties, delivery_date,
    load_id, line_number
)
select
    arrayElement(['acme', 'bolt', 'coda'], 1 + number % 3),
    toDate('2025-08-01') + number % 31,
    toDateTime64('2025-08-01 12:00:00', 6, 'UTC') + interval number % 31 day,
    concat('event ', toString(number)),
    '$pageview',
    concat('visitor ', toString(intDiv(number, 30))),
    if(number % 2 = 0, concat('session ', toString(intDiv(number, 30))), ''),
    '{CANARY}', '{CANARY}', '{CANARY}', '{CANARY}',
    'shop.example', 'spring', '{{"a": "ä"}}', toDate('2025-09-01'), 7, number
from numbers(3000)
"""
PAYMENTS = f"""
insert into raw.payments (
    workspace_id, payment_id, order_key, local_date, paid_at, status, is_paid, is_livemode,
    currency, amount, customer_key, visitor_id, delivery_date, load_id, line_number
)
select
    arrayElement(['acme', 'bolt'], 1 + number % 2),
    '{CANARY}',
    concat('order ', toString(number)),
    toDate('2024-03-01') + number % 31,
    toDateTime64('2024-03-01 12:00:00', 6, 'UTC') + interval number % 31 day,
    'succeeded', true, true, 'EUR',
    toDecimal64(number, 4) / 7,
    concat('customer ', toString(number % 5)),
    '{CANARY}', toDate('2024-04-01'), 8, number
from numbers(400)
"""
REFUNDS = """
insert into raw.payment_refunds
select
    workspace_id, concat('refund ', order_key), payment_id, order_key, local_date, paid_at,
    local_date, 'succeeded', 'EUR', 1.25, delivery_date, load_id, line_number
from raw.payments
"""


@dataclass(frozen=True)
class House:
    """A warehouse whose raw tables, cold files and recalls are this test's own."""

    warehouse: Warehouse
    settings: Settings
    ladder: policy.Policy

    def run(self, statement: str) -> None:
        """Run a statement in ClickHouse."""
        clickhouse.execute(self.settings, statement)

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Ask ClickHouse."""
        return clickhouse.rows(self.settings, query)

    def ledger(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Ask or change PostgreSQL."""
        with postgres.connect(self.settings) as connection:
            cursor = connection.execute(query, list(values))
            return cursor.fetchall() if cursor.description else []

    def plan(self, as_of: date = AS_OF) -> Plan:
        """The plan of a day."""
        with postgres.connect(self.settings) as connection:
            state = planning.observe(self.settings, connection, self.ladder, as_of)
            return planning.decide(self.ladder, state, as_of)

    def tier(self, step: Step, plan_id: str = "plan") -> tuple[cold.ColdFile, ...]:
        """Write the cold copies of a step."""
        with postgres.connect(self.settings, autocommit=True) as connection:
            return cold.tier(self.settings, connection, self.ladder, step, plan_id, NOW)

    def read_back(self, step: Step, plan_id: str = "plan") -> tuple[cold.ReadBack, ...]:
        """Read them in full."""
        with postgres.connect(self.settings, autocommit=True) as connection:
            return cold.read_back(self.settings, connection, step, plan_id, NOW)

    def failures(self, step: Step) -> list[str]:
        """What reading back finds wrong."""
        return [failure for line in self.read_back(step) for failure in line.failures]

    def seal(self, step: Step) -> None:
        """Begin the step's end."""
        with postgres.connect(self.settings) as connection:
            cold.seal(connection, step, NOW)

    def purge(self, step: Step) -> None:
        """What the purge's door does to a step, as far as the cold tier sees it."""
        self.tier(step)
        assert self.failures(step) == []
        self.seal(step)
        for target in step.targets:
            self.run(f"alter table {target.table} delete where {target.predicate}"
                     " settings mutations_sync = 2")  # fmt: skip

    def recall(self, data_class: str, workspace: str, month: date, as_of: date = AS_OF) -> Recall:
        """Bring a month back."""
        return recall.recall(
            self.settings, data_class, workspace, month, as_of=as_of, now=_noon(as_of),
            reason="case 17",
        )  # fmt: skip

    @property
    def files(self) -> set[str]:
        """Everything that lies in the cold folder."""
        root = Path(self.settings.cold)
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    @property
    def known(self) -> set[str]:
        """The same as it is on record."""
        rows = self.ledger("select path from control.cold_files where deleted_at is null")
        paths = {row["path"] for row in rows}
        return paths | {path.removesuffix(".parquet") + ".json" for path in paths}


def is_recalled(connection: Connection, data_class: str, workspace_id: str, day: date) -> bool:
    """Whether the month of a day was brought back and may be read in `recalled`."""
    return (
        connection.execute(
            "select from control.recalls where class = %s and workspace_id = %s and month = %s"
            " and recalled_at is not null and removed_at is null",
            [data_class, workspace_id, day.replace(day=1)],
        ).fetchone()
        is not None
    )


def _noon(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC)


def _empty(settings: Settings) -> None:
    for table in ("pixel_events", "payments", "payment_refunds", "ad_spend"):
        clickhouse.execute(settings, f"truncate table raw.{table}")
    for row in clickhouse.rows(
        settings, "select name from system.tables where database = 'recalled'"
    ):
        clickhouse.execute(settings, f"drop table recalled.{row['name']} sync")
    with postgres.connect(settings) as connection:
        connection.execute("truncate control.cold_files, control.recalls, control.holds")
        connection.execute("delete from control.erasure_list")
    shutil.rmtree(settings.cold, ignore_errors=True)


@pytest.fixture(scope="module")
def home() -> Iterator[Warehouse]:
    with new_home() as warehouse:
        warehouse.run("up", "--no-airflow")
        for shop in SHOPS:
            warehouse.run(
                "workspace", "add", shop, "--timezone", "UTC", "--currency", "EUR",
                "--plan", "enterprise", "--revenue-source", "payments",
            )  # fmt: skip
        yield warehouse


@pytest.fixture
def house(home: Warehouse) -> House:
    _empty(home.settings)
    return House(home, home.settings, policy.read(home.settings))


@pytest.fixture
def pixel(house: House) -> Step:
    """A due month of pixel events of three workspaces."""
    house.run(EVENTS)
    (step,) = house.plan().of("pixel_events")
    assert step.rows == 3000
    return step


@pytest.fixture
def payments(house: House) -> Step:
    """A due month of payments and their refunds of two workspaces."""
    house.run(PAYMENTS)
    house.run(REFUNDS)
    (step,) = house.plan().of("payments")
    assert step.rows == 800
    return step


def _table(house: House, file: cold.ColdFile) -> pyarrow.Table:
    """A cold file as another reader than the one that wrote it sees it."""
    return pyarrow.parquet.read_table(Path(house.settings.cold) / file.path, partitioning=None)


# -- tiering ---------------------------------------------------------------------------------------


def test_cold_files_hold_every_row_without_personal_columns(house: House, pixel: Step) -> None:
    files = house.tier(pixel)
    assert [file.workspace_id for file in files] == list(SHOPS)
    personal = set(house.ladder.columns_of("raw.pixel_events", "personal"))
    assert {"customer_key", "user_key", "ip_hash"} <= personal
    for file in files:
        table = _table(house, file)
        standing = house.rows(
            "select event_at, campaign, properties, line_number from raw.pixel_events"
            f" where workspace_id = '{file.workspace_id}' order by line_number"
        )
        assert len(standing) == 1000
        rows = sorted(table.to_pylist(), key=lambda row: row["line_number"])
        assert [row["line_number"] for row in rows] == [row["line_number"] for row in standing]
        assert {row["properties"] for row in rows} == {row["properties"] for row in standing}
        assert set(table.column_names).isdisjoint(personal)
        assert CANARY not in json.dumps(rows, default=str)
        metadata = pyarrow.parquet.ParquetFile(Path(house.settings.cold) / file.path).metadata
        assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_pixel_ids_are_hashed_again_under_a_key_that_nobody_has(house: House, pixel: Step) -> None:
    files = house.tier(pixel)
    ids: dict[str, list[str]] = {}
    for file in files:
        rows = sorted(_table(house, file).to_pylist(), key=lambda row: row["line_number"])
        ids[file.workspace_id] = [row["anonymous_id"] for row in rows]
        assert all(len(row["anonymous_id"]) == 32 for row in rows)
        # Nothing stays nothing.
        assert {len(row["session_id"]) for row in rows} == {0, 32}
        standing = house.rows(
            f"select anonymous_id from raw.pixel_events where workspace_id = '{file.workspace_id}'"
            " order by line_number"
        )
        pairs = {
            (row["anonymous_id"], new)
            for row, new in zip(standing, ids[file.workspace_id], strict=True)
        }
        # Rows of one visitor stay rows of one visitor.
        assert len(pairs) == len({new for _, new in pairs}) == len({old for old, _ in pairs}) == 100
    assert set(ids["acme"]).isdisjoint(ids["bolt"])
    # The same rows once more get other ids: the key is gone.
    with postgres.connect(house.settings, autocommit=True) as connection:
        assert cold.sweep(house.settings, connection, ()) == 3
    again = house.tier(pixel)
    assert set(ids["acme"]).isdisjoint(_table(house, again[0])["anonymous_id"].to_pylist())


def test_other_classes_keep_their_pseudonyms(house: House, payments: Step) -> None:
    files = house.tier(payments)
    by_table = {(file.table, file.workspace_id): file for file in files}
    assert len(by_table) == len(files) == 4
    table = _table(house, by_table["raw.payments", "acme"])
    assert set(table["customer_key"].to_pylist()) == {f"customer {n}" for n in range(5)}
    assert CANARY not in json.dumps(table.to_pylist(), default=str)
    assert {"payment_id", "visitor_id"}.isdisjoint(table.column_names)


def test_a_manifest_lies_beside_each_file_and_both_are_closed(house: House, pixel: Step) -> None:
    files = house.tier(pixel)
    root = Path(house.settings.cold)
    assert house.files == house.known
    assert len(house.files) == 6
    for file in files:
        manifest = json.loads((root / file.path).with_suffix(".json").read_text())
        assert manifest == file.manifest
        assert manifest["rows"] == 1000
        assert manifest["policy_sha256"] == house.ladder.sha256
        assert sorted(manifest["left_out"]) == sorted(
            house.ladder.columns_of("raw.pixel_events", "personal")
        )
        assert all(len(column["hash"]) > 8 for column in manifest["columns"])
    for path in root.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_file_is_of_its_step_and_no_class_without_cold_has_one(
    house: House, payments: Step
) -> None:
    step = replace(payments, expiry=("roll_up", "anonymise", "drop"))
    assert house.tier(step) == ()
    assert house.read_back(step) == ()
    assert house.files == set()


def test_a_column_that_the_policy_does_not_name_is_not_tiered(house: House, pixel: Step) -> None:
    house.run("alter table raw.pixel_events add column surprise String")
    try:
        with pytest.raises(TidemarkError, match=r"column surprise .* include/policy\.yml"):
            house.tier(pixel)
    finally:
        house.run("alter table raw.pixel_events drop column surprise")


def test_rows_that_came_after_the_plan_stop_it(house: House, pixel: Step) -> None:
    house.run("insert into raw.pixel_events select * from raw.pixel_events limit 1")
    with pytest.raises(TidemarkError, match="changed since the plan"):
        house.tier(pixel)
    assert house.files == set()


def test_a_finished_copy_of_the_same_rows_is_taken_as_it_is(house: House, pixel: Step) -> None:
    house.tier(pixel)
    assert house.failures(pixel) == []
    first = house.tier(pixel)
    written = {path: (Path(house.settings.cold) / path).stat().st_mtime_ns for path in house.files}
    assert house.tier(pixel) == first
    # The next night's plan is another one, of the same rows.
    (next_night,) = house.plan(AS_OF + timedelta(days=1)).of("pixel_events")
    assert next_night.step_id != pixel.step_id
    taken = house.tier(next_night, "next")
    assert [file.cold_id for file in taken] == [file.cold_id for file in first]
    assert {
        path: (Path(house.settings.cold) / path).stat().st_mtime_ns for path in house.files
    } == written
    assert not any(line.failures for line in house.read_back(next_night, "next"))


def test_a_copy_that_does_not_read_back_is_written_again(house: House, pixel: Step) -> None:
    files = house.tier(pixel)
    _flip(Path(house.settings.cold) / files[0].path)
    assert house.failures(pixel) != []
    house.tier(pixel)
    assert house.failures(pixel) == []
    assert house.files == house.known


def test_copies_of_rows_that_changed_are_replaced(house: House, pixel: Step) -> None:
    old = house.tier(pixel)
    house.run(
        "alter table raw.pixel_events delete where workspace_id = 'coda' and line_number < 100"
        " settings mutations_sync = 2"
    )
    (step,) = house.plan(AS_OF + timedelta(days=1)).of("pixel_events")
    new = house.tier(step)
    assert house.failures(step) == []
    assert {file.path for file in new}.isdisjoint(file.path for file in old)
    assert house.files == house.known
    assert len(house.files) == 6


def test_copies_that_no_step_wants_any_more_are_swept(house: House, pixel: Step) -> None:
    house.tier(pixel)
    with postgres.connect(house.settings, autocommit=True) as connection:
        assert cold.sweep(house.settings, connection, [pixel]) == 0
        assert len(house.files) == 6
        assert cold.sweep(house.settings, connection, ()) == 3
    assert house.files == house.known == set()
    assert not any(Path(house.settings.cold).iterdir())


def test_files_that_no_record_knows_are_found(house: House, pixel: Step) -> None:
    known = {file.path for file in house.tier(pixel)}
    root = Path(house.settings.cold)
    own = root / min(known)
    stray = own.with_name("pixel_events-of-another-step.parquet")
    shutil.copy(own, stray)
    (root / ".tiering").mkdir(exist_ok=True)
    (root / ".tiering" / "half.parquet").touch()
    standing = cold.standing(house.settings)
    path = str(stray.relative_to(root))
    assert standing == known | {path}
    with postgres.connect(house.settings) as connection:
        assert cold.unknown(house.settings, connection, standing) == [path]
        stray.unlink()
        # One that went meanwhile is none.
        assert cold.unknown(house.settings, connection, standing) == []
    shutil.rmtree(root / ".tiering")


def test_a_sealed_file_is_swept_by_nothing(house: House, pixel: Step) -> None:
    house.purge(pixel)
    with postgres.connect(house.settings, autocommit=True) as connection:
        assert cold.sweep(house.settings, connection, ()) == 0
    assert len(house.files) == 6


def test_many_workspaces_go_in_few_statements(
    house: House, pixel: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    inserts: list[str] = []
    real = clickhouse.execute

    def counted(settings: Settings, query: str, *rest: Any, **options: Any) -> Any:
        if query.startswith("insert into function file"):
            inserts.append(query)
        return real(settings, query, *rest, **options)

    monkeypatch.setattr(clickhouse, "execute", counted)
    house.tier(pixel)
    assert len(inserts) == 1
    with postgres.connect(house.settings, autocommit=True) as connection:
        cold.sweep(house.settings, connection, ())
    monkeypatch.setattr(cold, "STATEMENT_ROWS", 2000)
    house.tier(pixel)
    assert len(inserts) == 3
    assert house.failures(pixel) == []


# -- reading back ----------------------------------------------------------------------------------


def test_what_was_written_reads_back_equal(house: House, payments: Step) -> None:
    house.tier(payments)
    lines = house.read_back(payments)
    assert [(line.table, line.workspace_id, line.rows) for line in lines] == [
        ("raw.payments", "acme", 200),
        ("raw.payments", "bolt", 200),
        ("raw.payments", "", 400),
        ("raw.payment_refunds", "acme", 200),
        ("raw.payment_refunds", "bolt", 200),
        ("raw.payment_refunds", "", 400),
    ]
    assert [failure for line in lines for failure in line.failures] == []


def test_nothing_is_sealed_that_was_not_read_back(house: House, pixel: Step) -> None:
    with pytest.raises(Refused, match="0 of the 3000 rows"):
        house.seal(pixel)
    files = house.tier(pixel)
    with pytest.raises(Refused, match="0 of the 3000 rows"):
        house.seal(pixel)
    assert house.failures(pixel) == []
    # One that was good once and is damaged now is no longer taken for good.
    _cut(Path(house.settings.cold) / files[0].path)
    assert house.failures(pixel) != []
    with pytest.raises(Refused, match="of the 3000 rows"):
        house.seal(pixel)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _drop(path: Path) -> None:
    path.unlink()


def _blank(path: Path) -> None:
    path.write_bytes(b"")


def _edit_manifest(path: Path) -> None:
    manifest = path.with_suffix(".json")
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**document, "rows": document["rows"] - 1}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_cut, "bytes, its manifest"),
        (_flip, "has other bytes than were written"),
        (_drop, "is missing"),
        (_blank, "has 0 bytes"),
        (_edit_manifest, "has a manifest beside it that is missing or not the one on record"),
    ],
)
def test_damage_is_found_and_named(house: House, pixel: Step, damage: Any, says: str) -> None:
    files = house.tier(pixel)
    assert house.failures(pixel) == []
    damage(Path(house.settings.cold) / files[1].path)
    failures = house.failures(pixel)
    assert any(
        f"pixel_events of bolt, 2025-08: {files[1].path} {says}" in line or says in line
        for line in failures
    ), failures
    assert not any("acme" in line for line in failures)


def _forge(house: House, file: cold.ColdFile, table: pyarrow.Table) -> None:
    """Another table under the file's name, with a manifest that fits its bytes."""
    assert file.manifest is not None
    path = Path(house.settings.cold) / file.path
    pyarrow.parquet.write_table(table, path, compression="zstd")
    manifest = {**file.manifest, "bytes": path.stat().st_size, "sha256": places.sha256(path)}
    path.with_suffix(".json").write_text(json.dumps(manifest))
    house.ledger(
        "update control.cold_files set manifest = %s where cold_id = %s",
        [json.dumps(manifest), file.cold_id],
    )


def test_only_contents_count_not_what_a_file_says_of_itself(house: House, payments: Step) -> None:
    file = house.tier(payments)[0]
    assert (file.table, file.workspace_id) == ("raw.payments", "acme")
    table = _table(house, file)
    _forge(house, file, table)
    assert house.failures(payments) == []
    # One value in one row.
    position = table.column_names.index("customer_key")
    values = table["customer_key"].to_pylist()
    other = table.set_column(position, "customer_key", pyarrow.array(["someone", *values[1:]]))
    _forge(house, file, other)
    assert any(
        "other values" in line and "customer_key" in line for line in house.failures(payments)
    )
    # The same values of a column, exchanged between two rows.
    moved = [values[1], values[0], *values[2:]]
    assert moved != values
    _forge(house, file, table.set_column(position, "customer_key", pyarrow.array(moved)))
    assert any("another combination" in line for line in house.failures(payments))
    # A row twice, and another not at all.
    indices = [0, *range(table.num_rows - 1)]
    _forge(house, file, table.take(indices))
    assert any("other values" in line for line in house.failures(payments))
    # A column less.
    _forge(house, file, table.drop_columns(["customer_key"]))
    assert any("cannot be read" in line for line in house.failures(payments))


def test_a_copy_of_another_step_does_not_do(house: House, pixel: Step) -> None:
    house.tier(pixel)
    assert house.read_back(pixel, "another plan")[-1].failures != ()
    target = replace(pixel.targets[0], rows=2999)
    assert any("2999" in line for line in house.failures(replace(pixel, targets=(target,))))
    target = replace(pixel.targets[0], fingerprint="1")
    assert any("other rows" in line for line in house.failures(replace(pixel, targets=(target,))))


def test_sums_of_the_files_are_those_of_the_plan(house: House, payments: Step) -> None:
    house.tier(payments)
    assert payments.targets[0].sums["amount"] not in ("", "0")
    target = replace(payments.targets[0], sums={"amount": "1.0000"})
    step = replace(payments, targets=(target, *payments.targets[1:]))
    assert any("amount of the cold files" in line for line in house.failures(step))


# -- faults ----------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
from datetime import UTC, date, datetime
from tidemark import clickhouse, cold, plan, policy, postgres, recall
from tidemark.config import Settings

where, name, nth, what = sys.argv[1:]
owners = {"_post": clickhouse, "put": cold._Place, "put_manifest": cold._Place}
owner = owners.get(name) or (cold._Tiering if what == "tier" else recall._Recall)
settings = Settings.from_env(os.environ)
now = datetime(2026, 11, 20, 9, tzinfo=UTC)
ladder = policy.read(settings)

with postgres.connect(settings, autocommit=True) as connection:
    state = plan.observe(settings, connection, ladder, date(2026, 11, 20))
    steps = plan.decide(ladder, state, date(2026, 11, 20)).of("pixel_events")

real, calls = getattr(owner, name), 0

def killed(*arguments, **options):
    global calls
    calls += 1
    if where == "before" and calls == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **options)
    if where == "after" and calls == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, killed)
if what == "tier":
    with postgres.connect(settings, autocommit=True) as connection:
        cold.tier(settings, connection, ladder, steps[0], "plan", now)
        cold.read_back(settings, connection, steps[0], "plan", now)
else:
    recall.recall(
        settings, "payments", "acme", date(2024, 3, 1), as_of=date(2026, 11, 20),
        now=now, reason="case 17",
    )
"""


def _killed(house: House, where: str, name: str, nth: int, what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, where, name, str(nth), what],
        env=dict(os.environ) | dict(house.warehouse.env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]


def test_killed_while_tiering_the_rerun_leaves_what_calm_leaves(house: House, pixel: Step) -> None:
    points = [
        ("after", "_announce", 1),
        ("before", "_write", 1),
        ("after", "_write", 1),
        ("before", "put", 2),
        ("after", "put", 2),
        ("after", "put_manifest", 2),
        ("after", "_settle", 1),
        ("after", "_settle", 3),
        ("after", "_post", 7),
    ]
    for where, name, nth in points:
        _killed(house, where, name, nth, "tier")
        (step,) = house.plan().of("pixel_events")
        files = house.tier(step)
        assert [file.rows for file in files] == [1000, 1000, 1000], (where, name, nth)
        assert house.failures(step) == []
        assert house.files == house.known
        assert len(house.files) == 6
        with postgres.connect(house.settings, autocommit=True) as connection:
            cold.sweep(house.settings, connection, ())


def test_a_full_disk_stops_the_copy_and_leaves_nothing(house: House, pixel: Step) -> None:
    (pid,) = [state.pid for state in engines.status(house.settings) if state.name == "clickhouse"]
    engine = psutil.Process(pid)
    unlimited = engine.rlimit(psutil.RLIMIT_FSIZE)
    # Nothing the engine writes may be longer, as on a disk without room for more.
    engine.rlimit(psutil.RLIMIT_FSIZE, (4096, unlimited[1]))
    try:
        with pytest.raises(TidemarkError, match=r"cannot be written to .*disk full"):
            house.tier(pixel)
    finally:
        engine.rlimit(psutil.RLIMIT_FSIZE, unlimited)
    assert house.files == set()
    assert house.rows("select count() as n from raw.pixel_events") == [{"n": 3000}]
    with pytest.raises(Refused):
        house.seal(pixel)
    house.tier(pixel)
    assert house.failures(pixel) == []
    assert house.files == house.known


def test_the_engine_killed_while_it_writes(house: House, pixel: Step) -> None:
    house.run(
        "insert into raw.pixel_events select * replace (line_number + copy as line_number)"
        " from raw.pixel_events array join arrayMap(n -> 10000 * n, range(1, 100)) as copy"
    )
    (step,) = house.plan().of("pixel_events")
    (pid,) = [state.pid for state in engines.status(house.settings) if state.name == "clickhouse"]
    stop = threading.Event()

    def kill_when_it_writes() -> None:
        work = Path(house.settings.cold) / ".tiering"
        while not stop.is_set():
            if work.is_dir() and any(work.iterdir()):
                psutil.Process(pid).kill()
                return
            time.sleep(0.001)

    killer = threading.Thread(target=kill_when_it_writes)
    killer.start()
    try:
        with pytest.raises(TidemarkError):
            house.tier(step)
    finally:
        stop.set()
        killer.join()
    house.warehouse.run("up", "--no-airflow")
    house.tier(step)
    assert house.failures(step) == []
    assert house.files == house.known


# -- recall ----------------------------------------------------------------------------------------


def test_a_recalled_month_is_the_month_that_went(house: House, pixel: Step) -> None:
    kept = (
        "select local_date, event_at, event_name, url_host, campaign, properties, is_bot,"
        " delivery_date, load_id, line_number from {} where workspace_id = 'acme'"
        " order by line_number"
    )
    before = house.rows(kept.format("raw.pixel_events"))
    house.purge(pixel)
    assert house.rows("select count() as n from raw.pixel_events") == [{"n": 0}]
    report = house.recall("pixel_events", "acme", date(2025, 8, 17))
    assert (report.rows, report.erased_rows, report.is_unchanged) == (1000, 0, False)
    assert report.tables == ("recalled.pixel_events",)
    assert house.rows(kept.format("recalled.pixel_events")) == before
    assert house.rows("select distinct workspace_id from recalled.pixel_events") == [
        {"workspace_id": "acme"}
    ]
    answer = house.warehouse.run(
        "sql", "select uniq(anonymous_id) as visitors from recalled.pixel_events", "--json"
    )
    assert answer.json == [{"visitors": 100}]


def test_a_recall_expires_and_says_when(house: House, payments: Step) -> None:
    house.purge(payments)
    report = house.recall("payments", "bolt", OLD_MONTH)
    window = house.ladder.classes["recalled"].window
    assert window is not None
    assert report.expires_on == AS_OF + timedelta(days=window.value)
    assert house.rows("select distinct toDate(expires_at) as day from recalled.payments") == [
        {"day": report.expires_on.isoformat()}
    ]
    with postgres.connect(house.settings, autocommit=True) as connection:
        assert cold.due(connection, house.ladder, report.expires_on - timedelta(days=1)) == ()
        (due,) = cold.due(connection, house.ladder, report.expires_on)
        assert is_recalled(connection, "payments", "bolt", date(2024, 3, 9))
        assert not is_recalled(connection, "payments", "bolt", date(2024, 4, 1))
        assert not is_recalled(connection, "payments", "acme", date(2024, 3, 9))
        assert not cold.is_gone(house.settings, connection, due)
        later = _noon(report.expires_on)
        for _ in range(2):
            cold.delete(house.settings, connection, due, later)
        assert cold.due(connection, house.ladder, report.expires_on) == ()
        assert not is_recalled(connection, "payments", "bolt", date(2024, 3, 9))
        assert _in_the_end(lambda: cold.is_gone(house.settings, connection, due))
    for table in report.tables:
        assert house.rows(f"select count() as n from {table}") == [{"n": 0}]
    # It can be brought back again: the files are there.
    assert house.recall("payments", "bolt", OLD_MONTH, later.date()).rows == 400


def _in_the_end(holds: Any) -> bool:
    """Whether something comes true that the engine's background threads do."""
    deadline = time.monotonic() + 60
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_the_same_recall_again_changes_nothing_and_a_later_one_lasts_longer(
    house: House, payments: Step
) -> None:
    house.purge(payments)
    entries = "select count(*) as n from control.ledger where kind = 'recall'"
    (before,) = house.ledger(entries)
    first = house.recall("payments", "acme", OLD_MONTH)
    again = house.recall("payments", "acme", OLD_MONTH)
    assert replace(again, is_unchanged=False) == first
    assert again.is_unchanged
    assert house.ledger(entries) == [{"n": before["n"] + 1}]
    assert house.rows("select count() as n from recalled.payments") == [{"n": 200}]
    later = house.recall("payments", "acme", OLD_MONTH, AS_OF + timedelta(days=9))
    assert later.expires_on == first.expires_on + timedelta(days=9)
    assert later.recall_id == first.recall_id
    # What was promised for longer is not cut short by an earlier day.
    assert house.recall("payments", "acme", OLD_MONTH).expires_on == later.expires_on
    assert house.rows("select count() as n from recalled.payments") == [{"n": 200}]


def test_the_ledger_knows_of_a_recall(house: House, payments: Step) -> None:
    house.purge(payments)
    report = house.recall("payments", "acme", OLD_MONTH)
    with postgres.connect(house.settings) as connection:
        entry = list(ledger.stored(connection, "recall"))[-1]
        assert isinstance(entry, ledger.Entry)
        assert entry.document["recall_id"] == report.recall_id
        assert entry.document["rows"] == 400
        assert entry.document["reason"] == "case 17"
        assert len(entry.document["files"]) == 2
        assert ledger.verify(house.settings, connection) == ()


def _erase(house: House, workspace: str, *subjects: str) -> None:
    for subject in subjects:
        house.ledger(
            "insert into control.erasure_list values (%s, %s, %s)", [workspace, subject, NOW]
        )


def test_who_was_erased_does_not_come_back(house: House, payments: Step) -> None:
    house.purge(payments)
    _erase(house, "acme", "customer 3")
    _erase(house, "bolt", "customer 1")
    report = house.recall("payments", "acme", OLD_MONTH)
    people = house.rows("select distinct customer_key as own from recalled.payments order by own")
    assert [row["own"] for row in people] == [f"customer {n}" for n in (0, 1, 2, 4)]
    # Their refunds name nobody, and are found through the payment.
    orders = house.rows("select order_key from recalled.payments order by order_key")
    assert orders == house.rows("select order_key from recalled.payment_refunds order by order_key")
    assert len(orders) == 160
    assert (report.rows, report.erased_rows) == (320, 80)


def test_an_erasure_after_a_recall_is_replayed_by_the_next(house: House, payments: Step) -> None:
    house.purge(payments)
    assert house.recall("payments", "acme", OLD_MONTH).rows == 400
    _erase(house, "acme", *(f"customer {n}" for n in range(5)))
    report = house.recall("payments", "acme", OLD_MONTH)
    assert (report.rows, report.erased_rows, report.is_unchanged) == (0, 400, False)
    for table in report.tables:
        assert house.rows(f"select count() as n from {table}") == [{"n": 0}]


def test_erased_rows_touch_no_table_on_the_way(
    house: House, payments: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.purge(payments)
    _erase(house, "acme", "customer 3")
    seen: list[int] = []
    real = clickhouse.execute

    def watched(settings: Settings, query: str, *rest: Any, **options: Any) -> Any:
        result = real(settings, query, *rest, **options)
        if query.startswith(
            ("insert into load.recalled_payments ", "alter table recalled.payments replace")
        ):
            for table in ("load.recalled_payments", "recalled.payments"):
                answer = real(
                    settings,
                    f"select countIf(customer_key = 'customer 3'), count() from {table}",
                )
                bad, rows = map(int, answer.body.split())
                seen.append(rows)
                assert bad == 0
        return result

    monkeypatch.setattr(clickhouse, "execute", watched)
    house.recall("payments", "acme", OLD_MONTH)
    assert max(seen) == 160


def test_killed_while_recalling_the_rerun_leaves_what_calm_leaves(
    house: House, payments: Step
) -> None:
    house.run(EVENTS)
    house.purge(payments)
    _erase(house, "acme", "customer 3")
    points = [
        ("after", "_begin", 1),
        ("before", "_publish", 1),
        ("after", "_publish", 1),
        ("before", "_publish", 2),
        ("after", "_load", 2),
    ]
    for where, name, nth in points:
        _killed(house, where, name, nth, "recall")
        with postgres.connect(house.settings) as connection:
            # Half a recall is none, and ends by itself.
            assert not is_recalled(connection, "payments", "acme", OLD_MONTH)
            assert len(cold.due(connection, house.ladder, AS_OF + timedelta(days=99))) == 1
        report = house.recall("payments", "acme", OLD_MONTH)
        assert (report.rows, report.erased_rows) == (320, 80), (where, name, nth)
        assert house.rows("select count() as n from recalled.payments") == [{"n": 160}]
        assert house.rows("select count() as n from recalled.payment_refunds") == [{"n": 160}]
        assert house.rows("select name from system.tables where database = 'load'") == []
        house.ledger("truncate control.recalls")


def test_a_damaged_file_is_not_brought_back(house: House, payments: Step) -> None:
    house.purge(payments)
    paths = house.ledger("select path from control.cold_files where workspace_id = 'acme'")
    _flip(Path(house.settings.cold) / paths[0]["path"])
    outcome = house.warehouse.run(
        "recall", "payments", "--workspace", "acme", "--month", "2024-03", check=False
    )
    assert outcome.code == 1
    assert "has other bytes than were written" in outcome.stderr
    assert house.rows("select name from system.tables where database = 'recalled'") == []
    assert house.ledger("select recall_id from control.recalls") == []


def test_partial_months_come_back_together(house: House) -> None:
    house.run(EVENTS)
    (step,) = house.plan().of("pixel_events")
    for days, rows in (("local_date < '2025-08-11'", 1000), ("local_date >= '2025-08-11'", 2000)):
        target = replace(
            step.targets[0],
            predicate=f"{step.targets[0].predicate} and {days}",
            whole_partition=False,
            **house.rows(
                f"select count() as rows, {planning.fingerprint(step.targets[0].columns)}"
                f" as fingerprint from raw.pixel_events where {days}"
            )[0],
        )
        assert abs(target.rows - rows) < 100
        part = replace(step, step_id=f"{target.rows:0<64}", targets=(target,))
        house.purge(part)
    assert len(house.files) == 12
    report = house.recall("pixel_events", "coda", PIXEL_MONTH)
    assert (report.files, report.rows) == (2, 1000)
    assert house.rows("select uniqExact(line_number) as n from recalled.pixel_events") == [
        {"n": 1000}
    ]


MART = """
create table if not exists marts.summary_kpis_daily (
    workspace_id LowCardinality(String), date_day Date, platform LowCardinality(String),
    campaign String, sessions UInt64, net_revenue Decimal(18, 4),
    visitors_state AggregateFunction(uniqCombined64, String)
) engine = MergeTree partition by toYYYYMM(date_day)
order by (workspace_id, date_day, platform, campaign)
"""


def test_a_mart_goes_cold_and_comes_back_with_its_sketches(house: House) -> None:
    house.run("drop table if exists marts.summary_kpis_daily sync")
    house.run(MART)
    try:
        house.run(
            "insert into marts.summary_kpis_daily"
            " select 'acme', toDate('2024-03-01') + number % 31 as date_day, 'direct', '',"
            " count(), sum(toDecimal64(number, 4)) / 3,"
            " uniqCombined64State(toString(number % 900)) from numbers(5000) group by date_day"
        )
        figures = (
            "select date_day, sessions, net_revenue, uniqCombined64Merge(visitors_state) as v"
            " from {} group by all order by date_day"
        )
        before = house.rows(figures.format("marts.summary_kpis_daily"))
        assert len(before) == 31
        (step,) = house.plan().of("summary_kpis_daily")
        house.purge(step)
        assert house.rows(figures.format("marts.summary_kpis_daily")) == []
        house.recall("summary_kpis_daily", "acme", OLD_MONTH)
        assert house.rows(figures.format("recalled.summary_kpis_daily")) == before
        with postgres.connect(house.settings) as connection:
            # The files of marts have no end; what was recalled of them has.
            due = cold.due(connection, house.ladder, date(2036, 11, 20))
        assert [own.data_class for own in due] == ["recalled"]
    finally:
        house.run("drop table if exists marts.summary_kpis_daily sync")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("payments", "--workspace", "coda", "--month", "2024-03"), 3, "lies in the cold tier"),
        (("payments", "--workspace", "acme", "--month", "2024-04"), 3, "lies in the cold tier"),
        (("orders", "--workspace", "acme", "--month", "2024-03"), 3, "cold tier"),
        (("payments", "--workspace", "none", "--month", "2024-03"), 2, "no workspace none"),
        (("nothing", "--workspace", "acme", "--month", "2024-03"), 2, "no class nothing"),
        (("payments", "--workspace", "acme", "--month", "March"), 2, "--month"),
        (("payments", "--month", "2024-03"), 2, "--workspace"),
        (
            ("payments", "--workspace", "acme", "--month", "2024-03", "--as-of", "2999-01-01"),
            3,
            "lies in the future",
        ),
        (
            ("payments", "--workspace", "acme", "--month", "2024-03", "--reason", "for a@b.de"),
            3,
            "looks like an e-mail address",
        ),
    ],
)
def test_a_recall_that_makes_no_sense_is_refused(
    house: House, payments: Step, arguments: Sequence[str], code: int, says: str
) -> None:
    house.purge(payments)
    outcome = house.warehouse.run("recall", *arguments, check=False)
    assert outcome.code == code, outcome.stderr
    assert says in outcome.stderr
    assert "a@b.de" not in outcome.stderr


def test_the_command_line_brings_back(house: House, payments: Step) -> None:
    house.purge(payments)
    command = ("recall", "payments", "--workspace", "acme", "--month", "2024-03")
    document = house.warehouse.run(*command, "--json").json
    assert (document["class"], document["rows"]) == ("payments", 400)
    assert document["tables"] == ["recalled.payment_refunds", "recalled.payments"]
    assert (
        "stand in recalled.payment_refunds, recalled.payments until"
        in house.warehouse.run(*command).stdout
    )


def test_rows_that_still_stand_are_not_recalled(house: House, payments: Step) -> None:
    house.tier(payments)
    assert house.failures(payments) == []
    with pytest.raises(Refused, match="lies in the cold tier"):
        house.recall("payments", "acme", OLD_MONTH)


def test_a_person_on_hold_who_was_erased_is_neither_shown_nor_left_out(
    house: House, payments: Step
) -> None:
    house.purge(payments)
    _erase(house, "acme", "customer 3")
    house.ledger(
        "insert into control.holds (workspace_id, subject_hashes, reason, added_at)"
        " values ('acme', array['customer 3'], 'case 18', %s)",
        [NOW],
    )
    with pytest.raises(Refused, match="on a person"):
        house.recall("payments", "acme", OLD_MONTH)
    assert house.recall("payments", "bolt", OLD_MONTH).rows == 400


# -- the end of a file -----------------------------------------------------------------------------


def test_cold_files_of_raw_rows_go_at_the_end_of_their_window(house: House, payments: Step) -> None:
    house.purge(payments)
    last = date(2027, 11, 20)
    assert house.ladder.classes["cold_files"].oldest_day(last) == AS_OF
    with postgres.connect(house.settings, autocommit=True) as connection:
        assert cold.due(connection, house.ladder, last) == ()
        due = cold.due(connection, house.ladder, last + timedelta(days=1))
        assert len(due) == 4
        assert not any(own.held_by for own in due)
        mine = [own for own in due if own.workspace_id == "acme"]
        for own in mine:
            assert not cold.is_gone(house.settings, connection, own)
            # Twice is once.
            for _ in range(2):
                cold.delete(house.settings, connection, own, _noon(last))
            assert cold.is_gone(house.settings, connection, own)
    assert house.files == house.known
    assert {path.split("/")[1] for path in house.files} == {"bolt"}
    with pytest.raises(Refused, match="were deleted on 2027-11-20"):
        house.recall("payments", "acme", OLD_MONTH)


def _expire(house: House, as_of: date) -> list[tuple[str, str, int]]:
    """What the purge's door says of cold data on a day."""
    found = retention.expire(house.settings, as_of=as_of, clock=lambda: _noon(as_of))
    return sorted((step.action, step.status, step.rows) for step in found)


def test_the_door_destroys_cold_data_whose_time_is_over(house: House, payments: Step) -> None:
    house.purge(payments)
    house.recall("payments", "acme", OLD_MONTH)
    assert _expire(house, AS_OF) == []
    assert len(house.files) == 8
    document = house.warehouse.run("plan", "--as-of", AS_OF.isoformat(), "--json").json
    assert document["expiring"] == []
    assert _expire(house, AS_OF + timedelta(days=40)) == [("drop_recall", "done", 400)]
    assert house.rows("select count() as n from recalled.payments") == [{"n": 0}]
    end = date(2027, 11, 21)
    assert _expire(house, end) == [("delete_file", "done", 200)] * 4
    assert house.files == set()
    assert _expire(house, end) == []
    with postgres.connect(house.settings) as connection:
        kinds = [
            entry.kind
            for entry in ledger.stored(connection, "expiry_begun", "expiry_done")
            if isinstance(entry, ledger.Entry)
        ]
        assert kinds[-10:] == ["expiry_begun", "expiry_done"] * 5
        assert ledger.verify(house.settings, connection) == ()


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_expiry_that_was_interrupted_is_finished(house: House, payments: Step, nth: int) -> None:
    house.purge(payments)
    end = date(2027, 11, 21)
    boundaries = 0

    class Stopped(Exception):
        """Stands for a kill: nothing of the door runs after it."""

    def stop(_line: str) -> None:
        nonlocal boundaries
        boundaries += 1
        if boundaries == nth:
            raise Stopped

    with pytest.raises(Stopped):
        retention.expire(house.settings, as_of=end, clock=lambda: _noon(end), note=stop)
    found = _expire(house, end)
    done = {1: 4, 2: 4, 3: 3}[nth]
    assert len(found) == done
    assert house.files == set()
    assert _expire(house, end) == []
    with postgres.connect(house.settings) as connection:
        begun, ended = (
            [
                (entry.document["data_class"], entry.document["number"])
                for entry in ledger.stored(connection, kind)
                if isinstance(entry, ledger.Entry)
            ]
            for kind in ("expiry_begun", "expiry_done")
        )
    # Each once: nothing is begun twice, and all that was begun has ended.
    assert sorted(begun) == sorted(ended)
    assert len(set(begun)) == len(begun)


def test_the_door_keeps_cold_data_on_hold(house: House, payments: Step) -> None:
    house.purge(payments)
    house.ledger(
        "insert into control.holds (workspace_id, reason, added_at) values ('acme', 'case 18', %s)",
        [NOW],
    )
    end = date(2027, 11, 21)
    assert (
        _expire(house, end) == [("delete_file", "done", 200)] * 2 + [("delete_file", "held", 0)] * 2
    )
    assert {path.split("/")[1] for path in house.files} == {"acme"}
    house.ledger("update control.holds set released_at = %s", [NOW])
    assert _expire(house, end) == [("delete_file", "done", 200)] * 2
    assert house.files == set()


def test_files_past_their_window_are_not_brought_back(house: House, payments: Step) -> None:
    house.purge(payments)
    with pytest.raises(Refused, match="past their window"):
        house.recall("payments", "acme", OLD_MONTH, date(2027, 11, 21))


@pytest.mark.parametrize("data_class", [None, "payments"])
def test_a_hold_keeps_cold_files_and_recalled_rows(
    house: House, payments: Step, data_class: str | None
) -> None:
    house.purge(payments)
    house.recall("payments", "acme", OLD_MONTH)
    (hold,) = house.ledger(
        "insert into control.holds (workspace_id, class, reason, added_at)"
        " values ('acme', %s, 'case 18', %s) returning hold_id",
        [data_class, NOW],
    )
    later = date(2027, 12, 1)
    with postgres.connect(house.settings, autocommit=True) as connection:
        due = cold.due(connection, house.ladder, later)
        assert {own.data_class for own in due} == {"cold_files", "recalled"}
        held = {own.workspace_id: own.held_by for own in due}
        assert held == {"acme": (hold["hold_id"],), "bolt": ()}
        for own in due:
            if own.workspace_id == "acme":
                with pytest.raises(Refused, match="on hold"):
                    cold.delete(house.settings, connection, own, _noon(later))
    assert {path.split("/")[1] for path in house.files} == {"acme", "bolt"}
    assert house.rows("select count() as n from recalled.payments") == [{"n": 200}]
    # Held files may still be brought back.
    assert house.recall("payments", "acme", OLD_MONTH, later).rows == 400


def test_another_file_under_the_name_is_not_deleted(house: House, payments: Step) -> None:
    house.purge(payments)
    with postgres.connect(house.settings, autocommit=True) as connection:
        own = cold.due(connection, house.ladder, date(2027, 12, 1))[0]
        with pytest.raises(Refused, match="not the file that was due"):
            cold.delete(
                house.settings, connection, replace(own, sha256="0" * 64), _noon(date(2027, 12, 1))
            )
    assert len(house.files) == 8


# -- an object store -------------------------------------------------------------------------------


def test_a_store_that_nothing_here_speaks_to_is_named(house: House, payments: Step) -> None:
    if importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed, and would ask the network")
    away = replace(house, settings=replace(house.settings, cold="s3://bucket/cold"))
    with pytest.raises(UsageError, match=r"TIDEMARK_COLD is s3://bucket/cold: .*name a folder"):
        away.tier(payments)


def test_cold_files_may_lie_in_an_object_store(payments: Step, house: House) -> None:
    remote = replace(house.settings, cold="memory://tidemark-cold")
    engines.down(house.settings)
    engines.up(remote)
    away = replace(house, settings=remote)
    try:
        away.purge(payments)
        assert not [path for path in remote.cold_folder.rglob("*") if path.is_file()]
        report = away.recall("payments", "acme", OLD_MONTH)
        assert report.rows == 400
        with postgres.connect(remote, autocommit=True) as connection:
            for own in cold.due(connection, house.ladder, date(2027, 12, 1)):
                cold.delete(remote, connection, own, _noon(date(2027, 12, 1)))
                assert cold.is_gone(remote, connection, own)
    finally:
        engines.down(remote)
        engines.up(house.settings)
