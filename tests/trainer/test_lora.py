from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jora_tasks.spec import PROJECTIONS, LoraConfig, MeshConfig
from jora_tasks.trainer.load import load_model
from jora_tasks.trainer.lora import init_lora, linear
from jora_tasks.trainer.mesh import make_mesh
from jora_tasks.trainer.model import hidden_states

TOKENS, IN, OUT, RANK = (2, 5), 12, 7, 3


def arrays(dtype=jnp.float32):
    x, weight, a, b = (
        jax.random.normal(jax.random.key(seed), shape)
        for seed, shape in enumerate([(*TOKENS, IN), (OUT, IN), (RANK, IN), (RANK, OUT)])
    )
    return x.astype(dtype), weight.astype(dtype), {"a": a, "b": b}


def mask_of(dropout, key):
    """What the dropout lets through, seen from outside: an adapter that passes its input on."""
    ones, nothing = jnp.ones((*TOKENS, IN)), jnp.zeros((IN, IN))
    return linear(ones, nothing, {"a": jnp.eye(IN), "b": jnp.eye(IN)}, 1.0, dropout, key)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradient_is_that_of_the_plain_formula(dropout, dora):
    x, weight, adapter = arrays()
    key, scale = jax.random.key(5), 1.7
    mask = mask_of(dropout, key)
    if dora:
        adapter["m"] = jax.random.uniform(jax.random.key(6), (OUT,), minval=0.5, maxval=4.0)

    def plain(x, adapter):
        if dora:  # PEFT's formula
            whole = jax.lax.stop_gradient(weight + scale * adapter["b"].T @ adapter["a"])
            factor = adapter["m"] / jnp.linalg.norm(whole, axis=1)
            d = x * mask
            return (
                x @ weight.T
                + (factor - 1) * (d @ weight.T)
                + factor * scale * ((d @ adapter["a"].T) @ adapter["b"])
            )
        return x @ weight.T + scale * ((x * mask) @ adapter["a"].T) @ adapter["b"]

    def ours(x, adapter):
        return linear(x, weight, adapter, scale, dropout, key)

    np.testing.assert_allclose(ours(x, adapter), plain(x, adapter), rtol=1e-5, atol=1e-5)
    found = jax.grad(lambda *args: jnp.sin(ours(*args)).sum(), argnums=(0, 1))(x, adapter)
    expected = jax.grad(lambda *args: jnp.sin(plain(*args)).sum(), argnums=(0, 1))(x, adapter)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), found, expected
    )


def test_frozen_weight_gets_no_gradient():
    x, weight, adapter = arrays()
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda adapter: linear(x, weight, adapter, 1.0).sum()))(adapter))
    assert f"f32[{OUT},{IN}] = dot_general" not in jaxpr
    zero = jax.grad(lambda weight: linear(x, weight, adapter, 1.0).sum())(weight)
    assert not zero.any()


def test_masters_stay_f32_over_a_bf16_base():
    x, weight, adapter = arrays(jnp.bfloat16)
    y = linear(x, weight, adapter, 1.0)
    grads = jax.grad(lambda adapter: linear(x, weight, adapter, 1.0).astype(jnp.float32).sum())(adapter)
    assert y.dtype == jnp.bfloat16
    assert {grad.dtype for grad in grads.values()} == {jnp.dtype("float32")}


def test_dropout_drops_its_share_and_keeps_the_mean():
    ones, nothing = jnp.ones((200, 500)), jnp.zeros((500, 500))
    adapter = {"a": jnp.eye(500), "b": jnp.eye(500)}
    y = linear(ones, nothing, adapter, 1.0, 0.3, jax.random.key(0))
    assert set(np.unique(np.round(y, 4))) == {0.0, np.float32(1.4286)}
    assert abs(float((y == 0).mean()) - 0.3) < 0.006  # four standard errors
    assert abs(float(y.mean()) - 1) < 0.009
    again = linear(ones, nothing, adapter, 1.0, 0.3, jax.random.key(0))
    assert (y == again).all()
    assert (linear(ones, nothing, adapter, 1.0, 0.3, None) == 1).all()


@pytest.mark.parametrize("name", ["q_proj", "down_proj"])
def test_start_is_pefts(tiny_model, name):
    model = load_model(tiny_model(), lora=LoraConfig(r=16, target_modules=(name,)))
    a, b = model.lora[name]["a"], model.lora[name]["b"]
    features = model.config.projections[name].in_features
    assert a.shape == (3, 16, features) and a.dtype == b.dtype == jnp.float32
    assert not b.any()
    bound = features**-0.5
    assert 0.98 * bound < float(jnp.abs(a).max()) <= bound
    assert abs(float(a.std()) / (bound / 3**0.5) - 1) < 0.05
    assert not np.allclose(a[0], a[1])


def test_start_does_not_depend_on_the_mesh(tiny_model):
    config = load_model(tiny_model()).config
    lora = LoraConfig(r=4)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    alone, split = (init_lora(config, lora, jax.random.key(3), place) for place in (None, mesh))
    assert set(alone) == set(PROJECTIONS)
    jax.tree.map(np.testing.assert_array_equal, alone, split)
    assert split["q_proj"]["b"].addressable_shards[0].data.shape == (3, 4, 16)


@pytest.fixture(scope="module")
def dropped(tiny_model):
    model = load_model(tiny_model(), lora=LoraConfig(r=4, lora_dropout=0.3))
    lora = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(jax.random.key(1), x.shape), model.lora)
    return dataclasses.replace(model, lora=lora)


def loss_of(model, tokens, key, remat="full"):
    def loss(lora):
        hidden = hidden_states(
            model.config, model.lora_config, model.base, lora, tokens, dropout_key=key, remat=remat
        )
        return jnp.mean(hidden * jnp.cos(jnp.arange(hidden.shape[-1])))

    return jax.jit(jax.value_and_grad(loss))


def test_model_gradient_with_dropout_is_the_slope_of_its_loss(dropped, tokens):
    """The backward pass must drop exactly what the forward pass dropped, in each layer and projection."""
    run = loss_of(dropped, tokens, jax.random.key(7))
    _, gradient = run(dropped.lora)
    way = jax.tree.map(lambda x: jax.random.normal(jax.random.key(2), x.shape), dropped.lora)
    slope = sum(
        jnp.vdot(one, other) for one, other in zip(*map(jax.tree.leaves, (gradient, way)), strict=True)
    )
    step = 2e-4
    ahead, behind = (
        run(jax.tree.map(lambda x, w, s=s: x + s * w, dropped.lora, way))[0] for s in (step, -step)
    )
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=0.01)


def test_dropout_follows_its_key_and_not_the_remat_policy(dropped, tokens):
    first = loss_of(dropped, tokens, jax.random.key(7))(dropped.lora)
    kept = loss_of(dropped, tokens, jax.random.key(7), "none")(dropped.lora)
    other = loss_of(dropped, tokens, jax.random.key(8))(dropped.lora)
    off = loss_of(dropped, tokens, None)(dropped.lora)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), first, kept)
    assert len({float(run[0]) for run in (first, other, off)}) == 3
