"""Llama-3.1-70B on slices of TPU v5p, 16 to 256 chips: the step compiled for them, its time predicted.

``python -m tests.benchmarks.scaling [--json] [--chips N ...]``; needs the TPU compiler (extra ``tpu``), no
chip. Strong scaling shares 64 rows of 4,096 tokens among all chips, weak scaling gives each chip 4. Prints
bytes per device, what a device sends in a step, and the roofline of `jora_tasks.trainer.roofline`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

TOPOLOGIES = {16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
LENGTH, ROWS, ROWS_A_CHIP = 4096, 64, 4


def cases(chips: int) -> list[tuple[str, int, dict[str, int]]]:
    """Name, rows and mesh of each case; no chip has less than a row or its part of one."""
    shared = min(chips, ROWS)
    return [
        ("strong", ROWS, {"fsdp": shared, "tensor": chips // shared}),
        ("weak", ROWS_A_CHIP * chips, {"fsdp": chips}),
    ]


def measure(chips: int, rows: int, mesh: dict[str, int]) -> dict[str, Any]:
    from jora_tasks.spec import LoraConfig, MeshConfig, ModelConfig, TrainConfig
    from jora_tasks.trainer.plan import Request, plan

    return plan(
        Request(
            model="llama-3.1-70b",
            target=f"tpu:v5p:{TOPOLOGIES[chips]}",
            sequence_length=LENGTH,
            lora=LoraConfig(r=16),
            training=TrainConfig(batch_size=rows, mesh=MeshConfig(**mesh)),
            weights=ModelConfig(dtype="bfloat16"),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--chips", type=int, nargs="*", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    arguments = parser.parse_args()
    for chips in arguments.chips:
        for name, rows, mesh in cases(chips):
            found = measure(chips, rows, mesh)
            if arguments.json:
                print(json.dumps({"case": name, **found}), flush=True)
                continue
            seconds, megabytes = found["predicted_seconds"], found["bytes_per_device"]["total"] / 1e6
            sent = sum(each["sent"] for each in found["collectives"].values())
            print(
                f"{name:6} {chips:3} chips  {rows:4} rows  {megabytes:9,.0f} MB  "
                f"sends {sent / 1e9:6.1f} GB  {seconds['overlapped']:.2f} to {seconds['serial']:.2f} s  "
                f"{seconds['tokens_per_second']:10,.0f} tokens/s  {seconds['mfu']:.0%} of peak",
                flush=True,
            )


if __name__ == "__main__":
    main()
