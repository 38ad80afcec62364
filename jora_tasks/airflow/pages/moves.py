"""The record of the champion's moves, as pages tell it."""

from __future__ import annotations

from collections.abc import Sequence

from jora_tasks.airflow.pages.rendering import when
from jora_tasks.registry import Transition


def place_of(version: int, transitions: Sequence[Transition]) -> tuple[str, ...]:
    """When a version was made champion last, and by whom; empty if it never was.

    Args:
      transitions: of its line, oldest first.
    """
    for each in reversed(transitions):
        if each.version == version:
            verb = "promoted" if each.action == "promote" else "back since"
            return (f"{verb} {when(each.at)}", f"by {each.by}")
    return ()
