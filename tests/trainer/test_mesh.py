from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jora_tasks.errors import InputError
from jora_tasks.spec import LoraConfig, MeshConfig
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.mesh import RULES, AxisRules, make_mesh


def test_rules_give_partitions():
    assert RULES.spec(("layers", "heads", "embed")) == PartitionSpec(None, "tensor", ("fsdp", "sequence"))
    assert RULES.spec(("batch", "sequence", None)) == PartitionSpec(("data", "fsdp"), "sequence", None)


def test_rules_refuse_one_mesh_axis_twice():
    with pytest.raises(ValueError, match="twice"):
        AxisRules(embed=("tensor",)).spec(("heads", "embed"))


def test_mesh_that_does_not_fit_names_the_counts():
    with pytest.raises(InputError, match=r"data 4 x fsdp 2 x tensor 2 needs 16 devices, but 8"):
        make_mesh(MeshConfig(data=4, fsdp=2, tensor=2))
    mesh = make_mesh(MeshConfig(fsdp=2), devices=jax.devices()[:3])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 1, "sequence": 1}


@pytest.mark.parametrize(
    ("mesh", "changes", "words"),
    [
        ({"tensor": 8}, {}, r"tensor 8 .* num_key_value_heads 4"),
        ({"tensor": 4}, {"vocab_size": 98}, r"tensor 4 .* vocab_size 98"),
        ({"tensor": 4}, {"intermediate_size": 90}, r"tensor 4 .* intermediate_size 90"),
        ({"fsdp": 3}, {}, r"fsdp 3 .* hidden_size 64"),
    ],
)
def test_mesh_that_does_not_divide_the_model_is_refused(tiny_model, mesh, changes, words):
    with pytest.raises(InputError, match=words):
        load_model(tiny_model(**changes), mesh=make_mesh(MeshConfig(**mesh)))


@pytest.mark.parametrize(
    "axes",
    [
        {"tensor": 2},
        {"fsdp": 4},
        {"data": 2},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"fsdp": 2, "tensor": 4},
        {"sequence": 4},
        {"data": 2, "tensor": 2, "sequence": 2},
        {"fsdp": 2, "sequence": 2, "tensor": 2},
    ],
    ids=str,
)
def test_logits_do_not_depend_on_the_mesh(tiny_model, tokens, relative, axes):
    """Three rows, so that two or more parts of the batch are unequal too."""
    folder = tiny_model(tie_word_embeddings=True)
    lora = LoraConfig(r=4, lora_alpha=64)
    alone = load_model(folder, lora=lora, seed=1)
    split = load_model(folder, lora=lora, seed=1, mesh=make_mesh(MeshConfig(**axes)))
    assert relative(split.logits(tokens), alone.logits(tokens)) < 1e-5


def test_every_device_holds_its_part_only(tiny_model):
    model = load_model(tiny_model(), mesh=make_mesh(MeshConfig(fsdp=2, tensor=4)))
    parts = jax.tree.map(lambda x: x.addressable_shards[0].data.size / x.size, model.base)
    assert parts["layers"]["q_proj"]["weight"] == parts["layers"]["down_proj"]["weight"] == 1 / 8
    assert parts["embed"] == parts["head"] == 1 / 8
    assert parts["norm"]["weight"] == 1
    np.testing.assert_array_equal(model.base["embed"], load_model(tiny_model()).base["embed"])
