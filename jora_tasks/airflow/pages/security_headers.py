"""What browsers are told of every page: where it may load from, who may frame it, that it is not kept."""

from __future__ import annotations

from fastapi import Request, Response
from starlette.middleware.base import RequestResponseEndpoint

PAGE = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "frame-src 'self'; form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
)
# A report is a file from the store: it gets no script, no address, no form, and no origin of its own.
REPORT = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"


async def add_security_headers(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Middleware; a route's own policy stays."""
    response = await call_next(request)
    response.headers.setdefault("Content-Security-Policy", PAGE)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "SAMEORIGIN"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    # Not "no-referrer": forms would then say "Origin: null".
    response.headers["Referrer-Policy"] = "same-origin"
    return response
