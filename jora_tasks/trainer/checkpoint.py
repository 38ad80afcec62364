"""Checkpoints of a run, and the proof that they are of this run.

A work folder holds ``run.json`` (what the run is made of), ``metrics.jsonl`` (one line an update),
``checkpoints/`` (Orbax; each appears by a rename, so it is whole or absent) and ``seals.json`` (a digest
of the run, the checkpoint's files and the metrics up to it, for each checkpoint). A checkpoint that is
not as it was sealed is set aside in ``damaged/`` and the one before it counts; a folder of another run
is refused rather than mixed in or wiped.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jora_tasks.artifacts import digest_bytes, digest_folder, digest_json, write_text
from jora_tasks.errors import InputError

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

RUN, METRICS, CHECKPOINTS = "run.json", "metrics.jsonl", "checkpoints"
SEALS, DAMAGED = "seals.json", "damaged"
KEPT = 2

_log = logging.getLogger(__name__)


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
            found = _read_object(record)
            changed = [key for key in {**found, **identity} if found.get(key) != identity.get(key)]
            if changed:
                raise InputError(
                    f"{self.path} holds an unfinished run of other {', '.join(sorted(changed))}; "
                    "remove the folder to start afresh, or train with the settings it has."
                )
        elif self.path.exists() and any(
            not file.name.startswith(f".{RUN}.tmp-")  # what a kill while it was written left
            for file in self.path.iterdir()
        ):
            raise InputError(f"{self.path} has files but no {RUN}; give an empty work folder or remove it.")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(record, json.dumps(identity, indent=2) + "\n")
        self._digest = digest_json(identity)
        self._set_damaged_aside()  # before Orbax, which reads what it finds when it opens
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
        about = {"epoch": position.epoch, "index": position.index}
        self._manager.save(
            position.step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(about)),
        )
        kept = {str(step) for step in self._manager.all_steps()}
        earlier = _read_object(self.path / SEALS)
        seals = {step: seal for step, seal in earlier.items() if step in kept}
        seals[str(position.step)] = self._seal(position.step)
        write_text(self.path / SEALS, json.dumps(seals, indent=2) + "\n")

    def restore(self, like: Any) -> tuple[Position, Any] | None:
        """The newest checkpoint that can be read, or None; cuts the metrics back to it.

        Args:
          like: a state of the same structure, shapes, dtypes and shardings.
        """
        import orbax.checkpoint as ocp

        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(_abstract, like)), run=ocp.args.JsonRestore()
        )
        while (step := self._manager.latest_step()) is not None:
            try:
                restored = self._manager.restore(step, args=args)
            except (ValueError, TypeError, KeyError, OSError) as error:
                # What Orbax and TensorStore raise for files or shapes that do not fit. A device out of
                # memory is a RuntimeError: no fault of the checkpoint.
                self._manager.close()
                self._set_aside(step, f"Orbax: {' '.join(str(error).split())[:200]}")
                self._manager = self._open_manager()
                continue
            write_text(self.metrics_file, "".join(self._metrics_until(step)))
            about = restored["run"]
            return Position(step, about["epoch"], about["index"]), restored["state"]
        write_text(self.metrics_file, "")
        return None

    def record(self, metrics: Mapping[str, Any]) -> None:
        """Append one update's metrics."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def close(self) -> None:
        """Wait for what Orbax has under way and free it."""
        self._manager.close()

    def _metrics_until(self, step: int) -> list[str]:
        """The first ``step`` lines of the metrics, or as many as there are."""
        if not self.metrics_file.exists():
            return []
        return self.metrics_file.read_text(errors="replace").splitlines(keepends=True)[:step]

    def _seal(self, step: int) -> str | None:
        """What must not change until a checkpoint is read again; None without the metrics up to it."""
        metrics = self._metrics_until(step)
        if len(metrics) < step:
            return None
        files = digest_folder(self.path / CHECKPOINTS / str(step))
        return digest_json([self._digest, files, digest_bytes("".join(metrics).encode())])

    def _set_damaged_aside(self) -> None:
        seals = _read_object(self.path / SEALS)
        for folder in sorted((self.path / CHECKPOINTS).glob("*")):
            if folder.name.isdigit():
                seal = seals.get(folder.name)
                if seal is None or seal != self._seal(int(folder.name)):
                    self._set_aside(int(folder.name), "its files or metrics are not those that were saved")

    def _set_aside(self, step: int, reason: str) -> None:
        aside = self.path / DAMAGED / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        (self.path / CHECKPOINTS / str(step)).rename(aside)
        _log.warning("checkpoint %d cannot be used (%s); it is set aside in %s", step, reason, aside.parent)


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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
