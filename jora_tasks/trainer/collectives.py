"""How often a compiled program talks between devices, and how much: read from its HLO text."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SHAPE = re.compile(r"\b([a-z]+[0-9a-z]*)\[([0-9,]*)\]")


@dataclass
class _Computation:
    own: list[tuple[str, int]] = field(default_factory=list)  # kind and bytes of each collective
    called: list[tuple[str, int]] = field(default_factory=list)  # name and times


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Collectives that one device executes in one run of a program.

    A loop whose number of rounds the compiler knows counts that often, any other once.

    Args:
      hlo: `jax.stages.Compiled.as_text`.

    Returns:
      {kind: {"count", "bytes"}}, bytes of the results on one device; kinds that do not occur are absent.
    """
    computations, entry = _parse(hlo)
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()

    def walk(name: str, times: int) -> None:
        for kind, each in computations[name].own:
            count[kind] += times
            size[kind] += times * each
        for called, often in computations[name].called:
            walk(called, times * often)

    if entry is not None:
        walk(entry, 1)
    return {kind: {"count": count[kind], "bytes": size[kind]} for kind in KINDS if count[kind]}


def _parse(hlo: str) -> tuple[dict[str, _Computation], str | None]:
    found: dict[str, _Computation] = {}
    entry, current = None, _Computation()
    for line in hlo.splitlines():
        if start := _COMPUTATION.match(line):
            current = found[start[2]] = _Computation()
            entry = start[2] if start[1] else entry
            continue
        if operation := _OPERATION.search(line):
            shapes = _SHAPE.findall(operation[1])
            # A started one gives (operands, results): the results are the larger half or the last.
            results = shapes[len(shapes) // 2 :] if operation[3] and len(shapes) > 1 else shapes
            current.own.append((operation[2], sum(_bytes(*shape) for shape in results)))
        names = _CALLED.findall(line)
        if branches := _BRANCHES.search(line):
            names += [name.strip().lstrip("%") for name in branches[1].split(",")]
        trips = _TRIPS.search(line)
        current.called += [(name, int(trips[1]) if trips else 1) for name in names]
    for computation in found.values():
        computation.called = [one for one in computation.called if one[0] in found]
    return found, entry


def _bytes(dtype: str, dimensions: str) -> int:
    bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 0)
    size = 1
    for dimension in filter(None, dimensions.split(",")):
        size *= int(dimension)
    return size * bits // 8
