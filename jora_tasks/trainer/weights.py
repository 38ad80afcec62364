"""The safetensors files of a model folder: which tensor is where, and its rows when they are asked for.

Bytes are read, not mapped: pages of a mapped file would count as this process's memory.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jora_tasks.errors import InputError

WEIGHTS = "model.safetensors"
TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its file."""

    file: Path
    type: str  # as safetensors spells it
    shape: tuple[int, ...]
    offset: int  # of its first byte


class Checkpoint:
    """The tensors of a folder with model.safetensors, or shards and model.safetensors.index.json.

    Raises:
      InputError: for a missing, truncated or damaged file, when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._headers: dict[str, dict[str, Tensor]] = {}
        self._file_of = self._locate()

    def _locate(self) -> dict[str, str]:
        index = self._folder / f"{WEIGHTS}.index.json"
        if not index.is_file():
            return dict.fromkeys(self._header(WEIGHTS), WEIGHTS)
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {str(name): str(file) for name, file in listed.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{index} is not a safetensors index; fetch the model again.") from None

    def _header(self, name: str) -> dict[str, Tensor]:
        if name not in self._headers:
            file = self._folder / name
            if not file.is_file():
                raise InputError(f"{file} is missing; fetch the model again as safetensors.")
            try:
                with safe_open(file, framework="numpy"):  # checks the header and the file's length
                    self._headers[name] = _read_header(file)
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{file} is truncated or damaged ({error}); fetch the model again."
                ) from None
        return self._headers[name]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._file_of:
            raise InputError(f"{self._folder} has no tensor {name}; its weights do not fit its config.json.")
        file = self._file_of[name]
        header = self._header(file)
        if name not in header:
            raise InputError(f"{self._folder / file} has no tensor {name}; fetch the model again.")
        return header[name]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, in the files' order."""
        return {name: self[name].shape for name in self._file_of}

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a missing tensor, another shape or a type that is not float, before any is read."""
        tensor = self[name]
        if tensor.shape != shape:
            raise InputError(
                f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, but its config.json says "
                f"{list(shape)}; fetch the model again."
            )
        _float_type(name, tensor)

    def array(self, name: str) -> np.ndarray:
        """One whole tensor, f32.

        Raises:
          InputError: if it is missing or not of a float type.
        """
        return self._values(name, self[name].shape).astype(np.float32, copy=False)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """A tensor's rows from ``start`` up to ``stop``, in its own type; F64 becomes F32."""
        row = self[name].shape[1:]
        values = self._values(name, (stop - start, *row), skipped=start * math.prod(row))
        return values.astype(np.float32) if values.dtype == np.float64 else values

    def _values(self, name: str, shape: tuple[int, ...], skipped: int = 0) -> np.ndarray:
        tensor = self[name]
        dtype = _float_type(name, tensor)
        offset = tensor.offset + skipped * dtype.itemsize
        return np.fromfile(tensor.file, dtype, math.prod(shape), offset=offset).reshape(shape)


def _float_type(name: str, tensor: Tensor) -> np.dtype:
    if tensor.type not in TYPES:
        raise InputError(
            f"{tensor.file}: tensor {name} is {tensor.type}; use a checkpoint in F32, F16 or BF16."
        )
    return TYPES[tensor.type]


def _read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file: eight bytes say how long the JSON is that tells of them."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return {
        name: Tensor(file, facts["dtype"], tuple(facts["shape"]), 8 + length + facts["data_offsets"][0])
        for name, facts in header.items()
    }
