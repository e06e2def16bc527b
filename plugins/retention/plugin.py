"""Registers the page with Airflow: under `/retention/`, and in the navigation."""

from airflow.plugins_manager import AirflowPlugin

from retention.app import app


class RetentionPlugin(AirflowPlugin):
    """The ladder, drawn from what stands in the stores."""

    name = "retention"
    fastapi_apps = [{"app": app, "url_prefix": "/retention", "name": "Retention"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Retention",
            "href": "/retention/",
            "destination": "nav",
            "url_route": "retention",
            "nav_top_level": True,
            "icon": "/retention/icon.svg",
            "icon_dark_mode": "/retention/icon-dark.svg",
        }
    ]
