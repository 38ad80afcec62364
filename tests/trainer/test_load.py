from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jora_tasks.errors import InputError
from jora_tasks.spec import LoraConfig, MeshConfig
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.mesh import make_mesh
from jora_tasks.trainer.quantize import BF16

WEIGHTS = "model.safetensors"
SOME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model(), tmp_path / "model")


@pytest.fixture
def rewrite(folder):
    """``rewrite(name, value)`` saves the weights with one tensor replaced, or left out (None)."""

    def save(name, value):
        tensors = load_file(folder / WEIGHTS)
        tensors.pop(name)
        if value is not None:
            tensors[name] = value
        save_file(tensors, folder / WEIGHTS)

    return save


def shard(folder):
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    weight_map = {
        name: f"model-{position % 3 + 1:05d}-of-00003.safetensors" for position, name in enumerate(names)
    }
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_give_the_same_weights(folder, tiny_model):
    shard(folder)
    jax.tree.map(np.testing.assert_array_equal, load_model(folder).base, load_model(tiny_model()).base)


def test_bf16_checkpoint_loads_as_either_type(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file({name: x.astype(ml_dtypes.bfloat16) for name, x in tensors.items()}, folder / WEIGHTS)
    wide, narrow = (load_model(folder, dtype=dtype).base for dtype in ("float32", "bfloat16"))
    wide = jax.tree.map(floats, wide, is_leaf=lambda leaf: isinstance(leaf, BF16))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, np.asarray(y, np.float32)), wide, narrow)


def floats(leaf):
    return leaf.dequantise() if isinstance(leaf, BF16) else leaf


def test_host_holds_about_one_tensor(tiny_model):
    folder = tiny_model(num_hidden_layers=24, intermediate_size=384)
    load_model(folder)  # compiles
    sizes = [x.nbytes for x in load_file(folder / WEIGHTS).values()]
    tracemalloc.start()
    base = load_model(folder).base
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == sum(x.nbytes for x in jax.tree.leaves(base))
    assert peak < 0.25 * sum(sizes)


def test_missing_files(folder, tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(tmp_path / "nowhere")
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        load_model(folder)


def test_missing_shard(folder):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00003\.safetensors is missing"):
        load_model(folder)


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.999])
def test_truncated_file(folder, kept):
    file = folder / WEIGHTS
    content = file.read_bytes()
    file.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(InputError, match=r"model\.safetensors is truncated or damaged"):
        load_model(folder)


def test_damaged_index(folder):
    (folder / f"{WEIGHTS}.index.json").write_text('{"weights": {}}')
    with pytest.raises(InputError, match=r"index\.json is not a safetensors index"):
        load_model(folder)


def test_missing_tensor(folder, rewrite):
    rewrite(SOME, None)
    with pytest.raises(InputError, match=f"no tensor {SOME}"):
        load_model(folder)


def test_wrong_shape(folder, rewrite):
    rewrite(SOME, np.zeros((96, 63), np.float32))
    with pytest.raises(InputError, match=rf"{SOME} has shape \[96, 63\].*\[96, 64\]"):
        load_model(folder)


def test_integer_weights(folder, rewrite):
    rewrite(SOME, np.zeros((96, 64), np.int8))
    with pytest.raises(InputError, match=rf"{SOME} is I8"):
        load_model(folder)


def test_settings_that_contradict(folder):
    with pytest.raises(InputError, match="dtype 'float16'"):
        load_model(folder, dtype="float16")
    with pytest.raises(InputError, match="either adapter or lora"):
        load_model(folder, adapter=folder, lora=LoraConfig())


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("axes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_every_byte_is_read_once(tiny_model, axes, quantization):
    """However many devices hold a part, and though fsdp cuts rows: counted by the kernel."""
    folder = tiny_model(hidden_size=256, intermediate_size=512)
    mesh = make_mesh(MeshConfig(**axes)) if axes else None

    def load():
        before = bytes_read()
        load_model(folder, mesh=mesh, quantization=quantization)
        return bytes_read() - before

    load()  # imports and compiles
    size = (folder / WEIGHTS).stat().st_size
    assert 0.99 * size < load() < 1.02 * size


def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])
