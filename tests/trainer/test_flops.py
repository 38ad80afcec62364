"""The FLOP count against products counted one by one, and the published figure of a known model."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.config import parse_config
from jora_tasks.trainer.flops import again_flops, peak_flops, step_flops

SMALL = parse_config(
    {
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 8,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
    }
)


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def test_the_count_is_that_of_the_products():
    length, scored, rank = 10, 3, 2
    layer = 0
    for inputs, outputs in ((8, 24), (8, 12), (8, 12), (24, 8), (8, 20), (8, 20), (20, 8)):
        layer += 2 * _product(length, inputs, outputs)  # forward, and the gradient of the input
    # q_proj's adapter: two products forward, two for the input's gradient, two for the weights'.
    layer += 3 * (_product(length, 8, rank) + _product(length, rank, 24))
    # q k' and p v: half of each is masked; backward has twice as many.
    layer += 3 * 4 * (_product(length, 6, length) + _product(length, length, 6)) // 2
    head = 2 * _product(scored, 8, 100)
    lora = LoraConfig(r=rank, target_modules=("q_proj",))
    assert step_flops(SMALL, lora, [length], scored) == 3 * layer + head


def test_sequences_add_up():
    lora = LoraConfig(r=2)
    apart = step_flops(SMALL, lora, [7], 2) + step_flops(SMALL, lora, [9], 1)
    assert step_flops(SMALL, lora, [7, 9], 3) == apart


def test_what_is_computed_again_is_that_of_its_products():
    length, rank, lora = 10, 2, LoraConfig(r=2, target_modules=("q_proj",))
    weights = _product(length, 8, rank) + _product(length, rank, 24)
    for inputs, outputs in ((8, 24), (8, 12), (8, 12), (24, 8), (8, 20), (8, 20), (20, 8)):
        weights += _product(length, inputs, outputs)
    scores = 4 * _product(length, 6, length) // 2  # q k' of four heads, half of it masked; p v as much
    again = {keeps: again_flops(SMALL, lora, [length], keeps) for keeps in ("none", "attention", "full")}
    assert again == {
        "none": 3 * scores,
        "attention": 3 * (scores + weights),
        "full": 3 * (scores + weights + 2 * scores),
    }


def test_a_window_leaves_out_the_pairs_beyond_it():
    config = dataclasses.replace(SMALL, window=4, local_layers=(True, False, True))
    lora = LoraConfig(r=2)
    fewer = step_flops(SMALL, lora, [3, 10], 1) - step_flops(config, lora, [3, 10], 1)
    assert fewer == 2 * 12 * 24 * (10**2 / 2 - (4 * 10 - 4**2 / 2))  # two layers, the row of 10 tokens


def test_llama_3_1_8b_takes_33_gflop_a_token_at_4096():
    config = parse_config(
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        }
    )
    every = step_flops(config, LoraConfig(r=16), [4096], 4096) / 4096
    assert every == pytest.approx(33.2e9, rel=0.02)


def test_peaks():
    devices = [SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")] * 2
    assert peak_flops(devices) == 2 * 989e12
    assert peak_flops([SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 PCIe")]) == 756e12
    assert peak_flops([SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")]) == 197e12
    assert peak_flops([SimpleNamespace(platform="gpu", device_kind="Something new")]) is None
    measured = peak_flops(jax.devices("cpu")[:1])
    assert measured is not None
    assert 1e9 < measured < 1e14
