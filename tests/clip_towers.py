"""Small CLIP towers, every axis of another size, with random parameters."""

import jax.numpy as jnp
import numpy as np
import pytest
from parity import jitted, normal, randomized, shapes

from jax_mmreid.models.clip import ImageTower, TextTower

B, PATCH, H, W, WIDTH, LAYERS, HEADS, DIM, C = 3, 2, 6, 10, 14, 2, 2, 11, 5
VOCAB, CONTEXT, LENGTH = 53, 13, 7
IMAGE = dict(patch=PATCH, width=WIDTH, layers=LAYERS, heads=HEADS, dim=DIM)
TEXT = dict(vocab=VOCAB, context=CONTEXT, width=WIDTH, layers=LAYERS, heads=HEADS, dim=DIM)


def image_inputs(camera=(0, 3, 1)):
    return normal(1, B, H, W, 3), np.eye(C, dtype=np.float32)[list(camera)]


@pytest.fixture(scope="module")
def image_params():
    return randomized(shapes(ImageTower(**IMAGE), *image_inputs()))


@pytest.fixture(scope="module")
def text_params():
    return randomized(shapes(TextTower(**TEXT), jnp.zeros((1, LENGTH, WIDTH)), 0))


def encode(params, images, camera=None, **changes):
    return jitted(ImageTower(**IMAGE | changes))(params, images, camera)


def read(params, embeddings, end, **changes):
    return jitted(TextTower(**TEXT | changes))(params, embeddings, end)
