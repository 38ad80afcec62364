"""What a training step takes, compiled for the devices that it is meant for before any is used.

The real step is lowered with shapes in place of arrays and compiled ahead of time, by the compilers of
`compilers`. That happens in a child process, since a target decides how JAX starts.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jora_tasks.errors import InputError
from jora_tasks.spec import LoraConfig, ModelConfig, TrainConfig
from jora_tasks.trainer.chips import chip_of
from jora_tasks.trainer.compilers import check_target, devices_for, environment_for

TOTAL_STEPS = 1000  # of the schedule; it changes no shape


@dataclass(frozen=True)
class Request:
    """What to plan for.

    Attributes:
      model: a name of `shapes.SHAPES` or a model folder.
      target: see `compilers.check_target`.
      sequence_length: tokens in a row.
      scored_tokens: of them scored; by default a tenth, as an answer behind its contexts.
    """

    model: str
    target: str
    sequence_length: int
    lora: LoraConfig
    training: TrainConfig
    weights: ModelConfig
    scored_tokens: int | None = None


def plan(request: Request) -> dict[str, Any]:
    """Compile the step in a child process.

    Returns:
      ``bytes_per_device`` (arguments, temporaries, total; of a device's main memory),
      ``arguments_per_device`` (base, adapter, optimizer), ``remat`` (the policy taken), ``collectives``
      ({kind: {count, bytes, sent}} that a device executes in a step), ``flops`` (of the whole step; 4N, see
      `flops`), ``predicted_seconds`` (of a step on chips that are known, see `roofline`),
      ``compile_seconds``, ``memory_per_device`` (bytes or None) and ``fits`` (None where the memory is not
      known), beside what was asked.

    Raises:
      InputError: if the target or model is not known, or the mesh does not fit them.
      RuntimeError: if the compiler fails for another reason than memory.
    """
    from jora_tasks.trainer.shapes import shape_of

    shape_of(request.model)
    check_target(request.target)
    done = subprocess.run(
        [sys.executable, "-m", "jora_tasks.trainer.plan"],
        input=_to_json(request),
        env=environment_for(request.target),
        capture_output=True,
        text=True,
    )
    answer = done.stdout.strip().rpartition("\n")[2]
    result = json.loads(answer) if answer.startswith("{") else {"error": done.stderr.strip()[-800:]}
    if "input_error" in result:
        raise InputError(result["input_error"])
    if "error" in result:
        raise RuntimeError(f"the compiler for {request.target} failed: {result['error']}")
    return result


def _to_json(request: Request) -> str:
    sections = {name: getattr(request, name).model_dump(mode="json") for name in _SECTIONS}
    return json.dumps({**{k: v for k, v in vars(request).items() if k not in _SECTIONS}, **sections})


_SECTIONS: dict[str, Any] = {"lora": LoraConfig, "training": TrainConfig, "weights": ModelConfig}


def _from_json(text: str) -> Request:
    data = json.loads(text)
    sections = {name: kind.model_validate(data.pop(name), strict=False) for name, kind in _SECTIONS.items()}
    return Request(**data, **sections)


def compile_plan(request: Request) -> dict[str, Any]:
    """As `plan`, in this process, whose JAX must have been started for the target."""
    import jax

    from jora_tasks.trainer.collectives import collectives
    from jora_tasks.trainer.flops import step_flops
    from jora_tasks.trainer.layer import in_chunks
    from jora_tasks.trainer.memory import leaves_room, main_memory_bytes, program_bytes
    from jora_tasks.trainer.mesh import batch_multiple, check_mesh, make_mesh, platform
    from jora_tasks.trainer.remat import choices, compile_keeping_most, kept
    from jora_tasks.trainer.roofline import predict
    from jora_tasks.trainer.shapes import shape_of
    from jora_tasks.trainer.step import lower_step, make_step

    config, training = shape_of(request.model), request.training
    devices, memory = devices_for(request.target)
    mesh = make_mesh(training.mesh, devices)
    check_mesh(config, mesh)
    if training.batch_size % batch_multiple(mesh):
        raise InputError(
            f"--batch-size {training.batch_size} does not split over data x fsdp = {batch_multiple(mesh)} "
            "devices; make it a multiple."
        )
    arguments = abstract_arguments(request, config, mesh)
    lora, opt_state, base, batch = arguments
    length, scored = batch.tokens.shape[-1], batch.scored.shape[-1]
    rows = training.batch_size * training.gradient_accumulation
    facts: dict[str, Any] = {
        **{key: value for key, value in asdict(request).items() if key not in _SECTIONS},
        "sequence_length": length,
        "scored_tokens": scored,
        "batch_size": training.batch_size,
        "gradient_accumulation": training.gradient_accumulation,
        "mesh": dict(mesh.shape),
        "devices": mesh.size,
        "device_kind": devices[0].device_kind,
        "dtype": request.weights.dtype,
        "quantization": request.weights.quantization,
        "remat": training.remat,
        "flops": step_flops(config, request.lora, [length] * rows, scored * rows),
        "arguments_per_device": {
            name: _bytes_per_device(tree)
            for name, tree in (("base", base), ("adapter", lora), ("optimizer", opt_state))
        },
        "memory_per_device": memory,
    }

    def lower(policy: str) -> Any:
        changed = training.model_copy(update={"remat": policy})
        return lower_step(make_step(config, request.lora, changed, TOTAL_STEPS, mesh), *arguments)

    policies = choices(training.remat, in_chunks(length, mesh), platform(mesh))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as dumps:
        report = {"xla_dump_to": dumps, "xla_dump_hlo_as_text": True}
        options = report if request.target.startswith("tpu:") else None
        try:
            policy, compiled = compile_keeping_most(
                policies, lower, partial(leaves_room, limit=memory), options
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {**facts, "fits": False, "reason": _reason(str(error))}
        seconds = time.perf_counter() - started
        analysis: Any = compiled.memory_analysis()
        total = main_memory_bytes(Path(dumps)) or program_bytes(analysis)
    facts |= {
        "remat": policy,
        "bytes_per_device": {
            "arguments": analysis.argument_size_in_bytes,
            "temporaries": total - analysis.argument_size_in_bytes,
            "total": total,
        },
        "host_bytes_per_device": analysis.host_temp_size_in_bytes,
        "collectives": collectives(compiled.as_text() or ""),
        "compile_seconds": round(seconds, 1),
        "fits": None if memory is None else total <= memory,
    }
    chip = chip_of(devices[0].device_kind)
    predicted = predict(facts, chip, config, request.lora, kept(policy)) if chip else None
    return facts | {"predicted_seconds": predicted}


def abstract_arguments(request: Request, config: Any, mesh: Any) -> tuple[Any, ...]:
    """Shapes, types and places of the step's arguments: lora, opt_state, base, batch.

    Lengths are rounded up as `Batches` pads them.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from jora_tasks.trainer.batches import ANSWER_MULTIPLE, LENGTH_MULTIPLE, Batch, round_up
    from jora_tasks.trainer.load import abstract_base
    from jora_tasks.trainer.lora import lora_axes, lora_shapes
    from jora_tasks.trainer.mesh import length_multiple, sharding
    from jora_tasks.trainer.step import make_optimizer

    everywhere = NamedSharding(mesh, PartitionSpec())
    base = abstract_base(config, request.weights.dtype, request.weights.quantization, mesh)
    axes = lora_axes(config, request.lora)
    lora = {
        name: {
            part: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding(mesh, axes[name][part], shape))
            for part, shape in parts.items()
        }
        for name, parts in lora_shapes(config, request.lora).items()
    }
    opt_state = _place_like(make_optimizer(request.training, TOTAL_STEPS), lora, everywhere)
    rows = (request.training.gradient_accumulation, request.training.batch_size)

    def row(width: int, dtype: Any) -> jax.ShapeDtypeStruct:
        place = sharding(mesh, (None, "batch", None))
        return jax.ShapeDtypeStruct((*rows, width), dtype, sharding=place)

    length = round_up(request.sequence_length, math.lcm(LENGTH_MULTIPLE, length_multiple(mesh)))
    wanted = request.scored_tokens or max(1, request.sequence_length // 10)
    scored = round_up(wanted, ANSWER_MULTIPLE)
    packed = row(length, jnp.int32) if request.training.packing else None
    batch = Batch(
        tokens=row(length, jnp.int32),
        positions=row(scored, jnp.int32),
        targets=row(scored, jnp.int32),
        scored=row(scored, jnp.bool_),
        segments=packed,
        position_ids=packed,
    )
    return lora, opt_state, base, batch


def _place_like(optimizer: Any, lora: Any, everywhere: Any) -> Any:
    """The optimizer's state in shapes: moments where the adapter's arrays are, scalars on every device."""
    import jax
    import optax

    return optax.tree.map_params(
        optimizer,
        lambda leaf, like: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=like.sharding),
        jax.eval_shape(optimizer.init, lora),
        lora,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
    )


def _bytes_per_device(tree: Any) -> int:
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _reason(text: str) -> str:
    """The compiler's sentence about memory."""
    found = re.search(r"[^.\n]*(?:Used|Exceeded|exceed|out of memory)[^\n]*", text)
    return (found[0] if found else text.splitlines()[0]).strip()[:300]


def main() -> None:
    """Child process: request as JSON in, plan as JSON out."""
    try:
        result = compile_plan(_from_json(sys.stdin.read()))
    except InputError as error:
        result = {"input_error": str(error)}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:800]}"}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
