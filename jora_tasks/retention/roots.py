"""What must stay whatever its age: registered, latest, or of a run that goes on in the local Airflow."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jora_tasks.airflow.environment import airflow_home
from jora_tasks.airflow.pages.progress import read_progress
from jora_tasks.airflow.runs import progress_file, run_folder
from jora_tasks.artifacts import ArtifactStore
from jora_tasks.errors import InputError, RunStopped, first_line
from jora_tasks.registry import (
    EVALUATION,
    EVALUATION_KEY,
    PROMPTS,
    VERDICT_KEY,
    RegisteredAdapter,
    Registry,
)
from jora_tasks.retention.graph import Name


@dataclass(frozen=True)
class Registered:
    """What registered versions need by itself.

    Attributes:
      names: their evaluations and verdicts.
      adapters: each adapter with the digests of its content and of its prompts and evaluation, by which these
        are known where the adapter is not there: another home has made it, or its key was not recorded.
    """

    names: set[Name] = field(default_factory=set)
    adapters: dict[Name, set[str]] = field(default_factory=dict)

    def roots(self, digests: Mapping[Name, Collection[str]]) -> set[Name]:
        """What of the artifacts that there are is needed by itself.

        Args:
          digests: of the content of each artifact, in every place.
        """
        missing = set().union(*(told for name, told in self.adapters.items() if name not in digests))
        found = {name for name, each in digests.items() if not missing.isdisjoint(each)}
        return self.names | self.adapters.keys() | found


def registered(home: Path, champions_only: bool) -> Registered:
    """The adapters of registered versions with their evaluations and verdicts.

    Args:
      champions_only: whether versions without an alias that never were champion do not count.

    Raises:
      RunStopped: if the registry cannot be asked, or is not the one that this home has registered in.
    """
    roots = Registered()
    try:
        registry = Registry(home)
        for name in _lines(home, registry):
            for version in _wanted(registry, name, champions_only):
                roots.names.update(name for name in _judged(version) if name[1])
                told = (version.digest, version.tags.get(EVALUATION), version.tags.get(PROMPTS))
                digests = roots.adapters.setdefault(("adapter", version.key), set())
                digests.update(digest for digest in told if digest)
    except InputError as error:
        raise RunStopped(f"Nothing was removed, since what is registered is not known: {error}") from None
    return roots


def _wanted(registry: Registry, name: str, champions_only: bool) -> list[RegisteredAdapter]:
    versions = registry.versions(name)
    if not champions_only:
        return versions
    moves = registry.transitions(name)
    wanted = {version for move in moves for version in (move.version, move.previous)}
    wanted |= set(registry.aliases(name).values())
    return [each for each in versions if each.version in wanted]


def _judged(version: RegisteredAdapter) -> list[Name]:
    return [
        (kind, version.tags.get(tag, ""))
        for kind, tag in (("evaluation", EVALUATION_KEY), ("verdict", VERDICT_KEY))
    ]


def _lines(home: Path, registry: Registry) -> list[str]:
    """Every registered line, where the registry has all that were registered from this home.

    Raises:
      InputError: if another registry may have some, or this one is lost or was begun anew.
    """
    if not registry.made() and (sign := next(_signs_of_registry(home), None)):
        raise InputError(
            f"{sign} tells that this home had a registry, and {registry.database} is not there; restore it, "
            f"or move {sign} away if nothing that was registered is wanted."
        )
    names = registry.names()
    for file in _moves(home):
        line, dot, place = file.stem.partition(".")  # a dot is in no line's name
        if f"{dot}{place}" != registry.place:
            raise InputError(
                f"{line!r} was registered from this home in another registry too; "
                f"name it in MLFLOW_TRACKING_URI, or remove {file} if it is no more."
            )
        if line not in names:
            raise InputError(
                f"{line!r} was registered from this home, and the registry has none of it; restore "
                f"the registry, or remove {file} if {line!r} is no more."
            )
    return names


def _moves(home: Path) -> list[Path]:
    """A file for each registered line and registry; who registers tells there of the champion's moves."""
    return sorted((home / "openlineage" / "moves").glob("*.lock"))


def _signs_of_registry(home: Path) -> Iterator[Path]:
    """What a home has once it has or had a registry: files of it, the lock of its making, what follows it."""
    yield from _moves(home)
    yield from sorted((home / "provenance").glob("*/*"))  # an adapter's statement, signed as it is registered
    yield from (lock for lock in [home / "locks" / "mlflow"] if lock.exists())
    own = home / "mlflow"
    yield from [own] if own.is_dir() and any(own.iterdir()) else []


def latest(store: ArtifactStore) -> set[Name]:
    """The latest artifact of each kind and name, in the home and where machines share some."""
    found = {
        (file.name, file.read_text(errors="replace").strip())
        for file in (store.home / "latest").glob("*/*")
        if file.is_file() and not file.name.startswith(".")
    }
    if store.shared is not None:
        for name in store.shared.listed("latest"):
            for kind in store.shared.listed("latest", name):
                found.add((kind, store.shared.latest(name, kind) or ""))
    return found


def unfinished_runs(home: Path) -> list[Path]:
    """The folders of the runs that the local Airflow of a home has not ended, also while it is down.

    Raises:
      RunStopped: if its database cannot be read.
    """
    database = airflow_home(home) / "airflow.db"
    if not database.is_file():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=30)) as sql:
            rows = sql.execute("select dag_id, run_id from dag_run where state in ('queued', 'running')")
            return [run_folder(home, dag_id, run_id) for dag_id, run_id in rows]
    except sqlite3.Error as error:
        raise RunStopped(
            f"Nothing was removed, since the runs of the local Airflow are not known: {database} "
            f"({first_line(error)}); restore it, or move it away."
        ) from None


def used_by(runs: list[Path]) -> Iterator[Name]:
    """The artifacts that these runs have made or found so far."""
    for folder in runs:
        for kind, keys in read_progress(progress_file(folder)).made.items():
            yield from ((kind, key) for key in keys)
