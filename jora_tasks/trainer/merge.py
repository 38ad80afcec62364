"""A base and its adapter as one plain Hugging Face folder: W + scale · B A, computed in f32.

Tensors are read, merged and written one at a time, so the host holds one of them besides the adapter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jora_tasks.errors import InputError
from jora_tasks.spec import LoraConfig
from jora_tasks.trainer.config import DecoderConfig, read_config
from jora_tasks.trainer.export import read_adapter
from jora_tasks.trainer.targets import EMBEDDING, HEAD, lora_targets
from jora_tasks.trainer.weights import WEIGHTS, Checkpoint
from jora_tasks.writing import atomic_folder, check_unused

MERGED = "merged.json"
SHARD_BYTES = 5 * 10**9
# Code of a type in safetensors, and the type.
DTYPES: dict[str, tuple[str, Any]] = {
    "float32": ("F32", np.dtype(np.float32)),
    "bfloat16": ("BF16", jnp.dtype(jnp.bfloat16)),
}
# Files beside the weights that belong to a model.
COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
)

Tree = Mapping[str, Mapping[str, np.ndarray]]


def merge_adapter(
    base: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    dtype: str = "float32",
    facts: Mapping[str, Any] | None = None,
    card: str = "",
    shard_bytes: int = SHARD_BYTES,
    on_tensor: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the model that the base and the adapter are together.

    The weights merged onto are those of the folder, whatever the adapter was trained over: one trained
    over a quantised copy gives other logits over these (peft#2321), so ``merged.json`` names them.
    Embedding and head that were trained apart stay apart, also where the base ties them.

    Args:
      base: Hugging Face folder with float weights.
      adapter: PEFT folder.
      output: folder to make; must be absent or empty. It appears whole, at the end.
      dtype: of the merged weights, ``float32`` or ``bfloat16``; each is rounded once.
      facts: what else ``merged.json`` shall say, such as names and digests.
      card: text of its README.md, if any.
      shard_bytes: most bytes of tensors in one file.
      on_tensor: called after each tensor with how many are done and how many there are.

    Returns:
      ``output``: safetensors, config.json, the tokenizer's files and ``merged.json``.

    Raises:
      InputError: for an output in use, or a base or adapter that is missing, damaged or does not fit.
    """
    base, output = Path(base), Path(output)
    check_unused(output)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported; use one of {', '.join(DTYPES)}.")
    config = read_config(base)
    lora, tree = read_adapter(adapter, config)
    merge = _Merge(config, lora, tree, Checkpoint(base))
    shapes = merge.shapes()
    with atomic_folder(output) as folder:
        done = 0
        for file, names in _shards(shapes, DTYPES[dtype][1].itemsize, shard_bytes, folder):
            with file.open("wb") as stream:
                stream.write(_header({name: shapes[name] for name in names}, dtype))
                for name in names:
                    value = np.ascontiguousarray(merge.value(name), DTYPES[dtype][1])
                    stream.write(value.view(np.uint8).data if value.size else b"")
                    done += 1
                    if on_tensor is not None:
                        on_tensor(done, len(shapes))
        _write_json(folder / "config.json", _config(base, dtype, untied=bool(lora.modules_to_save)))
        for pattern in COPIED:
            for file in base.glob(pattern):
                shutil.copyfile(file, folder / file.name)
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")
        _write_json(folder / MERGED, {"merged_in": "float32", "dtype": dtype, **(facts or {})})
    return output


@dataclass(frozen=True)
class _Merge:
    """What each tensor of the merged model is."""

    config: DecoderConfig
    lora: LoraConfig
    tree: Tree
    checkpoint: Checkpoint

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the merged model, in the checkpoint's order."""
        shapes = self.checkpoint.shapes()
        if self.config.tie_word_embeddings:
            shapes.pop(self._head, None)
            if self.lora.modules_to_save:
                shapes[self._head] = shapes[self._embedding]
        for tensor, (name, _) in self._adapted.items():
            projection = self.config.projections[name]
            shape = projection.out_features, projection.in_features
            if shapes.get(tensor) != shape:
                raise InputError(f"The base has no tensor {tensor} of shape {list(shape)}; fetch it again.")
        return shapes

    def value(self, tensor: str) -> np.ndarray:
        """One tensor, f32."""
        whole = {self._embedding: EMBEDDING, self._head: HEAD}.get(tensor)
        if whole is not None and whole in self.tree:
            return self.tree[whole]["weight"]
        if whole == HEAD and self.config.tie_word_embeddings:
            tensor = self._embedding
        value = self.checkpoint.array(tensor)
        if tensor not in self._adapted:
            return value
        name, layer = self._adapted[tensor]
        parts = {part: stack[layer] for part, stack in self.tree[name].items()}
        value += self.lora.scale * (parts["b"].T @ parts["a"])
        if "m" in parts:
            value *= (parts["m"] / np.linalg.norm(value, axis=1))[:, None]
        return value

    @property
    def _embedding(self) -> str:
        return f"{self.config.tensor_prefix}model.{EMBEDDING}.weight"

    @property
    def _head(self) -> str:
        return f"{self.config.tensor_prefix}{HEAD}.weight"

    @cached_property
    def _adapted(self) -> dict[str, tuple[str, int]]:
        """The adapted weights by their names in the checkpoint: projection and layer."""
        projections, layers_name = self.config.projections, f"{self.config.tensor_prefix}model.layers"
        return {
            f"{layers_name}.{layer}.{projections[name].parent}.{name}.weight": (name, layer)
            for name, layers in lora_targets(self.config, self.lora).items()
            for layer in layers
        }


def _shards(
    shapes: Mapping[str, tuple[int, ...]], itemsize: int, most: int, folder: Path
) -> Iterator[tuple[Path, list[str]]]:
    """The files and their tensors; with several, the index too."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        length = itemsize * int(np.prod(shape))
        if groups[-1] and size + length > most:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += length
    if len(groups) == 1:
        yield folder / WEIGHTS, groups[0]
        return
    stem = WEIGHTS.removesuffix(".safetensors")
    files = [f"{stem}-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    total = itemsize * sum(int(np.prod(shape)) for shape in shapes.values())
    where = {name: file for file, names in zip(files, groups, strict=True) for name in names}
    _write_json(folder / f"{WEIGHTS}.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    yield from ((folder / file, names) for file, names in zip(files, groups, strict=True))


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> bytes:
    """The start of a safetensors file: its length in 8 bytes, then JSON, padded to a multiple of 8."""
    code, of = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + of.itemsize * int(np.prod(shape))
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _config(base: Path, dtype: str, untied: bool) -> dict[str, Any]:
    """The base's config.json for the merged weights."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    if untied:
        config["tie_word_embeddings"] = False
        if "text_config" in config:
            config["text_config"]["tie_word_embeddings"] = False
    return config


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
