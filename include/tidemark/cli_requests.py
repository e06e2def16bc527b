"""The verbs that answer what workspaces and persons ask for: `export`, `erase`, `request`."""

import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemark.cli_options import AsOfOption, JsonOption, as_of_date
from tidemark.config import Settings
from tidemark.output import emit, note, print_rows

if TYPE_CHECKING:
    from tidemark.requests import Request

request_app = typer.Typer(help="What became of requests.")


class Format(StrEnum):
    """Of an export's files."""

    parquet = "parquet"
    jsonl = "jsonl"
    csv = "csv"


WorkspaceOption = Annotated[str, typer.Option("--workspace", metavar="W", help="Whose data.")]
_SUBJECT = typer.Option(
    "--subject",
    metavar="S",
    help="One person: e-mail, customer, user or profile id, or visitor:ID of the pixel;"
    " - reads it from stdin, which keeps it out of the shell's history.",
)
LaterOption = Annotated[
    bool, typer.Option("--later", help="Only put it on record; Airflow carries it out.")
]


def export(
    workspace_id: WorkspaceOption,
    subject: Annotated[str | None, _SUBJECT] = None,
    file_format: Annotated[
        Format | None,
        typer.Option("--format", help="By default parquet for a workspace, jsonl for a person."),
    ] = None,
    later: LaterOption = False,
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what the warehouse has of a workspace, or of one person, as files.

    The same again, until it is done, is the same request; what was interrupted is finished so.
    """
    from tidemark import exports

    settings = Settings.from_env()
    request, is_new = exports.receive(
        settings,
        workspace_id=workspace_id,
        subject=sys.stdin.read() if subject == "-" else subject,
        file_format=file_format.value if file_format else None,
        now=datetime.now(UTC),
    )
    if not later:
        note(f"request {request.code}: writing to {exports.location(settings, request.code)}")
        request = exports.carry_out(
            settings,
            request.code,
            as_of=as_of_date(as_of),
            clock=lambda: datetime.now(UTC),
            note=note,
        )
    document = {**_document(settings, request), "created": is_new}
    emit(document, lambda: _print(document), as_json=as_json)


def erase(
    workspace_id: WorkspaceOption,
    subject: Annotated[str, _SUBJECT],
    later: LaterOption = False,
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
    if not later:
        note(f"request {request.code}: erasing")
        request = erasure.carry_out(
            settings,
            request.code,
            as_of=as_of_date(as_of),
            clock=lambda: datetime.now(UTC),
            note=note,
        )
    document = {**request.as_dict(), "created": is_new}

    def human() -> None:
        _print(document)
        if request.status == "held":
            print("ask for it again after the release: then it goes on")
        if request.status == "done" and not request.outcome:
            print("no row was found by this subject: is it what the source sent?")
        if request.outcome:
            print("run `tidemark build`: the days that still change are made again without them")
        if not later:
            print("cold files keep their rows until they end; no recall brings those back")

    emit(document, human, as_json=as_json)
    return 3 if request.status == "held" else 0


@request_app.command("status")
def request_status(
    code: Annotated[str, typer.Argument(metavar="CODE", help="As it was given on receipt.")],
    as_json: JsonOption = False,
) -> None:
    """Show what became of a request."""
    from tidemark import postgres, requests

    settings = Settings.from_env()
    with postgres.connect(settings) as connection:
        document = _document(settings, requests.find(connection, code))
    emit(document, lambda: _print(document), as_json=as_json)


@request_app.command("list")
def request_list(
    done: Annotated[bool, typer.Option("--all", help="Those that are done too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the requests that wait, the most urgent first; of whom is not shown."""
    from tidemark import postgres, requests

    with postgres.connect(Settings.from_env()) as connection:
        rows = [own.as_dict() for own in requests.list_all(connection, done=done)]
    columns = (
        "code", "workspace_id", "kind", "is_of_subject", "status", "received_at", "due_at",
        "finished_at", "reason",
    )  # fmt: skip

    def human() -> None:
        print_rows(columns, [[row[column] for column in columns] for row in rows])

    emit(rows, human, as_json=as_json)


def _document(settings: Settings, request: "Request") -> dict[str, Any]:
    """A request, and where its files are as long as they are."""
    from tidemark import exports

    if request.kind != "export" or request.status != "done" or request.deleted_at is not None:
        return request.as_dict()
    found = exports.manifest(settings, request.code) or {"files": []}
    return {
        **request.as_dict(),
        "folder": exports.location(settings, request.code),
        "files": [
            {name: own[name] for name in ("table", "file", "rows", "bytes", "sha256")}
            for own in found["files"]
        ],
    }


def _print(document: dict[str, Any]) -> None:
    whose = "a person of " if document["is_of_subject"] else ""
    print(
        f"request {document['code']}: {document['kind']} of {whose}{document['workspace_id']},"
        f" {document['status']}"
    )
    if document["reason"]:
        print(f"because {document['reason']}")
    if document["status"] != "done":
        print(f"due by {document['due_at']:%Y-%m-%d}")
    if document["deleted_at"]:
        print(f"its files were deleted on {document['deleted_at']:%Y-%m-%d}")
    if document["kind"] == "erase":
        for table, rows in (document["outcome"] or {}).items():
            print(f"{table}: {rows} rows")
    if document.get("files"):
        columns = ("table", "file", "rows", "bytes")
        print_rows(columns, [[own[column] for column in columns] for own in document["files"]])
    if "folder" in document:
        print(
            f"{document['outcome']['rows']} rows in {document['folder']}"
            f" until {document['expires_on']}"
        )
