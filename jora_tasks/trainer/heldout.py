"""The evaluation loss: how well an adapter predicts answers it is not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from jora_tasks.spec import TrainConfig
from jora_tasks.trainer.batches import Batches
from jora_tasks.trainer.checkpoint import Position
from jora_tasks.trainer.data import Dataset
from jora_tasks.trainer.distributed import meet
from jora_tasks.trainer.memory import fitting
from jora_tasks.trainer.mesh import length_multiple
from jora_tasks.trainer.model import LanguageModel
from jora_tasks.trainer.step import compile_loss, place_batch


class HeldOut:
    """Mean loss over all scored tokens of a dataset, without dropout, in batches of the training's size."""

    def __init__(self, model: LanguageModel, dataset: Dataset, training: TrainConfig) -> None:
        self._model = model
        self._training = training
        self._batches = Batches(dataset, training.batch_size, 1, 0, multiple=length_multiple(model.mesh))
        # Longest first: what does not fit shows before the first update.
        self._updates = sorted(self._batches.epoch(0), key=lambda update: -update.length)
        self._programs: dict[int, Callable[..., Any]] = {}
        self._sums(model.lora, self._updates[:1])

    def loss(self, lora: Any) -> float:
        """The mean, summed in float64 in a fixed order: equal adapters have equal losses."""
        sums = jax.device_get(self._sums(lora, self._updates))
        return sum(float(loss) for loss, _ in sums) / sum(int(count) for _, count in sums)

    def _sums(self, lora: Any, updates: Any) -> list[Any]:
        sums = []
        for update in updates:
            examples = [self._batches.dataset.examples[index] for index in update.indices]
            with fitting(examples, self._training.batch_size):
                batch = place_batch(self._batches.arrays(update), self._model.mesh)
                if update.length not in self._programs:
                    self._programs[update.length] = compile_loss(self._model, self._training, batch)
                    meet()
                sums.append(self._programs[update.length](lora, self._model.base, batch))
        return sums


def evaluated(position: Position, loss: float) -> Position:
    """The position with one more evaluation; an equal loss is not a better one."""
    if position.best_loss is None or loss < position.best_loss:
        return replace(position, best_loss=loss, best_step=position.step, stale=0)
    return replace(position, stale=position.stale + 1)
