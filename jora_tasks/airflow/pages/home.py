"""The store and the registry that the pages show."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path

from jora_tasks.airflow.connections import use_connections
from jora_tasks.airflow.failures import BadInput
from jora_tasks.artifacts import ArtifactStore, jora_home
from jora_tasks.errors import InputError
from jora_tasks.registry import Registry
from jora_tasks.shared_store import SharedStore

# So long a registry counts as there. Its first contact finds out soon that none is; later ones wait minutes.
_CONTACT_SECONDS = 5
# So long a page waits for a store that refuses.
PATIENCE_SECONDS = 5
# So long what Airflow's connections said is taken to be true.
_CONNECTIONS_SECONDS = 60


def store() -> ArtifactStore:
    """The artifacts of ``$JORA_HOME``."""
    _connect(int(time.monotonic() // _CONNECTIONS_SECONDS))
    made = ArtifactStore(jora_home())
    if made.shared is not None:
        made.shared = SharedStore(made.shared.url, PATIENCE_SECONDS)
    return made


def registry() -> Registry:
    """The registry of ``$JORA_HOME``, or where ``$MLFLOW_TRACKING_URI`` says."""
    _connect(int(time.monotonic() // _CONNECTIONS_SECONDS))
    now = int(time.monotonic() // _CONTACT_SECONDS)
    return _registry(jora_home(), os.environ.get("MLFLOW_TRACKING_URI", ""), now)


@lru_cache(maxsize=4)
def _registry(home: Path, server: str, now: int) -> Registry:
    return Registry(home)


@lru_cache(maxsize=1)
def _connect(now: int) -> None:
    try:
        use_connections()
    except BadInput as error:
        raise InputError(str(error)) from None
