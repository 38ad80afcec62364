"""The store and the registry that the pages show; opened once a process."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from jora_tasks.artifacts import ArtifactStore, jora_home
from jora_tasks.registry import Registry


def store() -> ArtifactStore:
    """The artifacts of ``$JORA_HOME``."""
    return ArtifactStore(jora_home())


def registry() -> Registry:
    """The registry of ``$JORA_HOME``, or where ``$MLFLOW_TRACKING_URI`` says."""
    return _registry(jora_home(), os.environ.get("MLFLOW_TRACKING_URI", ""))


@lru_cache(maxsize=4)
def _registry(home: Path, server: str) -> Registry:
    return Registry(home)
