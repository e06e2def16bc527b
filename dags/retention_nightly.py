"""# retention_nightly

Forgets what is past its window, at 03:30 UTC: plan, then class by class gate, purge and verify. A
plan over the policy's size waits up to 20 hours for a person: *Required actions* shows it.

**It will not** destroy what Great Expectations has not tied out under this plan's id, what a hold
keeps or what changed since the plan. No control of Airflow opens the gate: a task marked as success
leaves no verdict on file, and without one the purge refuses. A refused class stops no other.
Cold files, recalled rows and exports go at the end of their own window in `forget_cold`, Airflow's
traces in `forget_traces`.

**By hand:** trigger it (parameter `as_of`, never in the future), or `tidemark purge`; to see first
what would go, `tidemark plan` or the page *Retention*.

**When it fails:** the log of `gate` says what does not tie out or is open; docs/airflow.md what to
do. What a killed run began, `plan` of the next one finishes first.
"""

from typing import Any

from airflow.sdk import TaskGroup, dag, get_current_context, task

from tidemark_airflow import defaults, plans, runs


@dag(
    schedule="30 3 * * *",
    doc_md=__doc__,
    tags=["retention"],
    params={"as_of": runs.AS_OF},
    **defaults.DAG,
)
def retention_nightly() -> None:
    plan = task(plans.plan, inlets=[defaults.MARTS])
    # The gate waits for every class before it, however that ended: a skipped one waits for none.
    gate = task(plans.prove, task_id="gate", trigger_rule="all_done")
    purge = task(plans.purge)
    verify = task(plans.verify, outlets=[defaults.PURGED])

    @task
    def forget_traces() -> runs.Message:
        from tidemark_airflow import traces

        return traces.forget(runs.settings(), runs.as_of(get_current_context()))

    @task
    def forget_cold() -> list[dict[str, Any]]:
        return plans.expire()

    found, approve = plan(), plans.PlanApproval(task_id=plans.APPROVAL)
    found >> approve
    before: list[Any] = [found, approve]
    for name in plans.classes():
        with TaskGroup(name):
            proof = gate(name)
            purged = purge(name, proof)
            before >> proof >> purged >> verify()
            before = [*before, purged]
    forget_traces()
    forget_cold()


retention_nightly()
