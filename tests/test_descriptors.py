"""Pixels, mean-free pixels and gradient directions: by their definitions, and what they must not depend on."""

import math

import numpy as np
import pytest

from jax_mmreid.ops.descriptors import DESCRIPTORS, gradients, mean_free, pixels


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).random((*shape, 3), np.float32)


def grey(picture):
    return picture.astype(float) @ (0.299, 0.587, 0.114)


def histogram(picture, rows=8, columns=4):
    """Gradient directions of one picture, pixel by pixel."""
    g = grey(picture)
    H, W = g.shape
    cells = np.zeros((rows, columns, 8))
    counts = np.zeros((rows, columns))
    for y, x in np.ndindex(H, W):
        cell = y * rows // H, x * columns // W
        counts[cell] += 1
        dy = g[y + 1, x] - g[y - 1, x] if 0 < y < H - 1 else 0
        dx = g[y, x + 1] - g[y, x - 1] if 0 < x < W - 1 else 0
        angle = math.atan2(dy, dx) % math.pi / math.pi * 8
        low = int(angle) % 8
        share = angle - int(angle)
        cells[cell][low] += (1 - share) * math.hypot(dy, dx)
        cells[cell][(low + 1) % 8] += share * math.hypot(dy, dx)
    cells /= counts[..., None]
    return (cells / (np.linalg.norm(cells, axis=-1, keepdims=True) + 1e-3)).ravel()


@pytest.mark.parametrize("size, cells", [((32, 16), (8, 4)), ((37, 19), (8, 4)), ((17, 43), (4, 8))])
def test_gradient_directions_by_their_definition(size, cells):
    images = pictures(3, *size)
    np.testing.assert_allclose(gradients(images), [histogram(x, *cells) for x in images], atol=1e-4)


def test_pixels_are_the_grey_picture_made_small():
    images = pictures(2, 96, 64)
    found = np.asarray(pixels(images)).reshape(2, 32, 32)
    # The same triangle as Pillow's bilinear filter, of twice the reduction in width.
    one = np.maximum(0, 1 - np.abs((np.arange(96) + 0.5) / 3 - 10.5))
    two = np.maximum(0, 1 - np.abs((np.arange(64) + 0.5) / 2 - 20.5))
    expected = np.einsum("h,nhw,w->n", one / one.sum(), [grey(x) for x in images], two / two.sum())
    np.testing.assert_allclose(found[:, 10, 20], expected, atol=1e-5)
    np.testing.assert_allclose(pixels(np.full((1, 40, 20, 3), 0.25, np.float32)), 0.25, atol=1e-6)
    np.testing.assert_allclose(mean_free(images), found.reshape(2, -1) - found.mean(axis=(1, 2))[:, None], atol=1e-6)


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_a_picture_has_its_own_vector_whatever_is_beside_it(name):
    images = pictures(5, 24, 20)
    whole = np.asarray(DESCRIPTORS[name](images))
    assert whole.shape == (5, 256 if name == "gradients" else 1024) and np.isfinite(whole).all()
    np.testing.assert_allclose(DESCRIPTORS[name](images[3]), whole[3], atol=1e-6)


def test_a_change_of_brightness_or_of_sign_leaves_gradients_as_they_are():
    images = pictures(4, 32, 16)
    np.testing.assert_allclose(gradients(1 - images), gradients(images), atol=1e-4)
    np.testing.assert_allclose(gradients(0.5 * images + 0.3), gradients(images), atol=2e-2)  # of FLAT
    np.testing.assert_allclose(mean_free(images + 0.3), mean_free(images), atol=1e-5)
    assert np.abs(gradients(images[:, ::-1]) - gradients(images)).max() > 0.1


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_a_flat_picture_has_finite_numbers(name):
    assert np.isfinite(DESCRIPTORS[name](np.zeros((1, 16, 8, 3), np.float32))).all()
