"""The ledger: nobody changes, removes, reorders or cuts an entry unnoticed, its owner included."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from homes import Warehouse, new_home
from tidemark import ledger, postgres
from tidemark.errors import TidemarkError
from tidemark.keys import Keyring
from tidemark.postgres import Connection

NOW = datetime(2031, 5, 10, 12, tzinfo=UTC)
ENTRIES = 8


@pytest.fixture(scope="module")
def kept() -> Iterator[Warehouse]:
    """A warehouse whose ledger has entries, and two copies of its head: in the middle and last."""
    with new_home() as home:
        home.run("up", "--no-airflow")
        ring = Keyring.from_settings(home.settings)
        with postgres.connect(home.settings, autocommit=True) as connection:
            for number in range(1, ENTRIES + 1):
                document = {
                    "rows": number,
                    "money": Decimal("2345678901.50"),
                    "days": [date(2031, 1, number)],
                    "workspaces": {"shop": None, "büro": True},
                }
                ledger.append(
                    connection, ring, "step_done", document, NOW + timedelta(seconds=number)
                )
                if number in (ENTRIES // 2, ENTRIES):
                    ledger.copy_head(home.settings, connection, NOW)
        yield home


@contextmanager
def owner(home: Warehouse, *, unguarded: bool = True) -> Iterator[Connection]:
    """The database's owner, whose doings are taken back; without triggers and constraints."""
    with postgres.connect(home.settings) as connection:
        if unguarded:
            connection.execute("drop trigger refuse_ledger_change on control.ledger")
            connection.execute("drop trigger chain_ledger_entry on control.ledger")
            for row in connection.execute(
                "select conname from pg_catalog.pg_constraint"
                " where conrelid = 'control.ledger'::regclass and contype in ('c', 'p', 'u', 'n')"
                " order by contype = 'n'"
            ).fetchall():
                connection.execute(f"alter table control.ledger drop constraint {row['conname']}")
        yield connection
        connection.rollback()


def restore_guard(connection: Connection) -> None:
    """What an owner would do to leave no trace."""
    for name, when in (
        ("refuse_ledger_change", "before update or delete or truncate"),
        ("chain_ledger_entry", "before insert"),
    ):
        level = "row" if when == "before insert" else "statement"
        function = "chain_ledger_entry" if level == "row" else "refuse_ledger_change"
        connection.execute(
            f"create trigger {name} {when} on control.ledger"
            f" for each {level} execute function control.{function}()"
        )
        connection.execute(f"alter table control.ledger enable always trigger {name}")


def problems(home: Warehouse, connection: Connection) -> str:
    return "; ".join(str(finding) for finding in ledger.verify(home.settings, connection))


def test_what_is_written_is_read_back_and_verifies(kept: Warehouse) -> None:
    with postgres.connect(kept.settings) as connection:
        entries = list(ledger.stored(connection))
        assert [entry.entry_id for entry in entries] == list(range(1, ENTRIES + 1))
        first = entries[0]
        assert isinstance(first, ledger.Entry)
        assert first.previous_hash == ledger.GENESIS
        assert first.document == {
            "rows": 1,
            "money": "2345678901.50",
            "days": ["2031-01-01"],
            "workspaces": {"shop": None, "büro": True},
        }
        assert first.at == NOW + timedelta(seconds=1)
        assert ledger.verify(kept.settings, connection) == ()
        assert not list(ledger.stored(connection, "no_such_kind"))
    folder = kept.settings.ledger
    assert {path.name for path in folder.iterdir()} == {"heads.jsonl", "public_key.pem"}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_the_hash_is_what_the_documentation_says(kept: Warehouse) -> None:
    with postgres.connect(kept.settings) as connection:
        row = connection.execute(
            "select *, to_char(at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US+00:00') as iso"
            " from control.ledger where entry_id = 2"
        ).fetchone()
    assert row is not None
    content = {
        "entry_id": 2, "kind": row["kind"], "document": row["document"], "at": row["iso"],
        "previous_hash": row["previous_hash"],
    }  # fmt: skip
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == row["hash"]
    key = ledger.read_public_key(ledger.public_key_path(kept.settings))
    key.verify(
        bytes.fromhex(row["signature"]), b"tidemark ledger entry\n" + bytes.fromhex(row["hash"])
    )


