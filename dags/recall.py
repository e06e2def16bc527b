"""# recall

Brings a month of cold data of a class back into `recalled.*`, for as long as the policy says; what
was erased since stays out.

**It will not** write into raw or the marts, or bring back what its cold file does not prove whole.

**By hand:** trigger it with class, workspace, month and reason, or
`tidemark recall CLASS --workspace W --month M --reason TEXT`. The reason goes into the ledger:
name a case, never a person.

**When it fails:** the log of `recall` says which file is damaged, or which guard said no.
"""

from airflow.sdk import Param, dag, get_current_context, task

from tidemark_airflow import defaults, plans, runs

MONTH = Param(type="string", pattern=r"^\d{4}-\d{2}$", description="The month, YYYY-MM.")
# It stays with the run, so an e-mail address does not even come in.
REASON = Param(type="string", pattern="^[^@]{1,200}$", description="A case, never a person.")


@dag(
    schedule=None,
    doc_md=__doc__,
    tags=["retention", "by hand"],
    params={
        "class": Param(type="string", enum=list(plans.classes())),
        "workspace": runs.WORKSPACE,
        "month": MONTH,
        "reason": REASON,
    },
    **defaults.DAG,
)
def recall() -> None:
    @task(task_id="recall")
    def bring_back() -> runs.Message:
        from datetime import date

        from tidemark import recall as recalling

        context = get_current_context()
        given = context["params"]
        with runs.refusal_is_final():
            found = recalling.recall(
                runs.settings(),
                given["class"],
                given["workspace"],
                date.fromisoformat(f"{given['month']}-01"),
                as_of=runs.as_of(context),
                now=runs.clock(),
                reason=given["reason"],
                note=runs.log.info,
            )
        return runs.plain(found.as_dict())

    bring_back()


recall()
