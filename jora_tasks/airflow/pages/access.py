"""Who may see and who may do what: Airflow's own login and permissions, as dependencies of the routes.

Reading takes read access to the DAG `TRAINING_DAG` (and for a run's lineage to the DAG of that run);
moving the champion takes what editing and triggering that DAG takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, HTTPException, Request

TRAINING_DAG = "adapter_training"

_may_edit = requires_access_dag("PUT", param_dag_id=TRAINING_DAG)
_may_trigger = requires_access_dag("POST", DagAccessEntity.RUN, TRAINING_DAG)

reader: Callable[..., None] = requires_access_dag("GET", param_dag_id=TRAINING_DAG)
"""Dependency of every route: 401 without a login, 403 without read access."""


def run_reader(request: Request, user: GetUserDep, dag_id: str, run_id: str) -> tuple[str, str]:
    """The DAG id and run id of the request, if the user may see that DAG's runs."""
    requires_access_dag("GET", DagAccessEntity.RUN, dag_id)(request, user)
    return dag_id, run_id


def promoter(request: Request, user: GetUserDep) -> BaseUser:
    """The user, if allowed to move the champion; else 403."""
    _may_edit(request, user)
    _may_trigger(request, user)
    return user


def may_promote(request: Request, user: GetUserDep) -> bool:
    """Whether to offer buttons; `promoter` is what holds."""
    try:
        promoter(request, user)
    except HTTPException:
        return False
    return True


def user_name(user: BaseUser) -> str:
    """What the record of a promotion says of who did it."""
    return str(user.get_name() or user.get_id())


RunDep = Annotated[tuple[str, str], Depends(run_reader)]
PromoterDep = Annotated[BaseUser, Depends(promoter)]
MayPromoteDep = Annotated[bool, Depends(may_promote)]
