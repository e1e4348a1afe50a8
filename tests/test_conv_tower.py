"""The gradient stem does not see light, contrast or its sign; the tower keeps the layout, and rows are independent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mmreid.errors import ConfigError
from jax_mmreid.models.conv_tower import ConvFields, ConvTower, create, gradient_stem

RNG = np.random.default_rng(0)
GREY = np.repeat(RNG.random((3, 32, 16, 1)), 3, axis=3).astype(np.float32)
COLOUR = RNG.random((3, 32, 16, 3)).astype(np.float32)
FIELDS = ConvFields(orientations=8, width=8, blocks=(1, 1), group=4, cell=2)


def test_light_contrast_and_its_sign_hardly_matter():
    stem = np.asarray(gradient_stem(GREY, 8))
    assert stem.shape == (3, 8, 4, 10)
    np.testing.assert_allclose(gradient_stem(1 - GREY, 8)[..., :8], stem[..., :8], atol=1e-4)
    np.testing.assert_allclose(gradient_stem(0.3 * GREY + 0.2, 8)[..., :8], stem[..., :8], atol=0.01)
    np.testing.assert_allclose(stem[..., 8:], 0, atol=1e-5)
    assert np.abs(gradient_stem(COLOUR, 8)[..., 8:]).max() > 0.1


@pytest.mark.parametrize("degrees", [0, 45, 90, 135])
def test_an_edge_is_seen_in_the_channel_of_its_gradient(degrees):
    """Channel c of 8 is for the gradient direction of 22.5 c degrees, counted from the columns towards the rows."""
    y, x = np.mgrid[:32, :32]
    angle = np.radians(degrees)
    ramp = (np.cos(angle) * x + np.sin(angle) * y) / 50
    stem = np.asarray(gradient_stem(np.repeat(ramp[None, ..., None], 3, axis=3), 8))[0, 2:-2, 2:-2, :8]
    assert (stem.argmax(axis=-1) == degrees / 22.5).all()
    opposite = stem[..., int(degrees / 22.5 + 4) % 8]
    np.testing.assert_allclose(opposite, 0, atol=1e-4)


def test_a_cell_is_a_loop_over_its_pixels():
    picture = GREY[0, ..., 0].astype(np.float64)
    padded = np.pad(picture, 1, mode="edge")
    cells = np.zeros((8, 4, 8))
    for y in range(32):
        for x in range(16):
            dy, dx = (padded[y + 2, x + 1] - padded[y, x + 1]) / 2, (padded[y + 1, x + 2] - padded[y + 1, x]) / 2
            double = 2 * np.arctan2(dy, dx)
            near = np.maximum(np.cos(double - 2 * np.pi * np.arange(8) / 8), 0) ** 4
            cells[y // 4, x // 4] += near * np.hypot(dy, dx) / 16
    strength = np.pad(np.linalg.norm(cells, axis=-1), 1, mode="edge")
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    smooth = np.array([[(strength[i : i + 3, j : j + 3] * kernel).sum() for j in range(4)] for i in range(8)])
    overall = strength[1:-1, 1:-1].mean()
    expected = cells / (smooth + 0.1 * overall + 1e-4)[..., None]
    np.testing.assert_allclose(gradient_stem(GREY[:1], 8)[0, ..., :8], expected, atol=2e-3)


def test_the_light_of_a_picture_does_not_change_its_colours():
    stem, tinted = (np.asarray(gradient_stem(x, 8))[..., 8:] for x in (COLOUR, COLOUR + np.array([0.2, 0, -0.1])))
    np.testing.assert_allclose(tinted, stem, atol=1e-3)


def test_the_feature_is_cells_side_by_side_then_the_whole_and_rows_are_independent():
    tower = create(FIELDS, (32, 16), dim=24, dtype="float32")
    (tokens, features), variables = jax.jit(tower.init_with_output)(jax.random.key(0), COLOUR)
    assert tokens.shape == (3, 9, 16) and features.shape == (3, 1, 24) and set(variables) == {"params"}
    np.testing.assert_allclose(tokens[:, 0], tokens[:, 1:].mean(axis=1), atol=1e-6)
    cells, whole = (variables["params"][name]["kernel"] for name in ("cells", "whole"))
    np.testing.assert_allclose(features[:, 0, :16], (tokens[:, 1:] @ cells).reshape(3, -1), atol=1e-5)
    np.testing.assert_allclose(features[:, 0, 16:], tokens[:, 1:].reshape(3, -1) @ whole, atol=1e-5)
    alone = jax.jit(tower.apply)
    for i in range(3):
        np.testing.assert_allclose(alone(variables, COLOUR[i : i + 1])[1], features[i : i + 1], atol=1e-5)


def test_the_gradient_at_an_even_picture_is_finite():
    tower = ConvTower(24, width=8, group=4, cell=2)
    variables = jax.jit(tower.init)(jax.random.key(0), COLOUR)

    def loss(params):
        return jnp.square(tower.apply({"params": params}, jnp.zeros_like(COLOUR))[1]).sum()

    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.jit(jax.grad(loss))(variables["params"])))


@pytest.mark.parametrize(
    ("changes", "size", "dim", "message"),
    [
        ({}, (30, 16), 24, r"image_size=\(30, 16\) must be multiples of 8"),
        ({}, (32, 16), 16, "dim=16 must be greater than the 8 x 2 numbers of the cells"),
        (dict(group=3), (32, 16), 24, "width=8 must be a multiple of group=3"),
        (dict(blocks=(1,)), (32, 16), 24, r"blocks=\(1,\) two numbers"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, size, dim, message):
    fields = ConvFields(**(vars(FIELDS) | changes))
    with pytest.raises(ConfigError, match=message):
        create(fields, size, dim=dim, dtype="float32")
