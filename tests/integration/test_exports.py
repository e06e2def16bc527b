"""Exports on real engines: to the row and the cent, of nobody else, gone when their time is over.

One history for all, of which a part was purged and brought back from the cold tier.
"""

import csv
import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet
import pytest
from upath import UPath

import history
from homes import Warehouse, new_home
from tidemark import (
    clickhouse,
    engines,
    exports,
    holds,
    keys,
    places,
    policy,
    postgres,
    requests,
    retention,
)
from tidemark.errors import Refused, TidemarkError

OLD = [date(2025, 8, 28), date(2025, 8, 29)]
STAYS = [date(2026, 9, 2), date(2026, 9, 3)]
PURGED = "2026-10-10"
TODAY = datetime.now(UTC).date()
LASTS = timedelta(days=30)

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def home() -> Iterator[Warehouse]:
    """Two shops: August 2025 has gone, of some classes it is back until November 2026."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        for name, currency, source in (("shop", "GBP", "orders"), ("till", "EUR", "payments")):
            home.run(
                "workspace", "add", name, "--timezone", "Europe/London", "--currency", currency,
                "--plan", "enterprise", "--revenue-source", source,
            )  # fmt: skip
        history.deliver(home, *OLD, *STAYS)
        # What one delivery brings to two workspaces has to come apart again.
        history.put(
            home, "pixel/till", STAYS[0], [history.pixel(STAYS[0], n, "$pageview") for n in (1, 2)]
        )
        history.put(home, "payments/till", STAYS[0], [_of_somebody_else()], "b")
        rates = [
            {"date": str(day), "base": "EUR", "quote": "GBP", "rate": 0.8371}
            for day in (OLD[0], STAYS[0])
        ]
        history.put(home, "fx_rates/_", OLD[0], rates[:1])
        history.put(home, "fx_rates/_", STAYS[0], rates[1:], "b")
        loaded = home.run("load", "--as-of", "2026-09-05", "--json").json
        assert (loaded["quarantined"], loaded["stored"]) == (0, loaded["lines"])
        home.run("build", "--as-of", "2026-09-05")
        for name in ("orders", "email_events"):
            home.run("override", "set", "shop", name, "12 months")
        home.run("override", "set", "till", "payments", "12 months")
        home.run("purge", "--as-of", PURGED)
        for name, workspace in (("pixel_events", "shop"), ("payments", "till")):
            home.run(
                "recall", name, "--workspace", workspace, "--month", "2025-08", "--as-of", PURGED
            )
        yield home


def _of_somebody_else() -> dict[str, Any]:
    charge = history.charge(STAYS[0], 9, refunded=STAYS[1])
    return charge | {
        "billing_details": {"email": "bob@example.org"},
        "metadata": {"visitor_id": "visitor-of-bob"},
    }


@pytest.fixture(autouse=True)
def _nothing_left(home: Warehouse) -> None:
    """Each test sees requests, files and holds of its own alone."""
    with postgres.connect(home.settings) as connection:
        connection.execute("update control.requests set status = 'done', expires_on = null")
        connection.execute("update control.holds set released_at = now()")
    for folder in Path(home.settings.exports).glob("*"):
        shutil.rmtree(folder)


def export(home: Warehouse, workspace: str, *more: str, as_of: str = PURGED) -> Any:
    """The document of an export of a workspace, or of what else is asked for."""
    return home.run("export", "--workspace", workspace, "--as-of", as_of, *more, "--json").json


def of_person(home: Warehouse, workspace: str, subject: str, *more: str) -> Any:
    return export(home, workspace, "--subject", subject, *more)


def manifest(document: Any) -> Any:
    return json.loads((Path(document["folder"]) / exports.MANIFEST).read_text())


def read(document: Any, table: str) -> Rows:
    """The rows of a file, as a program other than ClickHouse reads them."""
    (own,) = (file for file in document["files"] if file["table"] == table)
    path = Path(document["folder"]) / own["file"]
    if path.suffix == ".parquet":
        rows: Rows = pyarrow.parquet.read_table(path).to_pylist()
    elif path.suffix == ".jsonl":
        rows = [json.loads(line, parse_float=Decimal) for line in path.open(encoding="utf-8")]
    else:
        rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))
    assert len(rows) == own["rows"] > 0
    return rows


def tables(document: Any) -> set[str]:
    return {own["table"] for own in document["files"]}


def rows(home: Warehouse, query: str) -> Rows:
    return clickhouse.rows(home.settings, query)


def ledger(home: Warehouse, *kinds: str) -> Rows:
    with postgres.connect(home.settings) as connection:
        return connection.execute(
            "select kind, document from control.ledger where kind = any(%s) order by entry_id",
            [list(kinds)],
        ).fetchall()


def expire(home: Warehouse, as_of: date) -> list[tuple[str, str]]:
    """What becomes of the exports on a day."""
    found = retention.expire(home.settings, as_of=as_of, clock=lambda: _noon(as_of))
    return [(own.action, own.status) for own in found if own.data_class == "exports"]


def _noon(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC)


# -- what is in it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workspace", ["shop", "till"])
@pytest.mark.parametrize("file_format", ["parquet", "jsonl", "csv"])
def test_a_workspace_leaves_to_the_row_and_the_cent(
    home: Warehouse, workspace: str, file_format: str
) -> None:
    document = export(home, workspace, "--format", file_format)
    known = {
        row["name"]: row
        for row in rows(
            home,
            "select concat(database, '.', table) as name,"
            " groupArrayIf(columns.name, startsWith(type, 'Decimal')) as money"
            " from system.columns where database in ('raw', 'anonymised', 'marts', 'recalled')"
            " group by database, table",
        )
    }
    standing = {
        name: found
        for name, row in known.items()
        for found in rows(
            home,
            f"select count() as rows, {_sums(row['money'])} as sums from {name}"
            f" where workspace_id = '{workspace}' having rows > 0",
        )
    }
    assert tables(document) == standing.keys()
    expected = {
        "shop": {"raw.pixel_events", "raw.orders", "raw.order_refunds", "recalled.pixel_events"},
        "till": {"raw.payments", "raw.payment_refunds", "recalled.payments", "anonymised.payments"},
    }
    assert expected[workspace] | {"marts.summary_kpis_daily", "marts.kpis_daily"} <= standing.keys()
    for name, found in standing.items():
        own = read(document, name)
        assert {row["workspace_id"] for row in own} == {workspace}
        sums = [
            sum(
                (Decimal(str(row[column])) for row in own if row[column] not in (None, "")),
                Decimal(0),
            )
            for column in known[name]["money"]
        ]
        assert (len(own), sums) == (found["rows"], [Decimal(own) for own in found["sums"]]), name
    assert {"raw.fx_rates"} <= set(manifest(document)["without_rows"])


def _sums(columns: list[str]) -> str:
    return f"[{', '.join(f'toString(sum({column}))' for column in columns)}]::Array(String)"


def test_the_manifest_says_what_each_file_is(home: Warehouse) -> None:
    document = export(home, "shop")
    own = manifest(document)
    assert (own["code"], own["workspace_id"], own["as_of"]) == (document["code"], "shop", PURGED)
    assert own["format"] == document["file_format"] == "parquet"
    assert own["expires_on"] == document["expires_on"] == str(TODAY + LASTS)
    folder = Path(document["folder"])
    assert {path.name for path in folder.iterdir()} == {
        exports.MANIFEST,
        *(file["file"] for file in own["files"]),
    }
    for file in own["files"]:
        path = folder / file["file"]
        assert (path.stat().st_size, places.sha256(path)) == (file["bytes"], file["sha256"])
        columns = [
            {"name": row["name"], "type": row["type"]}
            for row in rows(
                home,
                "select name, type from system.columns where concat(database, '.', table) ="
                f" '{file['table']}' order by position",
            )
        ]
        assert file["columns"] == columns
        parquet = pyarrow.parquet.ParquetFile(path)
        assert parquet.metadata.row_group(0).column(0).compression == "ZSTD"
        assert [field.name for field in parquet.schema_arrow] == [c["name"] for c in columns]
    assert own["rows"] == sum(file["rows"] for file in own["files"]) == document["outcome"]["rows"]
    assert document["outcome"]["manifest_sha256"] == places.sha256(folder / exports.MANIFEST)


def test_only_its_owner_can_read_it(home: Warehouse) -> None:
    folder = Path(export(home, "shop")["folder"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    query = f"select * from file('{folder}/raw.orders.parquet')"
    assert home.run("sql", query, check=False).code == 1


def test_a_recall_that_is_over_counts_as_none(home: Warehouse) -> None:
    (row,) = rows(home, "select min(toDate(expires_at)) as day from recalled.pixel_events")
    last = date.fromisoformat(row["day"]) - timedelta(days=1)
    assert "recalled.pixel_events" in tables(export(home, "shop", as_of=str(last)))
    assert "recalled.pixel_events" not in tables(export(home, "shop", as_of=row["day"]))


#: What a format has signs for, and what a sheet or a reader of lines may trip over.
ODD = ["a,b;c\t", "q\"uo'te", "two\nlines\r\n", "\\N", "NULL", " ", "=1+1", "Größe 💶", "\x00"]


@pytest.mark.parametrize("file_format", ["parquet", "jsonl", "csv"])
def test_values_come_through_as_they_are(home: Warehouse, file_format: str) -> None:
    home.run(
        "workspace", "add", "odd", "--timezone", "UTC", "--currency", "USD", "--plan", "starter"
    )
    table = "raw.ad_spend"
    clickhouse.execute(home.settings, f"alter table {table} delete where workspace_id = 'odd'")
    spend = [
        {
            "workspace_id": "odd", "campaign": value, "ad_id": str(number),
            "local_date": "2026-09-02", "spend": f"0.{number}1", "impressions": 2**53 + number,
        }
        for number, value in enumerate(ODD)
    ]  # fmt: skip
    clickhouse.insert_rows(home.settings, table, spend)
    document = export(home, "odd", "--format", file_format)
    found = {row["ad_id"]: row for row in read(document, table)}
    assert {ad: row["campaign"] for ad, row in found.items()} == {
        own["ad_id"]: own["campaign"] for own in spend
    }
    assert {
        ad: (Decimal(str(row["spend"])), int(row["impressions"])) for ad, row in found.items()
    } == {own["ad_id"]: (Decimal(str(own["spend"])), own["impressions"]) for own in spend}
    assert {str(row["delivery_date"]) for row in found.values()} == {"1970-01-01"}


def test_what_the_policy_does_not_know_is_not_left_out_in_silence(home: Warehouse) -> None:
    home.run("sql", "--write", "alter table raw.orders add column nickname String")
    try:
        refused = home.run("export", "--workspace", "shop", check=False)
        assert refused.code == 1
        assert "raw.orders.nickname" in refused.stderr
    finally:
        home.run("sql", "--write", "alter table raw.orders drop column nickname")


# -- of a person -----------------------------------------------------------------------------------


def _hashes(home: Warehouse, workspace: str, subject: str) -> set[str]:
    with postgres.connect(home.settings) as connection:
        return set(
            holds.subject_hashes(
                connection,
                keys.Keyring.from_settings(home.settings),
                policy.read(home.settings),
                workspace,
                subject,
            )
        )


def test_a_person_gets_their_rows_and_nobody_elses(home: Warehouse) -> None:
    document = of_person(home, "till", f" {history.PERSON.upper()} ")
    assert document["file_format"] == "jsonl"
    own = _hashes(home, "till", history.PERSON)
    assert tables(document) == {
        "raw.pixel_events", "raw.payments", "recalled.payments", "recalled.payment_refunds",
        "anonymised.payments", "anonymised.order_refunds", "raw.payment_refunds",
    }  # fmt: skip
    for table in tables(document) - {"raw.payment_refunds", "recalled.payment_refunds"}:
        found = read(document, table)
        assert {row["customer_key"] for row in found} <= own
        assert {row["workspace_id"] for row in found} == {"till"}
    # Bob bought and was refunded in the same shop, on the same days.
    everybody = rows(home, "select payment_id, customer_key from raw.payments")
    expected = {row["payment_id"] for row in everybody if row["customer_key"] in own}
    assert 0 < len(expected) < len(everybody)
    assert {row["payment_id"] for row in read(document, "raw.payments")} == expected
    refunds = {
        row["refund_id"]: row["payment_id"]
        for row in rows(home, "select refund_id, payment_id from raw.payment_refunds")
    }
    through_links = {row["refund_id"] for row in read(document, "raw.payment_refunds")}
    assert through_links == {own for own, of in refunds.items() if "_9" not in of}
    assert through_links != refunds.keys()


def test_refunds_of_an_order_that_is_gone_are_found_through_its_facts(home: Warehouse) -> None:
    document = of_person(home, "shop", history.PERSON, "--format", "csv")
    assert {"anonymised.orders", "raw.orders", "raw.order_refunds"} <= tables(document)
    orders = {row["order_key"] for row in read(document, "anonymised.orders")}
    kept = {row["order_key"] for row in read(document, "raw.orders")}
    assert orders
    assert not orders & kept
    refunds = {row["order_key"] for row in read(document, "raw.order_refunds")}
    assert refunds <= orders | kept
    guest = of_person(home, "shop", f"guest-{STAYS[0]}@example.org")
    assert tables(guest) == {"raw.orders"}
    assert [row["total"] for row in read(guest, "raw.orders")] == [40]


def test_a_visitor_is_one_of_the_pixel(home: Warehouse) -> None:
    document = of_person(home, "shop", f"visitor:{history.VISITOR}")
    assert tables(document) == {"raw.pixel_events"}
    found = read(document, "raw.pixel_events")
    assert {row["anonymous_id"] for row in found} == {history.VISITOR}
    (all_rows,) = rows(
        home,
        "select count() as n from raw.pixel_events where workspace_id = 'shop'"
        f" and anonymous_id = '{history.VISITOR}'",
    )
    assert len(found) == all_rows["n"] > 0


def test_a_person_of_whom_there_is_nothing_gets_a_manifest_that_says_so(home: Warehouse) -> None:
    document = of_person(home, "shop", "nobody@example.org")
    assert (document["status"], document["files"]) == ("done", [])
    assert manifest(document)["rows"] == 0


def test_nobody_is_named_anywhere(home: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{history.PERSON}\n"))
    hashes = _hashes(home, "shop", history.PERSON)
    outcome = home.run("export", "--workspace", "shop", "--subject", "-", "--later", "--json")
    code = outcome.json["code"]
    with postgres.connect(home.settings) as connection:
        assert set(requests.subject_hashes(connection, code)) == hashes
    done = home.run("export", "--workspace", "shop", "--subject", history.PERSON, "--json")
    assert done.json["code"] == code
    with postgres.connect(home.settings) as connection:
        # From now on not even a hash says who it was.
        assert requests.subject_hashes(connection, code) == ()
        entries = connection.execute("select document::text from control.ledger").fetchall()
        table = connection.execute("select requests::text as row from control.requests").fetchall()
    said = [
        outcome.stdout, outcome.stderr, done.stdout, done.stderr,
        home.run("request", "status", code).stdout,
        home.run("request", "list", "--all", "--json").stdout,
        json.dumps(manifest(done.json)),
        *(row["document"] for row in entries),
        *(row["row"] for row in table if code in row["row"]),
        *(path.read_text(errors="replace") for path in home.settings.logs.rglob("*")
          if path.is_file()),
        *(str(path) for path in Path(home.settings.exports).rglob("*")),
    ]  # fmt: skip
    assert len(said) > 20
    text = "\n".join(said)
    assert history.PERSON not in text
    assert not [own for own in hashes if own in text]
    for path in Path(done.json["folder"]).iterdir():
        assert history.PERSON.encode() not in path.read_bytes()


# -- requests --------------------------------------------------------------------------------------


def test_the_same_request_is_one_until_it_is_done(home: Warehouse) -> None:
    first = export(home, "shop", "--later")
    again = export(home, "shop", "--later")
    other = export(home, "shop", "--format", "csv", "--later")
    person = of_person(home, "shop", history.PERSON, "--later")
    assert (first["created"], again["created"]) == (True, False)
    assert first["code"] == again["code"]
    assert len({first["code"], other["code"], person["code"]}) == 3
    assert (first["status"], first["due_at"][:10]) == ("received", str(TODAY + LASTS))
    assert not (Path(home.settings.exports) / first["code"]).exists()
    waiting = {row["code"]: row for row in home.run("request", "list", "--json").json}
    assert waiting.keys() == {first["code"], other["code"], person["code"]}
    assert waiting[person["code"]]["is_of_subject"] is True

    done = export(home, "shop")
    assert (done["code"], done["status"], done["created"]) == (first["code"], "done", False)
    assert home.run("request", "status", first["code"], "--json").json["files"] == done["files"]
    assert "done" in home.run("request", "status", first["code"]).stdout
    listed = [row["code"] for row in home.run("request", "list", "--json").json]
    assert sorted(listed) == sorted([other["code"], person["code"]])
    # Carried out twice it is what it was; sent anew it is another.
    settled = exports.carry_out(
        home.settings, first["code"], as_of=TODAY, clock=lambda: datetime.now(UTC)
    )
    assert settled.finished_at is not None
    assert settled.finished_at.isoformat() == done["finished_at"]
    assert export(home, "shop", "--later")["code"] != first["code"]
    kinds = [
        row["kind"]
        for row in ledger(home, "request_received", "request_running", "request_done")
        if row["document"]["code"] == first["code"]
    ]
    assert kinds == ["request_received", "request_running", "request_done"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("export", "--workspace", "nowhere"), 2, "no workspace nowhere"),
        (("export", "--workspace", "shop", "--subject", " "), 2, "the subject is empty"),
        (("export", "--workspace", "shop", "--subject", "visitor: "), 2, "the subject is empty"),
        (("export", "--workspace", "shop", "--format", "xls"), 2, "xls"),
        (("export", "--workspace", "shop", "--as-of", str(TODAY + LASTS)), 3, "future"),
        (("request", "status", "NOSUCHCODE22"), 2, "no request 'NOSUCHCODE22'"),
    ],
)
def test_what_makes_no_sense_is_said(
    home: Warehouse, arguments: tuple[str, ...], code: int, said: str
) -> None:
    outcome = home.run(*arguments, check=False)
    assert outcome.code == code
    assert said in outcome.stderr


def test_an_erasure_is_no_export(home: Warehouse) -> None:
    request, _ = requests.receive(
        home.settings,
        workspace_id="shop",
        kind="erase",
        subject=history.PERSON,
        now=datetime.now(UTC),
    )
    for code in (request.code, "NOSUCHCODE22"):
        with pytest.raises(TidemarkError, match=code) as found:
            exports.carry_out(home.settings, code, as_of=TODAY, clock=lambda: datetime.now(UTC))
        assert found.value.exit_code == 2


# -- kills and failures ----------------------------------------------------------------------------


CHILD = """
import os, signal, sys
from datetime import UTC, date, datetime
from tidemark import exports, places
from tidemark.config import Settings

