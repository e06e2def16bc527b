"""# load

Loads every landing file that is not loaded yet, each once and whole, daily at 02:00 UTC.
A run of a backfill (`airflow backfill create --dag-id load`) does what `tidemark backfill` does: it
loads what now stands in landing for its day and rebuilds that day. One of purged days is refused.

**It will not** load a file twice, load rows past their window, or fetch anything from a platform:
files come to landing by other means. One broken file stops no other; `check_files` then fails.

**By hand:** trigger it (parameter `as_of`, never in the future), or `tidemark load`.

**When it fails:** the log of `check_files` names each file. Look at `tidemark status` first, then
at docs/runbooks/load-failed.md; a file repaired under a new name is taken by the next run.
"""

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowFailException

from tidemark_airflow import defaults, loads, runs


@dag(
    schedule="0 2 * * *",
    doc_md=__doc__,
    tags=["load", "raw"],
    params={"as_of": runs.AS_OF},
    **defaults.DAG,
)
def load() -> None:
    @task(retries=0)
    def check_files(loaded: dict) -> None:
        if loaded["failed"]:
            raise AirflowFailException(
                f"{len(loaded['failed'])} files: {'; '.join(loaded['failed'])}"
            )

    loaded = task(loads.load_files, outlets=[defaults.LOADED])()
    check_files(loaded)


load()
