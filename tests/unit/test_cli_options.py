"""Options that several verbs share."""

from datetime import UTC, date, datetime

import pytest

from tidemark.cli_options import as_of_date
from tidemark.errors import UsageError


def test_a_day_of_which_nothing_is_ever_loaded_is_no_as_of() -> None:
    assert as_of_date(datetime(2000, 1, 1, tzinfo=UTC)) == date(2000, 1, 1)
    with pytest.raises(UsageError, match="0001-01-01"):
        as_of_date(datetime(1, 1, 1, tzinfo=UTC))
