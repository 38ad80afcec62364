"""A run so small that an update takes milliseconds, for tests of the loop around it."""

from __future__ import annotations

import jax
import numpy as np

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.config import parse_config
from jora_tasks.trainer.data import Dataset, Example
from jora_tasks.trainer.lora import init_lora
from jora_tasks.trainer.model import LanguageModel
from jora_tasks.trainer.parameters import init_base

VOCABULARY = 64
CONFIG = parse_config(
    {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "tie_word_embeddings": False,
    }
)
LORA = LoraConfig(r=2, lora_dropout=0.1, target_modules=("q_proj", "down_proj"))


def model(lora: LoraConfig = LORA) -> LanguageModel:
    base, adapter = init_base(CONFIG, jax.random.key(0)), init_lora(CONFIG, lora, jax.random.key(1))
    return LanguageModel(CONFIG, base, adapter, lora)


def dataset(count: int = 14, longest: int = 120, seed: int = 0) -> Dataset:
    """Random tokens below 60, the first five of each example its prompt."""
    random = np.random.default_rng(seed)
    return Dataset(
        tuple(
            Example.make(f"e{i}", random.integers(0, 60, length), prompt_length=5)
            for i, length in enumerate(random.integers(8, longest, count))
        )
    )
