"""The laptop's executor: Airflow's own, with what tasks need already imported."""

import importlib
import logging

from airflow.executors.local_executor import LocalExecutor

#: What takes seconds of a processor to import. Imported alone: a project that dbt has read here
#: leaves locks behind on which the tasks wait for ever.
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
        """Import, then start the workers."""
        # It says of hundreds of its functions that it can't document them.
        logging.getLogger("great_expectations").setLevel(logging.WARNING)
        for name in HEAVY:
            importlib.import_module(name)
        super().start()
