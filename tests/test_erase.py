"""Random erasing with constants: the box for given draws, its distribution, and the erased picture."""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mmreid.ops import erase

DRAWS = 4001
SIZE = (288, 144)
# [top, left, height, width] that the official TVI-LFM code erases of a 288x144 picture with probability 0.6, by the
# seed of Python's generator.
GOLDENS = {
    0: None,
    1: [32, 15, 193, 74],
    2: None,
    3: [154, 60, 116, 81],
    4: [39, 11, 61, 40],
    5: None,
    6: None,
    7: [18, 105, 85, 38],
}


def python_draws(rng, size):
    """Area and aspect of every attempt up to the one that fits, as Python draws them, and the box that follows."""
    H, W = size
    attempts = []
    for _ in range(100):
        attempts.append((rng.uniform(0.02, 0.4) * H * W, rng.uniform(0.3, 1 / 0.3)))
        area, aspect = attempts[-1]
        height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if height < H and width < W:
            return attempts, [rng.randint(0, H - height), rng.randint(0, W - width), height, width]
    return attempts, None


@functools.partial(jax.jit, static_argnums=1)
def first_fit(attempts, size):
    return jnp.stack(erase.first_fit(*attempts, size))


def padded(attempts):
    """[2,100] areas and aspects; after those that were drawn come others that would fit."""
    rest = [(25.0, 1.0)] * (100 - len(attempts))
    return np.array(attempts + rest, np.float32).T


@pytest.mark.parametrize("seed", GOLDENS)
def test_boxes_of_the_official_draws(seed):
    rng = random.Random(seed)
    if rng.uniform(0, 1) > 0.6:
        assert GOLDENS[seed] is None
        return
    attempts, box = python_draws(rng, SIZE)
    assert box == GOLDENS[seed]
    np.testing.assert_array_equal(first_fit(padded(attempts), SIZE), [*GOLDENS[seed][2:], 1])
    image = np.random.default_rng(seed).normal(size=(*SIZE, 3)).astype(np.float32)
    expected = image.copy()
    top, left, height, width = box
    expected[top : top + height, left : left + width] = (0.4914, 0.4822, 0.4465)
    np.testing.assert_array_equal(erase.erase(image, jnp.array(box), None), expected)


@pytest.mark.parametrize("size", [(288, 144), (31, 97), (13, 11)])
def test_the_first_attempt_that_fits_is_taken(size):
    rng, refused = random.Random(0), 0
    for _ in range(300):
        attempts, box = python_draws(rng, size)
        refused += len(attempts) > 1
        np.testing.assert_array_equal(first_fit(padded(attempts), size), [*box[2:], 1])
    assert refused > 3


def test_sides_are_rounded_half_to_even_and_must_be_strictly_smaller():
    def fit(height, width, size=(100, 100)):
        return first_fit(np.float32([[height * width], [height / width]]), size).tolist()

    assert fit(2.5, 2.5) == [2, 2, 1] and fit(3.5, 3.5) == [4, 4, 1]
    assert fit(9, 4, (10, 5)) == [9, 4, 1]
    assert fit(10, 4, (10, 5))[2] == fit(9, 5, (10, 5))[2] == 0


def test_a_picture_that_no_attempt_fits_is_not_erased():
    box, noise = erase.draw(jax.random.key(0), (101, 1), 1.0, "constant")
    assert noise is None and box[2] == 0
    image = np.ones((101, 1, 3), np.float32)
    np.testing.assert_array_equal(erase.erase(image, box, noise), image)


@functools.partial(jax.jit, static_argnums=0)
def draw(size, keys, rate):
    return jax.vmap(lambda key: erase.draw(key, size, rate, "constant")[0])(keys)


@functools.cache
def boxes(size=SIZE, rate=1.0):
    """Boxes [DRAWS,4] of many pictures."""
    return np.asarray(draw(size, jax.random.split(jax.random.key(2), DRAWS), rate))


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.6, 1.0])
def test_the_rate_of_erasing(rate):
    assert abs((boxes(rate=rate)[:, 2] > 0).mean() - rate) <= 0.025 * (0 < rate < 1)


@pytest.mark.parametrize("size", [SIZE, (144, 288), (32, 32)])
def test_boxes_are_inside_and_have_the_stated_area_and_aspect(size):
    top, left, height, width = boxes(size).T.astype(np.float64)
    assert (height > 0).all() and (width > 0).all()  # a hundred attempts are always enough here
    assert (height < size[0]).all() and (width < size[1]).all()
    assert (top >= 0).all() and (left >= 0).all() and top.min() == 0 and left.min() == 0
    assert (top + height).max() == size[0] and (left + width).max() == size[1]
    # A side was rounded by at most half a pixel.
    area = size[0] * size[1]
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * area).all() and (
        (height - 0.5) * (width - 0.5) <= 0.4 * area
    ).all()
    assert ((height + 0.5) / (width - 0.5) >= 0.3).all() and ((height - 0.5) / (width + 0.5) <= 1 / 0.3).all()
    assert (height * width).min() < 0.03 * area and (height * width).max() > 0.38 * area


def test_area_and_aspect_are_uniform_where_every_box_fits():
    height, width = boxes((512, 512)).T[2:]
    small = height * width < 0.08 * 512**2  # at most 512 * sqrt(0.08 / 0.3) = 264 pixels long: never refused
    for got, low, high in (
        ((height * width)[small] / 512**2, 0.02, 0.08),
        ((height / width)[small], 0.3, 1 / 0.3),
    ):
        counts, _ = np.histogram(got, np.linspace(low, high, 6))
        np.testing.assert_allclose(counts / small.sum(), 1 / 5, atol=0.06)


def test_corners_are_uniform():
    top, left, height, width = boxes().T
    for corner, room in ((top, SIZE[0] - height), (left, SIZE[1] - width)):
        counts, _ = np.histogram((corner + 0.5) / (room + 1), np.linspace(0, 1, 6))
        np.testing.assert_allclose(counts / DRAWS, 1 / 5, atol=0.03)
    assert abs(np.corrcoef(top / (SIZE[0] - height), left / (SIZE[1] - width))[0, 1]) < 0.06
