"""Contrast of pictures with captions: oracle (a loop in NumPy), laws of duplicates and masks, equality over devices."""

import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mmreid.losses import image_text

B, D = 24, 7
LOSSES = {"info_nce": {}, "sigmoid": {"bias": -3.0}}


@pytest.fixture
def pairs():
    """x, y, keys of which some are equal, and which pairs exist."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, B, D)).astype(np.float32) * np.float32(3)
    return x, y, rng.integers(0, 9, B).astype(np.uint32), rng.random(B) < 0.8


def naive(kind, x, y, scale, key, where, bias=0.0):
    """float64, one pair at a time."""
    x, y = (side.astype(np.float64) / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y))
    out = np.zeros(len(x))
    for i in np.flatnonzero(where):
        own = scale * x[i] @ y[i] + bias
        others = [j for j in np.flatnonzero(where) if key[j] != key[i]]
        rows = [scale * x[i] @ y[j] + bias for j in others]
        columns = [scale * x[j] @ y[i] + bias for j in others]
        if kind == "sigmoid":
            out[i] = np.log1p(np.exp(-own)) + sum(np.log1p(np.exp(z)) for z in rows)
        else:
            out[i] = sum(np.log1p(sum(np.exp(z - own) for z in side)) / 2 for side in (rows, columns))
    return out


def loss(kind, x, y, key, where, block=B, **options):
    options = LOSSES[kind] | options
    return getattr(image_text, kind)(
        x, y, key=key, where=where, block=block, scale=options.pop("scale", 5.0), **options
    )


@functools.cache
def value_and_gradients(kind, block):
    """The compiled function of (x, y, key, where, scale): the sum of the losses, and its gradients by x and y."""

    def total(x, y, key, where, scale):
        return loss(kind, x, y, key, where, block, scale=scale).sum()

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))


@pytest.mark.parametrize("block", [1, 5, 6, 24, 4096])
@pytest.mark.parametrize("kind", LOSSES)
def test_equals_a_loop(kind, block, pairs):
    x, y, key, where = pairs
    expected = naive(kind, x, y, 5.0, key, where, **LOSSES[kind])
    np.testing.assert_allclose(loss(kind, x, y, key, where, block), expected, rtol=2e-6, atol=1e-6)
    assert (expected[~where] == 0).all() and (expected[where] > 0).all()


@pytest.mark.parametrize("kind", LOSSES)
def test_a_prime_number_of_columns_comes_in_few_blocks(kind, pairs):
    """Values and gradients are those of a loop and of a single block; the scan has the steps that the size needs."""
    x, y, key, where = (side[:23] for side in pairs)
    expected = naive(kind, x, y, 5.0, key, where, **LOSSES[kind]).sum()
    one, (found, gradients) = (value_and_gradients(kind, block)(x, y, key, where, 5.0) for block in (23, 6))
    np.testing.assert_allclose([found, one[0]], expected, rtol=2e-6)
    for a, b in zip(gradients, one[1]):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for rows, block, steps in ((23, 6, 4), (23, 23, 1), (23, 22, 2), (23, 1, 23), (24, 7, 4)):
        sides = [side[:rows] for side in pairs]
        program = jax.make_jaxpr(lambda *sides, block=block: loss(kind, *sides, block))(*sides)
        assert [e.params["length"] for e in program.eqns if e.primitive.name == "scan"] == [steps]


def test_without_duplicates_it_is_the_cross_entropy_of_both_directions(pairs):
    x, y, _, _ = pairs
    every = np.ones(B, bool)
    logits = 5.0 * (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T
    expected = (-np.diag(jax.nn.log_softmax(logits, axis=1)) - np.diag(jax.nn.log_softmax(logits, axis=0))) / 2
    np.testing.assert_allclose(loss("info_nce", x, y, np.arange(B), every), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_values_of_missing_pairs_have_no_influence(kind, pairs):
    x, y, key, where = pairs
    spoilt = [np.where(where[:, None], side, np.nan).astype(np.float32) for side in (x, y)]
    (a, ga), (b, gb) = (value_and_gradients(kind, 6)(*sides, key, where, 5.0) for sides in ((x, y), spoilt))
    assert a == b
    for clean, other in zip(ga, gb):
        np.testing.assert_array_equal(clean, other)
        assert (np.asarray(other)[~where] == 0).all()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("scale", [1e-3, 100.0])
def test_without_negatives_values_and_gradients_are_finite(kind, scale, pairs):
    """No pair, a single pair, equal captions only: values and gradients are finite, and without negatives zero."""
    x, y, _, _ = pairs
    for key, where in ((np.arange(B), np.zeros(B, bool)), (np.arange(B), np.arange(B) == 3), (np.zeros(B), np.ones(B))):
        value, gradients = value_and_gradients(kind, 6)(x, y, key.astype(np.uint32), where.astype(bool), scale)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
        assert kind == "sigmoid" or value == 0


@pytest.mark.parametrize("kind", LOSSES)
def test_eight_devices_equal_one_and_none_holds_all_pairs(kind):
    rows, width = 64, 16
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, rows, width)).astype(np.float32)
    key, where = rng.integers(0, 40, rows).astype(np.uint32), rng.random(rows) < 0.9
    expected = naive(kind, x, y, 5.0, key, where, **LOSSES[kind]).sum()
    one, own = value_and_gradients(kind, rows)(x, y, key, where, 5.0)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    placed = jax.device_put((x, y, key, where), NamedSharding(mesh, PartitionSpec("data")))
    for block, limit in ((rows, rows * rows // 8), (16, rows * 16 // 8)):
        program = value_and_gradients(kind, block).lower(*placed, 5.0).compile()
        value, gradients = program(*placed, 5.0)
        np.testing.assert_allclose([value, one], expected, rtol=1e-5)
        for a, b in zip(gradients, own):
            np.testing.assert_allclose(a, b, atol=1e-5)
        shapes = re.findall(r"(?:f32|pred)\[([\d,]+)\]", program.as_text())
        largest = max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes)
        assert largest <= max(limit, rows * width), f"a device holds {largest} numbers of {rows * rows}"
