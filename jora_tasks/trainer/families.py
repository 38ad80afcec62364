"""What each supported family of models does that its ``config.json`` does not say.

The decoder in `model` is one; a family is a row of facts here. Fields that a config.json may leave out
have the values that transformers gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """The facts of one ``model_type``.

    ``windows`` says which layers attend within ``sliding_window`` only: none, all where a window is given,
    ``upper`` (those from ``max_window_layers`` on, with ``use_sliding_window``: Qwen), or ``pattern`` (all
    but every n-th, Gemma 2 and 3). ``layer_types`` overrides the last two.
    """

    title: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    windows: Literal["none", "all", "upper", "pattern"] = "none"
    qkv_bias: bool = False  # whatever attention_bias says
    qk_norm: bool = False
    fused: bool = False  # one projection for queries, keys and values, and one for gate and up
    gemma: bool = False  # norms scale by 1 + weight, embeddings by sqrt(hidden_size), gelu
    sandwich_norms: bool = False  # a norm after attention and MLP too
    softcaps: bool = False  # of attention's scores
    two_ropes: bool = False  # layers with a window have a rotary embedding of their own


_GEMMA = {"head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}
_GEMMA_WINDOWS = {
    **_GEMMA,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}
_QWEN = {
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "max_position_embeddings": 32768,
}

FAMILIES: dict[str, Family] = {
    "llama": Family("Llama 2 and 3, SmolLM2"),
    "mistral": Family(
        "Mistral",
        {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
        windows="all",
    ),
    "qwen2": Family("Qwen2 and Qwen2.5", _QWEN, windows="upper", qkv_bias=True),
    "qwen3": Family("Qwen3", {**_QWEN, "head_dim": 128}, windows="upper", qk_norm=True),
    "gemma": Family(
        "Gemma", {**_GEMMA, "num_key_value_heads": 16, "max_position_embeddings": 8192}, gemma=True
    ),
    "gemma2": Family(
        "Gemma 2",
        {
            **_GEMMA_WINDOWS,
            "sliding_window_pattern": 2,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        windows="pattern",
        gemma=True,
        sandwich_norms=True,
        softcaps=True,
    ),
    "gemma3_text": Family(
        "Gemma 3; of model_type gemma3 the text part",
        {
            **_GEMMA_WINDOWS,
            "vocab_size": 262208,
            "sliding_window_pattern": 6,
            "max_position_embeddings": 131072,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
        windows="pattern",
        qk_norm=True,
        gemma=True,
        sandwich_norms=True,
        two_ropes=True,
    ),
    "phi3": Family(
        "Phi-3",
        {
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
        },
        windows="all",
        fused=True,
    ),
}


def supported() -> str:
    """``llama (Llama 2 and 3, SmolLM2), mistral (Mistral), …``, for messages."""
    return ", ".join(f"{name} ({family.title})" for name, family in FAMILIES.items())
