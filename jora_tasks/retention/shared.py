"""The artifacts that machines share: found, and removed so that neither a kill nor another machine is harmed.

The manifest goes first, and the artifact with it; then its files. No lock spans machines, so a use is known
by its mark (`SharedStore.mark_used`) alone: who uses an artifact marks it and then looks for its manifest,
who removes it removes the manifest and then looks for a mark, and one of the two sees the other.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from jora_tasks.artifacts import KINDS
from jora_tasks.manifest import MANIFEST, is_key, parse_manifest
from jora_tasks.retention.graph import Name, Record
from jora_tasks.shared_store import USED, SharedStore

_AT_ONCE = 16  # manifests that are read at a time


class Folder(NamedTuple):
    """A folder of the shared store that is no artifact: its place, bytes, and when it was written last."""

    place: tuple[str, ...]
    size: int
    newest: float


def survey(shared: SharedStore) -> tuple[dict[Name, Record], list[Folder]]:
    """Every published artifact, and folders of files without one: never published, or work of a training."""
    sizes: dict[tuple[str, ...], int] = defaultdict(int)
    newest: dict[tuple[str, ...], float] = defaultdict(float)
    used: dict[tuple[str, ...], float] = {}
    for area in ("artifacts", "work"):
        for parts, size, modified in shared.files(area):
            place = (area, *parts[:2])
            if len(place) != 3 or not is_key(place[2]):
                continue  # nothing of ours
            sizes[place] += size
            newest[place] = max(newest[place], modified)
            if area == "artifacts" and parts[2:] in ((MANIFEST,), (USED,)):
                used[place] = max(used.get(place, 0.0), modified)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        manifests = list(pool.map(lambda place: shared.read(*place, MANIFEST), used))
    records = {}
    for place, data in zip(used, manifests, strict=True):
        if data is None:
            continue
        _, kind, key = place
        try:
            manifest = parse_manifest(data)
            if (manifest["kind"], manifest["key"]) != (kind, key):
                raise ValueError("a copy of another artifact")
        except ValueError:
            if kind in KINDS:
                records[kind, key] = Record("", (), used[place], sizes[place], False)
            continue
        inputs = tuple((each["kind"], each["key"]) for each in manifest["inputs"].values() if "key" in each)
        records[kind, key] = Record(manifest["digest"], inputs, used[place], sizes[place])
    others = [
        Folder(place, size, newest[place])
        for place, size in sizes.items()
        if place[1] in KINDS and not (place[0] == "artifacts" and place[1:] in records)
    ]
    return records, sorted(others)


def remove(shared: SharedStore, name: Name, before: float) -> bool:
    """Remove an artifact unless it was used since ``before``; whether it is gone."""
    place = ("artifacts", *name)
    manifest = shared.read(*place, MANIFEST)
    if manifest is None:  # another prune was faster; what it has not deleted yet is left over for the next
        return True
    if _last_used(shared, place) >= before:
        return False
    shared.remove(*place, MANIFEST)
    if (shared.modified(*place, USED) or 0.0) >= before:
        shared.write(manifest, *place, MANIFEST)
        return False
    shared.remove(*place)
    return True


def remove_folder(shared: SharedStore, folder: Folder, before: float) -> bool:
    """Remove what is no artifact, unless any of it was written since ``before``."""
    written = [modified for _, _, modified in shared.files(*folder.place)]
    if written and max(written) >= before:
        return False
    shared.remove(*folder.place)
    return True


def _last_used(shared: SharedStore, place: tuple[str, ...]) -> float:
    return max(shared.modified(*place, name) or 0.0 for name in (MANIFEST, USED))
