"""The updates of a run, one after the other, and what is kept of each.

While an update is computed its successor is dispatched, and only then are its figures read: the device
never waits for the host. So an update is not kept, saved or told of before its figures are known to be
finite, and the state that a checkpoint takes is copied on the device before the successor overwrites it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jora_tasks.errors import Diverged, Preempted
from jora_tasks.spec import LoraConfig, TrainConfig
from jora_tasks.trainer.batches import Batches, Update
from jora_tasks.trainer.checkpoint import Position, WorkFolder
from jora_tasks.trainer.data import Example
from jora_tasks.trainer.distributed import gathered, meet, several
from jora_tasks.trainer.flops import peak_flops, step_flops
from jora_tasks.trainer.heldout import HeldOut, evaluated
from jora_tasks.trainer.memory import check_program, fitting
from jora_tasks.trainer.model import LanguageModel
from jora_tasks.trainer.optimizer import init_optimizer
from jora_tasks.trainer.pipeline import Prepared, updates
from jora_tasks.trainer.profiling import Profile
from jora_tasks.trainer.shared import SharedWork
from jora_tasks.trainer.sigterm import StopRequest
from jora_tasks.trainer.step import Step, compile_step, place_batch

OnStep = Callable[[Mapping[str, Any]], None]

LONG_SECONDS = 1.0
"""An update that takes longer gains nothing from a successor dispatched early, and SIGTERM waits for both."""


@dataclass(frozen=True)
class _Dispatched:
    """An update that the device has been given."""

    update: Update
    epoch: int
    after: Position
    measured: Mapping[str, jax.Array]
    state: Any  # a copy of the state after it, where a checkpoint is due


class Loop:
    """One run from where its work folder stands to its end.

    Args:
      model: with the adapter to begin with, which is left as it is.
      held_out: evaluated every ``eval_every`` updates and after the last.
      on_step: called after each update with its metrics, ``total_steps`` and ``eta_seconds``.
      stop: looked at between updates.
    """

    def __init__(
        self,
        model: LanguageModel,
        batches: Batches,
        training: TrainConfig,
        work: WorkFolder | SharedWork,
        stop: StopRequest,
        profile: Profile,
        *,
        held_out: HeldOut | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        self._model, self._batches, self._training, self._work = model, batches, training, work
        self._stop, self._profile, self._held_out, self._on_step = stop, profile, held_out, on_step
        self._total = training.epochs * batches.per_epoch
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        self._whole = gathered(model.mesh)
        self._position = Position(0, 0, 0)
        self._lora = self._copy(model.lora)
        self._opt_state = init_optimizer(model, training, self._total)
        self._best = self._copy(model.lora) if training.keep == "best" else None
        if (restored := work.restore((self._lora, self._opt_state, self._best))) is not None:
            self._position, (self._lora, self._opt_state, self._best) = restored
        self._programs: dict[int, Step] = {}
        self._peak = peak_flops(jax.tree.leaves(model.lora)[0].devices())
        self._rows = training.batch_size * training.gradient_accumulation
        self._padded_left = self._rows * sum(update.length for update in self._left())
        self._padded_done, self._spent, self._seconds = 0, 0.0, 0.0
        self._mark = 0.0
        # Several processes must launch their programs in one order, whatever their clocks say.
        self._long = math.inf if several() else LONG_SECONDS

    def run(self) -> LanguageModel:
        """Do the updates that are not done yet.

        Returns:
          The model with the trained adapter, or with the best one where that is kept.

        Raises:
          Diverged: if a loss or gradient is not finite.
          Preempted: after SIGTERM, with the state saved.
          InputError: if a batch does not fit in memory; the longest is tried first.
          RunStopped: if a checkpoint or the metrics cannot be written.
        """
        try:
            self._compile_longest()
            self._mark = time.perf_counter()
            with closing(
                updates(self._batches, self._position, self._training.epochs, self._model.mesh)
            ) as ahead:
                self._run_all(ahead)
        finally:
            self._profile.end()
        self._work.finish()
        return replace(self._model, lora=self._lora if self._best is None else self._best)

    def _run_all(self, ahead: Iterable[Prepared]) -> None:
        waiting: _Dispatched | None = None
        for done, prepared in enumerate(ahead):
            turn, stop = self._profile.due(done), self._stop.before(prepared.after.step)
            if waiting and (turn or stop or prepared.update.length not in self._programs):
                self._finish(waiting)
                waiting = None
            if self._enough():
                return
            if stop:
                self._preempt()
            if turn:
                self._profile.turn()
            dispatched = self._dispatch(prepared)
            if waiting:
                self._finish(waiting)
            waiting = dispatched
            if self._evaluates(prepared.after.step) or self._seconds > self._long:
                self._finish(waiting)
                waiting = None
        if waiting:
            self._finish(waiting)

    def _dispatch(self, prepared: Prepared) -> _Dispatched:
        update, batch, epoch, after = prepared
        program = self._program(update, batch)
        with fitting(self._examples(update), self._training.batch_size):
            self._lora, self._opt_state, measured = program(
                self._lora, self._opt_state, self._model.base, batch, np.int32(after.step - 1)
            )
            due = after.step % self._training.checkpoint_every == 0 or after.step == self._total
            state = self._whole((self._lora, self._opt_state)) if due else None
        return _Dispatched(update, epoch, after, measured, state)

    def _finish(self, dispatched: _Dispatched) -> None:
        """Wait for an update and keep what it made."""
        examples = self._examples(dispatched.update)
        with fitting(examples, self._training.batch_size):
            figures = {name: float(value) for name, value in jax.device_get(dispatched.measured).items()}
        self._seconds = time.perf_counter() - self._mark
        self._mark += self._seconds
        after = dispatched.after
        if not all(map(math.isfinite, figures.values())):
            raise Diverged(
                f"update {after.step} has loss {figures['loss']} and gradient norm "
                f"{figures['grad_norm']}; its examples are {', '.join(example.id for example in examples)}; "
                f"{self._work.last_saved()}; lower training.learning_rate or look at these examples."
            )
        self._position = replace(self._position, step=after.step, epoch=after.epoch, index=after.index)
        metrics = {
            "step": after.step,
            "epoch": dispatched.epoch,
            **{name: figures[name] for name in ("loss", "learning_rate", "grad_norm")},
            **self._speed(dispatched.update),
        }
        if self._held_out and self._evaluates(after.step):
            metrics["eval_loss"] = self._evaluate(self._held_out)
        self._work.record(metrics)
        if dispatched.state is not None:
            self._work.save(self._position, (*dispatched.state, self._whole(self._best)))
        elif self._enough():
            self._save()
        if self._on_step is not None:
            self._padded_done += dispatched.update.length * self._rows
            self._spent += self._seconds
            eta = (self._padded_left - self._padded_done) * self._spent / self._padded_done
            self._on_step({**metrics, "total_steps": self._total, "eta_seconds": round(eta, 1)})

    def _evaluates(self, step: int) -> bool:
        every = self._training.eval_every
        return every > 0 and (step % every == 0 or step == self._total)

    def _evaluate(self, held_out: HeldOut) -> float:
        """The evaluation loss now, while no update is under way; a better adapter is kept."""
        loss = held_out.loss(self._lora)
        if not math.isfinite(loss):
            raise Diverged(
                f"the evaluation after update {self._position.step} has loss {loss}; "
                f"{self._work.last_saved()}; lower training.learning_rate."
            )
        self._position = evaluated(self._position, loss)
        if self._best is not None and self._position.stale == 0:
            self._best = self._copy(self._lora)
        self._mark = time.perf_counter()  # an evaluation is no part of an update's seconds
        return loss

    def _enough(self) -> bool:
        patience = self._training.early_stopping_patience
        return 0 < patience <= self._position.stale

    def _save(self) -> None:
        state = self._whole((self._lora, self._opt_state, self._best))
        self._work.save(self._position, state)

    def _preempt(self) -> None:
        self._work.finish()
        if self._position.step not in (0, self._work.saved):
            self._save()
            self._work.finish()
        raise Preempted(
            f"stopped by SIGTERM: saved at update {self._position.step} of {self._total} in "
            f"{self._work.path}; run it again to go on from there."
        )

    def _compile_longest(self) -> None:
        """Compile the longest batch's program, so that what does not fit shows before the first update."""
        longest = max(self._left(), key=lambda update: update.length, default=None)
        if longest is not None:
            self._program(longest, place_batch(self._batches.arrays(longest), self._model.mesh))

    def _program(self, update: Update, batch: Any) -> Step:
        if update.length not in self._programs:
            examples = self._examples(update)
            with fitting(examples, self._training.batch_size):
                program = compile_step(self._model, self._training, self._total, self._opt_state, batch)
            check_program(program, examples, self._training.batch_size)
            self._programs[update.length] = program
            meet()
            self._mark = time.perf_counter()  # nor is compilation
        return self._programs[update.length]

    def _left(self) -> Iterator[Update]:
        """The updates not done yet."""
        for number in range(self._position.step, self._total):
            epoch, index = divmod(number, self._batches.per_epoch)
            yield self._batches.epoch(epoch)[index]

    def _examples(self, update: Update) -> list[Example]:
        return [self._batches.dataset.examples[index] for index in update.indices]

    def _speed(self, update: Update) -> dict[str, Any]:
        """Tokens of the last update and how fast they were, without the padding among those computed."""
        indices, dataset = list(update.indices), self._batches.dataset
        lengths = dataset.lengths[indices].tolist()
        tokens, scored = sum(lengths), int(dataset.scored_counts[indices].sum())
        flops = step_flops(self._model.config, self._model.lora_config or LoraConfig(), lengths, scored)
        return {
            "tokens": tokens,
            "scored_tokens": scored,
            "computed_tokens": update.length * self._rows,
            "tokens_per_second": tokens / self._seconds,
            "mfu_4n": None if self._peak is None else flops / self._seconds / self._peak,
            "seconds": self._seconds,
        }