def test_the_database_refuses_every_change(kept: Warehouse) -> None:
    values = "9, 'x', '{}', now(), repeat('0', 64), repeat('0', 64), repeat('0', 128)"
    for statement in (
        "update control.ledger set kind = 'x' where entry_id = 1",
        "update control.ledger set kind = 'x' where false",
        "delete from control.ledger where entry_id = 8",
        "truncate control.ledger",
        f"insert into control.ledger values ({values})",
        f"insert into control.ledger values ({values.replace('9', '11', 1)})",
    ):
        for role in ("origin", "replica"):
            with postgres.connect(kept.settings, "superuser", database="tidemark") as connection:
                connection.execute(f"set session_replication_role = {role}")
                with pytest.raises(psycopg.errors.RaiseException, match="ledger"):
                    connection.execute(statement)


def test_an_entry_lives_and_dies_with_its_transaction(kept: Warehouse) -> None:
    ring = Keyring.from_settings(kept.settings)
    with postgres.connect(kept.settings) as connection:
        entry = ledger.append(connection, ring, "plan", {"rows": 1}, NOW)
        assert entry.entry_id == ENTRIES + 1
        connection.rollback()
        assert ledger.verify(kept.settings, connection) == ()


def test_appends_at_once_follow_each_other(fresh_warehouse: Warehouse) -> None:
    ring = Keyring.from_settings(fresh_warehouse.settings)

    def work(worker: int) -> None:
        with postgres.connect(fresh_warehouse.settings, autocommit=True) as connection:
            for number in range(10):
                ledger.append(connection, ring, "plan", {"worker": worker, "n": number}, NOW)

    threads = [threading.Thread(target=work, args=[worker]) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with postgres.connect(fresh_warehouse.settings) as connection:
        ledger.copy_head(fresh_warehouse.settings, connection, NOW)
        assert len(list(ledger.stored(connection))) == 40
        assert ledger.verify(fresh_warehouse.settings, connection) == ()


@pytest.mark.parametrize(
    "document",
    [
        {"who": "mail jane.doe@example.org"},
        {"who": "jane.doe%40example.org"},
        {"jane@example.org": 1},
        {"notes": ["ok", {"call": "+49 (30) 901820-12"}]},
        {"call": "030 9018201"},
        {"call": "2025550123"},
        {"from": "192.0.2.17"},
        {"rate": 1.5},
        {"raw": b"x"},
        pytest.param({"day": object()}, id="an object"),
        {"text": "a\0b"},
        {1: "x"},
        {"figure": Decimal("NaN")},
    ],
    ids=repr,
)
def test_it_takes_no_personal_data_and_nothing_inexact(
    kept: Warehouse, document: dict[str, Any]
) -> None:
    ring = Keyring.from_settings(kept.settings)
    with postgres.connect(kept.settings) as connection:
        with pytest.raises(TidemarkError) as refused:
            ledger.append(connection, ring, "plan", document, NOW)
        assert "jane" not in str(refused.value)
        assert "9018" not in str(refused.value)


def test_hashes_days_and_figures_are_no_personal_data(kept: Warehouse) -> None:
    ring = Keyring.from_settings(kept.settings)
    with postgres.connect(kept.settings) as connection:
        for number in range(500):
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            ledger.append(
                connection,
                ring,
                "plan",
                {
                    "plan_id": digest,
                    "fingerprint": str(int(digest[:16], 16)),
                    "partition": "202510",
                    "as_of": NOW,
                    "day": NOW.date(),
                    "sums": {"spend": f"{int(digest[:10], 16)}.25"},
                    "validation_result_id": f"tie_out/20310510T120000.{number:06}Z/x/{digest}",
                },
                NOW,
            )
        connection.rollback()


Tamper = Callable[[Connection, st.DataObject], None]


def edit_document(connection: Connection, data: st.DataObject) -> None:
    path, value = data.draw(
        st.sampled_from([
            ("{rows}", "77"), ("{rows}", "null"), ("{rows}", "1.5"), ("{rows}", '"1"'),
            ("{money}", "2345678901.50"), ("{money}", '"2345678901.5"'),
            ("{workspaces,shop}", "false"), ("{more}", "1"), ("{days}", "[]"),
        ])
    )  # fmt: skip
    connection.execute(
        "update control.ledger set document = jsonb_set(document, %s, %s::jsonb)"
        " where entry_id = %s",
        [path, value, data.draw(st.integers(1, ENTRIES))],
    )


def edit_column(connection: Connection, data: st.DataObject) -> None:
    change = data.draw(
        st.sampled_from([
            "kind = 'plan'", "kind = null", "document = null", "document = '[]'",
            "document = document - 'rows'", "at = at + interval '1 microsecond'",
            "at = 'infinity'", "at = at - interval '4061 years'", "at = null",
            "previous_hash = repeat('a', 64)", "hash = repeat('a', 64)", "hash = 'zz'",
            "hash = null", "signature = repeat('0', 128)", "signature = ''", "signature = null",
            "entry_id = entry_id + 100", "entry_id = -entry_id", "entry_id = null",
        ])
    )  # fmt: skip
    connection.execute(
        f"update control.ledger set {change} where entry_id = %s",
        [data.draw(st.integers(1, ENTRIES))],
    )


def remove(connection: Connection, data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.integers(1, ENTRIES), min_size=1))
    connection.execute("delete from control.ledger where entry_id = any(%s)", [list(gone)])


