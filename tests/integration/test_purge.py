"""The purge on real engines: what it takes, what stops it, and that a rerun finishes it.

One history for all: each test purges months that no other touches, by a day of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import history
from homes import Warehouse, new_home
from tidemark import build as building
from tidemark import clickhouse, gate, postgres, retention
from tidemark.errors import Refused, TidemarkError
from tidemark.plan import Plan

LOADED = date(2025, 1, 20)
DAYS = [
    date(2024, month, day) for month in range(7, 13) for day in (9, 10)
] + [date(2025, 1, 9)]  # fmt: skip


@pytest.fixture(scope="module")
def built() -> Iterator[Warehouse]:
    """Seven months of two shops, loaded when they were young, and built."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        history.add_shops(home)
        history.deliver(home, *DAYS)
        loaded = home.run("load", "--as-of", str(LOADED), "--json").json
        assert loaded["quarantined"] == 0
        assert loaded["stored"] == loaded["lines"] > 0
        assert home.run("build", "--as-of", str(LOADED), "--json").json["gate"]["success"]
        yield home


def count(home: Warehouse, table: str, where: str = "1") -> int:
    [row] = clickhouse.rows(home.settings, f"select count() as rows from {table} where {where}")
    return int(row["rows"])


def figures(home: Warehouse) -> list[dict[str, Any]]:
    """Every figure of the marts, cohorts too."""
    return [
        row
        for table in ("kpis_daily", "email_revenue_daily", "customer_cohorts_monthly")
        for row in clickhouse.rows(home.settings, f"select * from marts.{table} order by all")
    ]


def plan(home: Warehouse, as_of: date, **more: Any) -> Plan:
    now = datetime.now(UTC)
    return retention.plan(home.settings, as_of=as_of, now=now, gate=gate, **more).plan


def now() -> datetime:
    return datetime.now(UTC)


def purge_with(
    home: Warehouse,
    found: Plan,
    verdicts: dict[str, Any],
    *,
    clock: Callable[[], datetime] = now,
    **more: Any,
) -> tuple[Any, ...]:
    return retention.purge_plan(
        home.settings, found, verdicts, as_of=found.as_of, clock=clock, **more
    )


def postgres_rows(home: Warehouse, query: str) -> list[dict[str, Any]]:
    with postgres.connect(home.settings) as connection:
        return connection.execute(query.encode()).fetchall()


def test_a_plan_is_the_same_twice_and_destroys_nothing(built: Warehouse) -> None:
    before = count(built, "raw.pixel_events")
    one = built.run("plan", "--as-of", "2025-09-10", "--json").json
    other = built.run("plan", "--as-of", "2025-09-10", "--json").json
    assert one["plan_id"] == other["plan_id"]
    assert [step["data_class"] for step in one["steps"]] == ["pixel_events"]
    [step] = one["steps"]
    assert (step["month"], step["rows"], step["action"]) == ("2024-07-01", 6, "drop_partition")
    assert one["blocked"] == []
    assert plan(built, date(2025, 8, 31)).steps == ()
    assert plan(built, date(2025, 9, 1)).plan_id != one["plan_id"]
    assert count(built, "raw.pixel_events") == before
    assert Plan.from_dict(one).plan_id == one["plan_id"]
    with pytest.raises(TidemarkError, match="is not what its id says"):
        Plan.from_dict({**one, "as_of": "2025-09-11"})


def test_a_purge_takes_what_is_due_and_no_figure_with_it(built: Warehouse) -> None:
    before = figures(built)
    assert len(before) > 20
    due = "local_date < '2024-08-01'"
    rest = count(built, "raw.pixel_events", f"not {due}")
    assert count(built, "raw.pixel_events", due) == 6
    report = built.run("purge", "--as-of", "2025-09-10", "--json").json
    assert [step["status"] for step in report["steps"]] == ["done"]
    assert report["problems"] == []
    assert count(built, "raw.pixel_events", due) == 0
    assert count(built, "raw.pixel_events", f"not {due}") == rest
    for table in ("int_sessions", "int_session_days", "int_purchase_links"):
        assert count(built, f"intermediate.{table}", "date_day < '2024-08-01'") == 0
        assert count(built, f"intermediate.{table}") > 0
    assert figures(built) == before
    assert postgres_rows(built, "select 1 from control.purge_ledger where class = 'pixel_events'")
    again = built.run("purge", "--as-of", "2025-09-10", "--json").json
    assert again["steps"] == []
    audit = built.run("audit", "--json")
    assert audit.code == 0


