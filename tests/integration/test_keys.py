"""Keys and salts: wrapped, bound to their row, and gone for good once destroyed."""

from datetime import UTC, date, datetime, timedelta

import pytest

from homes import Warehouse
from tidemark import postgres
from tidemark.errors import Refused, TidemarkError
from tidemark.keys import Keyring, destroy_salts

NOW = datetime(2031, 5, 10, 12, tzinfo=UTC)
TODAY = NOW.date()


def test_a_key_stays_the_same_and_is_bound_to_its_row(warehouse: Warehouse) -> None:
    ring = Keyring.from_settings(warehouse.settings)
    with postgres.connect(warehouse.settings) as connection:
        for workspace in ("keys-a", "keys-b"):
            ring.create_key(connection, workspace, "pseudonym", NOW)
        first = ring.pseudonym_key(connection, "keys-a")
        ring.create_key(connection, "keys-a", "pseudonym", NOW)
        assert ring.pseudonym_key(connection, "keys-a") == first
        assert len(first) == 32
        assert ring.pseudonym_key(connection, "keys-b") != first
        assert ring.ledger_key(connection, NOW) == ring.ledger_key(connection, NOW)
        stored = connection.execute("select wrapped_key from control.keys").fetchall()
        assert stored
        assert not [row for row in stored if first in row["wrapped_key"]]
        connection.execute(
            "update control.keys set wrapped_key = (select wrapped_key from control.keys"
            " where workspace_id = 'keys-b') where workspace_id = 'keys-a'"
        )
        with pytest.raises(TidemarkError, match="cannot be unwrapped"):
            ring.pseudonym_key(connection, "keys-a")
        connection.rollback()


def test_a_destroyed_key_is_never_made_again(warehouse: Warehouse) -> None:
    ring = Keyring.from_settings(warehouse.settings)
    with postgres.connect(warehouse.settings) as connection:
        with pytest.raises(TidemarkError, match="no pseudonym key"):
            ring.pseudonym_key(connection, "keys-gone")
        ring.create_key(connection, "keys-gone", "pseudonym", NOW)
        connection.execute(
            "update control.keys set wrapped_key = null, destroyed_at = %s"
            " where workspace_id = 'keys-gone'",
            [NOW],
        )
        ring.create_key(connection, "keys-gone", "pseudonym", NOW)
        with pytest.raises(Refused, match="destroyed"):
            ring.pseudonym_key(connection, "keys-gone")


def test_a_salt_is_made_for_no_past_day(warehouse: Warehouse) -> None:
    ring = Keyring.from_settings(warehouse.settings)
    days = [TODAY + timedelta(days=offset) for offset in (-1, 0, 1)]
    with postgres.connect(warehouse.settings) as connection:
        salts = ring.daily_salts(connection, days, TODAY, NOW)
        assert sorted(salts) == days[1:]
        assert len(set(salts.values())) == 2
        # The next day it is past, but still there.
        tomorrow = TODAY + timedelta(days=1)
        assert ring.salt_for(connection, TODAY, tomorrow, NOW) == salts[TODAY]


def test_a_salt_goes_48_hours_after_its_day(warehouse: Warehouse) -> None:
    ring = Keyring.from_settings(warehouse.settings)
    day = date(2033, 1, 1)
    with postgres.connect(warehouse.settings) as connection:
        salt = ring.salt_for(connection, day, day, NOW)
        assert salt is not None
        assert day not in destroy_salts(connection, day + timedelta(days=2), NOW)
        assert ring.salt_for(connection, day, day, NOW) == salt
        assert day in destroy_salts(connection, day + timedelta(days=3), NOW)
        assert destroy_salts(connection, day + timedelta(days=3), NOW) == ()
        assert ring.salt_for(connection, day, day, NOW) is None
        row = connection.execute("select * from control.salts where day = %s", [day]).fetchone()
        assert row is not None
        assert (row["wrapped_salt"], row["destroyed_at"]) == (None, NOW)
