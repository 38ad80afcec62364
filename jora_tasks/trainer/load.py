"""Weights from a Hugging Face folder straight into sharded, stacked arrays.

Slices are read from the memory-mapped safetensors files where a device needs them, one layer's tensor
at a time, so the host never holds more than one tensor besides the model itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from safetensors import SafetensorError, safe_open

from jora_tasks.errors import InputError
from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.config import DecoderConfig, read_config
from jora_tasks.trainer.lora import init_lora
from jora_tasks.trainer.mesh import Axes, check_mesh, sharding
from jora_tasks.trainer.model import LanguageModel
from jora_tasks.trainer.parameters import BaseTree, Parameter, describe, unflatten
from jora_tasks.trainer.targets import disagreement, lora_targets

WEIGHTS = "model.safetensors"
DTYPES = ("float32", "bfloat16")
FLOATS = ("F64", "F32", "F16", "BF16")  # types that can be read


def load_model(
    folder: str | Path,
    dtype: str = "float32",
    adapter: str | Path | None = None,
    lora: LoraConfig | None = None,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> LanguageModel:
    """Read a Hugging Face model folder.

    Args:
      folder: holds config.json and model.safetensors, or shards with model.safetensors.index.json.
      dtype: type of the frozen weights and of the computation, float32 or bfloat16.
      adapter: PEFT folder of an adapter to apply.
      lora: makes a fresh adapter of these settings instead, or reads the one of ``lora.init_from``.
      mesh: splits the weights; None puts them on the first device.
      seed: of the fresh adapter.

    Raises:
      InputError: for a missing, truncated or unsupported model or adapter, naming file and remedy.
    """
    from jora_tasks.trainer.export import load_adapter

    if dtype not in DTYPES:
        raise InputError(f"model.dtype {dtype!r} is not supported; use one of {', '.join(DTYPES)}.")
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
    base = load_base(folder, config, dtype, mesh)
    if lora is not None and tree is None:
        tree = init_lora(config, lora, jax.random.key(seed), mesh, base)
    return LanguageModel(config=config, base=base, lora=tree, lora_config=lora, mesh=mesh)


def load_base(folder: str | Path, config: DecoderConfig, dtype: str, mesh: Mesh | None = None) -> BaseTree:
    """The frozen weights as a tree of `describe`'s paths."""
    checkpoint = Checkpoint(Path(folder))
    parameters = describe(config, dtype)
    for parameter in parameters.values():
        checkpoint.check(parameter, config.num_hidden_layers)
    return unflatten({path: _place(checkpoint, p, mesh) for path, p in parameters.items()})


def _place(checkpoint: Checkpoint, parameter: Parameter, mesh: Mesh | None) -> jax.Array:
    place = _where(mesh, parameter.axes)
    if parameter.axes[0] != "layers":
        return checkpoint.read(parameter.checkpoint_name, parameter.shape, parameter.dtype, place)
    one = _where(mesh, parameter.axes[1:])
    zeros = jax.jit(partial(jnp.zeros, parameter.shape, parameter.dtype), out_shardings=place)
    insert = jax.jit(_insert, donate_argnums=0, out_shardings=place)
    stack = zeros()
    for layer in range(parameter.shape[0]):
        name = parameter.checkpoint_name.format(layer)
        tensor = checkpoint.read(name, parameter.shape[1:], parameter.dtype, one)
        stack = insert(stack, tensor, layer)
    return stack


def _where(mesh: Mesh | None, axes: Axes) -> Sharding:
    return sharding(mesh, axes) or SingleDeviceSharding(jax.devices()[0])


def _insert(stack: jax.Array, tensor: jax.Array, layer: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, tensor, layer, 0)


class Checkpoint:
    """The safetensors files of a folder and which tensor is in which."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}
        self._file_of = self._locate()

    def _locate(self) -> dict[str, str]:
        index = self._folder / f"{WEIGHTS}.index.json"
        if not index.is_file():
            return dict.fromkeys(self._handle(WEIGHTS).keys(), WEIGHTS)
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {str(name): str(file) for name, file in listed.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{index} is not a safetensors index; fetch the model again.") from None

    def _handle(self, name: str) -> Any:
        if name not in self._open:
            file = self._folder / name
            if not file.is_file():
                raise InputError(f"{file} is missing; fetch the model again as safetensors.")
            try:
                self._open[name] = safe_open(file, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{file} is truncated or damaged ({error}); fetch the model again."
                ) from None
        return self._open[name]

    def _slice(self, tensor: str) -> tuple[Any, Path]:
        if tensor not in self._file_of:
            raise InputError(
                f"{self._folder} has no tensor {tensor}; its weights do not fit its config.json."
            )
        name = self._file_of[tensor]
        try:
            return self._handle(name).get_slice(tensor), self._folder / name
        except SafetensorError:
            raise InputError(
                f"{self._folder / name} has no tensor {tensor}; fetch the model again."
            ) from None

    def check(self, parameter: Parameter, layers: int) -> None:
        """Refuse a missing tensor, a wrong shape or a type that is not float, before any is read."""
        stacked = parameter.axes[0] == "layers"
        shape = parameter.shape[1:] if stacked else parameter.shape
        for layer in range(layers if stacked else 1):
            name = parameter.checkpoint_name.format(layer)
            tensor, file = self._slice(name)
            found = tuple(tensor.get_shape())
            if found != shape:
                raise InputError(
                    f"{file}: tensor {name} has shape {list(found)}, but its config.json says {list(shape)}; "
                    "fetch the model again."
                )
            if tensor.get_dtype() not in FLOATS:
                raise InputError(
                    f"{file}: tensor {name} is {tensor.get_dtype()}; use a checkpoint in F32, F16 or BF16."
                )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, in the files' order."""
        return {name: tuple(self._slice(name)[0].get_shape()) for name in self._file_of}

    def array(self, name: str) -> np.ndarray:
        """One whole tensor on the host, f32.

        Raises:
          InputError: if it is missing or not of a float type.
        """
        tensor, file = self._slice(name)
        if tensor.get_dtype() not in FLOATS:
            raise InputError(
                f"{file}: tensor {name} is {tensor.get_dtype()}; use a checkpoint in F32, F16 or BF16."
            )
        return np.array(tensor[:], np.float32)

    def read(self, name: str, shape: tuple[int, ...], dtype: jnp.dtype, place: Sharding) -> jax.Array:
        """One tensor, each device's part read for it alone."""
        tensor, _ = self._slice(name)
        part: Callable[[Any], np.ndarray] = lambda index: np.asarray(tensor[index], dtype)  # noqa: E731
        return jax.make_array_from_callback(shape, place, part)
