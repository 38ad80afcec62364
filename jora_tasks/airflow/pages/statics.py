"""The style sheet and the two small scripts, which nothing depends on."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

router = APIRouter()
_FOLDER = Path(__file__).parent / "static"
_KEPT = {"Cache-Control": "private, max-age=300"}


@router.get("/pages.css")
def style() -> FileResponse:
    return FileResponse(_FOLDER / "pages.css", media_type="text/css", headers=_KEPT)


@router.get("/theme.js")
def theme() -> FileResponse:
    return FileResponse(_FOLDER / "theme.js", media_type="text/javascript", headers=_KEPT)


@router.get("/pages.js")
def script() -> FileResponse:
    return FileResponse(_FOLDER / "pages.js", media_type="text/javascript", headers=_KEPT)
