"""Bad input: each bad line ends in quarantine or its file in a clear message, the rest loads."""

import gzip
import hashlib
import hmac
import json
import random
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homes import Warehouse
from landings import DAY, Line, Tenant, add, changed, fixture, packed, tenant
from tidemark import keys, landing, load, policy, postgres

EVENT = fixture("pixel")[4]
ORDER = changed(fixture("shopify_orders")[0], refunds=[])
SECRET = "canary.person@example.org"

BAD: list[tuple[str, Line, str]] = [
    ("pixel", b"", "invalid_json"),
    ("pixel", b"   ", "invalid_json"),
    ("pixel", f'{{"email": "{SECRET}"', "invalid_json"),
    ("pixel", b"\xff\xfe\x00", "invalid_json"),
    ("pixel", b"\0\0\0\0", "invalid_json"),
    ("pixel", "NaN", "invalid_json"),
    # Half of a pair of surrogates stands for no character.
    ("pixel", '{"event_id": "half", "language": "\\ud83d"}', "invalid_json"),
    ("pixel", "null", "not_an_object"),
    ("pixel", "[]", "not_an_object"),
    ("pixel", f'"{SECRET}"', "not_an_object"),
    ("pixel", "17", "not_an_object"),
    ("pixel", "{}", "missing_field:event_id"),
    ("pixel", changed(EVENT, event_id=None), "missing_field:event_id"),
    ("pixel", changed(EVENT, event_id=""), "missing_field:event_id"),
    ("pixel", changed(EVENT, event_id={"a": SECRET}), "bad_value:event_id"),
    ("pixel", changed(EVENT, event_id=[1]), "bad_value:event_id"),
    ("pixel", changed(EVENT, event_name=...), "missing_field:event_name"),
    ("pixel", changed(EVENT, event_name={}), "bad_value:event_name"),
    ("pixel", changed(EVENT, anonymous_id=...), "missing_field:anonymous_id"),
    ("pixel", changed(EVENT, timestamp=...), "missing_field:timestamp"),
    ("pixel", changed(EVENT, timestamp="yesterday"), "bad_value:timestamp"),
    ("pixel", changed(EVENT, timestamp=True), "bad_value:timestamp"),
    # The engine would take each for a time of this year.
    *(
        ("pixel", changed(EVENT, timestamp=text), "bad_value:timestamp")
        for text in ("12", "10:00", "2026", "2026-11", "Nov", "5", " 5.00 ", 12, "20 Nov")
    ),
    ("pixel", changed(EVENT, timestamp={}), "bad_value:timestamp"),
    ("pixel", changed(EVENT, timestamp="2026-13-45T99:00:00Z"), "bad_value:timestamp"),
    ("pixel", changed(EVENT, timestamp="1970-01-01T00:00:00Z"), "bad_timestamp"),
    ("pixel", changed(EVENT, timestamp="9999-12-31T00:00:00Z"), "bad_timestamp"),
    ("pixel", changed(EVENT, timestamp="2200-01-01T00:00:00Z"), "bad_timestamp"),
    ("pixel", changed(EVENT, timestamp="1925-01-01T00:00:00Z"), "bad_timestamp"),
    ("pixel", changed(EVENT, properties="text"), "bad_value:properties"),
    ("pixel", changed(EVENT, properties=[1]), "bad_value:properties"),
    ("pixel", changed(EVENT, url={"href": "x"}), "bad_value:url"),
    ("shopify_orders", changed(ORDER, id=None), "missing_field:id"),
    ("shopify_orders", changed(ORDER, id={}), "bad_value:id"),
    ("shopify_orders", changed(ORDER, created_at="soon"), "bad_value:created_at"),
    ("shopify_orders", changed(ORDER, updated_at="soon"), "bad_value:updated_at"),
    ("shopify_orders", changed(ORDER, currency=...), "missing_field:currency"),
    ("shopify_orders", changed(ORDER, currency="XQX"), "bad_value:currency"),
    ("shopify_orders", changed(ORDER, total_price=...), "missing_field:total_price"),
    ("shopify_orders", changed(ORDER, total_price="ten"), "bad_value:total_price"),
    ("shopify_orders", changed(ORDER, total_discounts="ten"), "bad_value:total_discounts"),
    ("shopify_orders", changed(ORDER, total_discounts={}), "bad_value:total_discounts"),
    ("shopify_orders", changed(ORDER, total_tax="1" + "0" * 400), "bad_value:total_tax"),
    ("shopify_orders", changed(ORDER, line_items=[{"price": "x", "quantity": 1}]),
     "bad_value:line_items"),
    ("shopify_orders", changed(ORDER, line_items=[{"price": "1", "quantity": None}]),
     "bad_value:line_items"),
    ("shopify_orders", changed(ORDER, line_items=[{"price": "9" * 12, "quantity": 9999}]),
     "bad_value:line_items"),
    # A list that can't be read is not an empty one.
    ("shopify_orders", changed(ORDER, line_items="none"), "bad_value:line_items"),
    ("shopify_orders", changed(ORDER, line_items=["mug"]), "bad_value:line_items"),
    ("shopify_orders", changed(ORDER, refunds={}), "bad_value:refunds"),
    ("shopify_orders", changed(ORDER, refunds=["one"]), "bad_value:refunds"),
    ("woocommerce_orders", changed(fixture("woocommerce_orders")[0], refunds="one"),
     "bad_value:refunds"),
    ("payments", changed(fixture("payments")[0], refunds="one"), "bad_value:refunds"),
    ("payments", changed(fixture("payments")[0], refunds={"data": "one"}), "bad_value:refunds"),
    ("shopify_orders", changed(ORDER, refunds=[{"id": 1}]), "bad_value:refunds"),
    ("shopify_orders", changed(ORDER, refunds=[
        {"id": 1, "created_at": "2026-11-19T10:00:00Z",
         "transactions": [{"kind": "refund", "status": "success", "amount": "x"}]}]),
     "bad_value:refunds"),
    *(
        ("shopify_orders", changed(ORDER, refunds=[
            {"id": 1, "created_at": "2026-11-19T10:00:00Z", "transactions": [
                {"kind": "refund", "status": "success", "amount": "1.00", "currency": currency}]}]),
         "bad_value:refunds")
        for currency in ("\0", SECRET, "1E308", "XQX", "")
    ),
    # No parser reads a number that large.
    ("shopify_orders", json.dumps(ORDER).replace('"9.65"', "1e400"), "invalid_json"),
    ("woocommerce_orders", changed(fixture("woocommerce_orders")[0], total="lots"),
     "bad_value:total"),
    ("woocommerce_orders", changed(fixture("woocommerce_orders")[0], status=None),
     "missing_field:status"),
    ("payments", changed(fixture("payments")[0], amount="19.99"), "bad_value:amount"),
    ("payments", changed(fixture("payments")[0], amount=10**400), "bad_value:amount"),
    ("payments", changed(fixture("payments")[0], amount=-(2**63)), "bad_value:amount"),
    ("payments", changed(fixture("payments")[0], amount=2**62), "bad_value:amount"),
    ("payments", changed(fixture("payments")[0], refunds={"data": [
        {"id": "re", "amount": 1, "created": 10**15, "status": "succeeded"}]}),
     "bad_value:refunds"),
    ("payments", changed(fixture("payments")[0], created=...), "missing_field:created"),
    ("payments", changed(fixture("payments")[0], created=-5), "bad_value:created"),
    ("payments", changed(fixture("payments")[0], created=" 5.00 "), "bad_value:created"),
    ("meta_ads", changed(fixture("meta_ads")[0], spend=None), "missing_field:spend"),
    ("meta_ads", changed(fixture("meta_ads")[0], spend={"a": 1}), "bad_value:spend"),
    ("meta_ads", changed(fixture("meta_ads")[0], clicks=-1), "bad_value:clicks"),
    ("meta_ads", changed(fixture("meta_ads")[0], clicks="1.5"), "bad_value:clicks"),
    ("meta_ads", changed(fixture("meta_ads")[0], spend="1e40"), "bad_value:spend"),
    ("meta_ads", changed(fixture("meta_ads")[0], spend="99999999999999999999"), "bad_value:spend"),
    ("klaviyo_events", changed(fixture("klaviyo_events")[0], id=[]), "bad_value:id"),
    ("klaviyo_events", changed(fixture("klaviyo_events")[0], relationships={}),
     "missing_field:metric"),
]  # fmt: skip
DEEP = json.loads('{"a":' * 90 + "1" + "}" * 90)
# Strange, and yet good.
GOOD: list[tuple[str, Line]] = [
    ("pixel", changed(EVENT, event_id=12345)),
    ("pixel", changed(EVENT, event_id="unknown-field", unknown={"a": [1, 2]})),
    ("pixel", changed(EVENT, event_id="nul\0inside", properties={"a": "\0"})),
    ("pixel", json.dumps(changed(EVENT, event_id="cr")) + "\r"),
    ("pixel", "  " + json.dumps(changed(EVENT, event_id="spaces")) + "  "),
    # Of doubled keys one is taken.
    ("pixel", json.dumps(changed(EVENT, event_id="twice"))[:-1] + ', "event_name": "other"}'),
    ("pixel", changed(EVENT, event_id="deep", properties=DEEP)),
    ("shopify_orders", changed(ORDER, total_discounts=10, total_tax=9.65)),
    ("shopify_orders", changed(ORDER, id="4711", line_items=[{"price": 5, "quantity": "2"}])),
    ("shopify_orders", changed(ORDER, id="4712", line_items=[], customer=[], email=None)),
    ("meta_ads", changed(fixture("meta_ads")[0], spend=12.34, impressions=5, clicks="6")),
    ("payments", changed(fixture("payments")[0], amount="1999")),
    ("payments", changed(fixture("payments")[0], id="iso", created="2026-11-19T12:00:00Z")),
    *(
        ("pixel", changed(EVENT, event_id=f"time-{n}", timestamp=time))
        for n, time in enumerate((
            1763546400, "1763546400", "1763546400.123", 1763546400123, "2025-11-19 10:00:00",
            "2025-11-19T10:00:00.123456+02:00", "20251119T100000Z", "20251119100000",
            "Wed, 19 Nov 2025 10:00:00 GMT", " 2025-11-19T10:00:00Z",
        ))
    ),
]  # fmt: skip


