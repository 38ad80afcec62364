"""The optimizer and its learning rate: clipping, AdamW, a warm-up and a schedule."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from jora_tasks.spec import TrainConfig
from jora_tasks.trainer.model import LanguageModel

Tree = Any


def make_schedule(training: TrainConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then a cosine, a line or a constant.

    Cosine and line end at ``min_learning_rate_ratio`` of the peak, where an update after the last would
    be. The first of w warm-up updates has peak / (w + 1), so none is spent at rate zero; update w has the
    peak. E.g. cosine, peak 1, w = 3, 9 updates: 0.25, 0.5, 0.75, 1, ..., 0.067.
    """
    peak, ratio = training.learning_rate, training.min_learning_rate_ratio
    warmup = min(round(training.warmup_ratio * total_steps), total_steps - 1)
    falling = total_steps - warmup
    after = {
        "cosine": optax.cosine_decay_schedule(peak, falling, alpha=ratio),
        "linear": optax.linear_schedule(peak, peak * ratio, falling),
        "constant": optax.constant_schedule(peak),
    }[training.schedule]
    rising = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    return optax.join_schedules([rising, after], [warmup])


def make_optimizer(training: TrainConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) behind clipping by the global norm, where that is on; B may go faster."""
    adamw = optax.adamw(make_schedule(training, total_steps), weight_decay=training.weight_decay)
    clip = [optax.clip_by_global_norm(training.max_grad_norm)] if training.max_grad_norm else []
    faster = [_lora_plus(training.loraplus_lr_ratio)] if training.loraplus_lr_ratio != 1 else []
    return optax.chain(*clip, adamw, *faster) if clip or faster else adamw


def _lora_plus(ratio: float) -> optax.GradientTransformation:
    """A learning rate ``ratio`` times higher for B (arXiv 2402.12354) and, as in PEFT, for DoRA's m."""

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        return ratio * update if path[-1].key in ("b", "m") else update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def init_optimizer(model: LanguageModel, training: TrainConfig, total_steps: int) -> Tree:
    """The optimizer's first state: moments where the adapter's arrays are, scalars on every device."""
    state = make_optimizer(training, total_steps).init(model.lora)
    if model.mesh is None:
        return state
    everywhere = NamedSharding(model.mesh, PartitionSpec())

    def place(leaf: Array) -> Array:
        if leaf.ndim:
            return leaf
        value = np.asarray(leaf)
        return jax.make_array_from_callback((), everywhere, lambda index: value[index])

    return jax.tree.map(place, state)
