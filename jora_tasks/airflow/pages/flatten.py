"""Nested settings and counts as rows of a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of each; lists are written as JSON.

    >>> flat({"a": {"b": 1}, "c": [1, 2]})
    [('a.b', 1), ('c', '[1, 2]')]
    """
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", json.dumps(value) if isinstance(value, list | None) else value))
    return rows
