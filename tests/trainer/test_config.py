from __future__ import annotations

import json

import pytest

from jora_tasks.errors import InputError
from jora_tasks.trainer.config import parse_config, read_config
from jora_tasks.trainer.rope import RopeConfig

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_reads_sizes_and_defaults():
    config = parse_config(LLAMA)
    assert config.head_dim == 16
    assert config.rope == RopeConfig(theta=10000.0)
    assert not config.tie_word_embeddings
    assert config.projections["k_proj"].out_features == 32
    assert config.projections["down_proj"].in_features == 128
    assert hash(config) == hash(parse_config(LLAMA))


def test_both_spellings_of_rope_scaling_agree():
    old = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    older = {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}
    new = {**LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}
    expected = RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 8192)
    assert [parse_config(data).rope for data in (old, older, new)] == [expected] * 3


SIZES = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 7}
GEMMA_3 = {**SIZES, "model_type": "gemma3_text", "num_attention_heads": 8, "query_pre_attn_scalar": 168}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
HUB = {
    "mistral v0.1": {**LLAMA, "model_type": "mistral", "sliding_window": 4096},
    "mistral v0.3": {**LLAMA, "model_type": "mistral", "sliding_window": None, "rope_theta": 1e6},
    "mistral of defaults": {**SIZES, "model_type": "mistral", "num_attention_heads": 8},
    "qwen2.5": {**LLAMA, "model_type": "qwen2", "sliding_window": 32, "use_sliding_window": False},
    "qwen2": {
        **LLAMA,
        "model_type": "qwen2",
        "sliding_window": 32,
        "use_sliding_window": True,
        "max_window_layers": 1,
    },
    "qwen3": {**LLAMA, "model_type": "qwen3", "rope_theta": 1e6, "rope_scaling": None},
    "gemma": {**LLAMA, "model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None},
    "gemma 2": {**LLAMA, "model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh"},
    "gemma 3 1b": {**GEMMA_3, "rope_local_base_freq": 10000, "rope_theta": 1e6, "sliding_window_pattern": 6},
    "gemma 3 4b": {**GEMMA_3, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
    "phi-3 4k": {**LLAMA, "model_type": "phi3", "sliding_window": 2047, "rope_scaling": None},
    "phi-3 128k": {
        **LLAMA,
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", **FACTORS},
    },
}


@pytest.mark.parametrize("name", HUB)
def test_what_older_files_say_and_leave_out_is_what_transformers_writes_today(name):
    from transformers import AutoConfig

    written = AutoConfig.for_model(**HUB[name]).to_dict()
    assert parse_config(HUB[name]) == parse_config(written)


def test_windows_and_ropes_of_layers():
    local = {name: parse_config(data).local_layers for name, data in HUB.items()}
    assert local["mistral v0.1"] == (True, True) and local["mistral v0.3"] == (False, False)
    assert local["qwen2"] == (False, True) and local["qwen2.5"] == (False, False)
    assert local["gemma 2"] == (True, False)
    gemma = parse_config(HUB["gemma 3 4b"])
    assert gemma.local_layers == (True, True, True, True, True, False, True)
    assert gemma.rope == RopeConfig(1e6, "linear", 8.0) and gemma.local_rope == RopeConfig(1e4)
    assert parse_config({"model_type": "gemma3", "text_config": HUB["gemma 3 4b"]}).local_rope == RopeConfig(
        1e4
    )


def test_qwen2_has_bias_on_queries_keys_and_values_only():
    config = parse_config({**LLAMA, "model_type": "qwen2"})
    assert config.projections["q_proj"].bias and not config.projections["o_proj"].bias
    assert parse_config({**LLAMA, "attention_bias": True}).projections["o_proj"].bias


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' .* llama .*, mistral .*, gemma3_text .*, phi3"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": "gemma3", "text_config": None}, "text_config must be an object"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be a whole number"),
        ({"model_type": "gemma2", "layer_types": ["sliding_attention"]}, "layer_types .* 2 layers"),
        ({"model_type": "gemma2", "layer_types": ["sliding_attention", "linear"]}, "layer_types"),
        ({"model_type": "gemma2", "sliding_window_pattern": "two"}, "sliding_window_pattern"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "1"}, "max_window_layers"),
        ({"model_type": "gemma3_text", "rope_parameters": {"full_attention": 1}}, "rope_parameters"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "gemma", "hidden_act": "relu"}, "hidden_act 'relu' .* gelu_pytorch_tanh"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 .* num_key_value_heads 3"),
        ({"hidden_size": 66}, "hidden_size 66"),
        ({"head_dim": 15}, "head_dim 15"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn.*default, linear, llama3, longrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "short_factor .* 8 numbers"),
        ({"partial_rotary_factor": 0.2}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    ],
)
def test_refuses_what_it_cannot_run(change, words):
    with pytest.raises(InputError, match=words):
        parse_config({**LLAMA, **change})


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="object"):
        read_config(tmp_path)