def test_a_late_event_of_a_purged_day_reopens_nothing(built: Warehouse) -> None:
    before = figures(built)
    event = history.pixel(DAYS[0], 59, "$pageview")
    history.put(built, "pixel/shop", date(2025, 1, 19), [event], "late")
    loaded = built.run("load", "--as-of", str(LOADED), "--json").json
    assert (loaded["stored"], loaded["quarantined"]) == (0, 1)
    assert count(built, "raw.quarantine", "reason = 'past_retention'") == 1
    built.run("build", "--as-of", str(LOADED))
    assert figures(built) == before


def test_a_file_that_is_not_loaded_stops_its_class(built: Warehouse) -> None:
    event = history.pixel(date(2024, 8, 9), 58, "$pageview")
    history.put(built, "pixel/shop", date(2025, 1, 18), [event], "forgotten")
    before = count(built, "raw.pixel_events")
    blocked = built.run("plan", "--as-of", "2025-10-10", "--json").json["blocked"]
    assert [own["data_class"] for own in blocked] == ["pixel_events"]
    assert "unloaded landing files of workspace shop" in blocked[0]["reason"]
    refused = built.run("purge", "--as-of", "2025-10-10", "--json", check=False)
    assert refused.code == 3
    assert [step["status"] for step in refused.json["steps"]] == ["refused"]
    assert "tidemark load" in refused.json["error"]
    assert count(built, "raw.pixel_events") == before


def test_a_load_that_is_not_built_stops_its_class(built: Warehouse) -> None:
    built.run("load", "--as-of", str(LOADED))
    refused = built.run("purge", "--as-of", "2025-10-10", "--json", check=False)
    assert refused.code == 3
    assert "tidemark build" in refused.json["error"]
    assert count(built, "raw.pixel_events", "local_date < '2024-09-01'") == 7
    built.run("build", "--as-of", str(LOADED))


def test_only_a_fresh_verdict_on_this_plan_opens_the_door(built: Warehouse) -> None:
    found = plan(built, date(2025, 10, 10))
    rows = count(built, "raw.pixel_events")

    def reasons(verdicts: dict[str, Any], **more: Any) -> str:
        reports = purge_with(built, found, verdicts, **more)
        assert {report.status for report in reports} == {"refused"}
        assert count(built, "raw.pixel_events") == rows
        return " ".join(report.reason for report in reports)

    assert "has not looked at" in reasons({})
    good = retention.prove(built.settings, found, "pixel_events", clock=now, gate=gate)
    assert good.success
    stale = lambda: now() + timedelta(hours=25)  # noqa: E731
    assert "it holds for 24 hours" in reasons({"pixel_events": good}, clock=stale)
    early = lambda: now() - timedelta(hours=1)  # noqa: E731
    assert "it holds for 24 hours" in reasons({"pixel_events": good}, clock=early)
    other = plan(built, date(2025, 10, 11))
    foreign = retention.prove(built.settings, other, "pixel_events", clock=now, gate=gate)
    assert "is not about pixel_events of this plan" in reasons({"pixel_events": foreign})
    with pytest.raises(Refused, match="lies in the future"):
        purge_with(built, plan(built, now().date() + timedelta(days=1)), {})


def test_a_load_between_gate_and_purge_is_noticed(built: Warehouse) -> None:
    found = plan(built, date(2025, 10, 10))
    verdict = retention.prove(built.settings, found, "pixel_events", clock=now, gate=gate)
    assert verdict.success
    event = history.pixel(date(2024, 8, 10), 57, "$pageview")
    history.put(built, "pixel/shop", date(2025, 1, 18), [event], "between")
    built.run("load", "--as-of", str(LOADED))
    [report] = purge_with(built, found, {"pixel_events": verdict})
    assert report.status == "refused"
    assert "changed since the plan" in report.reason
    assert count(built, "raw.pixel_events", "local_date < '2024-09-01'") == 8
    built.run("build", "--as-of", str(LOADED))