def remove_and_renumber(connection: Connection, data: st.DataObject) -> None:
    gone = data.draw(st.integers(1, ENTRIES))
    connection.execute("delete from control.ledger where entry_id = %s", [gone])
    if gone == ENTRIES:
        return
    connection.execute(
        "update control.ledger set entry_id = entry_id - 1 where entry_id > %s", [gone]
    )


def reorder(connection: Connection, data: st.DataObject) -> None:
    first, second = data.draw(
        st.lists(st.integers(1, ENTRIES), min_size=2, max_size=2, unique=True)
    )
    connection.execute(
        "update control.ledger set entry_id = %(first)s + %(second)s - entry_id"
        " where entry_id in (%(first)s, %(second)s)",
        {"first": first, "second": second},
    )


def repeat(connection: Connection, data: st.DataObject) -> None:
    connection.execute(
        "insert into control.ledger select * from control.ledger where entry_id = %s",
        [data.draw(st.integers(1, ENTRIES))],
    )


def cut(connection: Connection, data: st.DataObject) -> None:
    connection.execute(
        "delete from control.ledger where entry_id > %s", [data.draw(st.integers(0, ENTRIES - 1))]
    )


def rewrite(connection: Connection, data: st.DataObject) -> None:
    """Change an entry and compute every hash behind it anew, signed with a key of one's own."""
    changed = data.draw(st.integers(1, ENTRIES))
    resign = data.draw(st.booleans())
    own = Ed25519PrivateKey.generate()
    entries = [entry for entry in ledger.stored(connection) if isinstance(entry, ledger.Entry)]
    previous = entries[changed - 2].hash if changed > 1 else ledger.GENESIS
    for entry in entries[changed - 1 :]:
        document = dict(entry.document)
        if entry.entry_id == changed:
            document["rows"] = 0
        draft = ledger.Entry(entry.entry_id, entry.kind, document, entry.at, previous, "", "")
        digest = draft.content_hash()
        signature = own.sign(b"tidemark ledger entry\n" + bytes.fromhex(digest)).hex()
        connection.execute(
            "update control.ledger set document = %s, previous_hash = %s, hash = %s,"
            " signature = %s where entry_id = %s",
            [
                psycopg.types.json.Jsonb(document), previous, digest,
                signature if resign else entry.signature, entry.entry_id,
            ],
        )  # fmt: skip
        previous = digest


