"""Checkpoints of a run, and the proof that they are of this run.

A work folder holds ``run.json`` (what the run is made of), ``metrics.jsonl`` (one line an update),
``checkpoints/`` (Orbax; each appears by a rename, so it is whole or absent) and ``seals/`` (for each
checkpoint a digest of the run, the checkpoint's files and the metrics up to it). Checkpoints are written
and then sealed in the background. One that is not as it was sealed is set aside in ``damaged/`` and the
one before it counts; a folder of another run is refused rather than mixed in or wiped.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jora_tasks.digests import digest_folder, digest_json
from jora_tasks.errors import DiskFull, InputError, RunStopped, first_line, no_room
from jora_tasks.trainer.metrics import METRICS, MetricsLog, digest_lines
from jora_tasks.writing import write_text

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

RUN, CHECKPOINTS, SEALS, DAMAGED = "run.json", "checkpoints", "seals", "damaged"
KEPT = 2
_NEVER = 10**9  # seconds: Orbax counts them by the wall clock, which someone may set while it saves
SPARE_BYTES = 1 << 20  # room for a checkpoint's small files, besides its arrays

OnSaved = Callable[[int], None]

_log = logging.getLogger(__name__)


def checkpoint_files(work: Path, step: int) -> list[str]:
    """The files of a work folder that make its checkpoint of this update, by their names in it."""
    folder = work / CHECKPOINTS / str(step)
    files = sorted(file.relative_to(work).as_posix() for file in folder.rglob("*") if file.is_file())
    return [RUN, METRICS, f"{SEALS}/{step}", *files]


def last_sealed(work: Path) -> int:
    """The update of the newest checkpoint in a work folder, -1 if it has none."""
    return max((int(seal.name) for seal in (work / SEALS).glob("*") if seal.name.isdigit()), default=-1)


@dataclass(frozen=True)
class Position:
    """Where a run is.

    Attributes:
      step: updates done.
      epoch: of the next update.
      index: the next update's place in its epoch.
      best_loss: lowest evaluation loss so far; None before the first evaluation.
      best_step: the update after which it was measured.
      stale: evaluations since then.
    """

    step: int
    epoch: int
    index: int
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0


class WorkFolder:
    """The state of one unfinished run.

    Args:
      identity: what the run is made of; JSON values, one level deep.
      on_saved: called in the background with the update of each checkpoint, once it is whole and sealed; its
        failure is logged, and costs nothing.

    Raises:
      InputError: if the folder holds another run; names what differs.

    Attributes:
      saved: the update of the newest checkpoint that is whole and sealed; None without one.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], on_saved: OnSaved | None = None) -> None:
        self.path = path.resolve()
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
        self.saved: int | None = None
        self._digest = digest_json(identity)
        self._metrics = MetricsLog(self.path / METRICS)
        self._sealing: threading.Thread | None = None
        self._failure: RunStopped | None = None
        self._on_saved = on_saved
        for name in ("absl", "concurrent.futures"):  # where Orbax's threads write
            logging.getLogger(name).addFilter(_not_of_a_failed_save)
        self._set_damaged_aside()  # before Orbax, which reads what it finds when it opens
        self._manager = self._open_manager()

    @property
    def metrics_file(self) -> Path:
        return self._metrics.file

    def _open_manager(self) -> ocp.CheckpointManager:
        import orbax.checkpoint as ocp

        folder = self.path / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        return ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT,
                create=False,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
                ),  # of several processes the first alone keeps checkpoints: see `shared`
                cleanup_tmp_directories=True,  # what a kill in the middle of a save left
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(timeout_secs=_NEVER),
            ),
        )

    def save(self, position: Position, state: Any) -> None:
        """Begin to keep the state after ``position.step`` updates, whose metrics are recorded.

        Returns once the state is on the host, and waits for the save before, if that is still under way.

        Args:
          state: tree of arrays that no later update is given to overwrite before this returns.

        Raises:
          RunStopped: if this save or the one before it failed, as on a full disk.
        """
        import orbax.checkpoint as ocp

        self.finish()
        with self._failures_explained(position.step):
            needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPARE_BYTES
            if shutil.disk_usage(self.path).free < needed:  # before Orbax meets it, which is far from terse
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._manager.save(
                position.step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(asdict(position))
                ),
                force=True,  # whatever Orbax's own schedule says
            )
        self._sealing = threading.Thread(
            target=self._seal_when_written, args=(position.step, self._metrics.digest()), name="seal"
        )
        self._sealing.start()

    def finish(self) -> None:
        """Wait for the save under way.

        Raises:
          RunStopped: if it failed.
        """
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

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
            self._metrics.cut(step)
            self.saved = step
            return Position(**restored["run"]), restored["state"]
        self._metrics.cut(0)
        return None

    def record(self, metrics: Mapping[str, Any]) -> None:
        """Append one update's metrics.

        Raises:
          RunStopped: if they cannot be written, as on a full disk.
        """
        with self._failures_explained(metrics["step"]):
            self._metrics.append(metrics)

    def close(self) -> None:
        """Wait for what is under way and free it; a failure, if `finish` was not asked, is only logged."""
        try:
            self.finish()
        except RunStopped as failure:
            _log.warning("%s", failure)
        self._metrics.close()
        with contextlib.suppress(Exception):  # Orbax tells of the same failure again
            self._manager.close()

    def last_saved(self) -> str:
        """In words, for a message: where a run that stopped now goes on from."""
        with contextlib.suppress(RunStopped):
            self.finish()
        if self.saved is None:
            return f"no checkpoint is in {self.path} yet"
        return f"the last good checkpoint is of update {self.saved}, in {self.path}"

    def _seal_when_written(self, step: int, metrics: str) -> None:
        try:
            with self._failures_explained(step):
                self._metrics.sync()
                self._manager.wait_until_finished()
                seals = self.path / SEALS
                seals.mkdir(exist_ok=True)
                write_text(seals / str(step), self._seal(step, metrics))
                self.saved = step
                for old in seals.iterdir():
                    if not (self.path / CHECKPOINTS / old.name).is_dir():
                        old.unlink()
        except RunStopped as failure:
            # Without the frames behind it, whose unfinished coroutines Python tells of after the sentence.
            self._failure = type(failure)(str(failure))
        else:
            self._tell(step)

    def _tell(self, step: int) -> None:
        if self._on_saved is None:
            return
        try:
            self._on_saved(step)
        except Exception as error:  # whatever it does with a checkpoint, the one here is good
            _log.warning("checkpoint %d was not shared: %s", step, first_line(error))

    @contextlib.contextmanager
    def _failures_explained(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            before = f"of update {self.saved} is good" if self.saved is not None else "has yet to come"
            kind = DiskFull if no_room(error) else RunStopped
            raise kind(
                f"update {step} could not be kept in {self.path}: {_reason(error)}; the last checkpoint "
                f"{before}, so mend this and run it again to go on from there."
            ) from error

    def _seal(self, step: int, metrics: str) -> str:
        """What must not change until a checkpoint is read again."""
        return digest_json([self._digest, digest_folder(self.path / CHECKPOINTS / str(step)), metrics])

    def _set_damaged_aside(self) -> None:
        for folder in sorted((self.path / CHECKPOINTS).glob("*")):
            if not folder.name.isdigit():
                continue
            step, seal = int(folder.name), self.path / SEALS / folder.name
            metrics = digest_lines(self.metrics_file, step)
            if not seal.is_file():
                self._set_aside(step, "it was not finished")
            elif metrics is None or seal.read_text(errors="replace") != self._seal(step, metrics):
                self._set_aside(step, "its files or metrics are not those that were saved")

    def _set_aside(self, step: int, reason: str) -> None:
        aside = self.path / DAMAGED / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        (self.path / CHECKPOINTS / str(step)).rename(aside)
        _log.warning("checkpoint %d cannot be used (%s); it is set aside in %s", step, reason, aside.parent)


def _not_of_a_failed_save(record: logging.LogRecord) -> bool:
    """False for the traces that Orbax logs of a failed save: the failure is raised, as one sentence."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or ("orbax" not in record.pathname and str(error) != "Event loop is closed")


def _reason(error: BaseException) -> str:
    """The system's own words where the error, or one behind it, has them: TensorStore only quotes them."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror.lower()
        if quoted := re.search(
            r"no space left on device|disk quota exceeded|file too large", str(seen), re.I
        ):
            return quoted[0].lower()
        seen = seen.__cause__ or seen.__context__
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return leaf
