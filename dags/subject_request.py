"""# subject_request

Carries out what persons asked for, at 02:30 UTC: every request that waits, or by hand the one of a
code. `tidemark export --subject - --later` and `tidemark erase --subject - --later` put one on
record. An erasure that a legal hold keeps from its end waits for the night after the release.

**It will not** take a person's name, address or id: the configuration of a run stays with Airflow,
so it knows codes alone. A request that fails stops no other; the next night tries it again.

**By hand:** trigger it, with the code of a request or without one for all that wait; or
`tidemark export` or `tidemark erase` without `--later`.

**When it fails:** its message has the codes, `tidemark request status CODE` and the log of
`carry_out` why; docs/requests.md says what a request is.
"""

from airflow.sdk import Param, dag, get_current_context, task

from tidemark_airflow import defaults, runs

CODE = Param(
    None,
    type=["null", "string"],
    pattern="^[2-9A-HJ-NP-Z]{12}$",
    description="Of the request, as it was given on receipt; by default all that wait.",
)


@dag(
    schedule="30 2 * * *",
    doc_md=__doc__,
    tags=["requests"],
    params={"code": CODE},
    **defaults.DAG,
)
def subject_request() -> None:
    @task
    def carry_out() -> runs.Message:
        from tidemark_airflow import subjects

        context = get_current_context()
        return subjects.carry_out(context["params"]["code"], runs.as_of(context))

    carry_out()


subject_request()
