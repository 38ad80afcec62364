"""Batched greedy generation from a base model or its adapter, both from one copy of the weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from jora_tasks.errors import InputError

if TYPE_CHECKING:
    from jora_tasks.trainer.config import DecoderConfig
    from jora_tasks.trainer.model import LanguageModel

BUCKET = 64


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: Collection[int],
    pad_id: int,
    batch_size: int,
    use_adapter: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """The most likely next token, again and again, until an end token or ``max_new_tokens``.

    Prompts are sorted by length and padded to a multiple of 64 tokens, and the last batch is filled up,
    so that few shapes are compiled.

    Args:
      model: a loaded model.
      prompts: token ids of each prompt.
      max_new_tokens: longest answer.
      eos_ids: tokens that end an answer.
      pad_id: fills rows up; it changes no answer.
      batch_size: prompts answered at once.
      use_adapter: False answers with the base alone.
      on_progress: called as ``on_progress(done, total)`` after each batch.

    Returns:
      The new tokens of each prompt, in the prompts' order, without the end token.

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
    check_lengths(prompts, max_new_tokens, model.config)
    from jora_tasks.trainer.mesh import batch_multiple

    rows = -(-min(batch_size, len(prompts)) // batch_multiple(model.mesh)) * batch_multiple(model.mesh)
    ends = np.array(sorted(eos_ids) or [-1], np.int32)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), rows or 1):
        chosen = order[start : start + rows]
        tokens, lengths = _pad([prompts[index] for index in chosen], rows, pad_id)
        new = _run(model, tokens, lengths, len(chosen), ends, max_new_tokens, use_adapter)
        for row, index in enumerate(chosen):
            answers[index] = _until_end(new[row], ends)
        if on_progress is not None:
            on_progress(min(start + rows, len(order)), len(order))
    return answers


def check_lengths(prompts: Sequence[Sequence[int]], max_new_tokens: int, config: DecoderConfig) -> None:
    """See that the model has a position for each token of every prompt and its longest answer.

    Raises:
      InputError: naming ``evaluation.max_new_tokens``, if it has not.
    """
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


def _run(
    model: LanguageModel,
    tokens: np.ndarray,
    lengths: np.ndarray,
    used: int,
    ends: np.ndarray,
    max_new_tokens: int,
    use_adapter: bool,
) -> np.ndarray:
    lora = model.lora if use_adapter else None
    lora_config = model.lora_config if use_adapter else None
    done = np.arange(len(tokens)) >= used
    compiled = _compiled(model.config, lora_config, max_new_tokens, model.mesh)
    return np.asarray(compiled(model.base, lora, tokens, lengths, done, ends))


def _until_end(tokens: np.ndarray, ends: np.ndarray) -> list[int]:
    stops = np.flatnonzero(np.isin(tokens, ends) | (tokens < 0))
    return tokens[: stops[0] if len(stops) else len(tokens)].tolist()


@lru_cache(maxsize=16)
def _compiled(config: Any, lora_config: Any, max_new_tokens: int, mesh: Any) -> Callable[..., Any]:
    """A jitted (base, lora, tokens, lengths, done, ends) → new tokens [B, max_new_tokens], -1 unwritten."""
    import jax
    import jax.numpy as jnp

    from jora_tasks.trainer.decode import decode_step, prefill

    def run(base: Any, lora: Any, tokens: Any, lengths: Any, done: Any, ends: Any) -> Any:
        slots = tokens.shape[1]
        logits, cache = prefill(
            config, lora_config, base, lora, tokens, lengths, extra=max_new_tokens - 1, mesh=mesh
        )
        chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        new = jnp.full((tokens.shape[0], max_new_tokens), -1, jnp.int32).at[:, 0].set(chosen)
        done = done | jnp.isin(chosen, ends)

        def going(state: Any) -> Any:
            step, _, done, _, _ = state
            return (step < max_new_tokens) & ~done.all()

        def advance(state: Any) -> Any:
            step, chosen, done, new, cache = state
            logits, cache = decode_step(
                config, lora_config, base, lora, chosen, lengths, slots, step - 1, cache, mesh=mesh
            )
            chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            new = jax.lax.dynamic_update_slice(new, chosen[:, None], (0, step))
            return step + 1, chosen, done | jnp.isin(chosen, ends), new, cache

        return jax.lax.while_loop(going, advance, (jnp.int32(1), chosen, done, new, cache))[3]

    return jax.jit(run)
