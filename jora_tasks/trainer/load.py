"""Weights from a Hugging Face folder straight into sharded, stacked and, if asked for, quantised arrays.

Each tensor is read once, one layer's at a time, cut into the devices' parts and put into its stack
there: the host holds two tensors at most, and of a quantised stack no more than two layers are ever float.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from jora_tasks.errors import InputError
from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.config import DecoderConfig, read_config
from jora_tasks.trainer.distributed import several
from jora_tasks.trainer.lora import init_lora
from jora_tasks.trainer.matrix_units import multiplies_bf16
from jora_tasks.trainer.mesh import check_mesh, platform, sharding
from jora_tasks.trainer.model import LanguageModel
from jora_tasks.trainer.parameters import BaseTree, Parameter, describe, unflatten
from jora_tasks.trainer.quantize import BF16, FORMATS, Quantised
from jora_tasks.trainer.targets import disagreement, lora_targets
from jora_tasks.trainer.weights import Checkpoint

DTYPES = ("float32", "bfloat16")
QUANTIZATIONS = ("none", *FORMATS)


def load_model(
    folder: str | Path,
    dtype: str = "float32",
    adapter: str | Path | None = None,
    lora: LoraConfig | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
    quantization: str = "none",
) -> LanguageModel:
    """Read a Hugging Face model folder.

    Args:
      folder: holds config.json and model.safetensors, or shards with model.safetensors.index.json.
      dtype: type of the frozen weights and of the computation, float32 or bfloat16.
      adapter: PEFT folder of an adapter to apply.
      lora: makes a fresh adapter of these settings instead, or reads the one of ``lora.init_from``.
      mesh: splits the weights; None puts them on the first device.
      seed: of the fresh adapter.
      quantization: how the layers' projections are kept: ``none`` (in ``dtype``), ``int8`` or ``nf4``.

    Raises:
      InputError: for a missing, truncated or unsupported model or adapter, naming file and remedy.
    """
    from jora_tasks.trainer.export import load_adapter

    if dtype not in DTYPES:
        raise InputError(f"model.dtype {dtype!r} is not supported; use one of {', '.join(DTYPES)}.")
    if quantization not in QUANTIZATIONS:
        raise InputError(
            f"model.quantization {quantization!r} is not supported; use one of {', '.join(QUANTIZATIONS)}."
        )
    if adapter is not None and lora is not None:
        raise InputError("Give load_model either adapter or lora: an adapter's settings are its own.")
    config = read_config(folder)
    check_mesh(config, mesh)
    tree = None
    if adapter is not None:
        lora, tree = load_adapter(adapter, config, mesh=mesh)
    elif lora is not None and lora.init_from:
        found, tree = load_adapter(lora.init_from, config, mesh=mesh)
        if difference := disagreement(config, found, lora):
            raise InputError(
                f"lora.init_from: the adapter in {lora.init_from} has {difference}; "
                "give the settings that it has, or another adapter."
            )
    elif lora is not None:
        lora_targets(config, lora)  # refused before the weights are read
    base = load_base(folder, config, dtype, mesh, quantization)
    if lora is not None and tree is None:
        tree = init_lora(config, lora, jax.random.key(seed), mesh, base)
    return LanguageModel(config=config, base=base, lora=tree, lora_config=lora, mesh=mesh)


def abstract_base(
    config: DecoderConfig, dtype: Any = jnp.float32, quantization: str = "none", mesh: Mesh | None = None
) -> BaseTree:
    """What `load_base` returns, as `jax.ShapeDtypeStruct`s that say where each array lies.

    Not that a CPU may keep bf16 matrices of the files as they are: that takes less.
    """
    parameters = describe(config, dtype).items()
    return unflatten({path: _abstract(p, _form(p, quantization), mesh) for path, p in parameters})


def load_base(
    folder: str | Path,
    config: DecoderConfig,
    dtype: str,
    mesh: Mesh | None = None,
    quantization: str = "none",
) -> BaseTree:
    """The frozen weights as a tree of `describe`'s paths, the layers' projections quantised.

    A CPU that multiplies bf16 fast keeps the projections that are bf16 in the files so, for products in f32
    too: the values are the same. Of several processes none does, since their CPUs may differ.
    """
    checkpoint = Checkpoint(Path(folder))
    parameters = describe(config, dtype)
    for parameter in parameters.values():
        shape = parameter.shape[1:] if _stacked(parameter) else parameter.shape
        for name in _names(parameter):
            checkpoint.check(name, shape)
    forms = {path: _form(parameter, quantization) for path, parameter in parameters.items()}
    on_cpu = platform(mesh) == "cpu" and not several()
    if on_cpu and dtype == "float32" and quantization == "none" and multiplies_bf16():
        forms |= {path: BF16 for path, p in parameters.items() if _fits_bf16(checkpoint, p)}
    return unflatten({path: _load(checkpoint, p, forms[path], mesh) for path, p in parameters.items()})


def _form(parameter: Parameter, quantization: str) -> type[Quantised] | None:
    """How a parameter is kept; None is as a plain array."""
    return FORMATS.get(quantization) if _is_projection(parameter) else None


def _fits_bf16(checkpoint: Checkpoint, parameter: Parameter) -> bool:
    in_file = {checkpoint[name].type for name in _names(parameter)}
    return _is_projection(parameter) and in_file == {"BF16"}


def _is_projection(parameter: Parameter) -> bool:
    """Whether it is a projection's matrix, one of every layer."""
    return len(parameter.shape) == 3


