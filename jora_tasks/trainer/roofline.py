"""How long a compiled step cannot help but take, by what its devices can do at most.

The roofline of Williams et al. (CACM 2009) with a third roof for the links between devices. It is a
prediction: kernels reach less than these roofs, and how much of the three overlaps is not known, so both ends
are told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.chips import Chip
from jora_tasks.trainer.config import DecoderConfig
from jora_tasks.trainer.flops import again_flops


def predict(
    plan: Mapping[str, Any], chip: Chip, config: DecoderConfig, lora: LoraConfig, keeps: str
) -> dict[str, Any]:
    """Seconds of a step.

    Args:
      plan: what `plan.compile_plan` found of it.
      keeps: what the backward pass finds of a layer, as `flops.again_flops` names it.

    Returns:
      ``compute``, ``memory`` and ``links``, the seconds of each alone; ``overlapped``, the longest of them,
      and ``serial``, their sum; ``tokens_per_second`` and ``mfu`` (4N) if all overlaps.
    """
    rows = plan["batch_size"] * plan["gradient_accumulation"]
    again = again_flops(config, lora, [plan["sequence_length"]] * rows, keeps)
    sent = sum(each["sent"] for each in plan["collectives"].values())
    roofs = {
        "compute": (plan["flops"] + again) / plan["devices"] / chip.flops,
        "memory": _moved(plan, config, passes=2 if keeps == "none" else 3) / chip.memory_bandwidth,
        "links": sent / chip.link_bandwidth,
    }
    overlapped = max(roofs.values())
    return {
        **roofs,
        "overlapped": overlapped,
        "serial": sum(roofs.values()),
        "tokens_per_second": rows * plan["sequence_length"] / overlapped,
        "mfu": plan["flops"] / plan["devices"] / chip.flops / overlapped,
    }


def _moved(plan: Mapping[str, Any], config: DecoderConfig, passes: int) -> float:
    """Bytes of main memory that a device must read or write in a step.

    The weights that its products take, gathered, once a pass; the input of every layer written and read in
    two bytes a number; the adapter, its gradient and moments read and written.
    """
    mesh, held = plan["mesh"], plan["arguments_per_device"]
    weights = held["base"] * mesh["fsdp"] * mesh["sequence"]
    tokens = plan["batch_size"] * plan["sequence_length"] / plan["devices"]
    layers = 2 * 2 * tokens * config.hidden_size * config.num_hidden_layers
    update = 2 * (2 * held["adapter"] + held["optimizer"])
    return float((passes * weights + layers) * plan["gradient_accumulation"] + update)
