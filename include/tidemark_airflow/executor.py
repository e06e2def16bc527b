"""The laptop's executor: Airflow's own, with what tasks need already imported and read."""

import importlib
import logging
from multiprocessing.connection import wait

from airflow.executors.local_executor import LocalExecutor

#: What takes seconds of a processor to import.
HEAVY = (
    "airflow.dag_processing.bundles.local",
    "airflow.providers.common.io.assets.file",
    "airflow.providers.standard.decorators.python",
    "airflow.sdk.definitions.connection",
    "airflow.sdk.definitions.asset.metadata",
    "airflow.sdk.definitions.decorators",
    "airflow.sdk.execution_time.timeout",
    "babel.dates",
    "clickhouse_connect",
    "crawleruseragents",
    "dbt.adapters.clickhouse.httpclient",
    "dbt.cli.main",
    "dbt.task.build",
    "dbt.task.run_operation",
    "dbt_common.clients.agate_helper",
    "great_expectations.render.renderer.site_builder",
    "pandas.core.methods.to_dict",
    "pyarrow.pandas_compat",
    "tidemark_airflow.defaults",
    "tidemark_airflow.loads",
    "tidemark_airflow.plans",
    "tidemark_airflow.traces",
    "ua_parser_builtins.lazy",
    "upath.implementations.local",
)


#: Seconds until the scheduler looks for other work: while tasks run, theirs comes before.
IDLE, BUSY = 0.5, 1.0


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
        from tidemark import build, gate
        from tidemark.errors import TidemarkError
        from tidemark_airflow import runs

        settings = runs.settings()
        gate.read_ahead(settings)
        try:
            build.read_ahead(settings)
        except TidemarkError as error:
            # Each task that needs the project will say so.
            self.log.warning("%s", error)
        super().start()

    def sync(self) -> None:
        """Take what workers say as soon as they say it, so that what comes after a task begins.

        Airflow's scheduler sleeps between its rounds and hears of nothing meanwhile; in this one
        `scheduler_idle_sleep_time` is 0, and this wait is the sleep.
        """
        pause = BUSY if self.running else IDLE
        wait([self.result_queue._reader], pause)  # type: ignore[attr-defined]
        super().sync()
