"""One registered version: its tags, and its files, which must be those that were registered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jora_tasks.digests import digest_file, digest_json
from jora_tasks.errors import InputError
from jora_tasks.manifest import MANIFEST

CANDIDATE, CHAMPION = "candidate", "champion"
# Tags of a version.
DIGEST, KEY, EVALUATION, EVALUATION_KEY, VERDICT_KEY, PROMPTS, BASE_MODEL, COMPARED_WITH = (
    "jora.adapter_digest",
    "jora.adapter_key",
    "jora.evaluation_digest",
    "jora.evaluation_key",
    "jora.verdict_key",
    "jora.prompts_digest",
    "jora.base_model_digest",
    "jora.compared_with",
)
_MANIFEST_DIGEST = "jora.manifest_digest"


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


def manifest_tag(folder: Path) -> dict[str, str]:
    """The tag for the folder's manifest, which says what made the adapter; none where it has no manifest."""
    file = folder / MANIFEST
    return {_MANIFEST_DIGEST: digest_file(file)} if file.is_file() else {}


def fetch(adapter: RegisteredAdapter, folder: Path, tracking_uri: str) -> Path:
    """Copy a version's PEFT folder and check every file against what was registered.

    Raises:
      InputError: if the registry no longer has it, or has other content.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    folder.mkdir(parents=True, exist_ok=True)
    try:
        copy = download_artifacts(
            artifact_uri=adapter.source, dst_path=str(folder), tracking_uri=tracking_uri
        )
    except (MlflowException, OSError) as error:
        raise InputError(
            f"Version {adapter.version} of {adapter.name!r} cannot be fetched from the registry "
            f"({type(error).__name__}); `jora promote` another version."
        ) from None
    if not _as_registered(adapter, Path(copy)):
        raise InputError(
            f"The files of version {adapter.version} of {adapter.name!r} in the registry are not those "
            "that were registered; `jora promote` another version."
        )
    return Path(copy)


def _as_registered(adapter: RegisteredAdapter, folder: Path) -> bool:
    registered = adapter.tags.get(_MANIFEST_DIGEST)
    if registered is not None and manifest_tag(folder) != {_MANIFEST_DIGEST: registered}:
        return False
    return _content_digest(folder) == adapter.digest


def _content_digest(folder: Path) -> str:
    """The digest that the artifact store gave this folder's content."""
    return digest_json(
        {
            file.relative_to(folder).as_posix(): digest_file(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name != MANIFEST
        }
    )
