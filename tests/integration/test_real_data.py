"""Real shops, visitors and ads with answers computed apart: equal to the cent and the count.

The data are no part of the repository. They are looked for beside it, or where TIDEMARK_REAL_DATA
says: a folder with `landing/` and `answers.json`.
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

pytestmark = pytest.mark.skipif(
    not (DATA / "answers.json").is_file(), reason="the real data are not beside the repository"
)

FIGURES = """
select k.*, pixel.events as events, k.pageviews + k.bot_pageviews as pageviews_and_bot_pageviews
from marts.kpis_daily as k
left join (
    select workspace_id, date_day, sum(row_count) as events
    from intermediate.int_pixel_daily group by workspace_id, date_day
) as pixel on k.workspace_id = pixel.workspace_id and k.date_day = pixel.date_day
where k.workspace_id = {workspace:String} and k.platform = 'all'
"""


def test_every_daily_figure_equals_its_answer(fresh_warehouse: Warehouse) -> None:
    answers: dict[str, Any] = json.loads(
        (DATA / "answers.json").read_text(encoding="utf-8"), parse_float=Decimal
    )
    assert len(answers) >= 4
    for workspace, answer in answers.items():
        fresh_warehouse.run(
            "workspace", "add", workspace, "--timezone", answer["timezone"],
            "--currency", answer["currency"], "--plan", "growth",
        )  # fmt: skip
        fresh_warehouse.run(
            "load", "--workspace", workspace, "--landing", str(DATA / "landing"),
            "--as-of", answer["load_as_of"],
        )  # fmt: skip
    built = fresh_warehouse.run("build", "--json").json
    assert built["gate"]["success"] is True
    for workspace, answer in answers.items():
        rows = clickhouse.rows(
            fresh_warehouse.settings, FIGURES, params={"param_workspace": workspace}
        )
        figures = {row["date_day"]: row for row in rows}
        assert set(figures) == set(answer["daily"])
        for day, expected in answer["daily"].items():
            assert expected
            for name, value in expected.items():
                assert Decimal(str(figures[day][name])) == Decimal(str(value)), (
                    workspace, day, name
                )  # fmt: skip
