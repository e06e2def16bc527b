"""Real files, where they lie: every daily figure is that of their answers, to the cent.

They are not in the repository. TIDEMARK_REAL_DATA names their folder, `../shared/data` by default;
it holds `landing/` and `answers.json`, and a day's figures were made apart from this project.
"""

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from homes import Warehouse
from tidemark import clickhouse

DATA = Path(
    os.environ.get("TIDEMARK_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
)


@pytest.mark.skipif(
    not (DATA / "answers.json").is_file(),
    reason=f"no answers.json in {DATA}: set TIDEMARK_REAL_DATA",
)
def test_every_daily_figure_is_that_of_the_answers(fresh_warehouse: Warehouse) -> None:
    home = fresh_warehouse
    text = (DATA / "answers.json").read_text(encoding="utf-8")
    answers: dict[str, Any] = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    assert len(answers) >= 4
    for workspace, answer in answers.items():
        home.run(
            "workspace", "add", workspace, "--timezone", answer["timezone"],
            "--currency", answer["currency"], "--plan", "pro",
        )  # fmt: skip
    for workspace, answer in answers.items():
        report = home.run(
            "load", "--workspace", workspace, "--landing", str(DATA / "landing"),
            "--as-of", answer["load_as_of"], "--json",
        ).json  # fmt: skip
        assert report["lines"] > 0
        assert report["lines"] == sum(
            report[fate] for fate in ("stored", "duplicate", "quarantined", "refused")
        )
    home.run("build")
    for workspace, answer in answers.items():
        rows = clickhouse.rows(
            home.settings,
            "select * except (visitors_state), finalizeAggregation(visitors_state) as visitors"
            f" from marts.summary_kpis_daily where workspace_id = '{workspace}'",
        )
        _compare(workspace, answer, rows)


def _compare(workspace: str, answer: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    by_day: dict[str, dict[str, Decimal]] = {}
    for row in rows:
        day = by_day.setdefault(row["date_day"], {})
        for name, value in row.items():
            if name not in ("workspace_id", "date_day", "platform", "campaign"):
                day[name] = day.get(name, Decimal(0)) + Decimal(str(value))
    assert answer["daily"]
    wrong = []
    figures = 0
    for day_text, told in answer["daily"].items():
        for name, value in told.items():
            figures += 1
            found = by_day.get(day_text, {}).get(name)
            if found != value:
                wrong.append((workspace, day_text, name, value, found))
    assert figures > 10
    assert not wrong, wrong[:10]
    # And no day beside them has any of these figures.
    measures = {name for told in answer["daily"].values() for name in told}
    beside = {
        (day_text, name)
        for day_text, found_day in by_day.items()
        if day_text not in answer["daily"]
        for name in measures
        if found_day.get(name)
    }
    assert not beside