def test_a_hold_between_gate_and_purge_is_noticed(built: Warehouse) -> None:
    found = plan(built, date(2025, 10, 10))
    verdict = retention.prove(built.settings, found, "pixel_events", clock=now, gate=gate)
    assert verdict.success
    rows = count(built, "raw.pixel_events")
    for subject in ((), ("--subject", history.PERSON)):
        held = built.run(
            "hold", "add", "--workspace", "shop", *subject, "--reason", "late case", "--json"
        ).json
        [report] = purge_with(built, found, {"pixel_events": verdict})
        assert (report.status, report.rows) == ("refused", 0)
        built.run("hold", "release", str(held["hold_id"]))
    assert count(built, "raw.pixel_events") == rows


def test_the_macro_refuses_without_a_permit(built: Warehouse) -> None:
    found = plan(built, date(2025, 10, 10))
    [step] = found.steps
    [target] = [own for own in step.targets if own.table == "raw.pixel_events"]
    rows = count(built, "raw.pixel_events")
    assert rows > 0

    def refused(why: str, plan_id: str = found.plan_id, **permit: Any) -> None:
        if permit:
            clickhouse.insert_rows(
                built.settings,
                "retention.permits",
                [
                    {
                        "plan_id": plan_id,
                        "step_id": step.step_id,
                        "table_name": target.table,
                        "partition_id": target.partition,
                        "predicate": target.predicate,
                        "is_whole_partition": True,
                        "row_count": target.rows,
                        "hashed_columns": clickhouse.identifiers(target.columns),
                        "fingerprint": target.fingerprint,
                        "expires_at": int(now().timestamp()) + 600,
                        **permit,
                    }
                ],
            )
        arguments = {"plan_id": plan_id, "step_id": step.step_id, "tables": [target.table]}
        with pytest.raises(TidemarkError, match=why):
            building.dbt(
                built.settings,
                ["run-operation", "retention_destroy", "--args", json.dumps(arguments)],
            )
        clickhouse.execute(built.settings, "truncate table retention.permits")
        assert count(built, "raw.pixel_events") == rows

    refused("no valid permit for raw.pixel_events")
    refused("no valid permit", "' or 1 = 1 --")
    refused("no valid permit", expires_at=int(now().timestamp()) - 1)
    refused("no valid permit", step_id="another")
    refused("not those that the permit was written for", row_count=target.rows + 1)
    refused("not those that the permit was written for", fingerprint="0")
    one_day = f"{target.predicate} and local_date = '2024-08-10'"
    hashed = clickhouse.identifiers(target.columns)
    [day] = clickhouse.rows(
        built.settings,
        "select count() as row_count, toString(sum(reinterpretAsUInt128(sipHash128("
        f"{hashed})))) as fingerprint from {target.table} where {one_day}",
    )
    assert 0 < int(day["row_count"]) < target.rows
    refused("not all rows of the partition are to go", predicate=one_day, **day)


def test_a_hold_defers_and_its_release_catches_up(built: Warehouse) -> None:
    held = built.run(
        "hold", "add", "--workspace", "shop", "--class", "pixel_events", "--reason", "case 7",
        "--json",
    ).json  # fmt: skip
    document = built.run("plan", "--as-of", "2025-10-10", "--json").json
    assert document["steps"] == []
    [line] = document["held"]
    assert (line["rows"], line["reason"]) == (8, f"hold {held['hold_id']}")
    assert built.run("purge", "--as-of", "2025-10-10", "--json").json["steps"] == []
    assert count(built, "raw.pixel_events", "local_date < '2024-09-01'") == 8
    built.run("hold", "release", str(held["hold_id"]))
    before = figures(built)
    report = built.run("purge", "--as-of", "2025-10-10", "--json").json
    assert [step["rows"] for step in report["steps"]] == [8]
    assert count(built, "raw.pixel_events", "local_date < '2024-09-01'") == 0
    assert figures(built) == before


