"""Small adapters, and how to register them."""

from __future__ import annotations

import json
from pathlib import Path

from jora_tasks.artifacts import Artifact, ArtifactStore
from jora_tasks.registry import DIGEST, EVALUATION, KEY, Registry


def make_adapter(store: ArtifactStore, seed: int) -> Artifact:
    def write(folder: Path) -> dict[str, int]:
        (folder / "adapter_config.json").write_text(json.dumps({"r": seed}))
        (folder / "README.md").write_text("# Card\n")
        return {"steps": 1}

    return store.build("adapter", version=1, settings={"seed": seed}, inputs={}, write=write)


def register(
    registry: Registry,
    adapter: Artifact,
    evaluation: str = "sha256:e",
    *,
    name: str = "documents",
    **tags: str,
) -> int:
    return registry.register(
        adapter.path,
        name,
        metrics={"exact_match": 0.5},
        tags={DIGEST: adapter.digest, KEY: adapter.key, EVALUATION: evaluation, **tags},
        params={"training.seed": "0"},
        description="a test",
    )
