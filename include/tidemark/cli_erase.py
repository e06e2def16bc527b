"""The verb that carries a person's erasure out: `erase`."""

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from tidemark.cli_options import AsOfOption, JsonOption, as_of_date
from tidemark.config import Settings
from tidemark.output import emit, note


def erase(
    workspace_id: Annotated[str, typer.Option("--workspace", metavar="W", help="Whose data.")],
    subject: Annotated[
        str,
        typer.Option(
            metavar="S",
            help="One person: e-mail, customer, user or profile id, or visitor:ID of the pixel;"
            " - reads it from stdin, which keeps it out of the shell's history.",
        ),
    ],
    later: Annotated[
        bool, typer.Option("--later", help="Put it on record alone; it is carried out later.")
    ] = False,
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> int:
    """Erase a person: their rows go, and no load stores a line of theirs again.

    Ends with 3 where a hold keeps some of it; run again after its release, it goes on. What
    outlives raw keeps its figures, under keys that lead to nobody.
    """
    from tidemark import erasure

    settings = Settings.from_env()
    request, is_new = erasure.receive(
        settings,
        workspace_id,
        sys.stdin.read() if subject == "-" else subject,
        datetime.now(UTC),
    )
    note(f"request {request.code} is on record, due by {request.due_at:%Y-%m-%d}")
    if not later:
        request = erasure.carry_out(
            settings,
            request.code,
            as_of=as_of_date(as_of),
            clock=lambda: datetime.now(UTC),
            note=note,
        )

    def human() -> None:
        print(f"request {request.code}: {request.status}")
        if request.reason:
            print(request.reason)
        for table, rows in (request.outcome or {}).items():
            print(f"{table}: {rows} rows")
        if not later:
            print("run `tidemark build`: the days that still change are made again without them")
            print("cold files keep their rows until they end; no recall brings those back")

    emit({**request.as_dict(), "created": is_new}, human, as_json=as_json)
    return 3 if request.status == "held" else 0
