"""The verb that brings cold data back: `recall`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from tidemark.cli_options import AsOfOption, JsonOption, as_of_date
from tidemark.config import Settings
from tidemark.output import emit, note


def recall(
    data_class: Annotated[str, typer.Argument(metavar="CLASS", help="As the policy names it.")],
    workspace: Annotated[str, typer.Option(metavar="W", help="Whose data.")],
    month: Annotated[
        datetime, typer.Option(formats=["%Y-%m"], metavar="M", help="The month, as YYYY-MM.")
    ],
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why, for the ledger; it names nobody.")
    ] = "not given",
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a month of cold data back into `recalled.*`, until it expires.

    Rows of people who were erased since stay away. The same again makes it stay for longer.
    """
    from tidemark import recall as recalls

    report = recalls.recall(
        Settings.from_env(),
        data_class,
        workspace,
        month.date(),
        as_of=as_of_date(as_of),
        now=datetime.now(UTC),
        reason=reason,
        note=note,
    )

    def human() -> None:
        print(
            f"{report.rows} rows of {report.files} cold files stand in {', '.join(report.tables)}"
            f" until {report.expires_on}"
        )
        if report.erased_rows:
            print(f"{report.erased_rows} rows of erased people stayed away")

    emit(report.as_dict(), human, as_json=as_json)