def test_a_subject_under_hold_stays_alone_and_follows_later(built: Warehouse) -> None:
    held = built.run(
        "hold", "add", "--workspace", "shop", "--subject", history.PERSON, "--reason", "case 8",
        "--json",
    ).json  # fmt: skip
    due = "local_date < '2024-10-01'"
    before = figures(built)
    report = built.run("purge", "--as-of", "2025-11-10", "--json").json
    assert [(step["action"], step["rows"]) for step in report["steps"]] == [("delete_rows", 2)]
    assert count(built, "raw.pixel_events", due) == 4
    assert figures(built) == before
    built.run("hold", "release", str(held["hold_id"]))
    report = built.run("purge", "--as-of", "2025-11-10", "--json").json
    assert [(step["status"], step["rows"]) for step in report["steps"]] == [("done", 4)]
    assert count(built, "raw.pixel_events", due) == 0
    assert figures(built) == before
    assert built.run("audit", "--json").code == 0


def test_a_workspaces_own_window_goes_by_the_day(built: Warehouse) -> None:
    window = "13 months"
    refused = built.run("override", "set", "till", "pixel_events", "200d", check=False)
    assert refused.code == 3
    assert window
    # 250 days before 2025-07-18 is 2024-11-10: its ninth goes, its tenth stays.
    built.run("override", "set", "shop", "pixel_events", "250d")
    before = figures(built)
    report = built.run("purge", "--as-of", "2025-07-18", "--json").json
    assert [(step["month"], step["action"], step["rows"]) for step in report["steps"]] == [
        ("2024-10-01", "drop_partition", 6),
        ("2024-11-01", "delete_rows", 3),
    ]
    assert count(built, "raw.pixel_events", "local_date = '2024-11-10'") == 3
    assert count(built, "raw.pixel_events", "local_date < '2024-11-10'") == 0
    dead = "not active and database = 'raw' and table = 'pixel_events'"
    assert count(built, "system.parts", dead) == 0
    assert figures(built) == before
    built.run("override", "withdraw", "shop", "pixel_events")


class Killed(BaseException):
    """Stands for a SIGKILL at a boundary."""


def test_a_killed_purge_is_finished_by_the_next(built: Warehouse) -> None:
    before = figures(built)
    seen: set[str] = set()

    def die(line: str) -> None:
        if line not in seen:
            seen.add(line)
            raise Killed(line)

    for _ in range(60):
        try:
            report = retention.purge(
                built.settings, as_of=date(2026, 2, 10), clock=now, gate=gate, note=die
            )
            break
        except Killed:
            assert figures(built) == before
    else:
        pytest.fail(f"it never came to its end: {sorted(seen)}")
    assert len(seen) > 15
    assert report.problems == ()
    assert count(built, "raw.pixel_events", "local_date < '2025-01-01'") == 0
    done = "select count(*) as n from control.ledger where kind = '{}'"
    [begun] = postgres_rows(built, done.format("step_begun"))
    [ended] = postgres_rows(built, done.format("step_done"))
    assert begun == ended
    assert built.run("audit", "--json").code == 0


def test_a_clock_that_is_set_back_opens_nothing_and_harms_nothing(built: Warehouse) -> None:
    due = "local_date < '2025-02-01'"
    rows = count(built, "raw.pixel_events", due)
    assert rows > 0
    asked_at_the_gate: list[datetime] = []
    is_at_the_gate = False

    def at_the_gate(line: str) -> None:
        nonlocal is_at_the_gate
        is_at_the_gate |= line == "pixel_events: at the gate"

    def jumping() -> datetime:
        """Right until the gate has its time for the verdict, two hours behind from then on."""
        if not is_at_the_gate or not asked_at_the_gate:
            asked_at_the_gate.extend([now()] if is_at_the_gate else [])
            return now()
        return now() - timedelta(hours=2)

    with pytest.raises(retention.PurgeRefused, match="it holds for 24 hours"):
        retention.purge(
            built.settings, as_of=date(2026, 3, 10), clock=jumping, gate=gate, note=at_the_gate
        )
    assert count(built, "raw.pixel_events", due) == rows
    # A clock that is behind from the start is only a wrong date on the entries.
    report = retention.purge(
        built.settings,
        as_of=date(2026, 3, 10),
        clock=lambda: now() - timedelta(days=3),
        gate=gate,
    )
    assert {step.status for step in report.steps} == {"done"}
    assert count(built, "raw.pixel_events", due) == 0
    assert built.run("purge", "--as-of", "2026-03-10", "--json").json["steps"] == []
    assert built.run("audit", "--json").code == 0


