"""An API that lets everyone in as an admin is for loopback: anywhere else it neither starts nor answers.

Airflow's own settings allow it, by ``core.simple_auth_manager_all_admins``. Every API server with this
project's plugin is looked at, however it was started: it ends with exit code 2, and where it cannot be ended
by a worker of it, a connection that comes in by another address than loopback's is refused.
"""

from __future__ import annotations

import argparse
import ipaddress
import multiprocessing
import sys
from collections.abc import Sequence
from typing import Any

from airflow.configuration import conf

from jora_tasks.errors import InputError

_SIMPLE = "SimpleAuthManager"


def everyone_is_admin() -> bool:
    """Whether Airflow's settings let everyone in without a login."""
    manager = conf.get("core", "auth_manager", fallback=_SIMPLE)
    return manager.endswith(_SIMPLE) and conf.getboolean("core", "simple_auth_manager_all_admins")


def is_loopback(host: str) -> bool:
    """Whether a name or address can be reached from its own machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(command: Sequence[str]) -> str | None:
    """Where the command line of an API server has it listen; None if it is that of something else."""
    if list(command[1:2]) != ["api-server"]:
        return None
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("-H", "--host", default=conf.get("api", "host", fallback="0.0.0.0"))  # noqa: S104
    return str(options.parse_known_args(list(command[2:]))[0].host)


def refusal(host: str) -> str:
    """Why an API without a login does not listen there, and what to do."""
    return (
        f"Airflow's API would let everyone in as an admin on {host}: set "
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS to False and give users a login, or "
        "AIRFLOW__API__HOST to 127.0.0.1."
    )


def check_start() -> None:
    """End this process if it is an API server that would be open to others.

    One of several workers does not end, since it would only be started again; `ClosedDoor` refuses there.
    """
    host = host_of(sys.argv)
    if host is None or is_loopback(host) or not everyone_is_admin() or multiprocessing.parent_process():
        return
    print(f"jora: {refusal(host)}", file=sys.stderr, flush=True)  # noqa: T201
    raise SystemExit(InputError.exit_code)


class ClosedDoor:
    """ASGI middleware around all of Airflow's API: where all are admins, only loopback gets in."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._open = everyone_is_admin()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        host = (scope.get("server") or ("",))[0]
        by_network = bool(host) and not host.startswith("/") and not is_loopback(host)
        if not (self._open and by_network and scope["type"] in ("http", "websocket")):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": refusal(host).encode()})
