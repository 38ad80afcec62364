"""Moving the champion by hand: a page that says what will happen, and the act itself."""

from __future__ import annotations

from typing import Annotated

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from fastapi import APIRouter, Form, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from starlette.background import BackgroundTask

from jora_tasks.airflow.pages import home
from jora_tasks.airflow.pages.access import PromoterDep, user_name
from jora_tasks.airflow.pages.adapters import found, known, read_verdict
from jora_tasks.airflow.pages.addresses import address
from jora_tasks.airflow.pages.confirmation import check, sign
from jora_tasks.airflow.pages.rendering import page, prefix_of
from jora_tasks.airflow.pages.scores import measures, scores_of
from jora_tasks.events import tell_moves_here
from jora_tasks.registry import Listed, earlier_champions

router = APIRouter()
LONGEST_REASON = 500
ReasonForm = Annotated[str, Form(max_length=LONGEST_REASON)]
TokenForm = Annotated[str, Form()]
ChampionForm = Annotated[int, Form(ge=0)]
"""The champion that the form was shown with; 0 for none."""


@router.get("/adapters/{name}/versions/{version}/promote")
def ask_promote(request: Request, user: PromoterDep, name: str, version: int) -> Response:
    """The two versions side by side, and a form."""
    return _promote_form(request, user, name, version)


def _promote_form(request: Request, user: BaseUser, name: str, version: int, problem: str = "") -> Response:
    listed = found(name, version)
    champion = _champion(name)
    before = home.registry().listed_version(name, champion) if champion else None
    return page(
        request,
        "promote.html.j2",
        422 if problem else 200,
        name=name,
        listed=listed,
        before=before,
        champion=champion,
        verdict=read_verdict(home.store(), listed),
        rows=_side_by_side(listed, before),
        token=sign(user, _promotion(name, version, champion)),
        longest=LONGEST_REASON,
        problem=problem,
    )


@router.post("/adapters/{name}/versions/{version}/promote")
def promote(
    request: Request,
    user: PromoterDep,
    name: str,
    version: int,
    token: TokenForm,
    champion: ChampionForm,
    reason: ReasonForm = "",
) -> Response:
    """Make the version champion, if the champion is still the one that the form showed."""
    check(request, user, _promotion(name, version, champion), token)
    if not reason.strip():
        return _promote_form(request, user, name, version, "Give a reason: it stays in the record.")
    found(name, version)
    home.registry().promote(
        name, version, by=user_name(user), reason=reason.strip(), expected=champion or None
    )
    return _to_line(request, name)


@router.get("/adapters/{name}/rollback")
def ask_rollback(request: Request, user: PromoterDep, name: str) -> Response:
    """The champion now and the one before, and a form."""
    return _rollback_form(request, user, name)


def _rollback_form(request: Request, user: BaseUser, name: str, problem: str = "") -> Response:
    known(name)
    champion, earlier = _champion(name), _earlier(name)
    if not champion or earlier is None:
        raise HTTPException(409, f"{name!r} has no earlier champion to go back to; promote a version.")
    listed, before = found(name, earlier), home.registry().listed_version(name, champion)
    return page(
        request,
        "rollback.html.j2",
        422 if problem else 200,
        name=name,
        listed=listed,
        before=before,
        champion=champion,
        rows=_side_by_side(listed, before),
        token=sign(user, _return(name, champion)),
        longest=LONGEST_REASON,
        problem=problem,
    )


@router.post("/adapters/{name}/rollback")
def rollback(
    request: Request,
    user: PromoterDep,
    name: str,
    token: TokenForm,
    champion: ChampionForm,
    reason: ReasonForm = "",
) -> Response:
    """Go back to the champion before, if the champion is still the one that the form showed."""
    check(request, user, _return(name, champion), token)
    if not reason.strip():
        return _rollback_form(request, user, name, "Give a reason: it stays in the record.")
    known(name)
    home.registry().rollback(name, by=user_name(user), reason=reason.strip(), expected=champion)
    return _to_line(request, name)


def _promotion(name: str, version: int, champion: int) -> str:
    return f"promote {name} {version} over {champion}"


def _return(name: str, champion: int) -> str:
    return f"roll back {name} from {champion}"


def _champion(name: str) -> int:
    champion = home.registry().get_champion(name)
    return champion.version if champion else 0


def _earlier(name: str) -> int | None:
    """The version to go back to: the last earlier champion that still exists."""
    registry = home.registry()
    for version in reversed(earlier_champions(registry.transitions(name))):
        if registry.get(name, version) is not None:
            return version
    return None


def _side_by_side(listed: Listed, before: Listed | None) -> list[tuple[str, str, str]]:
    """(measure, of the version, of the champion); intervals written out."""
    return [
        (measure, str(scores_of(listed, measure) or "–"), str((before and scores_of(before, measure)) or "–"))
        for measure in measures([each for each in (listed, before) if each])
    ]


def _to_line(request: Request, name: str) -> Response:
    # After the answer: a server that is slow is not this user's matter.
    told = BackgroundTask(tell_moves_here, home.store(), name)
    return RedirectResponse(prefix_of(request) + address("adapters", name) + "#history", 303, background=told)
