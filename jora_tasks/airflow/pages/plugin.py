"""The Airflow plugin: the app, a tab on each DAG run and an entry in the navigation.

Every process of Airflow loads plugins, and only the API server shows pages; so the app is made at its
first request.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

PREFIX = "/jora"


class Pages:
    """The ASGI app of the pages."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from jora_tasks.airflow.pages.app import application

        await application()(scope, receive, send)


class JoraPages(AirflowPlugin):
    """Lineage of each DAG run, and the lines of adapters."""

    name = "jora_pages"
    fastapi_apps = [{"app": Pages(), "url_prefix": PREFIX, "name": "jora"}]  # noqa: RUF012 (Airflow's way)
    # Addresses without a leading slash: Airflow's page has a base, which holds where it is mounted.
    external_views = [  # noqa: RUF012
        {
            "name": "RAG lineage",
            "href": f"{PREFIX[1:]}/lineage?dag_id={{DAG_ID}}&run_id={{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "rag_lineage",
        },
        {
            "name": "Adapters",
            "href": f"{PREFIX[1:]}/adapters",
            "destination": "nav",
            "nav_top_level": True,
            "url_route": "adapters",
        },
    ]
