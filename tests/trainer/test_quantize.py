from __future__ import annotations

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jora_tasks.trainer.frozen import matmul, matmul_transposed
from jora_tasks.trainer.quantize import BLOCK, FORMATS, NF4_LEVELS, base_in_words, nearest_level

LEVELS = np.array(NF4_LEVELS)
QUANTISE = {kind: jax.jit(form.of) for kind, form in FORMATS.items()}
FLOATS = jax.jit(lambda kept: kept.dequantise())
SHAPES = [(1, 5, 64), (2, 8, 200), (1, 3, 40), (3, 6, 129)]  # whole and broken blocks, odd rows


def draw(shape, seed=0, outliers=True):
    random = np.random.default_rng(seed)
    weight = random.standard_normal(shape).astype(np.float32)
    if outliers:
        weight *= np.exp(random.standard_normal((*shape[:-1], 1))).astype(np.float32)
        weight[..., ::17] *= 8
    return weight


def test_levels_are_quantiles_of_a_normal():
    """QLoRA, section 3: 8 positive and 7 negative quantiles and zero, scaled so that the last is 1."""
    offset, quantile = 0.9677083, NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    expected = np.sort([*negative, 0, *positive]) / max(positive)
    np.testing.assert_allclose(LEVELS, expected, atol=1e-6)


@given(arrays(np.float32, 32, elements=st.floats(-2, 2, width=32)))
@settings(max_examples=50, deadline=None)
def test_each_value_gets_its_nearest_level(values):
    found = LEVELS[np.asarray(jax.jit(nearest_level)(values))]
    distances = np.abs(values.astype(np.float64)[:, None] - LEVELS)
    np.testing.assert_allclose(np.abs(values - found), distances.min(axis=1), atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nf4_against_a_loop_over_blocks(shape):
    weight = draw(shape)
    kept = QUANTISE["nf4"](weight)
    found = np.asarray(FLOATS(kept), np.float64)
    for index in np.ndindex(*shape[:-1]):
        row = weight[index].astype(np.float64)
        blocks = [row[start : start + BLOCK] for start in range(0, len(row), BLOCK)]
        largest = np.array([np.abs(block).max() for block in blocks])
        least, step = largest.min(), np.ptp(largest) / 255
        scales = least + (np.round((largest - least) / step) * step if step else 0 * largest)
        for block, scale, start in zip(blocks, scales, range(0, len(row), BLOCK), strict=True):
            candidates = LEVELS * scale
            nearest = np.abs(block[:, None] - candidates).min(axis=1)
            got = found[index][start : start + BLOCK]
            assert np.abs(got[:, None] - candidates).min(axis=1).max() < 1e-5 * scale  # a level of its block
            np.testing.assert_allclose(np.abs(got - block), nearest, atol=1e-5 * scale)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_is_off_by_half_a_step_at_most(shape):
    weight = draw(shape)
    kept = QUANTISE["int8"](weight)
    assert np.all(np.abs(FLOATS(kept) - weight) <= np.asarray(kept.scale)[..., None] * 0.500001)


@pytest.mark.parametrize("kind", FORMATS)
def test_zeros_and_single_outliers_survive(kind):
    weight = np.zeros((4, 130), np.float32)
    weight[1, 129], weight[2, :] = -3.0, 1e-30
    found = np.asarray(FLOATS(QUANTISE[kind](weight)))
    np.testing.assert_allclose(found, weight, rtol=1e-6, atol=1e-29)


@pytest.mark.parametrize("kind", FORMATS)
def test_layers_are_quantised_each_for_itself(kind):
    weight = draw((3, 6, 129))
    stacked = QUANTISE[kind](weight)
    for layer in range(3):
        alone = QUANTISE[kind](weight[layer])
        sliced = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
        jax.tree.map(np.testing.assert_array_equal, sliced, alone)


def test_bytes_a_weight():
    weight = jax.ShapeDtypeStruct((512, 4096), jnp.float32)
    kept = {kind: jax.tree.leaves(jax.eval_shape(form.of, weight)) for kind, form in FORMATS.items()}
    sizes = {kind: sum(leaf.size * leaf.dtype.itemsize for leaf in kept[kind]) / 2**21 for kind in FORMATS}
    assert sizes == {"int8": pytest.approx(1.001, abs=1e-3), "nf4": pytest.approx(0.5176, abs=1e-4)}


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 8e-3)])
@pytest.mark.parametrize("kind", FORMATS)
def test_products_and_gradient_are_those_of_the_floats(kind, dtype, bound, relative):
    weight = QUANTISE[kind](draw((48, 200)))
    x, dy = (jnp.asarray(draw((2, 5, size), 1, outliers=False), dtype) for size in (200, 48))
    exact = np.asarray(FLOATS(weight), np.float64)

    @jax.jit
    def products(x, dy, weight):
        y, pull = jax.vjp(lambda x: matmul(x, weight), x)
        return y, pull(dy)[0], matmul_transposed(dy, weight)

    y, dx, alone = products(x, dy, weight)
    assert y.dtype == dx.dtype == dtype
    wide_x, wide_dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    assert relative(y, wide_x @ exact.T) < bound
    assert relative(alone, wide_dy @ exact) < bound
    assert relative(dx, wide_dy @ exact) < bound


def test_in_words():
    weight = jnp.ones((4, 64), jnp.bfloat16)
    kept = QUANTISE["nf4"](weight)
    assert base_in_words({"embed": weight, "layers": {"weight": kept}}) == "bfloat16, projections in NF4"
    assert base_in_words({"embed": weight, "layers": {"weight": weight}}) == "bfloat16"
