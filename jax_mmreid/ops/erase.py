"""Random erasing (Zhong et al., 2020): a box of a picture is filled with noise or with constants.

The published code draws area and aspect until the box is smaller than the picture. Here all attempts are drawn at once,
and the first that fits is taken.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

ASPECT = (0.3, 1 / 0.3)  # height over width
FILL = (0.4914, 0.4822, 0.4465)  # of the kind "constant": red, green, blue, after normalisation


class Kind(NamedTuple):
    """How the box is drawn."""

    area: tuple[float, float]  # of the picture, uniform
    log_aspect: bool  # aspect log-uniform in ASPECT, or uniform
    attempts: int


KINDS = {
    "noise": Kind(area=(0.02, 1 / 3), log_aspect=True, attempts=10),
    "constant": Kind(area=(0.02, 0.4), log_aspect=False, attempts=100),
}


def draw(key: jax.Array, size: tuple[int, int], rate: float, kind: str = "noise") -> tuple[jax.Array, jax.Array | None]:
    """Draws the box that is erased of a picture of `size` (H, W), with probability `rate`.

    Returns the box [4] int32 as top, left, height, width, with height 0 for no box, and the random key of its noise,
    None for the kind "constant".
    """
    H, W = size
    box_key, noise = jax.random.split(key)
    chance, area, aspect, corner = jax.random.split(box_key, 4)
    (smallest, largest), log_aspect, attempts = KINDS[kind]
    area = H * W * jax.random.uniform(area, (attempts,), minval=smallest, maxval=largest)
    low, high = map(math.log, ASPECT) if log_aspect else ASPECT
    aspect = jax.random.uniform(aspect, (attempts,), minval=low, maxval=high)
    height, width, found = first_fit(area, jnp.exp(aspect) if log_aspect else aspect, size)
    place = jax.random.uniform(corner, (2,)) * jnp.stack([H - height + 1, W - width + 1])
    top, left = place.astype(jnp.int32)
    happens = jax.random.bernoulli(chance, rate) & found
    box = jnp.stack([top, left, jnp.where(happens, height, 0), width])
    return box, noise if kind == "noise" else None


def first_fit(area: jax.Array, aspect: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(height, width, found) of the first box that is strictly smaller than `size` (H, W), sides rounded half to even.

    area in pixels and aspect, height over width: one number an attempt, in the order of the attempts.
    """
    height = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    width = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (height < size[0]) & (width < size[1])
    first = jnp.argmax(fits)
    return height[first], width[first], fits[first]


def erase(image: jax.Array, box: jax.Array, noise: jax.Array | None) -> jax.Array:
    """Fills `box` of image [H,W,3] float32 with normal noise from the key `noise`, or with FILL if that is None."""
    H, W, C = image.shape
    top, left, height, width = box
    y, x = jnp.arange(H)[:, None] - top, jnp.arange(W)[None, :] - left
    erased = (y >= 0) & (y < height) & (x >= 0) & (x < width)  # [H,W]
    if noise is None:
        return jnp.where(erased[..., None], jnp.asarray(FILL, image.dtype), image)
    # Random numbers cost more than all the rest together, so no more are drawn than the largest box has pixels: its
    # area, with half a pixel more on each side for rounding.
    pixels = math.ceil(KINDS["noise"].area[1] * H * W + (H + W) / 2 + 1)
    fill = jax.random.normal(noise, (pixels, C))
    return jnp.where(erased[..., None], fill[jnp.where(erased, y * width + x, 0)], image)