def _stacked(parameter: Parameter) -> bool:
    return parameter.axes[0] == "layers"


def _names(parameter: Parameter) -> list[str]:
    """The checkpoint's tensors of a parameter: one, or one of each layer."""
    layers = range(parameter.shape[0] if _stacked(parameter) else 1)
    return [parameter.checkpoint_name.format(layer) for layer in layers]


def _abstract(parameter: Parameter, form: type[Quantised] | None, mesh: Mesh | None) -> Any:
    struct = jax.ShapeDtypeStruct(parameter.shape, parameter.dtype)
    axes: Any = parameter.axes
    if form is not None:
        struct = jax.eval_shape(form.of, struct)
        axes = struct.axes(parameter.axes)
    return jax.tree.map(
        lambda leaf, axes: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding(mesh, axes, leaf.shape)
        ),
        struct,
        axes,
    )


def _load(
    checkpoint: Checkpoint, parameter: Parameter, form: type[Quantised] | None, mesh: Mesh | None
) -> Any:
    first = SingleDeviceSharding(jax.devices()[0])
    place = sharding(mesh, parameter.axes) or first
    if not _stacked(parameter):
        return _cast(_read(checkpoint, parameter.checkpoint_name, parameter.shape, place), parameter.dtype)
    struct = _abstract(parameter, form, mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding or first, struct)
    stack = jax.tree.map(lambda leaf, place: jnp.zeros(leaf.shape, leaf.dtype, device=place), struct, places)
    write = _writer(places)
    one = sharding(mesh, parameter.axes[1:]) or first
    for layer, name in enumerate(_names(parameter)):
        tensor = _read(checkpoint, name, parameter.shape[1:], one)
        jax.block_until_ready(stack)  # no more than two tensors wait on the host
        stack = write(stack, tensor, layer)
    return stack


def _read(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], place: Sharding) -> jax.Array:
    """One tensor in its own type. Each part is read once, however many devices hold it."""
    rows: dict[tuple[int, int], np.ndarray] = {}
    arrays = []
    for device, index in place.addressable_devices_indices_map(shape).items():
        first, *others = index or (slice(None),)
        start, stop, _ = first.indices(shape[0])
        if (start, stop) not in rows:
            rows[start, stop] = checkpoint.rows(name, start, stop)
        arrays.append(jax.device_put(rows[start, stop][:, *others], device))
    return jax.make_array_from_single_device_arrays(shape, place, arrays)


@cache
def _writer(places: Any) -> Callable[[Any, jax.Array, int], Any]:
    """Puts one layer's tensor into its stack, quantised as the stack is; compiled once for each shape."""

    def write(stack: Any, tensor: jax.Array, layer: jax.Array) -> Any:
        value = type(stack).of(tensor) if isinstance(stack, Quantised) else tensor.astype(stack.dtype)
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_index_in_dim(whole, part, layer, 0), stack, value
        )

    return jax.jit(write, donate_argnums=0, out_shardings=places)


@partial(jax.jit, static_argnums=1)
def _cast(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return x.astype(dtype)