def test_two_purges_at_once_take_each_step_once(built: Warehouse) -> None:
    before = [row for row in figures(built) if row.get("date_day", "9") >= "2024-08-01"]
    assert count(built, "raw.orders", "local_date < '2024-08-01'") > 0
    command = [str(Path(sys.executable).with_name("tidemark")), "purge", "--as-of", "2026-09-10"]
    environment = {**os.environ, **built.env}
    both = [
        subprocess.Popen([*command, "--json"], env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    reports = [json.loads(one.communicate(timeout=600)[0]) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    steps = [step for report in reports for step in report["steps"]]
    assert len(steps) == len({step["step_id"] for step in steps}) > 4
    assert {step["status"] for step in steps} == {"done"}
    assert count(built, "raw.orders", "local_date < '2024-08-01'") == 0
    assert [row for row in figures(built) if row.get("date_day", "9") >= "2024-08-01"] == before
    [done] = postgres_rows(
        built,
        "select count(*) as entries, count(distinct document ->> 'step_id') as steps"
        " from control.ledger where kind = 'step_done'",
    )
    assert done["entries"] == done["steps"]
    assert built.run("audit", "--json").code == 0


def test_orders_and_marts_go_and_cohorts_stay(built: Warehouse) -> None:
    before = figures(built)
    cohorts = [row for row in before if "cohort_month" in row]
    assert cohorts
    report = built.run("purge", "--as-of", "2026-10-10", "--json").json
    assert {step["status"] for step in report["steps"]} == {"done"}
    gone = {step["data_class"] for step in report["steps"]}
    assert gone >= {"orders", "payments", "ad_spend", "email_events", "summary_kpis_daily"}
    for table, day in (
        ("raw.orders", "local_date"), ("raw.order_refunds", "local_date"),
        ("raw.payments", "local_date"), ("raw.ad_spend", "local_date"),
        ("raw.email_events", "local_date"), ("intermediate.int_orders", "date_day"),
        ("intermediate.int_refunds", "date_day"), ("marts.summary_kpis_daily", "date_day"),
        ("marts.email_revenue_daily", "date_day"),
    ):  # fmt: skip
        assert count(built, table, f"{day} < '2024-09-01'") == 0, table
        assert count(built, table) > 0, table
    after = figures(built)
    assert [row for row in after if "cohort_month" in row] == cohorts
    kept = [row for row in before if row.get("date_day", "9") >= "2024-09-01"]
    assert [row for row in after if row.get("date_day", "9") >= "2024-09-01"] == kept
    assert built.run("audit", "--json").code == 0


def test_a_large_plan_waits_for_a_person(built: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    from tidemark import policy

    ladder = policy.read(built.settings)
    small = ladder.model_copy(
        update={"purge": ladder.purge.model_copy(update={"approval_rows": 1})}
    )
    monkeypatch.setattr(policy, "read", lambda _settings: small)
    as_of = date(2026, 11, 10)
    refused = built.run("purge", "--as-of", str(as_of), "--json", check=False)
    assert refused.code == 3
    assert "without a person's approval" in refused.json["error"]
    assert count(built, "raw.orders", "local_date < '2024-10-01'") > 0
    built.run("purge", "--as-of", str(as_of), "--approve", "--json")
    assert count(built, "raw.orders", "local_date < '2024-10-01'") == 0
    [row] = postgres_rows(
        built,
        "select document ->> 'approved_by' as who from control.ledger where kind = 'step_begun'"
        " order by entry_id desc limit 1",
    )
    assert row["who"]


def test_what_verifying_finds_is_one_document(built: Warehouse) -> None:
    # A purge sweeps what a build leaves, and not what a load does.
    orphan = "load.stage"
    clickhouse.execute(built.settings, f"create table {orphan} as raw.pixel_events")
    try:
        found = built.run("purge", "--as-of", "2026-11-10", "--json", check=False)
        assert found.code == found.json["exit_code"] == 1
        assert orphan in found.json["error"]
        assert found.json["error"] == "; ".join(found.json["problems"])
    finally:
        clickhouse.execute(built.settings, f"drop table {orphan} sync")
    assert built.run("purge", "--as-of", "2026-11-10", "--json").code == 0
