"""Requests as the DAGs carry them out: by their codes alone, each by itself."""

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from airflow.sdk.exceptions import AirflowFailException

from tidemark import erasure, exports, postgres, requests
from tidemark.errors import TidemarkError, UsageError
from tidemark.requests import Kind, Request
from tidemark_airflow import runs

#: What carries a request out, by its kind; safe to run again, and it says itself what became of it.
CARRY_OUT: Mapping[Kind, Callable[..., Request]] = {
    "export": exports.carry_out,
    "erase": erasure.carry_out,
}


def carry_out(code: str | None, as_of: date) -> list[dict[str, Any]]:
    """Carry out the request of a code, or else every request of a person that waits.

    One that fails stops no other.

    Raises:
        AirflowFailException: there is no request of that code.
        TidemarkError: some failed; the message has their codes, the log has why.
    """
    done, failed = [], []
    for request in _waiting(code):
        reason = ""
        try:
            found = CARRY_OUT[request.kind](
                runs.settings(), request.code, as_of=as_of, clock=runs.clock, note=runs.log.info
            )
            done.append({"code": found.code, "kind": found.kind, "status": found.status})
        except TidemarkError as error:
            reason = str(error)
        except Exception as error:
            # Its message may quote a value.
            reason = type(error).__name__
        if reason:
            runs.log.error("request %s: %s", request.code, reason)
            failed.append(request.code)
    runs.log_table(("request", "kind", "status"), [tuple(own.values()) for own in done])
    if failed:
        raise TidemarkError(
            f"requests failed: {', '.join(failed)}; `tidemark request status CODE` says why"
        )
    return done


def _waiting(code: str | None) -> list[Request]:
    with postgres.connect(runs.settings()) as connection:
        if code is None:
            return [
                request
                for kind in CARRY_OUT
                for request in requests.waiting(connection, kind)
                if request.is_of_subject
            ]
        try:
            return [requests.find(connection, code)]
        except UsageError as error:
            raise AirflowFailException(str(error)) from error
