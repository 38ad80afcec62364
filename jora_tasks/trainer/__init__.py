"""LoRA training of Llama, Mistral, Qwen, Gemma and Phi models in JAX, usable on its own.

    from jora_tasks.trainer import LoraConfig, load_dataset, train_lora
    adapter = train_lora(folder, load_dataset("alpaca.json", model=folder), LoraConfig(r=8), output="adapter")

Names are resolved on first use, so importing this package does not import JAX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jora_tasks.spec import LoraConfig as LoraConfig
    from jora_tasks.trainer.data import load_dataset as load_dataset
    from jora_tasks.trainer.load import load_model as load_model
    from jora_tasks.trainer.train import train_lora as train_lora

_HOMES = {
    "LoraConfig": "jora_tasks.spec",
    "load_dataset": "jora_tasks.trainer.data",
    "load_model": "jora_tasks.trainer.load",
    "train_lora": "jora_tasks.trainer.train",
}
__all__ = ["LoraConfig", "load_dataset", "load_model", "train_lora"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