def _say(report: load.Report) -> str:
    return json.dumps(report.as_dict(), default=str)


def _line_hash(shop: Tenant, text: bytes) -> str:
    with postgres.connect(shop.warehouse.settings) as connection:
        keyring = keys.Keyring.from_settings(shop.warehouse.settings)
        key = keyring.ledger_key(connection, datetime(2026, 1, 1, tzinfo=UTC))
    return hmac.new(key, text, hashlib.sha256).hexdigest()[:32]


@pytest.fixture(scope="module")
def loaded(warehouse: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Tenant:
    """All the bad lines and the good ones, in one file a source."""
    shop = tenant(warehouse, tmp_path_factory.mktemp("bad"))
    for source in {source for source, *_ in BAD}:
        shop.deliver(
            source,
            [line for of, line, _ in BAD if of == source]
            + [line for of, line in GOOD if of == source],
            name=f"{SECRET}.jsonl.gz",
        )
    shop.load()
    return shop


def test_each_bad_line_is_in_quarantine_for_its_reason(loaded: Tenant) -> None:
    for source in sorted({source for source, *_ in BAD}):
        lines = [(line, reason) for of, line, reason in BAD if of == source]
        rows = loaded.rows(
            "select * from raw.quarantine where workspace_id = {workspace}"
            f" and source = '{source}' order by line_number"
        )
        found = {row["line_number"]: row["reason"] for row in rows}
        assert found == {n: reason for n, (_, reason) in enumerate(lines, 1)}, source
        for row in rows:
            text = packed([lines[row["line_number"] - 1][0]])[:-1]
            assert row["line_hash"] == _line_hash(loaded, text)
            assert row["file_name_hash"] == _line_hash(loaded, f"{SECRET}.jsonl.gz".encode())
            assert (row["delivery_date"], row["local_date"]) == (str(DAY), str(DAY))
        assert SECRET not in json.dumps(rows)


def test_strange_lines_beside_them_load(loaded: Tenant) -> None:
    report = {file.file.split("/")[0]: file for file in loaded.report.files}
    for source in {source for source, _ in GOOD}:
        assert report[source].error is None
        assert report[source].counts.stored == sum(of == source for of, _ in GOOD)
    loaded.assert_ties_out()
    assert "[redacted]" in report["pixel"].file
    assert SECRET not in _say(loaded.report)


def test_an_unknown_workspace_waits_for_it(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path, exists=False)
    shop.deliver("pixel", [EVENT, "broken", changed(EVENT, consent=False), b""])
    counts = shop.load().files[0].counts
    assert (counts.lines, counts.quarantined, counts.retryable) == (4, 4, 4)
    assert set(shop.quarantine().values()) == {"unknown_workspace"}
    # Nothing to do while it stays unknown, however often it is asked.
    for _ in range(2):
        shop.load(retry=True)
        assert len(shop.quarantine()) == 4
    add(shop)
    assert shop.load().files == ()
    counts = shop.load(retry=True).files[0].counts
    assert (counts.stored, counts.quarantined, counts.refused) == (1, 2, 1)
    assert shop.quarantine() == {2: "invalid_json", 4: "invalid_json"}
    (in_ledger,) = shop.counts()
    assert in_ledger == {
        "lines": 4, "stored": 1, "duplicate": 0, "quarantined": 2, "refused": 1, "retryable": 0,
    }  # fmt: skip
    assert shop.load(retry=True).files == ()
    assert len(shop.table("raw.pixel_events")) == 1
    shop.assert_ties_out()


def test_a_misspelt_workspace_is_wrong_usage(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    shop.deliver("pixel", [EVENT])
    outcome = warehouse.run(
        "load", "--workspace", "nobody", "--landing", str(shop.landing), check=False
    )
    assert outcome.code == 2
    assert "no workspace nobody" in outcome.stderr
    (file,) = shop.load().files
    assert file.counts.stored == 1


def test_lines_quarantined_for_their_time_come_back_alone(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path)
    future = changed(EVENT, event_id="future", timestamp="2026-11-25T12:00:00Z")
    lines: list[Line] = [
        EVENT,
        future,
        "broken",
        changed(EVENT, event_id="past", timestamp="2025-06-01T12:00:00Z"),
        changed(EVENT, consent=False),
        future,
    ]
    shop.load_lines("pixel", lines, name="part.jsonl.zst")
    assert shop.quarantine() == {
        2: "bad_timestamp", 3: "invalid_json", 4: "past_retention", 6: "bad_timestamp",
    }  # fmt: skip
    first = shop.table("raw.pixel_events")
    counts = shop.load(as_of=date(2026, 11, 25), retry=True).files[0].counts
    # Of three read again: the second copy is a duplicate, the past stays where it is.
    assert (counts.lines, counts.stored, counts.duplicate, counts.quarantined) == (3, 1, 1, 1)
    assert shop.quarantine() == {3: "invalid_json", 4: "past_retention"}
    assert shop.load(as_of=date(2026, 6, 30), retry=True).files[0].counts.stored == 1
    assert shop.quarantine() == {3: "invalid_json"}
    rows = shop.table("raw.pixel_events", "line_number")
    assert [row["event_id"] for row in rows] == ["bare", "future", "past"]
    assert first == rows[:1]
    (in_ledger,) = shop.counts()
    assert in_ledger == {
        "lines": 6, "stored": 3, "duplicate": 1, "quarantined": 1, "refused": 1, "retryable": 0,
    }  # fmt: skip
    shop.assert_ties_out()


@pytest.fixture(params=["in pieces", "whole"])
def travel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go to ClickHouse in pieces, as small ones do, or whole and packed, as large ones."""
    if request.param == "whole":
        monkeypatch.setattr(load, "WHOLE_BYTES", 0)


@pytest.mark.usefixtures("travel")
@pytest.mark.parametrize("name", ["day.jsonl", "day.jsonl.gz", "day.jsonl.zst"])
def test_bad_lines_are_known_by_their_numbers(
    warehouse: Warehouse, tmp_path: Path, name: str
) -> None:
    shop = tenant(warehouse, tmp_path)
    # More than the engine reads at once, and than two threads would keep in order.
    bad = set(range(1, 200_001, 9_973))
    before, after = json.dumps(changed(EVENT, event_id="number")).split("number")
    lines = ("{" if n in bad else f"{before}{n}{after}" for n in range(1, 200_001))
    counts = shop.load_lines("pixel", list(lines), name=name)
    assert (counts.lines, counts.stored, counts.quarantined) == (200_000, 199_979, 21)
    assert set(shop.quarantine()) == bad
    assert shop.rows(
        "select count() as n from raw.pixel_events"
        " where workspace_id = {workspace} and toString(line_number) = event_id"
    ) == [{"n": 199_979}]
    shop.assert_ties_out()


@pytest.mark.usefixtures("travel")
def test_a_damaged_file_is_named_and_the_others_load(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    dice = random.Random(1)
    lines = [
        changed(EVENT, event_id=str(n), properties={"noise": dice.randbytes(300).hex()})
        for n in range(2000)
    ]
    whole = packed(lines)
    damaged = {
        "cut.jsonl.gz": packed(lines[:9], ".gz")[:-10],
        "cut.jsonl.zst": packed(lines[:9], ".zst")[:-10],
        "cut-large.jsonl.gz": gzip.compress(whole, 1)[:-9],
        "cut-large.jsonl.zst": zstandard.compress(whole)[:-9],
        "no-gzip.jsonl.gz": whole[:1000],
        "no-zstd.jsonl.zst": whole[:1000],
        "wrong-sum.jsonl.gz": packed(lines[:9], ".gz")[:-8] + b"\0" * 8,
        "nothing.jsonl.gz": b"",
        "nothing.jsonl.zst": b"",
    }
    assert len(whole) > 1 << 20
    for name, data in damaged.items():
        shop.deliver("pixel", data=data, name=name)
    shop.deliver("pixel", [changed(EVENT, event_id="good")], name="good.jsonl.gz")
    shop.deliver("pixel", data=b"", name="empty.jsonl")
    shop.deliver("pixel", data=gzip.compress(b""), name="empty.jsonl.gz")
    report = shop.load()
    errors = {file.file.rsplit("/", 1)[1]: file.error for file in report.files if file.error}
    assert set(errors) == set(damaged)
    assert report.failed
    assert all("nothing of it was loaded" in str(error) for error in errors.values())
    # What is missing is gzip's sum, and more of zstd's only frame.
    assert str(errors["cut-large.jsonl.gz"]).startswith("after line 2000: ")
    assert str(errors["cut.jsonl.gz"]).startswith("after line ")
    assert str(errors["nothing.jsonl.gz"]).startswith("after line 0: ")
    assert [row["event_id"] for row in shop.table("raw.pixel_events")] == ["good"]
    # Delivered again whole, under its name, it loads.
    shop.deliver("pixel", data=gzip.compress(whole, 1), name="cut-large.jsonl.gz")
    stored = {file.file.rsplit("/", 1)[1]: file.counts.stored for file in shop.load().files}
    assert stored["cut-large.jsonl.gz"] == len(lines)
    shop.assert_ties_out()


@pytest.mark.usefixtures("travel")
def test_text_of_another_encoding_ends_in_quarantine(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    text = json.dumps(changed(EVENT, event_name="Größe"), ensure_ascii=False) + "\n"
    shop.deliver("pixel", data=text.encode("utf-16"), name="utf16.jsonl")
    shop.deliver("pixel", data=text.encode("latin-1"), name="latin1.jsonl")
    shop.deliver("pixel", data=b"\xef\xbb\xbf" + text.encode(), name="utf8-bom.jsonl")
    report = {file.file.rsplit("/", 1)[1]: file for file in shop.load().files}
    assert not shop.report.failed
    assert report["utf16.jsonl"].counts.stored == 0
    assert report["utf16.jsonl"].counts.quarantined == report["utf16.jsonl"].counts.lines > 0
    assert report["latin1.jsonl"].counts.quarantined == 1
    # The mark that some tools put before UTF-8 belongs to no line.
    assert report["utf8-bom.jsonl"].counts.stored == 1
    assert shop.table("raw.pixel_events")[0]["event_name"] == "Größe"
    shop.assert_ties_out()


def test_what_is_no_landing_file_is_named_and_left_alone(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path)
    shop.deliver("pixel", [EVENT], day="yesterday")
    shop.deliver("pixel", [EVENT], day="2026-11-31")
    shop.deliver("pixel", [EVENT], day="20261119")
    shop.deliver("no_source", [EVENT])
    shop.deliver("pixel", [EVENT], name=".part.jsonl")
    shop.deliver("pixel", [EVENT], name="part.jsonl.tmp")
    folder = tmp_path / "shopify_orders" / shop.workspace_id / str(DAY)
    folder.mkdir(parents=True)
    (folder / "folder.jsonl").mkdir()
    (folder / "nowhere.jsonl").symlink_to(tmp_path / "gone")
    report = shop.load()
    assert report.files == ()
    assert len(report.notes) == 6
    assert sum("is no file" in note for note in report.notes) == 2
    # A row of quarantine would name it.
    (tmp_path / "payments" / "ada@example.org" / str(DAY)).mkdir(parents=True)
    ladder = policy.read(shop.warehouse.settings)
    files, notes = landing.discover(str(tmp_path), ladder, ["payments"], None)
    assert files == []
    assert notes[-1] == "payments/[redacted]/ is no workspace: left alone"
    assert sum("YYYY-MM-DD" in note for note in report.notes) == 3
    empty = tenant(warehouse, tmp_path / "empty")
    assert empty.load().files == ()


@pytest.mark.usefixtures("travel")
def test_a_file_that_vanishes_is_named(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = tenant(warehouse, tmp_path)
    doomed = shop.deliver("pixel", [EVENT], name="doomed.jsonl")
    shop.deliver("pixel", [changed(EVENT, event_id="stays")], name="stays.jsonl")
    select = load._Loader.select

    def select_and_lose(*arguments: Any) -> Any:
        selected = select(*arguments)
        doomed.unlink()
        return selected

    with monkeypatch.context() as patch:
        patch.setattr(load._Loader, "select", select_and_lose)
        report = shop.load()
    errors = {file.file.rsplit("/", 1)[1]: file.error for file in report.files}
    assert errors["stays.jsonl"] is None
    assert "gone" in str(errors["doomed.jsonl"])
    assert [row["event_id"] for row in shop.table("raw.pixel_events")] == ["stays"]


def test_a_line_of_100_mb_stops_nothing(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    huge = changed(EVENT, event_id="huge", properties={"a": "x" * (100 << 20)})
    broken = b'{"event_id": "' + b"x" * (100 << 20)
    for name in ("huge.jsonl", "huge.jsonl.gz"):
        lines: list[Line] = [changed(EVENT, event_id=f"before {name}"), huge, broken]
        lines.append(changed(EVENT, event_id=f"after {name}"))
        data = packed(lines)
        shop.deliver(
            "pixel", data=gzip.compress(data, 1) if name.endswith(".gz") else data, name=name
        )
    report = shop.load()
    assert not report.failed
    for file in report.files:
        assert (file.counts.lines, file.counts.quarantined) == (4, 1)
    rows = {row["event_id"]: row["properties"] for row in shop.table("raw.pixel_events")}
    assert len(rows) == 5
    assert json.loads(rows["huge"]) == {"__truncated": True, "original_bytes": (100 << 20) + 8}
    assert set(shop.quarantine().items()) == {(3, "invalid_json")}
    shop.assert_ties_out()


# A value, and what the contract makes of it in a field: "" good, else the reason's first word.
VALUES: dict[str, list[tuple[Any, str]]] = {
    "event_id": [("id", ""), (17, ""), (None, "missing"), (..., "missing"), ([], "bad_value"),
                 ({"a": 1}, "bad_value"), ("", "missing")],
    "event_name": [("saw", ""), (None, "missing"), (..., "missing"), ([1], "bad_value")],
    "anonymous_id": [("v", ""), (7, ""), (None, "missing"), ({}, "bad_value")],
    "timestamp": [
        ("2026-11-19T12:00:00Z", ""), ("2026-11-19 12:00:00+05:00", ""), (1795075204, ""),
        ("1970-01-01T00:00:00Z", "bad_timestamp"), ("9999-01-01T00:00:00Z", "bad_timestamp"),
        ("2024-01-01T00:00:00Z", "past_retention"), ("never", "bad_value"), (None, "missing"),
        ([2026], "bad_value"),
    ],
    "properties": [({}, ""), ({"a": {"b": [1, None]}}, ""), (None, ""), ([], "bad_value"),
                   ("x", "bad_value"), (3, "bad_value")],
    "consent": [(None, ""), ({"analytics": True}, ""), ({"analytics": False}, "refused")],
    "email": [(SECRET, ""), (None, ""), ({"a": SECRET}, ""), (5, "")],
    "ip": [("81.2.69.142", ""), ("not an ip", ""), (None, "")],
    "url": [("https://mugs.example/?gclid=1", ""), ("", ""), ({}, "bad_value")],
}  # fmt: skip
BROKEN = ["", "{", "[1]", "null", '{"a":1}}', "\x00", "{'a':1}", '"text"', "truth"]


@st.composite
def _lines(draw: st.DrawFn) -> tuple[str, str]:
    """A line, and the kind of reason it must end with."""
    if draw(st.integers(0, 9)) == 0:
        text = draw(st.sampled_from(BROKEN))
        return text, "not_an_object" if text in ("[1]", "null", '"text"') else "invalid_json"
    document: dict[str, Any] = {}
    kinds = {}
    for name, values in VALUES.items():
        value, kinds[name] = draw(st.one_of(st.just(values[0]), st.sampled_from(values)))
        if value is not ...:
            document[name] = value
    if kinds["event_id"] == "" and document["event_id"] == "id":
        document["event_id"] = f"id{draw(st.integers(0, 10**9))}"
    # The first required field that is amiss gives the reason; then time, then refusal.
    order = ["event_id", "event_name", "anonymous_id", "timestamp", "properties", "url"]
    amiss = [kinds[name] for name in order if kinds[name] in ("missing", "bad_value")]
    if amiss:
        return json.dumps(document), amiss[0]
    return json.dumps(document), kinds["consent"] or kinds["timestamp"]


@settings(
    max_examples=5,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture,
                           HealthCheck.data_too_large],
)  # fmt: skip
@given(seeds=st.lists(_lines(), min_size=20, max_size=60), times=st.integers(20, 40))
def test_files_of_thousands_of_lines_are_accounted_for(
    warehouse: Warehouse, tmp_path: Path, seeds: list[tuple[str, str]], times: int
) -> None:
    shop = tenant(warehouse, tmp_path / str(random.random()))
    dice = random.Random(times)
    lines = [dice.choice(seeds) for _ in range(len(seeds) * times)]
    counts = shop.load_lines("pixel", [text for text, _ in lines], name="part.jsonl.gz")
    assert counts.lines == len(lines)
    found = shop.quarantine()
    told = {n: kind for n, (_, kind) in enumerate(lines, 1) if kind not in ("", "refused")}
    assert {
        n: reason.replace("missing_field", "missing").split(":")[0] for n, reason in found.items()
    } == told
    stored = set()
    for text, kind in lines:
        if kind == "":
            document = json.loads(text)
            stored.add(str(document["event_id"]))
    assert (counts.stored, counts.refused, counts.quarantined) == (
        len(stored), sum(kind == "refused" for _, kind in lines), len(told),
    )  # fmt: skip
    assert shop.as_of - DAY == timedelta(days=1)
    shop.assert_ties_out()
