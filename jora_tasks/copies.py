"""How much of what machines share a home keeps copies of.

A copy goes only when no one uses it: first its name, in one step, then its files.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from jora_tasks.errors import RunStopped
from jora_tasks.manifest import MANIFEST
from jora_tasks.shared_store import SharedStore
from jora_tasks.uses import Uses
from jora_tasks.variables import number_of
from jora_tasks.writing import remove_folder

LIMIT = "JORA_ARTIFACTS_CACHE_GB"
"""Environment variable: GB (10⁹ bytes) of published artifacts that a home keeps, beside those in use."""

_log = logging.getLogger(__name__)


class Copies:
    """The artifacts of a home that are published in a shared store as well.

    Args:
      uses: of the home's artifacts.
      limit: bytes they may take, by default what `LIMIT` says.

    Raises:
      InputError: if that is no number.
    """

    def __init__(self, home: Path, uses: Uses, limit: float | None = None) -> None:
        self._artifacts, self._uses = home / "artifacts", uses
        by_setting = number_of(LIMIT, 0) * 1e9 if os.environ.get(LIMIT) else math.inf
        self._limit = by_setting if limit is None else limit

    def shrink(self, shared: SharedStore | None) -> None:
        """Remove those that were used longest ago until the rest is within the limit.

        What someone uses stays, and so does what the store does not have at this moment.
        """
        if shared is None or self._limit == math.inf:
            return
        try:
            copies = self._copies()
            if sum(copy.size for copy in copies) <= self._limit:
                return  # whatever of them is published
            there = {kind: shared.listed("artifacts", kind) for kind in {copy.kind for copy in copies}}
            copies = [copy for copy in copies if copy.key in there[copy.kind]]
            size = sum(copy.size for copy in copies)
            for copy in sorted(copies, key=lambda copy: copy.used):
                if size <= self._limit:
                    break
                if self._remove(copy, shared):
                    size -= copy.size
        except RunStopped as error:
            _log.warning("The copies of shared artifacts are not kept within %s: %s", LIMIT, error)

    def _copies(self) -> list[_Copy]:
        found = []
        for folder in self._artifacts.glob("*"):
            self._clear(folder)
            found += [self._copy(path) for path in folder.glob("[!.]*")]
        return found

    def _copy(self, path: Path) -> _Copy:
        used = self._uses.last(path.parent.name, path.name)
        used = used or (path.stat().st_mtime if path.exists() else 0.0)
        return _Copy(path, sum(_size(each) for each in path.rglob("*")), used)

    def _remove(self, copy: _Copy, shared: SharedStore) -> bool:
        """Whether it is gone; not if someone uses it, or it is not what was published."""
        published = shared.manifest(copy.kind, copy.key)
        with self._uses.alone(copy.kind, copy.key) as free:
            try:
                if not free or (copy.path / MANIFEST).read_bytes() != published:
                    return False
                remove_folder(copy.path)
            except FileNotFoundError:
                return False
        return True

    def _clear(self, folder: Path) -> None:
        """Remove what was left of a copy whose remover or maker was killed."""
        for left in folder.glob(".*.tmp-*"):
            with self._uses.alone(folder.name, left.name[1:].partition(".")[0]) as free:
                if free:
                    shutil.rmtree(left, ignore_errors=True)


@dataclass(frozen=True)
class _Copy:
    path: Path
    size: int
    used: float

    @property
    def kind(self) -> str:
        return self.path.parent.name

    @property
    def key(self) -> str:
        return self.path.name


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:  # another process removes it
        return 0
