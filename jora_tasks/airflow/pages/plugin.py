"""The Airflow plugin: the app, a tab on each DAG run, an entry in the navigation, what hears of ends, and
what keeps the API from being open to everyone, and on SQLite its writers in turn.

Every process of Airflow loads plugins, and only the API server shows pages; so the app is made at its
first request.
"""

from __future__ import annotations

from typing import Any

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from jora_tasks.airflow import endings
from jora_tasks.airflow.open_door import ClosedDoor, check_start
from jora_tasks.airflow.sqlite import WritersInTurn

PREFIX = "/jora"
ON_SQLITE = conf.get("database", "sql_alchemy_conn", fallback="").startswith("sqlite")

_IN_TURN = [{"middleware": WritersInTurn, "args": [], "kwargs": {"own": PREFIX}, "name": "writers in turn"}]


class Pages:
    """The ASGI app of the pages."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from jora_tasks.airflow.pages.app import application

        await application()(scope, receive, send)


class JoraPages(AirflowPlugin):
    """Lineage of each DAG run, and the lines of adapters; jobs end with their tasks."""

    name = "jora_pages"
    listeners = [endings]  # noqa: RUF012 (Airflow's way)
    fastapi_apps = [{"app": Pages(), "url_prefix": PREFIX, "name": "jora"}]  # noqa: RUF012 (Airflow's way)
    fastapi_root_middlewares = [  # noqa: RUF012 (Airflow's way; the last is the outermost)
        *(_IN_TURN if ON_SQLITE else ()),
        {"middleware": ClosedDoor, "args": [], "kwargs": {}, "name": "jora"},
    ]
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

    @classmethod
    def on_load(cls, *args: Any, **kwargs: Any) -> None:
        check_start()
