"""Small deliveries of page views for the tests of Airflow."""

import json
from datetime import date
from typing import Any

from airflow_home import AirflowHome

#: Stands in every line, and nowhere after the load.
CANARY = "canary.person@example.org"


def pageview(number: int, day: date) -> dict[str, Any]:
    """A page view of a day."""
    return {
        "event_id": f"event-{day}-{number}",
        "event_name": "$pageview",
        "timestamp": f"{day}T12:00:00Z",
        "anonymous_id": f"visitor-{number}",
        "session_id": f"session-{number}",
        "email": CANARY,
        "ip": "81.2.69.142",
        "user_agent": "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/141.0.0.0 Safari/537.36",
        "url": f"https://mugs.example/new?utm_source=facebook&utm_medium=cpc&mail={CANARY}",
        "consent": {"analytics": True},
    }


def deliver(home: AirflowHome, day: date, count: int) -> None:
    """A file of page views of a day, delivered on that day to the workspace `mugs`."""
    folder = home.warehouse.settings.landing_path / "pixel" / "mugs" / str(day)
    folder.mkdir(parents=True)
    lines = [json.dumps(pageview(number, day)) for number in range(count)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
