"""# export_workspace

Writes what the warehouse has of a workspace as files, one for each table, into a folder of the
request's code below `TIDEMARK_EXPORTS`. They go after the days that `exports` of the policy says.

**It will not** export a person: `tidemark export --subject -` does, or `subject_request`. A folder
without `manifest.json` is no export.

**By hand:** trigger it with workspace and format, or
`tidemark export --workspace W --format F`. Tried again, it goes on with the same request.

**When it fails:** the log of `carry_out` says which file, and `tidemark request status CODE` too;
docs/requests.md says what is exported.
"""

from airflow.sdk import Param, dag, get_current_context, task

from tidemark_airflow import defaults, runs


@dag(
    schedule=None,
    doc_md=__doc__,
    tags=["requests", "by hand"],
    params={
        "workspace": runs.WORKSPACE,
        "format": Param("parquet", enum=["parquet", "jsonl", "csv"], description="Of the files."),
    },
    **defaults.DAG,
)
def export_workspace() -> None:
    @task
    def receive() -> str:
        from tidemark import exports

        given = get_current_context()["params"]
        request, _ = exports.receive(
            runs.settings(),
            workspace_id=given["workspace"],
            subject=None,
            file_format=given["format"],
            now=runs.clock(),
        )
        return request.code

    @task
    def carry_out(code: str) -> runs.Message:
        from tidemark_airflow import subjects

        return subjects.carry_out(code, runs.as_of(get_current_context()))

    carry_out(receive())


export_workspace()
