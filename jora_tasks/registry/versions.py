"""One registered version: its tags, and the digest that its files must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks.artifacts import MANIFEST, digest_file, digest_json

CANDIDATE, CHAMPION = "candidate", "champion"
# Tags of a version.
DIGEST, KEY, EVALUATION, BASE_MODEL, COMPARED_WITH = (
    "jora.adapter_digest",
    "jora.adapter_key",
    "jora.evaluation_digest",
    "jora.base_model_digest",
    "jora.compared_with",
)


@dataclass(frozen=True)
class RegisteredAdapter:
    """One version of a line of adapters."""

    name: str
    version: int
    tags: Mapping[str, str]
    source: str

    @classmethod
    def of(cls, version: Any) -> RegisteredAdapter:
        """MLflow's model version as one of ours."""
        return cls(version.name, int(version.version), dict(version.tags), version.source)

    @property
    def digest(self) -> str:
        """Digest of the adapter artifact."""
        return self.tags.get(DIGEST, "")

    @property
    def key(self) -> str:
        """Key of the adapter artifact in the home that made it."""
        return self.tags.get(KEY, "")


def content_digest(folder: Path) -> str:
    """The digest that the artifact store gave this folder's content."""
    return digest_json(
        {
            file.relative_to(folder).as_posix(): digest_file(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name != MANIFEST
        }
    )
