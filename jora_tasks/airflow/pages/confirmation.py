"""Forms that change something: sent by this page, to this server, by the user who was shown it.

Airflow's cookie travels with requests that other sites cause, and a local Airflow has no login at all.
So a form carries a signed token that names the user and the act, good for an hour, and a request whose
browser says that it comes from another origin is refused.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.tokens import get_signing_key
from fastapi import HTTPException, Request
from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

VALID_SECONDS = 3600


def sign(user: BaseUser, act: str) -> str:
    """A token with which this user may do this act, such as ``promote tiny 3 over 2``."""
    return _serializer().dumps([str(user.get_id()), act])


def check(request: Request, user: BaseUser, act: str, token: str) -> None:
    """See that the request comes from this server's own form.

    Raises:
      HTTPException: 403 if it comes from elsewhere, or its token is of another user, act or hour.
    """
    if not _same_origin(request):
        raise HTTPException(403, "This request comes from another site; use the form on this page.")
    try:
        given = _serializer().loads(token, max_age=VALID_SECONDS)
    except SignatureExpired:
        raise HTTPException(403, "This form is older than an hour; open it again.") from None
    except BadSignature:
        given = None
    if given != [str(user.get_id()), act]:
        raise HTTPException(403, "This form was not made for you and this act; open it again.")


def _same_origin(request: Request) -> bool:
    """Browsers send where a form comes from: Sec-Fetch-Site where they trust the address, else Origin."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None and site != "same-origin":
        return False
    if origin is not None:
        return urlsplit(origin).netloc == request.headers.get("host", "")
    return site is not None


def _serializer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(get_signing_key("api", "secret_key"), salt="jora-pages")
