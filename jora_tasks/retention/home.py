"""A home's artifacts and what killed processes left there: found, and removed so that a kill is no harm.

What the product does not make is no concern of it: folders of other names, and all that lies behind a link.
An artifact goes only when no one uses it: in one step its name, then its files. What a kill leaves of them
the next prune clears.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from jora_tasks.airflow.job import Job
from jora_tasks.artifacts import KINDS, ArtifactStore
from jora_tasks.manifest import MANIFEST, is_key, parse_manifest
from jora_tasks.retention.graph import Name, Record
from jora_tasks.writing import remove_folder

_UNFINISHED = re.compile(r"\.(?P<name>.+)\.tmp-[0-9a-f]{8}")


@dataclass(frozen=True)
class Leftover:
    """A folder that is no artifact.

    Attributes:
      kind: "unfinished" (of a build or a removal that was killed), "work" (its state and checkpoints) or
        "jobs" (the log and result of a detached job).
      owner: artifact whose making it belongs to; None for a job.
    """

    kind: str
    path: Path
    size: int
    owner: Name | None = None


def records(store: ArtifactStore) -> dict[Name, Record]:
    """Every artifact of the home; what has the name of one and no manifest that can be read is listed too."""
    found = {}
    for folder in _folders(store.home, "artifacts/*/*"):
        if not is_key(folder.name):
            continue
        linked = _linked(store.home, folder)
        try:
            manifest = parse_manifest((folder / MANIFEST).read_bytes())
            if (manifest["kind"], manifest["key"]) != _name(folder):
                raise ValueError("a copy of another artifact")
            used = max((folder / MANIFEST).stat().st_mtime, store.uses.last(*_name(folder)) or 0.0)
        except (OSError, ValueError):
            if folder.parent.name in KINDS:
                found[_name(folder)] = Record("", (), _newest(folder), _size(folder), False, linked)
            continue
        inputs = tuple((each["kind"], each["key"]) for each in manifest["inputs"].values() if "key" in each)
        found[_name(folder)] = Record(manifest["digest"], inputs, used, _size(folder), linked=linked)
    return found


def remove(store: ArtifactStore, name: Name, before: float) -> bool:
    """Remove an artifact unless it is used, or was since ``before``; whether it is gone."""
    folder = store.home / "artifacts" / name[0] / name[1]
    with store.uses.alone(*name) as free:
        if not free or (store.uses.last(*name) or 0.0) >= before:
            return False
        return _remove_old(folder, folder / MANIFEST, before)


def leftovers(store: ArtifactStore, before: float, running: Collection[Path]) -> list[Leftover]:
    """What killed processes left before that time, of no run that goes on.

    Args:
      running: folders of such runs; while there are any, no work folder is left over, since theirs are not
        known before what they make is there.
    """
    found = []
    own = [each for each in _folders(store.home, "artifacts/*/*", "work/*/*") if each.parent.name in KINDS]
    for folder in own:
        if _linked(store.home, folder):
            continue
        if (match := _UNFINISHED.fullmatch(folder.name)) and is_key(match["name"]):
            found.append(_leftover("unfinished", folder, (folder.parent.name, match["name"])))
        elif folder.parents[1].name == "work" and is_key(folder.name) and not running:
            found.append(_leftover("work", folder, _name(folder)))
    for folder in _folders(store.home, "runs/*/*/jobs/*"):
        if _linked(store.home, folder):
            continue
        if _UNFINISHED.fullmatch(folder.name):
            found.append(_leftover("unfinished", folder))
        elif folder.parents[1] not in running and (folder / "job.json").is_file():
            found.append(_leftover("jobs", folder))
    return [
        each
        for each in found
        if (each.kind == "unfinished" or _newest(each.path) < before) and not _at_work(store, each)
    ]


def remove_leftover(store: ArtifactStore, leftover: Leftover, before: float) -> bool:
    """Remove it unless someone works on it, or has since ``before``; whether it is gone."""
    if leftover.owner is None:
        return not Job(leftover.path).alive() and _clear(leftover, before)
    with store.uses.alone(*leftover.owner) as free:
        return free and _clear(leftover, before)


def _clear(leftover: Leftover, before: float) -> bool:
    if leftover.kind == "unfinished":  # whoever made it holds its owner
        shutil.rmtree(leftover.path, ignore_errors=True)
        return True
    return _remove_old(leftover.path, leftover.path, before)


def _remove_old(folder: Path, written: Path, before: float) -> bool:
    """Remove a folder unless ``written`` (in it, or itself) was since ``before``; whether it is gone."""
    try:
        if _newest(written if written.exists() else folder) >= before:
            return not folder.exists()  # another prune was faster
        remove_folder(folder)
    except FileNotFoundError:
        return True
    return True


def _at_work(store: ArtifactStore, leftover: Leftover) -> bool:
    if leftover.owner is None:
        return Job(leftover.path).alive()
    return store.uses.used(*leftover.owner)


def _leftover(kind: str, path: Path, owner: Name | None = None) -> Leftover:
    return Leftover(kind, path, _size(path), owner)


def _name(folder: Path) -> Name:
    return folder.parent.name, folder.name


def _folders(home: Path, *patterns: str) -> Iterator[Path]:
    for pattern in patterns:
        yield from (folder for folder in sorted(home.glob(pattern)) if folder.is_dir())


def _linked(home: Path, folder: Path) -> bool:
    """Whether any name on the way from the home to this folder, its own among them, is a link."""
    steps = folder.relative_to(home).parts
    return any(home.joinpath(*steps[:count]).is_symlink() for count in range(1, len(steps) + 1))


def _newest(folder: Path) -> float:
    """When anything in a folder was written last; infinity where someone removes files from it just now."""
    try:
        return max(each.lstat().st_mtime for each in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return math.inf


def _size(folder: Path) -> int:
    try:
        return sum(each.lstat().st_size for each in folder.rglob("*") if each.is_file())
    except FileNotFoundError:
        return 0
