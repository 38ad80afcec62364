"""One update: gradients of the adapter alone, clipped, through AdamW.

`make_step` gives a pure function of trees, to be jitted with the adapter and the optimizer state
donated. The frozen base is an argument of its own, never donated and never differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jora_tasks.spec import LoraConfig, TrainConfig
from jora_tasks.trainer.batches import Batch
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.distributed import from_first
from jora_tasks.trainer.layer import in_chunks
from jora_tasks.trainer.loss import answer_loss
from jora_tasks.trainer.memory import leaves_room, memory_of
from jora_tasks.trainer.mesh import batch_multiple, constrain, platform, sharding
from jora_tasks.trainer.model import LanguageModel, head_weight, hidden_states
from jora_tasks.trainer.optimizer import make_optimizer, make_schedule
from jora_tasks.trainer.remat import choices, compile_keeping_most
from jora_tasks.trainer.targets import HEAD

AT_ONCE = 1024  # tokens of several rows on a CPU

Tree = Any
Step = Callable[..., tuple[Tree, Tree, dict[str, Array]]]


def make_loss(
    config: DecoderConfig, lora_config: LoraConfig, training: TrainConfig, mesh: Mesh | None = None
) -> Callable[..., tuple[Array, Int[Array, ""]]]:
    """The loss of one micro-batch (B rows, no axis of micro-batches) as a pure function.

    Returns:
      ``loss(lora, base, micro, key)``: f32 summed loss of the scored tokens, and their number. ``key``
      seeds dropout; None is without.
    """

    def loss(lora: Tree, base: Tree, micro: Batch, key: Array | None) -> tuple[Array, Int[Array, ""]]:
        hidden = hidden_states(
            config,
            lora_config,
            base,
            lora,
            micro.tokens,
            micro.segments,
            positions=micro.position_ids,
            dropout_key=key,
            remat=training.remat,
            mesh=mesh,
        )
        return answer_loss(
            hidden,
            constrain(head_weight(config, base, lora), mesh, ("vocab", "stream")),  # gathered once
            micro.positions,
            micro.targets,
            micro.scored,
            softcap=config.logit_softcap,
            head_is_trained=HEAD in lora,
        )

    return loss


def make_step(
    config: DecoderConfig,
    lora_config: LoraConfig,
    training: TrainConfig,
    total_steps: int,
    mesh: Mesh | None = None,
) -> Step:
    """The update as a pure function.

    Returns:
      ``step(lora, opt_state, base, batch, number) -> (lora, opt_state, metrics)``. ``batch`` is a
      `Batch` of A micro-batches, whose summed losses and token counts are divided once, so that every
      scored token weighs the same however the examples are grouped. ``number`` (int32, from 0) seeds
      dropout. ``metrics``: ``loss`` (mean over scored tokens), ``grad_norm`` (before clipping) and
      ``learning_rate``, f32 scalars.
    """
    optimizer = make_optimizer(training, total_steps)
    schedule = make_schedule(training, total_steps)

    summed_loss = make_loss(config, lora_config, training, mesh)

    def step(
        lora: Tree, opt_state: Tree, base: Tree, batch: Batch, number: Int[Array, ""]
    ) -> tuple[Tree, Tree, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(training.seed), number) if lora_config.lora_dropout else None

        def micro_gradient(micro: Batch, index: Array | int) -> tuple[Tree, Array, Array]:
            micro_key = None if key is None else jax.random.fold_in(key, index)
            (loss, count), gradient = jax.value_and_grad(summed_loss, has_aux=True)(
                lora, base, micro, micro_key
            )
            return gradient, loss, count

        def accumulate(total: Tree, item: tuple[Batch, Array]) -> tuple[Tree, None]:
            return jax.tree.map(jnp.add, total, micro_gradient(*item)), None

        batch = _few_rows_at_once(batch, mesh)
        parts = batch.tokens.shape[0]
        if parts == 1:
            gradient, loss, count = micro_gradient(jax.tree.map(lambda array: array[0], batch), 0)
        else:
            nothing = (jax.tree.map(jnp.zeros_like, lora), jnp.zeros(()), jnp.zeros((), jnp.int32))
            (gradient, loss, count), _ = jax.lax.scan(accumulate, nothing, (batch, jnp.arange(parts)))
        tokens = jnp.maximum(count, 1).astype(jnp.float32)
        gradient = jax.tree.map(lambda leaf: leaf / tokens, gradient)
        updates, opt_state = optimizer.update(gradient, opt_state, lora)
        metrics = {
            "loss": loss / tokens,
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": jnp.asarray(schedule(number), jnp.float32),
        }
        return optax.apply_updates(lora, updates), opt_state, metrics

    return step


def _few_rows_at_once(batch: Batch, mesh: Mesh | None) -> Batch:
    """The same rows in more micro-batches where that is faster: on a CPU, whose caches hold more of a layer.

    Memory then grows with the length of the rows, and no longer with their number.
    """
    if platform(mesh) != "cpu" or batch_multiple(mesh) > 1:
        return batch
    _, rows, length = batch.tokens.shape
    most = max(1, AT_ONCE // length)
    at_once = max(count for count in range(1, most + 1) if rows % count == 0)
    return jax.tree.map(lambda array: array.reshape(-1, at_once, *array.shape[2:]), batch)


def compile_step(
    model: LanguageModel, training: TrainConfig, total_steps: int, opt_state: Tree, batch: Batch
) -> Step:
    """Compile the update for this batch's shape, adapter and optimizer state donated.

    State comes out where it went in, so that every shape's program takes every other's results. Of the
    policies that ``training.remat`` stands for it is the one that keeps most and leaves room on the device.
    """
    if model.lora is None or model.lora_config is None:
        raise ValueError("the model has no adapter to train; load it with lora= or adapter=")
    config, lora_config, mesh = model.config, model.lora_config, model.mesh
    arguments = (model.lora, opt_state, model.base, batch)

    def lower(policy: str) -> Any:
        changed = training.model_copy(update={"remat": policy})
        return lower_step(make_step(config, lora_config, changed, total_steps, mesh), *arguments)

    policies = choices(training.remat, in_chunks(batch.tokens.shape[-1], mesh), platform(mesh))
    # Of several processes all must take the same one.
    limit = from_first(lambda: memory_of(jax.local_devices()[0])) if len(policies) > 1 else None
    program: Step = compile_keeping_most(policies, lower, partial(leaves_room, limit=limit))[1]
    return program


def lower_step(step: Step, lora: Tree, opt_state: Tree, base: Tree, batch: Batch) -> Any:
    """Lower the update, its state donated and put out where it came in, for arrays or their shapes."""
    places = jax.tree.map(lambda leaf: leaf.sharding, (lora, opt_state))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(*places, None))
    return jitted.lower(lora, opt_state, base, batch, jax.ShapeDtypeStruct((), jnp.int32))


def compile_loss(model: LanguageModel, training: TrainConfig, batch: Batch) -> Callable[..., Any]:
    """Compile ``loss(lora, base, batch)`` for this batch's shape, its one micro-batch without dropout."""
    if model.lora is None or model.lora_config is None:
        raise ValueError("the model has no adapter to evaluate; load it with lora= or adapter=")
    forward = training.model_copy(update={"remat": "full"})  # in chunks where rows are long
    loss = make_loss(model.config, model.lora_config, forward, model.mesh)

    def evaluate(lora: Tree, base: Tree, batch: Batch) -> tuple[Array, Int[Array, ""]]:
        return loss(lora, base, jax.tree.map(lambda array: array[0], batch), None)

    return jax.jit(evaluate).lower(model.lora, model.base, batch).compile()


def place_batch(batch: Batch, mesh: Mesh | None) -> Batch:
    """Put the arrays on the devices, rows split over the mesh's data and fsdp axes.

    Of several processes each has the whole batch and puts the parts of its own devices.
    """
    place = sharding(mesh, (None, "batch", None))
    if place is None or place.is_fully_addressable:
        return jax.tree.map(lambda array: jax.device_put(array, place), batch)
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, place, lambda index: array[index]), batch
    )
