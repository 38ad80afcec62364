"""Files of artifacts that pages show: only such as a manifest names, unaltered, within the artifact."""

from __future__ import annotations

import tempfile
from pathlib import Path

from jora_tasks.artifacts import ArtifactStore
from jora_tasks.digests import digest_file
from jora_tasks.errors import InputError
from jora_tasks.manifest import Manifest
from jora_tasks.shared_store import SharedStore

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
    if not file.is_relative_to(folder.resolve()):
        return None
    if not file.is_file() and store.shared is not None:
        file = _copy(store, store.shared, manifest, name)
    if not file.is_file():
        return None
    if digest_file(file) != manifest["files"][name]:
        raise InputError(f"{kind} {key}: {name} was altered since it was made; run its stage again.")
    return file


def _copy(store: ArtifactStore, shared: SharedStore, manifest: Manifest, name: str) -> Path:
    """The one file, fetched from where machines share the artifact; the others of it may be large."""
    content = manifest["digest"]
    file = store.home / "cache" / "pages" / content.removeprefix("sha256:") / name
    if not file.is_file() or digest_file(file) != manifest["files"][name]:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
            shared.fetch(manifest["kind"], manifest["key"], content, [name], Path(temporary))
            (Path(temporary) / name).replace(file)
    return file
