"""The laptop's executor: Airflow's own, with what tasks need already imported."""

import importlib
import logging

from airflow.executors.local_executor import LocalExecutor

#: What takes seconds of a processor to import.
HEAVY = (
    "dbt.adapters.clickhouse",
    "dbt.cli.main",
    "great_expectations.checkpoint",
    "great_expectations.expectations",
    "tidemark_airflow.loads",
    "tidemark_airflow.plans",
)


class ReadyExecutor(LocalExecutor):
    """Imports once, before the workers are forked from the scheduler and the tasks from them.

    So a task takes the code of the day on which the scheduler was started: a new version asks for
    a new start, as the API server does.
    """

    def start(self) -> None:
        """Import and make ready, then start the workers."""
        # It says of hundreds of its functions that it can't document them.
        logging.getLogger("great_expectations").setLevel(logging.WARNING)
        for name in HEAVY:
            importlib.import_module(name)
        self._read_project()
        super().start()

    def _read_project(self) -> None:
        """Let dbt make the code with which it reads a project; what it read is not kept."""
        from tidemark import build
        from tidemark.config import Settings
        from tidemark.errors import TidemarkError

        try:
            build.parse(Settings.from_env())
        except TidemarkError as error:
            # The task that needs it says so too.
            self.log.warning("%s", error)
