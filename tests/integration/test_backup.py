"""Backups and restores on real engines: every row comes back, and nothing that stands is lost."""

import json
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

import history
from homes import Outcome, Warehouse, new_home
from tidemark import backup, clickhouse, coverage, gate, policy, postgres, postgres_dump, retention
from tidemark.clickhouse import literal
from tidemark.config import Settings
from tidemark.errors import TidemarkError

DAYS = [date(2025, 1, day) for day in (8, 9)]
LOADED = date(2025, 1, 20)
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def built() -> Iterator[Warehouse]:
    """Two days of two shops with people in them, built; none of the tests changes a row of it."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        history.add_shops(home)
        history.deliver(home, *DAYS)
        assert home.run("load", "--as-of", str(LOADED), "--json").json["stored"] > 0
        assert home.run("build", "--as-of", str(LOADED), "--json").json["gate"]["success"]
        with postgres.connect(home.settings) as connection:
            connection.execute(
                "insert into app.user_accounts (email, name, created_at) values (%s, 'Ada', %s)",
                [history.PERSON, NOW],
            )
        yield home


@pytest.fixture(scope="module")
def made(built: Warehouse) -> dict[str, Any]:
    """The day's and the month's backup of it, by kind, with a killed load's rows beside it."""
    built.run(
        "sql",
        "--write",
        "create table load.stage engine = MergeTree order by tuple() as select 'left over' as a",
    )
    report = built.run("backup", "--as-of", str(LOADED), "--json").json
    assert [own["kind"] for own in report["made"]] == ["daily", "monthly"]
    assert report["expired"] == []
    return {own["kind"]: own for own in report["made"]}


@contextmanager
def beside(first: Warehouse) -> Iterator[Warehouse]:
    """An empty home that sees the same backups, and has the first one's master key."""
    with new_home() as home:
        env = {**home.env, "TIDEMARK_BACKUPS": first.settings.backups}
        own = Warehouse(Settings.from_env(env), env)
        own.settings.secrets.mkdir(mode=0o700, parents=True)
        shutil.copy(first.settings.secrets / "master.key", own.settings.secrets / "master.key")
        own.run("up", "--no-airflow")
        yield own


@pytest.fixture
def other(built: Warehouse) -> Iterator[Warehouse]:
    """Such a home beside the built one."""
    with beside(built) as own:
        yield own


def rows(home: Warehouse, query: str) -> list[dict[str, Any]]:
    return clickhouse.rows(home.settings, query)


def figures(home: Warehouse) -> list[dict[str, Any]]:
    """Every figure of the marts."""
    return [
        row
        for table in ("kpis_daily", "email_revenue_daily", "customer_cohorts_monthly")
        for row in rows(home, f"select * from marts.{table} order by all")
    ]


def entries(home: Warehouse, kind: str) -> list[dict[str, Any]]:
    with postgres.connect(home.settings) as connection:
        return [
            row["document"]
            for row in connection.execute(
                "select document from control.ledger where kind = %s order by entry_id", [kind]
            )
        ]


def refused(home: Warehouse, *arguments: str, code: int) -> Outcome:
    outcome = home.run(*arguments, check=False)
    assert outcome.code == code, outcome.stderr
    return outcome


def test_a_backup_has_every_table_and_is_closed_to_others(
    built: Warehouse, made: dict[str, Any]
) -> None:
    folder = Path(built.settings.backups) / made["daily"]["name"]
    manifest = json.loads((folder / "manifest.json").read_bytes())
    held = {own["name"]: own["rows"] for own in manifest["clickhouse"]["tables"]}
    standing = {
        row["name"]: row["rows"]
        for row in rows(
            built,
            "select concat(database, '.', name) as name, total_rows as rows from system.tables"
            " where engine like '%MergeTree' and database not in ('system', 'default', 'load')",
        )
    }
    assert standing["raw.pixel_events"] > 0
    assert held.keys() == standing.keys()
    # Those of a ReplacingMergeTree are counted as a reader sees them.
    assert all(0 < held[name] <= standing[name] for name in standing if standing[name])
    assert "load" not in manifest["clickhouse"]["databases"]
    assert not [path for path in folder.rglob("*") if "load" in path.relative_to(folder).parts]
    assert manifest["postgres"]["tables"]["app.user_accounts"]["rows"] == 1
    assert "control.salts" not in manifest["postgres"]["tables"]
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert not list(Path(built.settings.backups).glob(".writing/*"))
    done = entries(built, backup.DONE)
    assert [own["name"] for own in done] == [made["daily"]["name"], made["monthly"]["name"]]
    listed = built.run("backup", "--list", "--json").json
    assert {own["name"] for own in listed} == {own["name"] for own in made.values()}


