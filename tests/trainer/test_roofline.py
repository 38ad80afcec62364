"""The predicted time of a step against sums by hand."""

from __future__ import annotations

import pytest

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.chips import GPUS, TPUS, Chip, chip_of
from jora_tasks.trainer.flops import again_flops, step_flops
from jora_tasks.trainer.roofline import predict
from jora_tasks.trainer.shapes import shape_of

CHIP = Chip("slow", flops=1e12, memory=1 << 30, memory_bandwidth=1e9, link_bandwidth=1e8)
CONFIG, LORA = shape_of("smollm2-135m"), LoraConfig(r=4)
PLAN = {
    "batch_size": 8,
    "gradient_accumulation": 2,
    "sequence_length": 128,
    "devices": 4,
    "mesh": {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 1},
    "arguments_per_device": {"base": 1000, "adapter": 10, "optimizer": 20},
    "collectives": {"all-gather": {"sent": 70_000_000}, "all-reduce": {"sent": 30_000_000}},
    "flops": step_flops(CONFIG, LORA, [128] * 16, 100),
}


def test_each_roof_by_hand():
    found = predict(PLAN, CHIP, CONFIG, LORA, "full")
    assert found is not None
    compute = (PLAN["flops"] + again_flops(CONFIG, LORA, [128] * 16, "full")) / 4 / 1e12
    inputs = 8 * 128 / 4 * 576 * 30 * 2  # bytes of all layers' inputs on a device
    memory = (2 * (3 * 1000 * 2 + 2 * inputs) + 2 * (2 * 10 + 20)) / 1e9
    assert (found["compute"], found["memory"], found["links"]) == pytest.approx((compute, memory, 1.0))
    assert found["overlapped"] == 1.0 and found["serial"] == pytest.approx(1 + compute + memory)
    assert found["tokens_per_second"] == 16 * 128
    assert found["mfu"] == pytest.approx(PLAN["flops"] / 4 / 1e12)


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_is_found_by_the_longest_name_that_fits(name):
    assert chip_of(f"{GPUS[name].kind} 80GB HBM3") is GPUS[name]


@pytest.mark.parametrize("name", TPUS)
def test_a_chip_is_found_by_the_whole_of_its_name(name):
    assert chip_of(TPUS[name].kind) is TPUS[name]
