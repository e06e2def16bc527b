"""# restore_smoke_weekly

Restores the newest daily backup into scratch space, Sundays at 04:00 UTC, and compares every column
of every row with what stood when it was made: a disk that decays is found before it is needed.

**It will not** touch what stands: scratch space is a database of its own, gone afterwards.

**By hand:** trigger it, or `tidemark restore --check [NAME]`.

**When it fails:** the log of `restore` names the file or table. Make a new backup at once
(`tidemark backup`), check the older ones, and look at the disk: docs/backups.md.
"""

from airflow.sdk import dag, task

from tidemark_airflow import defaults, runs


@dag(schedule="0 4 * * 0", doc_md=__doc__, tags=["backup"], **defaults.DAG)
def restore_smoke_weekly() -> None:
    @task
    def restore() -> runs.Message:
        from tidemark import backup as backups

        settings = runs.settings()
        runs.or_skip(backups.stored(settings) or None, "there is no backup yet")
        found = backups.check(settings, None, clock=runs.clock, note=runs.log.info)
        return runs.plain(found.as_dict())

    restore()


restore_smoke_weekly()
