"""Digests: what content is known by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def digest_bytes(data: bytes) -> str:
    """``sha256:<hex>`` of the data."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_file(path: Path) -> str:
    """``sha256:<hex>`` of a file's content."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def digest_json(value: Any) -> str:
    """``sha256:<hex>`` of a JSON value, the same for equal values whatever their key order."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def digest_folder(path: Path) -> str:
    """``sha256:<hex>`` over the relative names and contents of a folder's visible files."""
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    return digest_json({file.relative_to(path).as_posix(): digest_file(file) for file in files})
