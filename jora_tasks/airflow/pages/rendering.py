"""Templates → HTML. Everything that a template shows is escaped, unless it was made as markup."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jora_tasks.airflow.pages.addresses import address, airflow_run

_FOLDER = Path(__file__).parent


def page(request: Request, template: str, status: int = 200, **shown: Any) -> HTMLResponse:
    """A page of this template; ``link`` and ``run_link`` make addresses of pages and of Airflow's runs."""
    prefix = prefix_of(request)

    def link(*parts: object, **query: object) -> str:
        return prefix + address(*parts, **query)

    def run_link(dag_id: str, run_id: str, task_id: str = "", map_index: int = -1) -> str:
        return airflow_run(airflow_prefix(request), dag_id, run_id, task_id, map_index)

    html = _environment().get_template(template).render(link=link, run_link=run_link, prefix=prefix, **shown)
    return HTMLResponse(html, status)


def prefix_of(request: Request) -> str:
    """Where the app is mounted, as in ``/jora``."""
    return str(request.scope.get("root_path", ""))


def airflow_prefix(request: Request) -> str:
    """Where Airflow itself is, without a slash at the end; empty at the root."""
    return prefix_of(request).rpartition("/")[0]


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"digest": short_digest, "when": when, "figure": figure}
    environment.filters |= {"bytes": file_size, "duration": duration}
    return environment


def short_digest(digest: str) -> str:
    """As much of a digest as tells it apart: ``sha256:0123456789ab``."""
    return digest[:19]


def when(iso: str) -> str:
    """``2026-01-02T03:04:05Z`` for people."""
    return f"{iso[:10]} {iso[11:16]} UTC" if len(iso) >= 16 else iso


def file_size(count: float) -> str:
    """Bytes as ``1.2 GB`` (10⁹)."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:,.0f} B" if units[0] == "B" else f"{count:,.1f} {units[0]}"


def duration(seconds: float) -> str:
    """``4.2 s``, ``3:25 min`` or ``12:03 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = divmod(round(seconds), 60), divmod(round(seconds / 60), 60)
    return f"{minutes[0]}:{minutes[1]:02} min" if seconds < 3600 else f"{hours[0]:,}:{hours[1]:02} h"


def figure(value: Any) -> str:
    """A number of a table."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
