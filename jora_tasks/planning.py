"""``jora plan``: the options of a run → what its training step takes, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from jora_tasks.errors import InputError
from jora_tasks.spec import MeshConfig, RunSpec

if TYPE_CHECKING:
    from jora_tasks.trainer.plan import Request


def parse_mesh(text: str) -> MeshConfig:
    """``tensor=4,sequence=2`` → a mesh.

    Raises:
      InputError: naming the axis or size that is not one.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = part.strip().partition("=")
        if axis not in MeshConfig.model_fields or not size.isdecimal() or axis in sizes:
            raise InputError(
                f"--mesh {text!r}: {part.strip()!r} is not an axis with a size; "
                f"use {', '.join(MeshConfig.model_fields)} once each, as in tensor=4,sequence=2."
            )
        sizes[axis] = int(size)
    try:
        return MeshConfig(**sizes)
    except ValidationError:
        raise InputError(f"--mesh {text!r}: sizes must be at least 1.") from None


def make_request(
    spec: RunSpec,
    model: str,
    target: str,
    mesh: str | None,
    batch_size: int | None,
    sequence_length: int | None,
    scored_tokens: int | None,
) -> Request:
    """What to plan for: the spec's run, with what the options change."""
    from jora_tasks.trainer.plan import Request

    changes: dict[str, Any] = {} if mesh is None else {"mesh": parse_mesh(mesh)}
    if batch_size is not None:
        changes["batch_size"] = batch_size
    return Request(
        model=model,
        target=target,
        sequence_length=sequence_length or spec.prompts.token_budget,
        lora=spec.lora,
        training=spec.training.model_copy(update=changes),
        weights=spec.model,
        scored_tokens=scored_tokens,
    )


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """The plan as a table, and in one line whether it fits."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1) or "one device"
    console.print(
        f"{plan['model']}, {plan['batch_size']} x {plan['sequence_length']:,} tokens on {plan['devices']} x "
        f"{plan['device_kind']} ({mesh})",
        highlight=False,
    )
    table = Table()
    table.add_column("a device holds")
    table.add_column("MB", justify="right")
    for name, size in plan["arguments_per_device"].items():
        table.add_row(name, _megabytes(size))
    if "bytes_per_device" in plan:
        table.add_row("temporaries", _megabytes(plan["bytes_per_device"]["temporaries"]))
        table.add_row("total", _megabytes(plan["bytes_per_device"]["total"]), style="bold")
        if plan["host_bytes_per_device"]:
            table.add_row("in the host's memory", _megabytes(plan["host_bytes_per_device"]))
    console.print(table)
    if "collectives" in plan:
        talk = [
            f"{kind} {one['count']} ({_megabytes(one['bytes'])} MB)"
            for kind, one in plan["collectives"].items()
        ]
        console.print(f"Between devices, a step: {', '.join(talk) or 'nothing'}", highlight=False)
        console.print(
            f"{plan['flops'] / 1e12:.1f} TFLOP a step; training.remat {plan['remat']}; compiled in "
            f"{plan['compile_seconds']:.0f} s",
            highlight=False,
        )
    if predicted := plan.get("predicted_seconds"):
        console.print(
            f"Predicted, not measured: a step takes {predicted['overlapped']:.3g} s where all overlaps, "
            f"{predicted['serial']:.3g} s where nothing does (compute {predicted['compute']:.3g}, memory "
            f"{predicted['memory']:.3g}, links {predicted['links']:.3g}); at most "
            f"{predicted['tokens_per_second']:,.0f} tokens/s",
            highlight=False,
        )
    console.print(_verdict(plan), highlight=False)


def _verdict(plan: Mapping[str, Any]) -> str:
    memory = plan["memory_per_device"]
    if plan["fits"] is None:
        return "Whether it fits is not known: the target's memory is not."
    if not plan["fits"]:
        return f"Does not fit the {memory / 2**30:.0f} GiB of a device. {plan.get('reason', '')}".strip()
    return f"Fits the {memory / 2**30:.0f} GiB of a device."


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"
