"""The laptop's executor: Airflow's own, with what tasks need already imported and read."""

import importlib
import logging

from airflow.executors.local_executor import LocalExecutor

#: What takes seconds of a processor to import.
HEAVY = (
    "clickhouse_connect",
    "dbt.adapters.clickhouse",
    "dbt.cli.main",
    "great_expectations.checkpoint",
    "great_expectations.expectations",
    "tidemark_airflow.loads",
    "tidemark_airflow.plans",
    "ua_parser",
)


class ReadyExecutor(LocalExecutor):
    """Imports, and reads the dbt project, before the workers are forked from the scheduler.

    So a task takes the code of the day on which the scheduler was started: a new version asks for
    a new start, as the API server does. A dbt project that has changed since is read by the task.
    """

    def start(self) -> None:
        """Make ready, then start the workers."""
        # It says of hundreds of its functions that it can't document them.
        logging.getLogger("great_expectations").setLevel(logging.WARNING)
        for name in HEAVY:
            importlib.import_module(name)
        # Every process of Airflow's loads this module; the scheduler alone needs these.
        from tidemark import build
        from tidemark.errors import TidemarkError
        from tidemark_airflow import runs

        try:
            build.read_ahead(runs.settings())
        except TidemarkError as error:
            # Each task that needs the project will say so.
            self.log.warning("%s", error)
        super().start()
