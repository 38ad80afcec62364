"""What every group of settings shares: frozen, strict, described, bounded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

LOCAL_PATH: dict[str, Any] = {"min_length": 1, "max_length": 4000, "pattern": r"^[^\x00]+$"}
LARGEST_SEED = 2**32 - 1
SECRET = "url_with_secret"  # noqa: S105 (type of an error whose value is not shown)


class Section(BaseModel):
    """A frozen group of settings that refuses fields it does not know."""

    # Defaults are validated too: 32 and 32.0 would otherwise be two settings to an artifact's key.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


def as_tuple(value: Any) -> Any:
    """A list, which is what YAML and JSON have, as the tuple that a frozen section keeps."""
    return tuple(value) if isinstance(value, list) else value


def is_url(path: str) -> bool:
    """Whether a path is a URL, as in ``s3://bucket/handbook``."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def absolute(folder: Path, path: str) -> str:
    """A path taken from a folder; a URL or an empty path as it is."""
    return path if not path or is_url(path) else str((folder / path).resolve())
