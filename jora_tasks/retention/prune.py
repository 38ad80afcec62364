"""Removes what nothing needs: neither a registered version, nor a run, nor anything younger than some days.

All is gathered before anything is removed, so that a registry that does not answer costs nothing. Artifacts
go before what they were made from, so that whoever is stopped leaves no gap; one that turns out to be used in
the meantime stays, with all that it was made from.
"""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from jora_tasks.artifacts import KINDS, ArtifactStore
from jora_tasks.errors import InputError, RunStopped
from jora_tasks.retention import home, roots, shared
from jora_tasks.retention.graph import Name, Record, closure, dependants_first
from jora_tasks.shared_store import ARTIFACTS

DAY = 86400.0
HOME, SHARED = "home", "shared"


@dataclass(frozen=True)
class Removal:
    """One thing that can be removed, or was.

    Attributes:
      place: "home" or "shared".
      kind: of the artifact, or of what was left over; see `home.Leftover`.
      name: its key, or its path in the place.
      size: bytes.
    """

    place: str
    kind: str
    name: str
    size: int


@dataclass
class Pruned:
    """What a prune found.

    Attributes:
      removals: what nothing needs; after a removal, what was removed.
      kept: artifacts that stay, in each place.
    """

    removals: list[Removal] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)

    def by_kind(self) -> dict[str, dict[str, dict[str, int]]]:
        """Place → kind → ``count`` and ``bytes``."""
        told: dict[str, dict[str, dict[str, int]]] = {place: {} for place in self.kept}
        for each in self.removals:
            entry = told[each.place].setdefault(each.kind, {"count": 0, "bytes": 0})
            entry["count"] += 1
            entry["bytes"] += each.size
        return told


@dataclass
class _Plan:
    """Artifacts by place, what of them is needed, and how each of the rest is removed.

    Attributes:
      others: what is no artifact, with what removes it.
    """

    records: dict[str, dict[Name, Record]]
    inputs: Mapping[Name, Collection[Name]]
    kept: set[Name]
    others: list[tuple[Removal, Callable[[], bool]]]


def prune(store: ArtifactStore, *, keep_days: int, champions_only: bool, now: float, remove: bool) -> Pruned:
    """Find what nothing needs, and remove it if asked.

    Args:
      keep_days: what was made or used within so many days stays.
      champions_only: keep of the registered versions those with an alias and those that were champion.
      now: seconds since 1970.

    Raises:
      RunStopped: if what is needed cannot be known; nothing is removed then.
      InputError: if there is no such home; if machines share artifacts, but no registry is named that they
        share as well.
    """
    _check_home(store)
    _check_registry(store)
    before = now - keep_days * DAY
    with _only_one(store):
        plan = _planned(store, before, champions_only)
        wanted = {
            place: dependants_first(set(records) - plan.kept, plan.inputs)
            for place, records in plan.records.items()
        }
        pruned = Pruned(kept={place: len(plan.records[place]) - len(each) for place, each in wanted.items()})
        for place, names in wanted.items():
            for name in names:
                if name in plan.kept:  # since something made from it turned out to be used
                    gone = False
                elif remove and not (gone := _remove(store, place, name, before)):
                    plan.kept |= closure([name], plan.inputs)
                if not remove or gone:
                    pruned.removals.append(Removal(place, *name, plan.records[place][name].size))
                else:
                    pruned.kept[place] += 1
        pruned.removals += [found for found, take_away in plan.others if not remove or take_away()]
    return pruned


def _planned(store: ArtifactStore, before: float, champions_only: bool) -> _Plan:
    needed = roots.registered(store.home, champions_only)
    running = roots.unfinished_runs(store.home)
    names = roots.latest(store) | set(roots.used_by(running))
    records = {HOME: home.records(store)}
    others: list[tuple[Removal, Callable[[], bool]]] = []
    if store.shared is not None:
        records[SHARED], folders = shared.survey(store.shared)
        for folder in folders:
            if folder.newest < before:
                kind = "unfinished" if folder.place[0] == "artifacts" else "work"
                take_away = partial(shared.remove_folder, store.shared, folder, before)
                others.append((Removal(SHARED, kind, "/".join(folder.place), folder.size), take_away))
    inputs: dict[Name, set[Name]] = defaultdict(set)
    digests: dict[Name, set[str]] = defaultdict(set)
    for found in records.values():
        for name, record in found.items():
            inputs[name].update(record.inputs)
            digests[name].add(record.digest)
            if record.readable and (record.used >= before or record.linked):
                names.add(name)
    names |= needed.roots(digests)
    names |= {name for name in inputs if store.uses.used(*name)}
    kept = closure(names, inputs)
    _check_readable(store, records, kept)
    others_or_young = {
        name
        for each in records.values()
        for name, found in each.items()
        if found.linked or found.used >= before
    }
    for leftover in home.leftovers(store, before, running):
        path = str(leftover.path.relative_to(store.home))
        take_away = partial(home.remove_leftover, store, leftover, before)
        others.append((Removal(HOME, leftover.kind, path, leftover.size), take_away))
    return _Plan(records, inputs, kept | others_or_young, others)


def _check_readable(
    store: ArtifactStore, records: Mapping[str, Mapping[Name, Record]], kept: Collection[Name]
) -> None:
    """See that what is kept says what it was made from, here or where machines share it."""
    for kind, key in sorted(kept):
        found = [records[place][kind, key] for place in records if (kind, key) in records[place]]
        if found and not any(each.readable for each in found):
            folder = store.home / "artifacts" / kind / key
            raise RunStopped(
                f"Nothing was removed: {folder} is needed, and its manifest does not tell what it was made "
                f"from; run `jora {KINDS.get(kind, kind)}` again, or remove the folder."
            )


def _remove(store: ArtifactStore, place: str, name: Name, before: float) -> bool:
    if place == HOME:
        return home.remove(store, name, before)
    assert store.shared  # noqa: S101 it has artifacts
    return shared.remove(store.shared, name, before)


def _check_home(store: ArtifactStore) -> None:
    """See that there is a home; of what machines share, one that has none yet may clean too."""
    if store.shared is None and not store.home.is_dir():
        raise InputError(f"JORA_HOME {store.home} does not exist, so there is nothing to prune; name a home.")


def _check_registry(store: ArtifactStore) -> None:
    """Machines that share artifacts register in one place; a home's own registry knows its own alone."""
    if store.shared is not None and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise InputError(
            f"{ARTIFACTS} is shared by machines; name the registry that they share in MLFLOW_TRACKING_URI."
        )


@contextmanager
def _only_one(store: ArtifactStore) -> Iterator[None]:
    """One prune of a home at a time; the next waits and finds little left."""
    file = store.home / "locks" / "prune"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
