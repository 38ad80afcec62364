"""Numbers of a model's ``config.json``, refused by field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jora_tasks.errors import InputError


def count(data: Mapping[str, Any], field: str, source: str, default: int | None = None) -> int:
    """A whole number of at least 1; ``default`` where the field is absent or null."""
    value = data.get(field)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{source}: {field} must be a whole number of at least 1, not {value!r}.")
    return value


def number(data: Mapping[str, Any], field: str, source: str, default: float | None = None) -> float:
    """A finite number above 0; ``default`` where the field is absent or null."""
    value = data.get(field)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{source}: {field} must be a number above 0, not {value!r}.")
    return float(value)


def optional(data: Mapping[str, Any], field: str, source: str) -> float | None:
    """A finite number above 0, or None where the field is absent or null."""
    return None if data.get(field) is None else number(data, field, source)