def forge(connection: Connection, data: st.DataObject) -> None:
    """Write a further entry behind the last, with a signature from elsewhere."""
    entries = [entry for entry in ledger.stored(connection) if isinstance(entry, ledger.Entry)]
    head = entries[-1]
    draft = ledger.Entry(head.entry_id + 1, "plan", {}, head.at, head.hash, "", "")
    signature = data.draw(st.sampled_from([entry.signature for entry in entries]))
    connection.execute(
        "insert into control.ledger values (%s, 'plan', '{}', %s, %s, %s, %s)",
        [draft.entry_id, head.at, head.hash, draft.content_hash(), signature],
    )


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    data=st.data(),
    tampers=st.lists(
        st.sampled_from([
            edit_document, edit_column, remove, remove_and_renumber, reorder, repeat, cut,
            rewrite, forge,
        ]),
        min_size=1,
        max_size=1,
    ),
)  # fmt: skip
def test_tampering_is_found(kept: Warehouse, data: st.DataObject, tampers: list[Tamper]) -> None:
    with owner(kept) as connection:
        everything = "select ledger::text as row from control.ledger order by 1"
        before = connection.execute(everything).fetchall()
        for tamper in tampers:
            tamper(connection, data)
        after = connection.execute(everything).fetchall()
        restore_guard(connection)
        found = problems(kept, connection)
        assert bool(found) == (after != before), found
        assert "trigger" not in found


def test_the_findings_name_entry_and_problem(kept: Warehouse) -> None:
    for statement, finding in (
        ("update control.ledger set document = '{}' where entry_id = 3", "entry 3: was edited"),
        ("delete from control.ledger where entry_id in (2, 3)", "missing (2 to 3)"),
        ("delete from control.ledger where entry_id > 5", "entry 8: was cut off"),
        ("delete from control.ledger", "entry 4: was cut off"),
        ("update control.ledger set at = 'infinity' where entry_id = 3", "entry 3: cannot be read"),
        ("drop table control.ledger", "control.ledger cannot be read"),
    ):
        with owner(kept) as connection:
            connection.execute(statement)
            found = problems(kept, connection)
            assert finding in found
            assert "append-only is off" in found or "does not exist" in found
    with owner(kept, unguarded=False) as connection:
        connection.execute("alter table control.ledger disable trigger refuse_ledger_change")
        assert problems(kept, connection) == (
            "ledger: the trigger refuse_ledger_change that keeps it append-only is off"
        )


def test_a_new_key_does_not_make_a_new_past(kept: Warehouse) -> None:
    ring = Keyring.from_settings(kept.settings)
    with owner(kept) as connection:
        connection.execute("delete from control.keys where purpose = 'signature'")
        with pytest.raises(TidemarkError, match="no signature key"):
            ledger.append(connection, ring, "plan", {}, NOW)
        connection.execute("delete from control.ledger")
        for number in range(ENTRIES):
            ledger.append(connection, ring, "plan", {"n": number}, NOW)
        restore_guard(connection)
        found = problems(kept, connection)
        assert "entry 1: is not signed with the ledger's key" in found
        assert "entry 8: was rewritten" in found
        with pytest.raises(TidemarkError, match="tidemark audit"):
            ledger.copy_head(kept.settings, connection, NOW)


def test_a_run_does_not_go_on_behind_a_chain_that_was_cut(kept: Warehouse) -> None:
    with owner(kept) as connection:
        connection.execute("delete from control.ledger where entry_id = 8")
        with pytest.raises(TidemarkError, match="entry 8 of the ledger"):
            ledger.copy_head(kept.settings, connection, NOW)


def test_heads_survive_a_torn_line_and_show_an_altered_one(kept: Warehouse) -> None:
    path = ledger.heads_path(kept.settings)
    whole = path.read_bytes()
    try:
        with postgres.connect(kept.settings) as connection:
            path.write_bytes(whole + b'{"entry_id":9,"ha')
            assert ledger.verify(kept.settings, connection) == ()
            ledger.copy_head(kept.settings, connection, NOW)
            assert path.read_bytes() == whole
            path.write_bytes(whole.replace(b'"hash":"', b'"hash":"0', 1))
            assert "was rewritten" in problems(kept, connection)
            path.write_bytes(b"x\n" + whole)
            assert "was altered" in problems(kept, connection)
            with pytest.raises(TidemarkError, match="was altered"):
                ledger.copy_head(kept.settings, connection, NOW)
            key = ledger.public_key_path(kept.settings)
            path.write_bytes(whole)
            hidden = key.rename(key.with_suffix(".hidden"))
            assert problems(kept, connection).startswith("ledger: the public key is missing")
            hidden.rename(key)
    finally:
        path.write_bytes(whole)


