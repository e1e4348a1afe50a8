"""Masked reductions and distances: oracles in numpy, and finite gradients where values are missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mmreid.ops import distance, masked


def finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_mean_is_the_mean_of_the_selected_entries(rng):
    x, where = rng.normal(size=(5, 7)).astype(np.float32), rng.random((5, 7)) < 0.6
    where[:, 0] = True
    np.testing.assert_allclose(masked.mean(x, where), x[where].mean(), rtol=1e-6)
    np.testing.assert_allclose(masked.mean(x, where, axis=1), [r[w].mean() for r, w in zip(x, where)], rtol=1e-5)
    rows = np.array([True, False, True, True, False])
    np.testing.assert_allclose(masked.mean(x, rows[:, None], axis=0), x[rows].mean(0), rtol=1e-5)


def test_mean_of_no_entry_is_zero_with_zero_gradient(rng):
    x = jnp.full((5, 7), jnp.nan)
    value, grad = jax.value_and_grad(lambda x: masked.mean(x, jnp.zeros((5, 7), bool)))(x)
    assert value == 0 and (grad == 0).all()


def test_mean_ignores_nan_in_value_and_gradient(rng):
    x, where = jnp.asarray(rng.normal(size=(5, 7))), jnp.asarray(rng.random((5, 7)) < 0.5)
    f = jax.value_and_grad(lambda x: masked.mean(x**2, where))
    assert f(x)[0] == f(jnp.where(where, x, 3e38))[0]
    value, grad = jax.value_and_grad(lambda x: masked.mean(x, where))(jnp.where(where, x, jnp.nan))
    assert finite((value, grad)) and (grad[~where] == 0).all()


def test_mean_of_low_precision_is_float32():
    x = jnp.full((257, 3), 1.0, jnp.bfloat16)
    assert masked.mean(x, jnp.ones((257, 3), bool)).dtype == jnp.float32
    assert masked.mean(x, jnp.ones((257, 3), bool)) == 1


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2, 7)])
def test_blank_clears_missing_rows_and_their_gradient(rng, shape):
    present = jnp.array([True, False, True, False, True])
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    y = masked.blank(x.at[1].set(jnp.nan), present)
    assert (y[jnp.array([1, 3])] == 0).all() and (y[jnp.array([0, 2, 4])] == x[jnp.array([0, 2, 4])]).all()
    grad = jax.jit(jax.grad(lambda x: jnp.sum(masked.blank(x, present) ** 2)))(x.at[1].set(jnp.nan))
    assert finite(grad) and (grad[1] == 0).all()
    assert masked.blank(jnp.ones((5, 3), jnp.uint8), present).dtype == jnp.uint8


def test_blank_takes_a_mask_of_several_axes(rng):
    x, present = jnp.asarray(rng.normal(size=(5, 3, 7))), jnp.asarray(rng.random((5, 3)) < 0.5)
    np.testing.assert_array_equal(masked.blank(x, present), np.asarray(x) * np.asarray(present)[..., None])


def test_unit_has_unit_norm_along_its_axis(rng):
    x = rng.normal(size=(5, 7)).astype(np.float32) * np.array([[1e-10], [1e-3], [1], [1e3], [1e10]], np.float32)
    np.testing.assert_allclose(masked.unit(x), x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(masked.unit(x[2:3].T, axis=0), axis=0), 1, rtol=1e-6)
    assert masked.unit(x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_unit_keeps_zero_with_zero_gradient_and_never_overflows(rng):
    f = jax.jit(jax.vmap(jax.grad(lambda x, c: jnp.vdot(masked.unit(x), c)), (0, None)))
    c = jnp.asarray(rng.normal(size=7), jnp.float32)
    x = np.stack([np.asarray(c) * np.float32(s) for s in (0, 1e-30, 1e-20, 1e-12, 1e-11, 1)])
    assert (masked.unit(x[0]) == 0).all() and (f(x, c)[0] == 0).all()
    assert finite((masked.unit(x), f(x, c)))


def test_distances_equal_the_differences(rng):
    x, y = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 7, 3))
    squares = ((x[:, :, None] - y[:, None]) ** 2).sum(-1)
    x, y = x.astype(np.float32), y.astype(np.float32)
    np.testing.assert_allclose(distance.squared(x, y), squares, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(distance.euclidean(x, y), np.sqrt(squares), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(distance.squared(x[0], y[0]), distance.squared(x, y)[0])


def test_distances_of_duplicates_are_not_negative_and_have_finite_gradients(rng):
    x = jnp.asarray(np.repeat(rng.normal(size=(3, 11)) * 30, 3, axis=0), jnp.float32)
    assert (distance.squared(x, x) >= 0).all()
    assert finite(jax.jit(jax.grad(lambda x: distance.euclidean(x, x).sum()))(x))
    zeros = jnp.zeros((3, 5))
    assert (distance.euclidean(zeros, zeros) == np.float32(1e-6)).all()
    assert (jax.jit(jax.grad(lambda x: distance.euclidean(x, zeros).sum()))(zeros) == 0).all()


def test_distance_gradient_is_the_unit_difference(rng):
    x, y = jnp.asarray(rng.normal(size=(1, 5)), jnp.float32), jnp.asarray(rng.normal(size=(1, 5)), jnp.float32)
    grad = jax.jit(jax.grad(lambda x: distance.euclidean(x, y).sum()))(x)
    np.testing.assert_allclose(grad, masked.unit(x - y), rtol=1e-4, atol=1e-5)
