"""Batched greedy generation from a base model or its adapter, both from one copy of the weights.

The loss of a known answer is taken from the same reading of the prompt: its tokens are read after it, as
in training (teacher forcing) and some at a time, so that it costs no second pass over the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from jora_tasks.errors import InputError

if TYPE_CHECKING:
    from jora_tasks.trainer.config import DecoderConfig
    from jora_tasks.trainer.model import LanguageModel

BUCKET = 64
_TARGET_BUCKET = 8  # tokens of known answers that are read at once


@dataclass(frozen=True)
class Generated:
    """What the model says after a prompt, and how well it predicts the known answer.

    Attributes:
      tokens: new tokens, without the end token.
      loss: mean negative log-likelihood of the target's tokens, in nats; None without a target.
    """

    tokens: list[int]
    loss: float | None


def generate(model: LanguageModel, prompts: Sequence[Sequence[int]], **settings: Any) -> list[list[int]]:
    """The new tokens of each prompt, as `generate_and_score` makes them."""
    return [each.tokens for each in generate_and_score(model, prompts, [()] * len(prompts), **settings)]


def generate_and_score(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Collection[int],
    pad_id: int,
    batch_size: int,
    use_adapter: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Generated]:
    """The most likely next token, again and again, until an end token or ``max_new_tokens``.

    Prompts are sorted by length and padded to a multiple of 64 tokens, and the last batch is filled up,
    so that few shapes are compiled.

    Args:
      model: a loaded model.
      prompts: token ids of each prompt.
      targets: token ids of each prompt's known answer, whose loss is asked; empty for none.
      max_new_tokens: longest answer.
      eos_ids: tokens that end an answer.
      pad_id: fills rows up; it changes no answer.
      batch_size: prompts answered at once.
      use_adapter: False answers with the base alone.
      on_progress: called as ``on_progress(done, total)`` after each batch.

    Returns:
      In the prompts' order.

    Raises:
      InputError: for an empty prompt, a token that the model does not have, or a prompt and answer
        longer than the model reads.
    """
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise InputError(f"prompt {number} is empty; give each prompt at least one token.")
        if min(prompt) < 0 or max(prompt) >= model.config.vocab_size:
            raise InputError(
                f"prompt {number} has a token outside the model's vocabulary of {model.config.vocab_size}; "
                "use the tokenizer of the base model."
            )
    check_lengths(prompts, max_new_tokens, model.config, targets)
    from jora_tasks.trainer.mesh import batch_multiple

    rows, batches = batches_of(list(map(len, prompts)), batch_size, batch_multiple(model.mesh))
    ends = np.array(sorted(eos_ids) or [-1], np.int32)
    answers: dict[int, Generated] = {}
    for chosen in batches:
        tokens, lengths = _pad([prompts[index] for index in chosen], rows, pad_id)
        known, counts = _pad_targets([targets[index] for index in chosen], rows)
        new, losses = _run(
            model, tokens, lengths, known, counts, len(chosen), ends, max_new_tokens, use_adapter
        )
        for row, index in enumerate(chosen):
            loss = float(losses[row]) / int(counts[row]) if counts[row] else None
            answers[index] = Generated(_until_end(new[row], ends), loss)
        if on_progress is not None:
            on_progress(len(answers), len(prompts))
    return [answers[index] for index in range(len(prompts))]


def batches_of(lengths: Sequence[int], batch_size: int, multiple: int) -> tuple[int, list[list[int]]]:
    """The rows of a batch, a multiple of ``multiple``, and the places of the prompts in each: by length."""
    rows = -(-min(batch_size, len(lengths)) // multiple) * multiple
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return rows, [order[start : start + rows] for start in range(0, len(order), rows or 1)]


def places_of_shard(
    lengths: Sequence[int], batch_size: int, multiple: int, shard: int, shards: int
) -> list[int]:
    """Places of the prompts in one of several parts, which together hold each once.

    A part has whole batches, those that all prompts would be answered in together: rows of other lengths
    beside it, or of another number, could change a row's last digits. So there may be fewer parts than asked
    for, the others being empty; the batch that is not full is in a part with a full one.
    """
    rows, batches = batches_of(lengths, batch_size, multiple)
    parts = min(shards, len(lengths) // rows if rows else 0) or 1
    return [place for number, batch in enumerate(batches) if number % parts == shard for place in batch]


def check_lengths(
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    config: DecoderConfig,
    targets: Sequence[Sequence[int]] = (),
) -> None:
    """See that the model has a position for each token of every prompt and its longest answer.

    Raises:
      InputError: naming ``evaluation.max_new_tokens``, if it has not; or the known answer that is too long.
    """
    for prompt, target in zip(prompts, targets, strict=False):
        if len(prompt) + len(target) > config.max_positions:
            raise InputError(
                f"A known answer of {len(target)} tokens after a prompt of {len(prompt)} is more than the "
                f"{config.max_positions} that the model reads; lower prompts.token_budget."
            )
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > config.max_positions:
        raise InputError(
            f"evaluation.max_new_tokens {max_new_tokens} after a prompt of {longest} tokens is more than the "
            f"{config.max_positions} that the model reads; lower it, or prompts.token_budget."
        )


def _pad(prompts: Sequence[Sequence[int]], rows: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts → tokens [rows, S] filled from the left, and their lengths; spare rows have length 1."""
    slots = -(-max(map(len, prompts)) // BUCKET) * BUCKET
    tokens = np.full((rows, slots), pad_id, np.int32)
    lengths = np.ones(rows, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    return tokens, lengths


def _pad_targets(targets: Sequence[Sequence[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets → tokens [rows, K], K a multiple of `_TARGET_BUCKET` or 0, and how many each row has."""
    slots = -(-max(map(len, targets)) // _TARGET_BUCKET) * _TARGET_BUCKET
    tokens, counts = np.zeros((rows, slots), np.int32), np.zeros(rows, np.int32)
    for row, target in enumerate(targets):
        tokens[row, : len(target)] = target
        counts[row] = len(target)
    return tokens, counts


def _run(
    model: LanguageModel,
    tokens: np.ndarray,
    lengths: np.ndarray,
    targets: np.ndarray,
    counts: np.ndarray,
    used: int,
    ends: np.ndarray,
    max_new_tokens: int,
    use_adapter: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """New tokens [B, max_new_tokens], and the summed loss of each row's target [B]."""
    lora = model.lora if use_adapter else None
    lora_config = model.lora_config if use_adapter else None
    done = np.arange(len(tokens)) >= used
    compiled = _compiled(model.config, lora_config, max_new_tokens, model.mesh)
    new, losses = compiled(model.base, lora, tokens, lengths, targets, counts, done, ends)
    return np.asarray(new), np.asarray(losses)


def _until_end(tokens: np.ndarray, ends: np.ndarray) -> list[int]:
    stops = np.flatnonzero(np.isin(tokens, ends) | (tokens < 0))
    return tokens[: stops[0] if len(stops) else len(tokens)].tolist()


@lru_cache(maxsize=16)
def _compiled(config: Any, lora_config: Any, max_new_tokens: int, mesh: Any) -> Callable[..., Any]:
    """A jitted (base, lora, tokens, lengths, targets, counts, done, ends) → new tokens [B, max_new_tokens],
    -1 unwritten, and the summed loss of the targets [B], f32."""
    import jax
    import jax.numpy as jnp

    from jora_tasks.trainer.decode import decode_step, prefill

    def run(
        base: Any, lora: Any, tokens: Any, lengths: Any, targets: Any, counts: Any, done: Any, ends: Any
    ) -> Any:
        slots, known = tokens.shape[1], targets.shape[1]
        extra = max(max_new_tokens - 1, known)
        logits, cache = prefill(config, lora_config, base, lora, tokens, lengths, extra=extra, mesh=mesh)

        def read(chosen: Any, step: Any, cache: Any) -> Any:
            return decode_step(
                config, lora_config, base, lora, chosen, lengths, slots, step, cache, mesh=mesh
            )

        def loss_from(first: Any, logits: Any) -> Any:
            """Of the targets from ``first`` on, each by its own logits [B, Q, V]."""
            steps = first + jnp.arange(logits.shape[1])
            expected = jnp.take(targets, steps, axis=1, mode="clip")[:, :, None]
            losses = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, expected, -1)[:, :, 0]
            return jnp.where(steps < counts[:, None], losses, 0.0).sum(axis=1)

        def score(block: Any, state: Any) -> Any:
            total, cache = state
            start = block * _TARGET_BUCKET
            seen = jax.lax.dynamic_slice_in_dim(targets, start, _TARGET_BUCKET, axis=1)
            logits, cache = read(seen, start, cache)
            return total + loss_from(start + 1, logits), cache

        loss = jnp.zeros(tokens.shape[0], jnp.float32)
        if known:
            blocks = -(-(jnp.max(counts) - 1) // _TARGET_BUCKET)  # what follows the last target is not asked
            loss = jax.lax.fori_loop(0, blocks, score, (loss_from(0, logits[:, None]), cache))[0]
        chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        new = jnp.full((tokens.shape[0], max_new_tokens), -1, jnp.int32).at[:, 0].set(chosen)
        done = done | jnp.isin(chosen, ends)

        def going(state: Any) -> Any:
            step, _, done, _, _ = state
            return (step < max_new_tokens) & ~done.all()

        def advance(state: Any) -> Any:
            step, chosen, done, new, cache = state
            logits, cache = read(chosen[:, None], step - 1, cache)
            chosen = jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32)
            new = jax.lax.dynamic_update_slice(new, chosen[:, None], (0, step))
            return step + 1, chosen, done | jnp.isin(chosen, ends), new, cache

        new = jax.lax.while_loop(going, advance, (jnp.int32(1), chosen, done, new, cache))[3]
        return new, loss

    return jax.jit(run)