def test_an_export_verifies_without_the_database(kept: Warehouse, tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    with postgres.connect(kept.settings) as connection:
        assert ledger.export(connection, file) == ENTRIES
    assert file.stat().st_mode & 0o777 == 0o600
    key = ledger.read_public_key(ledger.public_key_path(kept.settings))
    heads = ledger.read_heads(kept.settings)
    assert isinstance(heads, tuple)
    assert [head.entry_id for head in heads] == [ENTRIES // 2, ENTRIES]
    lines = file.read_bytes().splitlines(keepends=True)

    def found(content: list[bytes]) -> str:
        file.write_bytes(b"".join(content))
        findings = ledger.verify_entries(ledger.read_export(file), key, heads)
        return "; ".join(str(finding) for finding in findings)

    assert found(lines) == ""
    assert "missing (3 to 3)" in found(lines[:2] + lines[3:])
    assert "entry 8: was cut off" in found(lines[:-1])
    assert "out of order" in found([*lines[:2], lines[3], lines[2], *lines[4:]])
    assert "was edited" in found([lines[0].replace(b'"rows":1', b'"rows":2'), *lines[1:]])
    assert "cannot be read" in found([b"[]\n", *lines[1:]])
    twice = lines[0].replace(b'"rows":1', b'"rows":5,"rows":1')
    assert "line 1 of the export cannot be read" in found([twice, *lines[1:]])


def test_entries_that_a_restore_lost_come_back_from_an_export(
    kept: Warehouse, tmp_path: Path
) -> None:
    runbook = kept.settings.root / "docs" / "runbooks" / "audit-finds-something.md"
    found = re.search(
        r"^    (insert into control\.ledger\n.*?);$", runbook.read_text(), re.M | re.S
    )
    assert found is not None
    file = tmp_path / "ledger.jsonl"
    with postgres.connect(kept.settings) as connection:
        ledger.export(connection, file)
    with owner(kept, unguarded=False) as connection:
        connection.execute("alter table control.ledger disable trigger refuse_ledger_change")
        connection.execute("delete from control.ledger where entry_id > 5")
        connection.execute("alter table control.ledger enable always trigger refuse_ledger_change")
        assert "entry 8: was cut off" in problems(kept, connection)
        connection.execute("create temporary table lines (line jsonb) on commit drop")
        for line in file.read_text().splitlines():
            connection.execute("insert into lines values (%s)", [line])
        connection.execute(found[1].encode())
        assert problems(kept, connection) == ""


def test_what_counts_as_personal_is_what_the_load_redacts(kept: Warehouse) -> None:
    from tidemark import clickhouse, privacy
    from tidemark.clickhouse import literal

    texts = [
        "jane.doe@example.org", "x@y", "a@b.c", "+49 30 901820", "0049 30 901820", "(030) 9018-201",
        "555 123 4567", "01 23 45 67 89", "0301 123456", "03012345678", "12025550123", "1234567",
        "192.0.2.1", "2026-10-01", "20261001", "deadbeef" * 8, "summer sale 2026", "1.2.3",
        "tie_out/20261121T074821.123456Z", "shop-1", "99999999999999",
        "2001:db8:85a3::8a2e:370:7334", "2001:db8:0:1:2:3:4:5", "fe80::1:2:3", "12:30:45", "ad::to",
        "2026-11-22T10:00:00Z", "+44\u00a07700\u00a0900050", "555\u2011123\u20114567",
        "ada\uff20example.org", "ada%252540example.org", "Größe \u2013 100\u00a0%",
    ]  # fmt: skip
    judged = clickhouse.rows(
        kept.settings,
        "select t, tidemark_redact(t) != t as redacted from"
        f" (select arrayJoin([{', '.join(map(literal, texts))}]) as t)",
    )
    expected = {row["t"]: bool(row["redacted"]) for row in judged}
    assert set(expected.values()) == {True, False}
    assert {text: privacy.holds_identifier(text) for text in texts} == expected
