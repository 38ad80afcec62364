"""The store and the registry that the pages show."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path

from jora_tasks.artifacts import ArtifactStore, jora_home
from jora_tasks.registry import Registry

# So long a registry counts as there. Its first contact finds out soon that none is; later ones wait minutes.
_CONTACT_SECONDS = 5


def store() -> ArtifactStore:
    """The artifacts of ``$JORA_HOME``."""
    return ArtifactStore(jora_home())


def registry() -> Registry:
    """The registry of ``$JORA_HOME``, or where ``$MLFLOW_TRACKING_URI`` says."""
    now = int(time.monotonic() // _CONTACT_SECONDS)
    return _registry(jora_home(), os.environ.get("MLFLOW_TRACKING_URI", ""), now)


@lru_cache(maxsize=4)
def _registry(home: Path, server: str, now: int) -> Registry:
    return Registry(home)
