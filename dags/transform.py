"""# transform

Rebuilds the days that loads have touched, layer by layer with dbt, then ties load ledger, raw and
marts out. Starts when `load` has left days due; a late file rebuilds its days and no others.

**It will not** rebuild days whose raw rows have gone, nor a day that nothing touched. Between two
tasks the warehouse is free: days that a load brings meanwhile are built too, before the gate.
`staging` begins a build, a new one each time it is tried, and runs views if the project changed.

**By hand:** trigger it, or `tidemark build [--from D --to D]`. A later task that is cleared or
tried again runs what failed or never ended; of a build that a newer one took over nothing is left.

**When it fails:** the log of the failed layer ends with a table of its models and tests; that of
`gate` names the days and figures that differ. docs/runbooks/gate-failed.md says what to do.
"""

from typing import Any

from airflow.sdk import dag, get_current_context, task

from tidemark_airflow import defaults, runs


@dag(
    schedule=[defaults.RAW],
    doc_md=__doc__,
    tags=["dbt", "marts"],
    params={"as_of": runs.AS_OF},
    **defaults.DAG,
)
def transform() -> None:
    def build_layer(build_id: int, layer: Any) -> runs.Message:
        from tidemark import flows

        with runs.superseded_is_skipped(), runs.nodes_told(build_id, layer):
            report = flows.build_layer(
                runs.settings(), build_id, layer, clock=runs.clock, note=runs.log.info
            )
        return report.as_dict()

    @task
    def staging() -> int:
        from tidemark import flows

        day = runs.as_of(get_current_context())
        found = flows.open_build(runs.settings(), as_of=day, clock=runs.clock, note=runs.log.info)
        build_id = runs.or_skip(found, "no day is due")
        build_layer(build_id, "staging")
        return build_id

    @task(outlets=[defaults.MARTS])
    def gate(build_id: int, outlet_events: Any = None) -> runs.Message:
        from tidemark import flows
        from tidemark import gate as gates

        with runs.superseded_is_skipped(), runs.verdict_is_final():
            report = flows.close_build(
                runs.settings(),
                build_id,
                as_of=runs.as_of(get_current_context()),
                clock=runs.clock,
                gate=gates.tie_out,
                note=runs.log.info,
            )
        outcome = runs.plain(report.as_dict())
        outlet_events[defaults.MARTS].extra = {"build_id": build_id, "days": report.days}
        return outcome

    build_id = staging()
    intermediate = task(build_layer, task_id="intermediate")(build_id, "intermediate")
    marts = task(build_layer, task_id="marts")(build_id, "marts")
    intermediate >> marts >> gate(build_id)


transform()
