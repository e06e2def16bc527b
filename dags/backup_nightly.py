"""# backup_nightly

Backs both stores up at 03:00 UTC, half an hour before the purge: writes, restores into scratch
space, compares every column of every row, and only then counts it. The first run of a month makes
the month's too, which has no personal column. Then it deletes what is past its time.

**It will not** count a backup that was not read back, delete the newest, or run beside a load, a
build or a purge: they share one lock. A purge refuses while no backup is younger than 26 hours.

**By hand:** trigger it (parameter `as_of`, never in the future), or `tidemark backup`;
`tidemark backup --list` shows what there is.

**When it fails:** the log of `backup` says which table or file differs, or that the disk is full.
Older backups stay as they are; docs/backups.md says how to bring one back.
"""

from airflow.sdk import dag, get_current_context, task

from tidemark_airflow import defaults, runs


@dag(
    schedule="0 3 * * *",
    doc_md=__doc__,
    tags=["backup"],
    params={"as_of": runs.AS_OF},
    **defaults.DAG,
)
def backup_nightly() -> None:
    @task
    def backup() -> runs.Message:
        from tidemark import backup as backups

        with runs.refusal_is_final():
            report = backups.make(
                runs.settings(),
                as_of=runs.as_of(get_current_context()),
                clock=runs.clock,
                note=runs.log.info,
            )
        return runs.plain(report.as_dict())

    backup()


backup_nightly()
