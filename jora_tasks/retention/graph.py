"""Artifacts as a graph, from each to what made it: what is needed, and in which order the rest goes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

Name = tuple[str, str]
"""Kind and key of an artifact."""


@dataclass(frozen=True)
class Record:
    """One artifact in one place.

    Attributes:
      digest: of its content; empty, as `inputs`, where its manifest cannot be read.
      inputs: artifacts that it was made from, there or not.
      used: when it was last used, in seconds since 1970 by the clock of its place.
      size: bytes.
      readable: whether there is a manifest to tell what it is.
      linked: whether it lies behind a link, so that it may be another's: it is never removed.
    """

    digest: str
    inputs: tuple[Name, ...]
    used: float
    size: int
    readable: bool = True
    linked: bool = False


def closure(roots: Iterable[Name], inputs: Mapping[Name, Collection[Name]]) -> set[Name]:
    """The roots and all that they were made from, however far back."""
    found: set[Name] = set()
    waiting = list(roots)
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += inputs.get(name, ())
    return found


def dependants_first(names: Collection[Name], inputs: Mapping[Name, Collection[Name]]) -> list[Name]:
    """These names, each before what it was made from: whoever is stopped on the way leaves no gap."""
    order: list[Name] = []
    seen: set[Name] = set()
    for start in sorted(names):
        stack = [(start, False)]
        while stack:
            name, left = stack.pop()
            if left:
                order.append(name)
            elif name not in seen:
                seen.add(name)
                stack.append((name, True))
                stack += [(each, False) for each in inputs.get(name, ())]
    return [name for name in reversed(order) if name in names]