def test_salts_and_the_master_key_are_in_none(built: Warehouse, made: dict[str, Any]) -> None:
    with postgres.connect(built.settings) as connection:
        salts = connection.execute("select wrapped_salt from control.salts").fetchall()
    assert salts
    secrets = [built.settings.secrets.joinpath("master.key").read_bytes()]
    for own in made.values():
        manifest = backup.find(built.settings, own["name"]).manifest
        assert manifest["postgres"]["left_out"][-1:] == ["control.salts"]
        for path in (Path(built.settings.backups) / own["name"]).rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert not any(secret in content for secret in secrets), path
    with postgres_dump.scratch(built.settings) as connection:
        dump = Path(built.settings.backups) / made["daily"]["name"] / backup.DUMP
        postgres_dump.restore(built.settings, dump, postgres_dump.SCRATCH)
        found = postgres_dump.figures(connection, ["control.salts", "control.keys"])
    assert found["control.salts"]["rows"] == 0
    assert found["control.keys"]["rows"] > 0


def test_a_monthly_has_no_personal_column(built: Warehouse, made: dict[str, Any]) -> None:
    ladder = policy.read(built.settings)
    personal = {
        (name, column)
        for name in ladder.columns
        for column, own in ladder.columns[name].items()
        if own.kind == "personal"
    }
    tables = {own.name: own for own in backup.find(built.settings, made["monthly"]["name"]).tables}
    held = {(own.name, column.name) for own in tables.values() for column in own.columns}
    assert ("raw.orders", "order_id") in personal
    assert ("raw.orders", "total") in held
    assert not personal & held
    folder = Path(built.settings.backups) / made["monthly"]["name"]
    orders = tables["raw.orders"]
    with backup.beside(built.settings, folder, [orders]) as (relation,):
        own = rows(built, f"select name from system.columns where concat(database, '.', table) ="
                          f" {literal(relation)}")  # fmt: skip
        assert {row["name"] for row in own} == {column.name for column in orders.columns}
    with postgres_dump.scratch(built.settings) as connection:
        postgres_dump.restore(built.settings, folder / backup.DUMP, postgres_dump.SCRATCH)
        people = postgres_dump.figures(connection, ["app.user_accounts", "app.workspaces"])
    assert people["app.user_accounts"]["rows"] == 0
    assert people["app.workspaces"]["rows"] == 2


def test_everything_comes_back_in_an_empty_home(
    built: Warehouse, made: dict[str, Any], other: Warehouse
) -> None:
    before = figures(built)
    assert len(before) > 10
    done = other.run("restore", "--json").json
    assert (done["backup"], done["table"]) == (made["daily"]["name"], None)
    assert figures(other) == before
    assert rows(other, "select * from raw.orders order by all") == rows(
        built, "select * from raw.orders order by all"
    )
    assert other.run("audit", "--json").json["findings"] == []
    [entry] = entries(other, "restored")
    assert entry["backup"] == made["daily"]["name"]
    # Rights came back too: the analyst reads the marts and none of the people.
    assert other.run("sql", "--store", "postgres", "select count(*) as n from control.loads",
                     "--json").json[0]["n"] > 0  # fmt: skip
    assert other.run(
        "sql", "--store", "postgres", "select email from app.user_accounts", check=False
    ).code == 1  # fmt: skip
    # And it goes on from there: the next day loads, builds and ties out with the same keys.
    following = DAYS[-1] + timedelta(days=1)
    history.deliver(other, *DAYS, following)
    loaded = other.run("load", "--as-of", str(LOADED), "--json").json
    assert len(loaded["files"]) == len(history.lines(following)) > 0
    assert other.run("build", "--as-of", str(LOADED), "--json").json["gate"]["success"]
    [people] = rows(other, "select uniqExact(customer_key) as n from raw.pixel_events"
                           " where customer_key != ''")  # fmt: skip
    assert people["n"] == 1


def test_a_monthly_brings_the_figures_back(
    built: Warehouse, made: dict[str, Any], other: Warehouse
) -> None:
    other.run("restore", made["monthly"]["name"])
    assert figures(other) == figures(built)
    [orders] = rows(other, "select count() as rows, countIf(order_id != '') as named,"
                           " toString(sum(total)) as total from raw.orders")  # fmt: skip
    [stood] = rows(built, "select count() as rows, toString(sum(total)) as total from raw.orders")
    assert (orders["rows"], orders["total"], orders["named"]) == (stood["rows"], stood["total"], 0)


