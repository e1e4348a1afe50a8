"""BatchNorm against PyTorch, on vectors and on maps, and the laws of its mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import close, normal

from jax_mmreid.models.norm import BatchNorm

DIM = 5
SHAPES = [(7, DIM), (7, 3, 2, DIM)]
ROWS = np.array([True, False, True, True, False, True, False])


def fresh_stats(dim=DIM):
    return {"mean": jnp.zeros(dim), "var": jnp.ones(dim)}


def normalise(x, where, stats, params=None, *, train=True):
    """(output, new statistics)."""
    params = {"scale": jnp.ones(x.shape[-1])} if params is None else params
    module = BatchNorm(use_bias="bias" in params)
    variables = {"params": params, "batch_stats": stats}
    y, updated = module.apply(variables, x, where, train=train, mutable=["batch_stats"])
    return y, updated["batch_stats"]


def gradients(x, where, stats, params):
    """Of a weighted sum of the rows in `where`, with respect to the parameters and x."""
    weights = normal(17, *x.shape) * np.reshape(where, (-1,) + (1,) * (x.ndim - 1))

    def scalar(params, x):
        y, after = normalise(x, where, stats, params)
        return (jnp.where(weights == 0, 0, y) * weights).sum(), after

    return jax.grad(scalar, argnums=(0, 1), has_aux=True)(params, x)


@pytest.mark.reference
@pytest.mark.parametrize("shape", SHAPES, ids=["vectors", "maps"])
@pytest.mark.parametrize("where", [None, np.ones(7, bool), ROWS], ids=["none", "all", "some"])
@pytest.mark.parametrize("bias", [False, True], ids=["scale", "bias"])
def test_batch_norm_equals_pytorch_on_the_rows_that_exist(torch, shape, where, bias):
    rows = np.ones(7, bool) if where is None else where
    reference = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(DIM)
    params = {"scale": 1 + normal(0, DIM)} | ({"bias": normal(1, DIM)} if bias else {})
    reference.weight.data = torch.tensor(params["scale"])
    if bias:
        reference.bias.data = torch.tensor(params["bias"])

    def expected(x):
        y = reference(torch.tensor(np.moveaxis(x[rows], -1, 1)))
        return y.detach().numpy().transpose(0, *range(2, x.ndim), 1)

    stats = fresh_stats()
    for step in range(4):
        x = 2 + 3 * normal(step, *shape)
        y, stats = normalise(x, where, stats, params)
        close(y[rows], expected(x), 1e-5)
        close(stats["mean"], reference.running_mean, 1e-5)
        close(stats["var"], reference.running_var, 1e-5)
    reference.eval()
    x = normal(9, *shape)
    y, after = normalise(x, where, stats, params, train=False)
    close(y[rows], expected(x), 1e-5)
    np.testing.assert_array_equal(after["mean"], stats["mean"])


@pytest.mark.reference
@pytest.mark.parametrize("shape", SHAPES, ids=["vectors", "maps"])
def test_the_gradients_equal_pytorch(torch, shape):
    reference = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(DIM)
    x = torch.tensor(np.moveaxis(2 + 3 * normal(0, *shape), -1, 1), requires_grad=True)
    ours = 2 + 3 * normal(0, *shape)
    (grads, dx), _ = gradients(ours, np.ones(7, bool), fresh_stats(), {"scale": jnp.ones(DIM), "bias": jnp.zeros(DIM)})
    (reference(x) * torch.tensor(np.moveaxis(normal(17, *shape), -1, 1))).sum().backward()
    close(grads["scale"], reference.weight.grad, 1e-5)
    close(grads["bias"], reference.bias.grad, 1e-5)
    close(np.moveaxis(dx, -1, 1), x.grad, 1e-5)


def test_the_running_variance_is_the_unbiased_one():
    _, stats = normalise(jnp.array([[1.0], [2.0], [4.0]]), None, fresh_stats(1))
    close(stats["mean"], [0.23333], 1e-5)
    close(stats["var"], [1.13333], 1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=["vectors", "maps"])
def test_without_rows_statistics_do_not_change_and_gradients_are_finite(shape):
    x, none, params = normal(0, *shape), np.zeros(7, bool), {"scale": jnp.ones(DIM), "bias": jnp.zeros(DIM)}
    _, stats = normalise(x, None, fresh_stats())

    def scalar(params, x):
        y, after = normalise(x, none, stats, params)
        return jnp.square(y).sum(), (y, after)

    grads, (y, after) = jax.grad(scalar, argnums=(0, 1), has_aux=True)(params, x)
    for name in stats:
        np.testing.assert_array_equal(after[name], stats[name])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, grads)))


@pytest.mark.parametrize("shape", SHAPES, ids=["vectors", "maps"])
@pytest.mark.parametrize("filler", [np.nan, np.inf, 1e4])
def test_values_of_masked_rows_reach_neither_statistics_nor_gradients(shape, filler):
    params = {"scale": 1 + normal(0, DIM), "bias": normal(1, DIM)}
    clean, dirty = normal(2, *shape), normal(2, *shape)
    clean[~ROWS], dirty[~ROWS] = 0, filler
    expected, found = (gradients(x, ROWS, fresh_stats(), params) for x in (clean, dirty))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=["vectors", "maps"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_a_bfloat16_map_stays_bfloat16_and_its_statistics_are_float32(shape, train):
    x = (2 + 3 * normal(0, *shape)).astype(jnp.bfloat16)
    y, stats = normalise(x, None, fresh_stats(), train=train)
    expected, expected_stats = normalise(x.astype(np.float32), None, fresh_stats(), train=train)
    assert y.dtype == jnp.bfloat16
    close(y.astype(np.float32), expected, 0.05)
    jax.tree.map(np.testing.assert_array_equal, stats, expected_stats)
    assert {leaf.dtype for leaf in stats.values()} == {jnp.dtype("float32")}
