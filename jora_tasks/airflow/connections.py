"""Credentials that Airflow's connections keep, where settings name them; else the environment's are taken.

    JORA_ARTIFACTS_CONN_ID     type aws: the object store of JORA_ARTIFACTS and of documents in S3
    JORA_MLFLOW_CONN_ID        type http: MLflow's server; login and password, or a token as the extra "token"
    JORA_OPENLINEAGE_CONN_ID   type http: the server of lineage events; the password is its API key
    JORA_NOTIFY_CONN_ID        type http: the webhook; the password is the last part of its address

A task asks for them when it starts and has them in its own environment, which its stage's process inherits;
nothing is written down, and logs mask them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from jora_tasks.airflow.failures import BadInput

NOTIFY_ID = "JORA_NOTIFY_CONN_ID"

_OPEN = {"AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"}
_OPEN |= {"MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "OPENLINEAGE_URL"}


def use_connections() -> None:
    """Put into this process's environment what the connections say that settings name.

    Raises:
      BadInput: naming the setting, if there is no such connection or it is of another type.
    """
    os.environ.update(credentials())


def credentials(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables with what the connections say; empty where no setting names one."""
    found: dict[str, str] = {}
    for setting, (kind, read) in _READ.items():
        if conn_id := environment.get(setting):
            told = read(_connection(setting, conn_id, kind))
            found |= {name: str(value) for name, value in told.items() if value}
    for name, value in found.items():
        if name not in _OPEN:
            mask_secret(value)
    return found


def webhook() -> str:
    """The address of the webhook that a connection keeps; empty where no setting names one."""
    conn_id = os.environ.get(NOTIFY_ID)
    if not conn_id:
        return ""
    connection = _connection(NOTIFY_ID, conn_id, "http")
    address = _address(connection)
    if connection.password:
        mask_secret(connection.password)
        address = f"{address.rstrip('/')}/{connection.password}"
    return address


def _connection(setting: str, conn_id: str, kind: str) -> Connection:
    try:
        connection = Connection.get(conn_id)
    except AirflowNotFoundException:
        raise BadInput(
            f"{setting} names the connection {conn_id!r}, which Airflow does not have; add it under Admin, "
            "Connections, or correct the variable."
        ) from None
    if connection.conn_type != kind:
        raise BadInput(
            f"{setting} names the connection {conn_id!r} of type {connection.conn_type!r}; give one of type "
            f"{kind!r}, or what it should say in the environment."
        )
    return connection


def _objects(connection: Connection) -> dict[str, Any]:
    """The extras are those of the Amazon provider."""
    extra = connection.extra_dejson
    return {
        "AWS_ACCESS_KEY_ID": connection.login,
        "AWS_SECRET_ACCESS_KEY": connection.password,
        "AWS_SESSION_TOKEN": extra.get("aws_session_token"),
        "AWS_ENDPOINT_URL": extra.get("endpoint_url") or connection.host,
        "AWS_DEFAULT_REGION": extra.get("region_name"),
        "AWS_CA_BUNDLE": extra["verify"] if isinstance(extra.get("verify"), str) else None,
    }


def _mlflow(connection: Connection) -> dict[str, Any]:
    return {
        "MLFLOW_TRACKING_URI": _address(connection),
        "MLFLOW_TRACKING_USERNAME": connection.login,
        "MLFLOW_TRACKING_PASSWORD": connection.password,
        "MLFLOW_TRACKING_TOKEN": connection.extra_dejson.get("token"),
    }


def _openlineage(connection: Connection) -> dict[str, Any]:
    return {"OPENLINEAGE_URL": _address(connection), "OPENLINEAGE_API_KEY": connection.password}


def _address(connection: Connection) -> str:
    """As Airflow's HTTP hook puts it together."""
    host = connection.host or ""
    address = host if "://" in host else f"{connection.schema or 'http'}://{host}"
    return f"{address}:{connection.port}" if connection.port else address


_READ: dict[str, tuple[str, Callable[[Connection], dict[str, Any]]]] = {
    "JORA_ARTIFACTS_CONN_ID": ("aws", _objects),
    "JORA_MLFLOW_CONN_ID": ("http", _mlflow),
    "JORA_OPENLINEAGE_CONN_ID": ("http", _openlineage),
}
