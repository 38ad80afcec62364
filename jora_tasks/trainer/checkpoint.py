"""Checkpoints of a run, and the proof that they are of this run.

A work folder holds ``run.json`` (what the run is made of), ``metrics.jsonl`` (one line an update) and
``checkpoints/`` (Orbax; each appears by a rename, so it is whole or absent). A folder of another run
is refused rather than mixed in or wiped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jora_tasks.artifacts import digest_json
from jora_tasks.errors import InputError

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

RUN, METRICS, CHECKPOINTS = "run.json", "metrics.jsonl", "checkpoints"
KEPT = 2


@dataclass(frozen=True)
class Position:
    """Where a run is: updates done, and the next update's epoch and place in it."""

    step: int
    epoch: int
    index: int


class WorkFolder:
    """The state of one unfinished run.

    Args:
      identity: what the run is made of; JSON values, one level deep.

    Raises:
      InputError: if the folder holds another run; names what differs.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path.resolve()
        self.metrics_file = self.path / METRICS
        identity = json.loads(json.dumps(identity))
        record = self.path / RUN
        if record.is_file():
            try:
                found = json.loads(record.read_text())
            except ValueError:
                found = {}
            changed = [key for key in {**found, **identity} if found.get(key) != identity.get(key)]
            if changed:
                raise InputError(
                    f"{self.path} holds an unfinished run of other {', '.join(sorted(changed))}; "
                    "remove the folder to start afresh, or train with the settings it has."
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise InputError(f"{self.path} has files but no {RUN}; give an empty work folder or remove it.")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            temporary = record.with_suffix(".tmp")
            temporary.write_text(json.dumps(identity, indent=2) + "\n")
            temporary.replace(record)
        self._digest = digest_json(identity)
        self._manager = self._open_manager()

    def _open_manager(self) -> ocp.CheckpointManager:
        import orbax.checkpoint as ocp

        return ocp.CheckpointManager(
            self.path / CHECKPOINTS,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT,
                create=True,
                cleanup_tmp_directories=True,  # what a kill in the middle of a save left
                enable_async_checkpointing=False,
            ),
        )

    def save(self, position: Position, state: Any) -> None:
        """Keep the state after ``position.step`` updates, once the metrics up to it are on disk."""
        import orbax.checkpoint as ocp

        if self.metrics_file.exists():
            with self.metrics_file.open("rb") as file:
                os.fsync(file.fileno())
        about = {"identity": self._digest, "epoch": position.epoch, "index": position.index}
        self._manager.save(
            position.step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(about)),
        )

    def restore(self, like: Any) -> tuple[Position, Any] | None:
        """The newest checkpoint, or None; cuts the metrics back to it.

        Args:
          like: a state of the same structure, shapes, dtypes and shardings.

        Raises:
          InputError: if the checkpoint is of another run.
        """
        import orbax.checkpoint as ocp

        step = self._manager.latest_step()
        kept = read_metrics(self.metrics_file)[: step or 0]
        if step is not None and len(kept) < step:  # without its metrics it is no place to go on from
            self._manager.close()
            shutil.rmtree(self.path / CHECKPOINTS)
            self._manager = self._open_manager()
            step, kept = None, []
        if step is None:
            self._write_metrics([])
            return None
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.tree.map(_abstract, like)), run=ocp.args.JsonRestore()
            ),
        )
        about = restored["run"]
        if about["identity"] != self._digest:
            raise InputError(f"{self.path}: checkpoint {step} is of another run; remove the folder.")
        self._write_metrics(kept)
        return Position(step, about["epoch"], about["index"]), restored["state"]

    def record(self, metrics: Mapping[str, Any]) -> None:
        """Append one update's metrics."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def close(self) -> None:
        """Wait for what Orbax has under way and free it."""
        self._manager.close()

    def _write_metrics(self, metrics: list[dict[str, Any]]) -> None:
        temporary = self.metrics_file.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in metrics))
        temporary.replace(self.metrics_file)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The metrics of a ``metrics.jsonl``; a line torn by a kill is left out, and none is no error."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def fingerprint(tree: Any) -> str:
    """``sha256:<hex>`` that tells weights apart, computed where they lie.

    Each array enters by its path, shape, dtype and the sum of its bit patterns modulo 2**32, which
    does not depend on order or sharding.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = jax.jit(lambda arrays: [_sum_of_bits(array) for array in arrays])([leaf for _, leaf in leaves])
    return digest_json(
        [
            [jax.tree_util.keystr(path), list(leaf.shape), str(leaf.dtype), int(total)]
            for (path, leaf), total in zip(leaves, sums, strict=True)
        ]
    )


def _sum_of_bits(array: jax.Array) -> jax.Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    return jnp.sum(jax.lax.bitcast_convert_type(array, unsigned), dtype=jnp.uint32)


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return leaf
