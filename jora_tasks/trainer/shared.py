"""One work folder for a run of several processes, kept by the first of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jora_tasks.errors import InputError
from jora_tasks.trainer.checkpoint import OnSaved, Position, WorkFolder
from jora_tasks.trainer.distributed import broadcast, from_first, several
from jora_tasks.trainer.metrics import METRICS


def open_work(
    path: Path, identity: Mapping[str, Any], on_saved: OnSaved | None = None
) -> WorkFolder | SharedWork:
    """The work folder of a run, of however many processes.

    Raises:
      InputError: see `WorkFolder`.
    """
    return (SharedWork if several() else WorkFolder)(path, identity, on_saved)


class SharedWork:
    """What `WorkFolder` is to one process, to several: each calls the same methods in the same order.

    The first one writes and reads the folder; the others need not see it. An adapter and its optimizer are
    small beside the base, so they pass whole between processes.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], on_saved: OnSaved | None = None) -> None:
        self.path = path.resolve()
        self.metrics_file = self.path / METRICS
        self.saved: int | None = None
        self._folder: WorkFolder | None = None

        def open_folder() -> None:
            self._folder = WorkFolder(path, identity, on_saved)

        ours = json.loads(json.dumps(identity))
        first = from_first(lambda: ours)
        if changed := [key for key in ours if ours[key] != first.get(key)]:
            raise InputError(
                f"process {jax.process_index()} was given other {', '.join(sorted(changed))} than the first; "
                "start every process with the same command and the same files."
            )
        from_first(open_folder)

    def save(self, position: Position, state: Any) -> None:
        """As `WorkFolder.save`; the state's arrays lie whole on every device."""
        if self._folder is not None:
            self._folder.save(position, jax.tree.map(np.asarray, state))
        self.saved = position.step

    def restore(self, like: Any) -> tuple[Position, Any] | None:
        """As `WorkFolder.restore`, with every process's part of the state where ``like`` has it."""
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)

        def read() -> dict[str, Any] | None:
            nonlocal state
            restored = self._folder.restore(state) if self._folder is not None else None
            if restored is None:
                return None
            position, state = restored
            return asdict(position)

        found = from_first(read)
        if found is None:
            return None
        position = Position(**found)
        self.saved = position.step
        return position, jax.tree.map(_place, broadcast(state), like)

    def record(self, metrics: Mapping[str, Any]) -> None:
        if self._folder is not None:
            self._folder.record(metrics)

    def finish(self) -> None:
        if self._folder is not None:
            self._folder.finish()

    def close(self) -> None:
        if self._folder is not None:
            self._folder.close()

    def last_saved(self) -> str:
        if self._folder is not None:
            return self._folder.last_saved()
        return "the first process knows the last checkpoint"


def _place(array: np.ndarray, like: jax.Array) -> jax.Array:
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])