def test_a_home_with_rows_is_not_overwritten(built: Warehouse, made: dict[str, Any]) -> None:
    before = figures(built)
    assert "overwrites nothing" in refused(built, "restore", code=3).stderr
    assert "overwrites nothing" in refused(built, "restore", "--table", "raw.orders", code=3).stderr
    assert figures(built) == before
    for arguments in (["nope"], ["--table", "raw.nope"], ["--check", "--table", "raw.orders"]):
        refused(built, "restore", *arguments, code=2)
    assert "contradict" in refused(built, "restore", "--table", "control.loads", code=3).stderr
    assert made


def test_another_master_key_is_told_before_anything_changes(
    built: Warehouse, made: dict[str, Any]
) -> None:
    with new_home() as home:
        env = {**home.env, "TIDEMARK_BACKUPS": built.settings.backups}
        own = Warehouse(Settings.from_env(env), env)
        own.run("up", "--no-airflow")
        assert "master.key" in refused(own, "restore", made["daily"]["name"], code=1).stderr
        assert not (own.settings.home / "restoring").exists()


def test_a_killed_restore_is_finished_and_keeps_others_out(
    built: Warehouse, made: dict[str, Any], other: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tidemark.restore._restore_clickhouse", killed)
        assert other.run("restore", check=False).code != 0
    assert (other.settings.home / "restoring").read_text() == made["daily"]["name"]
    for arguments in (
        ("load",),
        ("hold", "add", "--workspace", "shop", "--reason", "case 12"),
        ("erase", "--workspace", "shop", "--subject", history.PERSON, "--later"),
        ("override", "set", "shop", "orders", "12 months"),
        ("workspace", "add", "new", "--timezone", "UTC", "--currency", "EUR", "--plan", "growth"),
        ("sql", "--write", "select 1"),
    ):
        # What it wrote the restore would take away.
        assert "run `tidemark restore`" in refused(other, *arguments, code=3).stderr
    assert "not finished" in refused(other, "restore", made["monthly"]["name"], code=3).stderr
    other.run("restore")
    assert figures(other) == figures(built)
    assert not (other.settings.home / "restoring").exists()


@pytest.mark.parametrize("part", ["clickhouse", "postgres.dump"])
def test_a_damaged_backup_is_found_and_brings_nothing_back(
    built: Warehouse, made: dict[str, Any], part: str, tmp_path: Path
) -> None:
    shutil.copytree(Path(built.settings.backups) / made["daily"]["name"],
                    tmp_path / made["daily"]["name"])  # fmt: skip
    path = tmp_path / made["daily"]["name"] / part
    if path.is_dir():
        path = max(path.rglob("*"), key=lambda own: own.stat().st_size if own.is_file() else 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    damaged = Warehouse(
        Settings.from_env({**built.env, "TIDEMARK_BACKUPS": str(tmp_path)}),
        {**built.env, "TIDEMARK_BACKUPS": str(tmp_path)},
    )
    outcome = refused(damaged, "restore", "--check", code=1)
    assert f"{part} of {made['daily']['name']} is missing, cut short or damaged" in outcome.stderr


def test_rows_that_come_back_otherwise_are_found(built: Warehouse, made: dict[str, Any]) -> None:
    """What the files' hashes cannot know: that a restore makes other rows of them."""
    own = backup.find(built.settings, made["daily"]["name"])
    orders = next(table for table in own.tables if table.name == "raw.orders")
    with backup.beside(built.settings, Path(built.settings.backups) / own.name, [orders]) as (
        relation,
    ):
        backup.compare(built.settings, orders, relation)
        clickhouse.execute(
            built.settings,
            f"alter table {relation} update total = total + 0.01 where 1"
            " settings mutations_sync = 2",
        )
        with pytest.raises(TidemarkError, match=r"raw\.orders does not come back"):
            backup.compare(built.settings, orders, relation)


def test_a_check_reads_all_and_is_on_record(built: Warehouse, made: dict[str, Any]) -> None:
    assert built.run("restore", "--check", "--json").json["sound"] is True
    assert entries(built, backup.CHECKED)[-1] == {"name": made["daily"]["name"]}
    assert not rows(built, f"select 1 from system.databases where name = '{coverage.SCRATCH}'")


def test_no_person_is_in_what_is_told(built: Warehouse, made: dict[str, Any]) -> None:
    told = [json.dumps(made), json.dumps(entries(built, backup.DONE))]
    told += [
        (Path(built.settings.backups) / own["name"] / "manifest.json").read_text()
        for own in made.values()
    ]
    assert all(told)
    assert not any(
        word in text for text in told for word in (history.PERSON, "example.org", history.VISITOR)
    )
    monthly = Path(built.settings.backups) / made["monthly"]["name"]
    files = [path for path in monthly.rglob("*") if path.is_file()]
    assert files
    assert not any(history.PERSON.encode() in path.read_bytes() for path in files)


def test_a_purge_needs_a_fresh_backup_and_a_table_comes_back_without_purged_days(
    fresh_warehouse: Warehouse,
) -> None:
    home = fresh_warehouse
    # Nothing to back up yet: an empty home stays one that can be restored into.
    assert home.run("backup", "--json").json == {"made": [], "expired": []}
    history.add_shops(home)
    history.deliver(home, date(2024, 7, 9), DAYS[-1])
    home.run("load", "--as-of", "2025-01-10")
    home.run("build", "--as-of", "2025-01-10")
    counting = (
        "select count() as all, countIf(local_date = '2024-07-09') as old from raw.pixel_events"
    )
    [before] = rows(home, counting)
    assert before["all"] > before["old"] > 0
    as_of = date(2025, 9, 5)

    def blocked(now: datetime) -> list[str]:
        report = retention.plan(home.settings, as_of=as_of, now=now, gate=gate)
        assert report.plan.steps
        return [line for lines in report.blocked.values() for line in lines if "backup" in line]

    assert blocked(NOW) == []
    report = home.run("backup", "--as-of", "2025-01-10", "--json").json
    [name] = [own["name"] for own in report["made"] if own["kind"] == "daily"]
    now = datetime.now(UTC)
    assert blocked(now + timedelta(hours=25)) == []
    assert blocked(now + timedelta(hours=27))
    folder, elsewhere = Path(home.settings.backups) / name, Path(home.settings.home) / "elsewhere"
    shutil.move(folder, elsewhere)
    assert blocked(now), "a backup that nobody finds is none"
    outcome = refused(home, "purge", "--as-of", str(as_of), code=3)
    assert "tidemark backup" in outcome.stderr
    assert rows(home, counting) == [before]
    shutil.move(elsewhere, folder)
    shutil.move(folder / "clickhouse", elsewhere)
    assert blocked(now), "nor is one without its files"
    shutil.move(elsewhere, folder / "clickhouse")
    assert blocked(now) == []
    # What a backup that was killed would leave: rows that are about to go.
    backup.run(home.settings, f"create database {coverage.SCRATCH}")
    left = f"{coverage.SCRATCH}.restored_1"
    backup.run(home.settings, f"create table {left} engine = Log as select * from raw.pixel_events")
    assert left in [own.name for own in coverage.orphans(home.settings)]
    coverage.check(home.settings, policy.read(home.settings))
    assert home.run("purge", "--as-of", str(as_of), "--json").json["rows"] >= before["old"]
    assert coverage.orphans(home.settings) == ()

    home.run("sql", "--write", "drop table raw.pixel_events sync")
    done = home.run("restore", "--table", "raw.pixel_events", "--json").json
    assert (done["rows"], done["purged_rows"]) == (before["all"] - before["old"], before["old"])
    assert rows(home, counting) == [{"all": done["rows"], "old": 0}]
    home.run("restore", "--table", "app.api_keys")
    # Orders and payments share it: each's closed days stay away, but what a hold keeps comes back.
    with postgres.connect(home.settings) as connection:
        connection.execute("update app.workspaces set plan = 'enterprise'")
    home.run("override", "set", "shop", "orders", "12 months")
    home.run("override", "set", "till", "payments", "12 months")
    guest = "guest-2024-07-09@example.org"
    hold = ("hold", "add", "--workspace", "shop", "--class", "orders", "--reason", "case 12")
    home.run(*hold, "--subject", guest)
    home.run("backup", "--as-of", str(as_of))
    home.run("purge", "--as-of", str(as_of))
    old = "select count() as n from {} where {} < '2024-08-01'"
    assert rows(home, old.format("raw.orders", "local_date")) == [{"n": 1}]
    assert rows(home, old.format("intermediate.int_orders", "date_day")) == [{"n": 0}]
    for table, kept in (("raw.orders", 1), ("intermediate.int_orders", 0)):
        home.run("sql", "--write", f"truncate table {table}")
        again = home.run("restore", "--table", table, "--json").json
        assert again["purged_rows"] > 0
        assert again["rows"] > kept
        day = "local_date" if table == "raw.orders" else "date_day"
        assert rows(home, old.format(table, day)) == [{"n": kept}]
    # Recalled for thirty days that are over.
    recall = ("recall", "pixel_events", "--workspace", "shop", "--month", "2024-07")
    home.run(*recall, "--as-of", str(as_of))
    [recalled] = rows(home, "select count() as n from recalled.pixel_events")
    assert recalled["n"] > 0
    home.run("backup", "--as-of", str(as_of))
    home.run("sql", "--write", "truncate table recalled.pixel_events")
    again = home.run("restore", "--table", "recalled.pixel_events", "--json").json
    assert (again["rows"], again["purged_rows"]) == (0, recalled["n"])
    assert [own["table"] for own in entries(home, "restored")] == [
        "raw.pixel_events", "app.api_keys", "raw.orders", "intermediate.int_orders",
        "recalled.pixel_events",
    ]  # fmt: skip
    assert home.run("audit", "--json").json["findings"] == []


def test_who_was_erased_since_does_not_come_back(fresh_warehouse: Warehouse) -> None:
    home = fresh_warehouse
    history.add_shops(home)
    history.deliver(home, *DAYS)
    home.run("load", "--as-of", str(LOADED))
    home.run("build", "--as-of", str(LOADED))
    made = home.run("backup", "--as-of", str(LOADED), "--json").json["made"][0]["name"]
    people = "select count() as all, countIf(customer_key != '') as named from raw.pixel_events"
    [before] = rows(home, people)
    assert before["all"] > before["named"] > 0
    export = home.run("export", "--workspace", "shop", "--json").json
    # A hold that the backup is older than, and an erasure that it stops.
    guest = f"guest-{DAYS[0]}@example.org"
    orders = "select count() as n from raw.orders where workspace_id = 'shop'"
    home.run("hold", "add", "--workspace", "shop", "--subject", guest, "--reason", "case 12")
    held = refused(home, "erase", "--workspace", "shop", "--subject", guest, "--json", code=3).json
    later = ("erase", "--workspace", "shop", "--subject", "later@example.org", "--later", "--json")
    waits = home.run(*later).json["code"]
    # Without the backups nobody could note whom they must not bring back.
    shutil.move(home.settings.backups, f"{home.settings.backups}-away")
    outcome = refused(home, "erase", "--workspace", "shop", "--subject", history.PERSON, code=1)
    assert "is its disk there" in outcome.stderr
    assert rows(home, people) == [before]
    shutil.move(f"{home.settings.backups}-away", home.settings.backups)
    erased = home.run("erase", "--workspace", "shop", "--subject", history.PERSON, "--json").json
    code = erased["code"]
    # Files that have the person go with the next night.
    told = home.run("request", "status", export["code"], "--json").json
    assert date.fromisoformat(export["expires_on"]) > NOW.date()
    assert date.fromisoformat(told["expires_on"]) <= datetime.now(UTC).date()
    [after] = rows(home, people)
    assert after == {"all": before["all"] - before["named"], "named": 0}
    noted = backup.noted_erasures(home.settings)
    assert {own["code"] for own in noted} == {code, held["code"], waits}
    assert history.PERSON not in json.dumps(noted)

    home.run("sql", "--write", "drop table raw.pixel_events sync")
    assert "erased since" in refused(home, "restore", "--table", "raw.pixel_events", code=3).stderr
    with beside(home) as own:
        done = own.run("restore", made, "--json").json
        assert set(done["erased"]) == {code, held["code"], waits}
        [hold] = own.run("hold", "list", "--json").json
        assert hold["reason"] == "case 12"
        assert own.run("request", "status", held["code"], "--json").json["status"] == "held"
        assert rows(own, orders) == rows(home, orders) != [{"n": 0}]
        with postgres.connect(own.settings) as connection:
            assert backup.last_made(own.settings, connection) is not None
        assert rows(own, people) == [after]
        assert rows(own, "select 1 from raw.orders")
        status = own.run("request", "status", code, "--json").json
        assert status["status"] == "done"
        assert status["outcome"]["raw.pixel_events"] == before["named"]
        assert own.run("audit", "--json").json["findings"] == []
        assert own.run("build", "--as-of", str(LOADED), "--json").json["gate"]["success"]
        # It is noted as long as there is a backup that has them.
        own.run("backup", "--as-of", str(LOADED))
        assert code in [left["code"] for left in backup.noted_erasures(own.settings)]
        expired = own.run("backup", "--as-of", "2026-11-01", "--json").json["expired"]
        assert made in expired
        # What a hold keeps is not ended, and noted.
        assert [left["code"] for left in backup.noted_erasures(own.settings)] == [held["code"]]
        Path(own.settings.backups, "erasures.json").write_text("{")
        damaged = refused(own, "erase", "--workspace", "shop", "--subject", history.PERSON, code=1)
        assert "erasures.json is no JSON" in damaged.stderr


def test_backups_go_at_their_end_and_a_killed_run_leaves_nothing_half(
    fresh_warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = fresh_warehouse
    history.add_shops(home)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def killed_at(function: str, as_of: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(f"tidemark.backup.{function}", killed)
            assert home.run("backup", "--as-of", as_of, check=False).code != 0

    killed_at("_publish", "2025-01-01")
    assert home.run("backup", "--list", "--json").json == []
    assert entries(home, backup.DONE) == []
    made = {}
    for day in (date(2025, 1, 1), date(2025, 1, 2), date(2025, 1, 16)):
        report = home.run("backup", "--as-of", str(day), "--json").json
        made[day] = [own["name"] for own in report["made"]]
        assert len(made[day]) == (2 if day.day == 1 else 1), "a monthly on the first day alone"
    # 14 days: that of the first goes on the sixteenth, that of the second does not.
    assert report["expired"] == [made[date(2025, 1, 1)][0]]
    left = {own["name"] for own in home.run("backup", "--list", "--json").json}
    assert left == {made[date(2025, 1, 1)][1], *made[date(2025, 1, 2)], *made[date(2025, 1, 16)]}

    killed_at("_remove", "2025-01-17")
    begun, ended = entries(home, backup.EXPIRY_BEGUN), entries(home, backup.EXPIRED)
    assert (len(begun), len(ended)) == (2, 1)
    assert begun[-1] == {"name": made[date(2025, 1, 2)][0]}
    later = home.run("backup", "--as-of", "2026-01-02", "--json").json
    assert made[date(2025, 1, 1)][1] in later["expired"], "a monthly goes after 12 months"
    assert made[date(2025, 1, 2)][0] in later["expired"], "what a kill left"
    assert {own["name"] for own in home.run("backup", "--list", "--json").json} == {
        own["name"] for own in later["made"]
    }
    assert entries(home, backup.EXPIRY_BEGUN) == entries(home, backup.EXPIRED)
    folder = Path(home.settings.backups)
    assert {path.name for path in folder.iterdir()} == {own["name"] for own in later["made"]}
    refused(home, "backup", "--as-of", "2999-01-01", code=3)


def test_a_location_that_is_a_file_is_told(built: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    env = {**built.env, "TIDEMARK_BACKUPS": str(tmp_path / "file")}
    outcome = refused(Warehouse(Settings.from_env(env), env), "backup", "--list", code=1)
    assert "which is no folder" in outcome.stderr


def test_an_object_store_is_written_and_read(empty_home: Warehouse) -> None:
    """In memory, as a stand-in for a bucket: the same calls of fsspec."""
    env = {**empty_home.env, "TIDEMARK_BACKUPS": "s3://bucket/backups"}
    home = Warehouse(Settings.from_env(env), env)
    home.run("up", "--no-airflow")
    history.add_shops(home)
    settings = replace(home.settings, backups="memory://bucket/backups")
    report = backup.make(settings, as_of=LOADED, clock=lambda: datetime.now(UTC))
    assert [own.kind for own in report.made] == ["daily", "monthly"]
    found = backup.check(settings, None, clock=lambda: datetime.now(UTC))
    assert found.name == report.made[0].name
    # What a run that was killed on its way there left.
    left = UPath(settings.backups) / "daily-2025-01-01T000000Z" / "clickhouse" / "part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    later = backup.make(settings, as_of=date(2026, 6, 1), clock=lambda: datetime.now(UTC))
    assert set(later.expired) == {own.name for own in report.made}
    assert {own.name for own in backup.stored(settings)} == {own.name for own in later.made}
    assert not left.exists()
    with postgres.connect(settings) as connection:
        last = backup.last_made(settings, connection)
    assert last is not None
    assert (last.name, last.is_there) == (later.made[0].name, True)
