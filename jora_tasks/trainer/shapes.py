"""Shapes of well-known models, to plan for before any weights are fetched.

Each is the part of the model's published ``config.json`` that decides its arrays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jora_tasks.errors import InputError
from jora_tasks.trainer.config import DecoderConfig, parse_config, read_config

_LLAMA_2: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
}
_LLAMA_3: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 131072,
}


def _sizes(hidden: int, wide: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": _LLAMA_2 | _sizes(4096, 11008, 32, 32, 32),
    "llama-2-13b": _LLAMA_2 | _sizes(5120, 13824, 40, 40, 40),
    "llama-2-70b": _LLAMA_2 | _sizes(8192, 28672, 80, 64, 8),
    "llama-3.1-8b": _LLAMA_3 | _sizes(4096, 14336, 32, 32, 8),
    "llama-3.1-70b": _LLAMA_3 | _sizes(8192, 28672, 80, 64, 8),
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 131072,
    }
    | _sizes(3584, 18944, 28, 28, 4),
    "gemma-2-9b": {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "rms_norm_eps": 1e-6,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    }
    | _sizes(3584, 14336, 42, 16, 8),
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    }
    | _sizes(576, 1536, 30, 9, 3),
}


def shape_of(model: str) -> DecoderConfig:
    """The decoder of a name in `SHAPES`, or of a folder with a config.json.

    Raises:
      InputError: if it is neither, or the folder's model is not supported.
    """
    if model in SHAPES:
        return parse_config(SHAPES[model], model)
    if Path(model).is_dir():
        return read_config(model)
    raise InputError(f"--model {model!r} is neither a folder nor one of {', '.join(SHAPES)}.")
