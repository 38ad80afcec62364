"""Files of artifacts that pages show: only such as a manifest names, unaltered, within the artifact."""

from __future__ import annotations

from pathlib import Path

from jora_tasks.artifacts import ArtifactStore, digest_file
from jora_tasks.errors import InputError

REPORTS = {"evaluation": "report.html", "verdict": "verdict.html"}


def artifact_file(store: ArtifactStore, kind: str, key: str, name: str) -> Path | None:
    """The file of an artifact, or None if there is no such artifact or file.

    Raises:
      InputError: if it is not the file that was made.
    """
    manifest = store.manifest(kind, key)
    if manifest is None or name not in manifest["files"]:
        return None
    folder = store.home / "artifacts" / kind / key
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        return None
    if digest_file(file) != manifest["files"][name]:
        raise InputError(f"{kind} {key}: {name} was altered since it was made; run its stage again.")
    return file
