"""The verb that loads and rebuilds a range of days after an outage: `backfill`."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from tidemark.cli_options import AsOfOption, JsonOption, as_of_date
from tidemark.config import Settings
from tidemark.output import emit, load_table, note, print_rows, progress_bar, to_json


def backfill(
    from_date: Annotated[
        datetime, typer.Option("--from", formats=["%Y-%m-%d"], metavar="D", help="The first day.")
    ],
    to_date: Annotated[
        datetime, typer.Option("--to", formats=["%Y-%m-%d"], metavar="D", help="The last day.")
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the ledger; names nobody.")],
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> int:
    """Load what now stands in landing for some days, then rebuild them from raw.

    Days that are purged and not recalled stay as they are, class by class; that ends with 3. Of
    recalled ones the figures are made again, and put right where they are not what the ledger has.
    """
    from tidemark import flows, gate

    try:
        with progress_bar("loading") as track:
            report = flows.backfill(
                Settings.from_env(),
                from_date=from_date.date(),
                to_date=to_date.date(),
                reason=reason,
                as_of=as_of_date(as_of),
                clock=lambda: datetime.now(UTC),
                gate=gate.tie_out,
                note=note,
                track=track,
            )
    except (flows.FilesFailed, flows.RangeClosed) as error:
        if not as_json:
            raise
        note(f"tidemark: {error}")
        print(to_json(error.report.as_dict()))
        return error.exit_code

    def human() -> None:
        print_rows(*load_table(report.load))
        for own in report.build.recalled:
            print(own)
        print(f"{report.build.days} workspace days rebuilt; backfill {report.backfill_id}")

    emit(report.as_dict(), human, as_json=as_json)
    return 0
