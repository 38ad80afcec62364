"""The FastAPI app: every route asks for a login first; what goes wrong is told on a page."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, RedirectResponse

from jora_tasks.airflow.pages import adapters, artifacts, costs, lineage, promotion, statics
from jora_tasks.airflow.pages.access import TRAINING_DAG, reader
from jora_tasks.airflow.pages.rendering import airflow_prefix, page
from jora_tasks.airflow.pages.security_headers import add_security_headers
from jora_tasks.errors import InputError, RunStopped

_HEADINGS = {403: "Not allowed", 404: "Not found", 409: "Not possible now", 422: "Not possible"}
_FORBIDDEN = (
    f"You may not do this. Reading takes read access to the DAG {TRAINING_DAG}; promoting and rolling back "
    "take what editing and triggering it takes. Ask whoever gives permissions in this Airflow."
)


@lru_cache(maxsize=1)
def application() -> FastAPI:
    """The app, without Airflow's: mounted there, it finds its login and permissions."""
    app = FastAPI(
        title="Jora pages",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(reader)],
    )
    app.middleware("http")(add_security_headers)
    for module in (lineage, adapters, costs, promotion, artifacts, statics):
        app.include_router(module.router)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(404, _refused)
    for kind in (InputError, RunStopped):
        app.add_exception_handler(kind, _impossible)
    app.add_exception_handler(RequestValidationError, _invalid)
    return app


def _refused(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    if status == 401:
        return _login(request)
    detail = str(getattr(error, "detail", ""))
    message = {"Forbidden": _FORBIDDEN, "Not Found": "There is no such page."}.get(detail, detail)
    return _error(request, status, message)


def _login(request: Request) -> Response:
    """Nothing without a login: browsers are sent to Airflow's, others are told."""
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(
            f"{airflow_prefix(request)}/api/v2/auth/login?next={quote(back, safe='')}", 302
        )
    return PlainTextResponse("Not authenticated", 401)


def _impossible(request: Request, error: Exception) -> Response:
    return _error(request, 409, str(error))


def _invalid(request: Request, error: Exception) -> Response:
    return _error(request, 422, "A part of the address or of the form is missing or wrong.")


def _error(request: Request, status: int, message: str) -> Response:
    return page(
        request, "error.html.j2", status, heading=_HEADINGS.get(status, "Something went wrong"), text=message
    )
