"""Lint the dbt project's SQL: `python tests/lint_sql.py`.

sqlfluff's dbt templater compiles every model, and that asks an engine: it gets one of its own,
built once, because some models read what the build before them left.
"""

import subprocess
import sys

from homes import new_home
from tidemark import build


def main() -> int:
    """Run sqlfluff on the models; its exit code."""
    with new_home() as warehouse:
        warehouse.run("up", "--no-airflow")
        build.seed(warehouse.settings)
        build.publish_scope(warehouse.settings, frozenset())
        build.dbt(warehouse.settings, ["run"])
        with build.environment(warehouse.settings):
            return subprocess.run(
                [sys.executable, "-m", "sqlfluff", "lint", "--disable-progress-bar", "dbt_project"],
                cwd=warehouse.settings.root,
                check=False,
            ).returncode


if __name__ == "__main__":
    sys.exit(main())