code, name, nth = sys.argv[1:]
real, calls = getattr(places.Place, name), 0

def killed(*arguments):
    global calls
    calls += 1
    if calls == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

setattr(places.Place, name, killed)
now = datetime.now(UTC)
exports.carry_out(Settings.from_env(os.environ), code, as_of=now.date(), clock=lambda: now)
"""


def _killed(home: Warehouse, code: str, name: str, nth: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, code, name, str(nth)],
        env=dict(os.environ) | dict(home.env),
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


@pytest.mark.parametrize(("name", "nth"), [("put", 1), ("put", 3), ("fetched", 2), ("put_json", 1)])
def test_what_a_killed_run_left_is_replaced(home: Warehouse, name: str, nth: int) -> None:
    code = export(home, "till", "--later")["code"]
    _killed(home, code, name, nth)
    folder = Path(home.settings.exports) / code
    assert any(folder.iterdir())
    assert not (folder / exports.MANIFEST).exists()
    assert home.run("request", "status", code, "--json").json["status"] == "running"
    (folder / "raw.orders.parquet").write_bytes(b"of another time")
    document = export(home, "till", as_of=str(TODAY))
    assert (document["code"], document["created"]) == (code, False)
    calm = export(home, "till", as_of=str(TODAY))
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in Path(calm["folder"]).iterdir()
    }
    assert manifest(document)["rows"] == manifest(calm)["rows"] > 0


def test_a_folder_that_cannot_be_written_fails_the_request_with_its_reason(home: Warehouse) -> None:
    away = Path(home.settings.exports)
    kept = away.rename(away.with_name("kept"))
    try:
        away.write_text("in the way")
        failed = home.run("export", "--workspace", "shop", "--json", check=False)
        assert failed.code == 1
        assert "cannot be written to" in failed.stderr
        (request,) = home.run("request", "list", "--json").json
        assert (request["status"], request["expires_on"]) == ("failed", None)
        assert "cannot be written to" in request["reason"]
    finally:
        away.unlink(missing_ok=True)
        kept.rename(away)
    document = export(home, "shop")
    assert (document["code"], document["status"]) == (request["code"], "done")
    assert document["reason"] is None
    kinds = [
        row["kind"]
        for row in ledger(home, "request_running", "request_failed", "request_done")
        if row["document"]["code"] == request["code"]
    ]
    assert kinds == ["request_running", "request_failed", "request_running", "request_done"]


def test_an_engine_that_is_gone_fails_the_request_and_the_next_run_finishes_it(
    home: Warehouse,
) -> None:
    (pid,) = (own.pid for own in engines.status(home.settings) if own.name == "clickhouse")
    process = psutil.Process(pid)
    process.kill()
    process.wait(10)
    try:
        failed = home.run("export", "--workspace", "shop", check=False)
        assert failed.code == 1
        (request,) = home.run("request", "list", "--json").json
        assert request["status"] == "failed"
        assert "a store does not answer" in request["reason"]
    finally:
        home.run("up", "--no-airflow")
    document = export(home, "shop")
    assert (document["code"], document["status"]) == (request["code"], "done")


def _less(path: Path) -> None:
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.slice(1), path)


def _other_cents(path: Path) -> None:
    table = pyarrow.parquet.read_table(path)
    at = table.schema.get_field_index("amount")
    amounts = table.column(at).to_pylist()
    amounts[0] += Decimal("0.01")
    column = pyarrow.array(amounts, table.schema.field(at).type)
    pyarrow.parquet.write_table(table.set_column(at, table.schema.field(at), column), path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [_less, _other_cents, _cut])
def test_a_file_that_does_not_read_back_is_no_export(
    home: Warehouse, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    real = places.Place.put

    def put(self: places.Place, file: Path, path: str) -> None:
        if path.endswith("raw.payments.parquet"):
            damage(file)
        real(self, file, path)

    monkeypatch.setattr(places.Place, "put", put)
    before = set(Path(home.settings.exports).iterdir())
    failed = home.run("export", "--workspace", "till", check=False)
    assert failed.code == 1
    (request,) = home.run("request", "list", "--json").json
    assert request["status"] == "failed"
    if damage is not _cut:
        assert "raw.payments.parquet does not read back as raw.payments stands" in request["reason"]
    assert set(Path(home.settings.exports).iterdir()) == before


def test_exports_may_lie_in_an_object_store(home: Warehouse) -> None:
    remote = replace(home.settings, exports="memory://tidemark-exports")
    engines.down(home.settings)
    engines.up(remote)
    try:
        waiting, _ = exports.receive(
            remote, workspace_id="shop", subject=None, file_format=None, now=datetime.now(UTC)
        )
        done = exports.carry_out(remote, waiting.code, as_of=TODAY, clock=lambda: datetime.now(UTC))
        assert done.status == "done"
        assert exports.location(remote, done.code) == f"memory://tidemark-exports/{done.code}"
        own = exports.manifest(remote, done.code)
        assert own is not None
        lying = {path.name: path for path in UPath(exports.location(remote, done.code)).iterdir()}
        assert lying.keys() == {exports.MANIFEST, *(file["file"] for file in own["files"])}
        for file in own["files"]:
            assert hashlib.sha256(lying[file["file"]].read_bytes()).hexdigest() == file["sha256"]
        assert not list(remote.exports_folder.iterdir())
        assert not (Path(home.settings.exports) / done.code).exists()

        end = TODAY + LASTS
        steps = retention.expire(remote, as_of=end, clock=lambda: _noon(end))
        assert [own.status for own in steps if own.data_class == "exports"] == ["done"]
        assert not UPath(exports.location(remote, done.code)).exists()
    finally:
        engines.down(remote)
        engines.up(home.settings)


def test_an_export_for_which_nothing_speaks_is_named(home: Warehouse) -> None:
    if importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed, and would ask the network")
    away = replace(home, env={**home.env, "TIDEMARK_EXPORTS": "s3://bucket/exports"})
    outcome = away.run("export", "--workspace", "shop", check=False)
    assert outcome.code == 2
    assert "TIDEMARK_EXPORTS is s3://bucket/exports" in outcome.stderr
    (request,) = home.run("request", "list", "--json").json
    assert request["status"] == "received"


# -- the end ---------------------------------------------------------------------------------------


def test_an_export_goes_after_thirty_days_and_the_ledger_says_so(home: Warehouse) -> None:
    document = export(home, "shop")
    folder = Path(document["folder"])
    assert expire(home, TODAY + LASTS - timedelta(days=1)) == []
    assert folder.is_dir()
    assert expire(home, TODAY + LASTS) == [("delete_export", "done")]
    assert not folder.exists()
    assert expire(home, TODAY + LASTS) == []
    begun, done = (ledger(home, kind)[-1]["document"] for kind in ("expiry_begun", "expiry_done"))
    assert (begun["data_class"], begun["number"]) == (done["data_class"], done["number"])
    assert begun["sha256"] == document["outcome"]["manifest_sha256"]
    assert (begun["workspace_id"], begun["rows"]) == ("shop", document["outcome"]["rows"])
    found = home.run("request", "status", document["code"], "--json").json
    assert found["status"] == "done"
    assert found["deleted_at"] is not None
    assert "folder" not in found
    assert "deleted" in home.run("request", "status", document["code"]).stdout
    assert home.run("audit").code == 0


def test_the_audit_finds_an_export_that_went_without_an_entry(home: Warehouse) -> None:
    document = export(home, "shop")
    mark = "update control.requests set deleted_at = {} where code = %s"
    with postgres.connect(home.settings) as connection:
        connection.execute(mark.format("now()"), [document["code"]])
    found = home.run("audit", check=False)
    assert found.code == 1
    assert "was deleted, which is in no entry" in found.stdout + found.stderr
    with postgres.connect(home.settings) as connection:
        connection.execute(mark.format("null"), [document["code"]])
    assert home.run("audit").code == 0


def test_the_audit_finds_an_export_that_no_request_knows(home: Warehouse) -> None:
    document = export(home, "shop")
    folder = Path(home.settings.exports) / document["code"]
    stray = folder.with_name("23456789ABCD")
    shutil.copytree(folder, stray)
    # What has not the name of one is somebody else's.
    folder.with_name("lost+found").mkdir()
    try:
        found = home.run("audit", "--json", check=False)
        assert found.code == 1
        assert [own["problem"] for own in found.json["findings"]] == [
            "export 23456789ABCD is in no record: nobody deletes it"
        ]
    finally:
        shutil.rmtree(stray)
        folder.with_name("lost+found").rmdir()
    assert home.run("audit").code == 0


def test_what_a_killed_run_left_half_written_goes_too(home: Warehouse) -> None:
    code = export(home, "till", "--later")["code"]
    _killed(home, code, "put", 2)
    assert expire(home, TODAY + LASTS) == [("delete_export", "done")]
    assert not (Path(home.settings.exports) / code).exists()
    # The request waits on, and may be carried out yet.
    assert export(home, "till")["code"] == code
    assert expire(home, TODAY + LASTS - timedelta(days=1)) == []


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_expiry_that_was_interrupted_is_finished(home: Warehouse, nth: int) -> None:
    folder = Path(export(home, "shop")["folder"])
    end = TODAY + LASTS
    notes: list[str] = []

    def stop(line: str) -> None:
        notes.append(line)
        if len(notes) == nth:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retention.expire(home.settings, as_of=end, clock=lambda: _noon(end), note=stop)
    begun = len(ledger(home, "expiry_begun"))
    again = expire(home, end)
    # At the last boundary it is in the ledger already.
    assert again == ([("delete_export", "resumed")] if nth < 3 else [])
    assert len(ledger(home, "expiry_begun")) == len(ledger(home, "expiry_done")) == begun
    assert not folder.exists()


def test_a_hold_on_the_workspace_keeps_an_export_and_one_on_a_person_does_not(
    home: Warehouse,
) -> None:
    folder = Path(export(home, "shop")["folder"])
    end = TODAY + LASTS
    held = ("hold", "add", "--workspace", "shop", "--reason", "case 12", "--json")
    home.run(*held, "--subject", history.PERSON)
    home.run(*held, "--class", "orders")
    hold = home.run(*held).json["hold_id"]
    assert expire(home, end) == [("delete_export", "held")]
    assert folder.is_dir()
    home.run("hold", "release", str(hold))
    assert expire(home, end) == [("delete_export", "done")]
    assert not folder.exists()


def test_a_hold_that_came_after_it_was_due_keeps_it(home: Warehouse) -> None:
    folder = Path(export(home, "shop")["folder"])
    end = TODAY + LASTS
    with postgres.connect(home.settings, autocommit=True) as connection:
        (due,) = exports.due(connection, policy.read(home.settings), end)
        home.run("hold", "add", "--workspace", "shop", "--reason", "case 12")
        with pytest.raises(Refused, match="came on hold"):
            exports.delete(home.settings, connection, due, _noon(end))
    assert folder.is_dir()


def test_the_nightly_purge_takes_exports(home: Warehouse) -> None:
    folder = Path(export(home, "shop")["folder"])
    with postgres.connect(home.settings) as connection:
        connection.execute(
            "update control.requests set expires_on = current_date where expires_on is not null"
        )
    planned = home.run("plan", "--json").json["expiring"]
    assert [own["data_class"] for own in planned if own["data_class"] == "exports"] == ["exports"]
    assert "exports of shop" in home.run("plan").stdout
    away = Path(home.settings.exports).rename(home.settings.home / "elsewhere")
    outcome = home.run("purge", check=False)
    assert "is not there: is its disk" in outcome.stderr + outcome.stdout
    assert outcome.code != 0
    away.rename(home.settings.exports)
    report = home.run("purge", "--json", check=False).json
    steps = [own for own in report["steps"] if own["data_class"] == "exports"]
    # It was begun: the next one ends it.
    assert [(own["action"], own["status"]) for own in steps] == [("delete_export", "resumed")]
    assert not folder.exists()
    # A copy is no row that was destroyed.
    assert report["rows"] == sum(
        own["rows"]
        for own in report["steps"]
        if own["action"].startswith(("drop_part", "delete_r"))
    )
