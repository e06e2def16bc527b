"""Defaults of every DAG, and the assets that connect them."""

from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, AssetAlias

from tidemark_airflow.notice import FailureNotice

#: Rows in raw whose days the marts do not show yet.
RAW = Asset(name="raw", uri="tidemark://warehouse/raw")
#: The outlet of a load, which may also leave nothing to show.
LOADED = AssetAlias(name="raw")
#: The daily marts, tied out.
MARTS = Asset(name="marts", uri="tidemark://warehouse/marts")
#: The evidence of a purge, verified.
PURGED = Asset(name="purged", uri="tidemark://warehouse/purged")

TASKS: dict[str, Any] = {
    "owner": "tidemark",
    "retries": 2,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=15),
    # Waiting for the warehouse's lock counts in, and a first load of years takes its time.
    "execution_timeout": timedelta(hours=3),
    "on_failure_callback": [FailureNotice()],
}

DAG: dict[str, Any] = {
    "catchup": False,
    # One after another for its own sake; what must not run twice holds the warehouse's lock.
    "max_active_runs": 1,
    "default_args": TASKS,
    "dagrun_timeout": timedelta(days=2),
}
