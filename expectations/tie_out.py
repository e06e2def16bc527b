"""The checkpoint `tie_out`: a frame in; verdict, validation result and Data Docs out."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations.checkpoint import UpdateDataDocsAction
from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult

from expectations import pages, suites

NAME = "tie_out"
#: A broken history fails on every day of it; this many rows of each expectation are named.
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Failure:
    """An expectation that does not hold."""

    expectation: str
    columns: tuple[str, ...]
    #: How many rows break it; 0 where the frame as a whole does.
    count: int
    #: The first of them, each by its values of `suites.KEY`.
    keys: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the checkpoint found, and where its proof lies."""

    success: bool
    run_name: str
    #: Where the validation result lies below `validation_results`, without its ending.
    validation_result_id: str
    failures: tuple[Failure, ...]
    evaluated: int
    #: The index page of the Data Docs.
    data_docs: Path


def read_ahead() -> None:
    """Compile what the Data Docs are made with, for this process and each forked from it."""
    pages.compile_ahead()


def run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    asked_rows: int,
    now: datetime,
    name: str = NAME,
) -> Outcome:
    """Validate rows with the columns `suites.COLUMNS` in the file context of a folder.

    Args:
        folder: where context, validation results and Data Docs lie; made if missing.
        asked_rows: the least number of rows there must be.
        now: the clock of this run; it names the validation result.
        name: of checkpoint, suite and Data Docs pages.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(
        Path(__file__).with_name("great_expectations.yml"), folder / "great_expectations.yml"
    )
    # Great Expectations would compare them with what stands there, which costs as much again.
    for kept in ("suites", "validation_definitions", "checkpoints"):
        (folder / kept / f"{name}.json").unlink(missing_ok=True)
    context = gx.get_context(mode="file", context_root_dir=folder)
    batch = (
        context.data_sources.add_or_update_pandas("frames")
        .add_dataframe_asset(name)
        .add_batch_definition_whole_dataframe("all")
    )
    suite = context.suites.add(suites.tie_out(name))
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=name, data=batch, suite=suite)
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=name,
            validation_definitions=[definition],
            actions=[UpdateDataDocsAction(name="data_docs")],
            result_format={
                "result_format": "SUMMARY",
                "unexpected_index_column_names": list(suites.KEY),
                "partial_unexpected_count": SHOWN,
            },
        )
    )
    run_name = f"{now:%Y%m%dT%H%M%S.%fZ}"
    result = checkpoint.run(
        batch_parameters={"dataframe": frame(rows)},
        expectation_parameters={"asked_rows": asked_rows},
        run_id=gx.RunIdentifier(run_name=run_name, run_time=now),
    )
    ((identifier, validation),) = result.run_results.items()
    assert isinstance(validation, ExpectationSuiteValidationResult)
    validation_result_id = "/".join(identifier.to_tuple())  # type: ignore[no-untyped-call]
    return Outcome(
        success=bool(result.success),
        run_name=run_name,
        validation_result_id=validation_result_id,
        failures=tuple(_failures(validation)),
        evaluated=len(validation.results),
        data_docs=folder / "data_docs" / "index.html",
    )


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as a frame that keeps text as it is: no float anywhere."""
    return pd.DataFrame(
        [[row.get(column) for column in suites.COLUMNS] for row in rows],
        columns=list(suites.COLUMNS),
        dtype=object,
    )


def _failures(validation: ExpectationSuiteValidationResult) -> Iterator[Failure]:
    for result in validation.results:
        if not result.success:
            assert isinstance(result, ExpectationValidationResult)
            assert result.expectation_config is not None
            kwargs = result.expectation_config.kwargs
            found = result.result or {}
            yield Failure(
                expectation=result.expectation_config.type,
                columns=tuple(
                    kwargs[name] for name in ("column", "column_A", "column_B") if name in kwargs
                ),
                count=int(found.get("unexpected_count", 0)),
                keys=tuple(
                    tuple(str(row[column]) for column in suites.KEY)
                    for row in found.get("partial_unexpected_index_list") or []
                ),
            )
