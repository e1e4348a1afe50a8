"""Grey as Pillow makes it, and one channel in place of three, for given draws and in distribution."""

import random

import jax
import numpy as np
import pytest
from PIL import Image

from jax_mmreid.ops import colour

DRAWS = 4001
# What the official TVI-LFM code makes of the constant channels 1, 2, 4, by the seed of Python's generator.
EXCHANGE = {
    1: (1, 7),
    2: (8, 9, 16),
    4: (3, 11, 12, 13, 14, 18),
    None: (0, 2, 5, 6, 10, 15, 17, 19),
}
ADAPTIVE_GREY = {
    1: (2, 6, 10, 14, 19),
    2: (1, 3, 4, 8, 15, 18),
    4: (5, 7, 13, 16),
    1.9289: (12,),
    None: (0, 9, 11, 17),
}


def goldens(by_value):
    return sorted((seed, value) for value, seeds in by_value.items() for seed in seeds)


def exchange(rng):
    """The draws of channel exchange by Python's generator."""
    return colour.KEEP if rng.uniform(0, 1) > 0.5 else rng.randint(0, 2)


def adaptive_grey(rng):
    """The draws of adaptive grey by Python's generator."""
    channel = rng.randint(0, 3)
    return colour.KEEP if channel == 3 and rng.uniform(0, 1) > 0.6 else channel


def test_grey_equals_pillow():
    x = np.random.default_rng(0).integers(0, 256, (211, 503, 3), dtype=np.uint8)
    got = colour.grey(x)
    assert got.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(got[..., channel], np.asarray(Image.fromarray(x).convert("L")))


@pytest.mark.parametrize("rgb, luma", [((10, 200, 30), 124), ((255, 0, 0), 76), ((0, 0, 0), 0), ((255, 255, 255), 255)])
def test_grey_of_one_colour(rgb, luma):
    assert colour.grey(np.uint8(rgb)).tolist() == [luma] * 3


@pytest.mark.parametrize(
    "draw, seed, value",
    [(exchange, *golden) for golden in goldens(EXCHANGE)]
    + [(adaptive_grey, *golden) for golden in goldens(ADAPTIVE_GREY)],
)
def test_channels_of_the_official_draws(draw, seed, value):
    image = np.broadcast_to(np.float32([1, 2, 4]), (5, 3, 3))
    got = colour.replicate(image, np.int32(draw(random.Random(seed))))
    np.testing.assert_allclose(got, image if value is None else np.full((5, 3, 3), value), rtol=1e-6)


def test_replicate_copies_every_pixel():
    image = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float32)
    for channel in range(3):
        np.testing.assert_array_equal(colour.replicate(image, channel), np.repeat(image[..., channel, None], 3, -1))
    luma = (image.astype(np.float64) @ (0.2989, 0.5870, 0.1140))[..., None]
    np.testing.assert_allclose(colour.replicate(image, 3), np.repeat(luma, 3, -1), atol=1e-6)
    np.testing.assert_array_equal(colour.replicate(image, colour.KEEP), image)


@pytest.mark.parametrize(
    "kind, rates", [("exchange", (1 / 6, 1 / 6, 1 / 6, 0, 1 / 2)), ("adaptive_grey", (0.25, 0.25, 0.25, 0.15, 0.1))]
)
def test_how_often_each_channel_is_drawn(kind, rates):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    got = jax.jit(jax.vmap(lambda key: colour.draw_channel(key, kind)))(keys)
    counts = np.bincount(got, minlength=5)
    np.testing.assert_allclose(counts / DRAWS, rates, atol=0.025)
    assert counts[3] > 0 or rates[3] == 0
