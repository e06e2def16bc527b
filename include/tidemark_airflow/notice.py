"""Tells people that a task failed: a line in a file and, where one is set, a webhook."""

import fcntl
import json
import os
import urllib.request
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import BaseNotifier
from airflow.sdk.exceptions import AirflowFailException

_WEBHOOK_SECONDS = 10


class FailureNotice(BaseNotifier):
    """Writes each failure to `logs/failures.jsonl` in the home and posts it to the webhook.

    The webhook is `TIDEMARK_WEBHOOK`. Both get the DAG, run, task, try, kind of error and, where
    the error is one of Tidemark's own, its message: others may quote a value.
    """

    def notify(self, context: Any) -> None:
        """Write and post; a webhook that does not answer leaves the line in the file."""
        from tidemark.config import Settings

        settings = Settings.from_env()
        notice = json.dumps(failure(context))
        settings.logs.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(
            settings.logs / "failures.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        with os.fdopen(descriptor, "a") as file:
            # What is past its window is taken out of the file by rewriting it.
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(notice + "\n")
        if settings.webhook:
            request = urllib.request.Request(  # noqa: S310  only http and https pass Settings
                settings.webhook,
                data=notice.encode(),
                headers={"content-type": "application/json"},
            )
            try:
                urllib.request.urlopen(request, timeout=_WEBHOOK_SECONDS).close()  # noqa: S310
            except OSError as error:
                # Its address holds a token, so only the kind of error is told.
                self.log.error("the webhook does not answer: %s", type(error).__name__)


def failure(context: Any) -> dict[str, Any]:
    """What a notice says about a failed task."""
    from tidemark.errors import TidemarkError

    instance = context["ti"]
    error = context.get("exception")
    notice = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "dag": instance.dag_id,
        "run": instance.run_id,
        "task": instance.task_id,
        "try": instance.try_number,
        "error": type(error).__name__ if isinstance(error, BaseException) else "killed",
    }
    # The second is how the DAGs say that another try would change nothing.
    if isinstance(error, TidemarkError | AirflowFailException):
        notice["message"] = str(error)
    return notice
