"""The manifest of an artifact: what it says, and whether a folder holds what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from jora_tasks.digests import digest_file, digest_json
from jora_tasks.errors import InputError

MANIFEST = "manifest.json"


class Manifest(TypedDict):
    """What ``manifest.json`` says of an artifact: its content, what made it, and how.

    ``digest`` is that of ``files`` (name → digest); ``inputs`` holds kind, key or name, and digest by role.
    """

    kind: str
    key: str
    digest: str
    files: dict[str, str]
    inputs: dict[str, dict[str, str]]
    settings: dict[str, Any]
    stage_version: int
    code_version: str
    counts: dict[str, Any]
    provenance: dict[str, Any]
    created: str
    seconds: float


_MANIFESTS = TypeAdapter(Manifest)


def parse_manifest(data: bytes) -> Manifest:
    """The manifest of a file's content.

    Raises:
      ValueError: if it is none.
    """
    return _MANIFESTS.validate_json(data)


def key_of(kind: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The key of what a stage of this version makes with these settings from inputs of these digests."""
    identity = {"kind": kind, "version": version, "settings": dict(settings), "inputs": dict(inputs)}
    return digest_json(identity).removeprefix("sha256:")[:16]


def is_key(name: str) -> bool:
    """Whether a name has the form of a key."""
    return re.fullmatch(r"[0-9a-f]{16}", name) is not None


def is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether the files are those of the manifest, and its key is that of what it says made them."""
    digests = {role: reference["digest"] for role, reference in manifest["inputs"].items()}
    made = key_of(manifest["kind"], manifest["stage_version"], manifest["settings"], digests)
    try:
        return (
            manifest["key"] == made
            and manifest["digest"] == digest_json(manifest["files"])
            and all(digest_file(folder / name) == digest for name, digest in manifest["files"].items())
        )
    except OSError:
        return False


def check_copy(folder: Path) -> None:
    """See that a folder copied from a home still has what its manifest says; one without has nothing to say.

    Raises:
      InputError: naming the folder.
    """
    if not (folder / MANIFEST).is_file():
        return
    try:
        whole = is_whole(folder, parse_manifest((folder / MANIFEST).read_bytes()))
    except ValueError:
        whole = False
    if not whole:
        raise InputError(
            f"{folder} does not match its manifest: a file is missing or altered; copy or make it again."
        )
