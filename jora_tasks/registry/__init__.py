"""The registry of adapters, kept by MLflow; only this package knows it.

Each version is a PEFT folder with its report, logged to an MLflow run with metrics, settings and
digests. Aliases say what a version is for: ``candidate`` is the newest, ``champion`` the one in use.
Without ``$MLFLOW_TRACKING_URI`` all of it lies in ``$JORA_HOME/mlflow``: SQLite and a folder.
"""

from jora_tasks.registry.champions import ANY, ChampionMoved, Transition, actor, earlier_champions
from jora_tasks.registry.listing import Line, Listed, Listing
from jora_tasks.registry.registry import Registry
from jora_tasks.registry.versions import (
    BASE_MODEL,
    CANDIDATE,
    CHAMPION,
    COMPARED_WITH,
    DIGEST,
    EVALUATION,
    EVALUATION_KEY,
    KEY,
    PROMPTS,
    VERDICT_KEY,
    RegisteredAdapter,
)

__all__ = [
    "ANY",
    "BASE_MODEL",
    "CANDIDATE",
    "CHAMPION",
    "COMPARED_WITH",
    "DIGEST",
    "EVALUATION",
    "EVALUATION_KEY",
    "KEY",
    "PROMPTS",
    "VERDICT_KEY",
    "ChampionMoved",
    "Line",
    "Listed",
    "Listing",
    "RegisteredAdapter",
    "Registry",
    "Transition",
    "actor",
    "earlier_champions",
]
