"""Tiny random model folders made with transformers, and eight virtual devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # before any test in this process starts the backend

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_model(kind="llama", **config)`` → a folder, made once for the same arguments.

    Weights are drawn large, norms and biases too, and the embedding so small that eps matters: a wrong
    head order, frequency or eps moves the logits far beyond the tests' bounds.
    """
    made: dict[str, Path] = {}

    def make(kind: str = "llama", **changes: Any) -> Path:
        key = json.dumps([kind, changes], sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("tiny")
            write_tiny(made[key], kind, {**TINY, **changes})
        return made[key]

    return make


def write_tiny(folder: Path, kind: str, settings: dict[str, Any]) -> None:
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(kind, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if "embed" in name:
                parameter.mul_(0.004)
            elif name.endswith("norm.weight"):
                parameter.mul_(0.3).add_(0 if kind.startswith("gemma") else 1)
            elif parameter.ndim == 2:
                parameter.mul_(1.5 * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def torch_logits() -> Callable[..., np.ndarray]:
    """``torch_logits(folder, tokens, adapter=None)``: transformers' and PEFT's answer, f32 [B, S, V]."""

    def run(folder: Path, tokens: np.ndarray, adapter: Path | None = None) -> np.ndarray:
        import torch
        import transformers

        # eager: the fused kernels leave out soft caps without a word
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        if adapter is not None:
            import peft

            model = peft.PeftModel.from_pretrained(model, adapter)
        with torch.no_grad():
            return model.eval()(torch.tensor(tokens)).logits.numpy()

    return run


@pytest.fixture(scope="session")
def relative() -> Callable[[Any, Any], float]:
    """Largest difference over largest magnitude of the expected."""

    def measure(found: Any, expected: Any) -> float:
        expected = np.asarray(expected, np.float64)
        return float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())

    return measure


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, TINY["vocab_size"], (3, 40), dtype=np.int32)
