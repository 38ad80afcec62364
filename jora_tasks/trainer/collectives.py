"""How often a compiled program talks between devices, and how much: read from its HLO text."""

from __future__ import annotations

import math
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
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"ROOT .* compare\((?:\S+ )?%?[\w.\-]+, (?:\S+ )?%?([\w.\-]+)\), direction=LT")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SCATTERED = "all-reduce-scatter"  # how the TPU compiler names a reduce-scatter, told as its first half
_PARTITIONS = re.compile(r"num_partitions=(\d+)")
# Who takes part: {{0,1},{2,3}}, [2,2]<=[4] or mesh['a'=2,'b'=2] {'a'}
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_OF_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_AXIS_SIZE = re.compile(r"'([^']+)'=(\d+)")
_AXIS = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")
_SHAPE = re.compile(r"\b([a-z]+[0-9a-z]*)\[([0-9,]*)\]")


@dataclass
class _Computation:
    own: list[tuple[str, int, float]] = field(default_factory=list)  # kind, bytes and bytes sent of each
    called: list[tuple[str, int | str]] = field(default_factory=list)  # name; times, or the loop's condition
    constants: dict[str, int] = field(default_factory=dict)
    bound: str = ""  # the name that its result is whether a counter is below


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Collectives that one device executes in one run of a program.

    A loop whose number of rounds the program says counts that often, any other once.

    Args:
      hlo: `jax.stages.Compiled.as_text`.

    Returns:
      {kind: {"count", "bytes", "sent"}}: bytes of the results on one device, and what it sends to others by
      the ring algorithms (Thakur et al., 2005); kinds that do not occur are absent.
    """
    computations, entry = _parse(hlo)
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    sent: Counter[str] = Counter()

    def walk(name: str, times: int) -> None:
        for kind, each, sends in computations[name].own:
            count[kind] += times
            size[kind] += times * each
            sent[kind] += round(times * sends)
        for called, often in computations[name].called:
            walk(called, times * (often if isinstance(often, int) else _rounds(computations[often])))

    if entry is not None:
        walk(entry, 1)
    return {
        kind: {"count": count[kind], "bytes": size[kind], "sent": sent[kind]} for kind in KINDS if count[kind]
    }


def _rounds(condition: _Computation) -> int:
    """Rounds of a loop that counts up from 0, as that of ``lax.scan``; 1 where its limit is not told."""
    return condition.constants.get(condition.bound, 1)


def _parse(hlo: str) -> tuple[dict[str, _Computation], str | None]:
    found: dict[str, _Computation] = {}
    entry, current = None, _Computation()
    partitions = _PARTITIONS.search(hlo)
    everyone = int(partitions[1]) if partitions else 1
    name, channels = "", set()
    for line in hlo.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            current = found[name] = _Computation()
            entry = name if start[1] else entry
            continue
        operation, channel = _OPERATION.search(line), _CHANNEL.search(line)
        # An asynchronous one is told again in every computation that it goes on beside.
        if operation and not (channel and channel[1] in channels):
            channels |= {channel[1]} if channel else set()
            current.own.append(_collective(operation, _members(line) or everyone, name))
        if constant := _CONSTANT.search(line):
            current.constants[constant[1]] = int(constant[2])
        if below := _BELOW.search(line):
            current.bound = below[1]
        names = _CALLED.findall(line)
        if branches := _BRANCHES.search(line):
            names += [name.strip().lstrip("%") for name in branches[1].split(",")]
        trips, condition = _TRIPS.search(line), _CONDITION.search(line)
        times = int(trips[1]) if trips else condition[1] if condition else 1
        current.called += [(name, times) for name in names]
    for computation in found.values():
        computation.called = [
            (name, times if isinstance(times, int) or times in found else 1)
            for name, times in computation.called
            if name in found
        ]
    return found, entry


def _collective(operation: re.Match[str], members: int, computation: str) -> tuple[str, int, float]:
    """Kind, bytes of the result and bytes sent."""
    kind, shapes = operation[2], _SHAPE.findall(operation[1])
    # A started one gives (operands, results): the results are the larger half or the last.
    results = shapes[len(shapes) // 2 :] if operation[3] and len(shapes) > 1 else shapes
    size = sum(_bytes(*shape) for shape in results)
    if computation.startswith(_SCATTERED):
        kind, size = "reduce-scatter", size // members
    return kind, size, size * _share(kind, members)


def _members(line: str) -> int:
    """How many devices take part in a collective; 0 where it does not say."""
    if listed := _LISTED.search(line):
        return listed[1].count(",") + 1
    if counted := _COUNTED.search(line):
        return int(counted[1])
    if of_mesh := _OF_MESH.search(line):
        sizes = {axis: int(size) for axis, size in _AXIS_SIZE.findall(of_mesh[1])}
        return math.prod(int(part) if part else sizes[axis] for axis, part in _AXIS.findall(of_mesh[2]))
    return 0


def _share(kind: str, members: int) -> float:
    """What a device sends, as a multiple of the bytes of its result."""
    others = (members - 1) / members
    return {
        "all-gather": others,
        "all-to-all": others,
        "all-reduce": 2 * others,
        "reduce-scatter": members - 1,
        "collective-permute": 1.0,
    }[kind]


def _bytes(dtype: str, dimensions: str) -> int:
    bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 0)
    size = 1
    for dimension in filter(None, dimensions.split(",")):
        size *= int(dimension)
    return size * bits // 8
