"""Damage to pictures as sensors fail, on the device: what an evaluation of robustness does to its queries.

The damage to a picture is a pure function of (picture, what takes its place, seed, row, kind, strength): it does not
depend on other rows or the batch. A stronger damage has the same draws: what is dead, hidden or replaced at one
strength is so at every higher one. Strength 0 changes no pixel.
"""

import functools
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jax_mmreid.ops import toning, warping

SHIFT = 0.25  # at strength 1, like the numbers below: the shift as a fraction of the sides
DEAD_PIXELS, DEAD_LINES = 0.1, 0.1  # fractions of the pixels, and of the rows and of the columns
DRIFT = 0.3  # of the range of values: the offset, and what a ramp adds from the centre to an edge
BLUR = 0.04  # standard deviation as a fraction of the height
NOISE = 0.3  # standard deviation as a fraction of the range of values
STOPS = 3.0  # of exposure: factors of two
BAR = 0.6  # fraction of a side that is hidden


def misaligned(x: Array, key: Array, strength: Array) -> Array:
    """Shifted in a random direction, with repeated edges."""
    angle = jax.random.uniform(key, maxval=2 * jnp.pi)
    sides = jnp.array(x.shape[:2], jnp.float32)
    offset = strength * SHIFT * sides * jnp.stack([jnp.sin(angle), jnp.cos(angle)])
    return warping.apply(x, warping.Warp(jnp.eye(2), offset))


def dead_pixels(x: Array, key: Array, strength: Array) -> Array:
    """Pixels, rows and columns that are black or white, drawn anew for each picture, as crops of a sensor have them."""
    H, W, _ = x.shape
    for shape, share in (((H, W, 1), DEAD_PIXELS), ((H, 1, 1), DEAD_LINES), ((1, W, 1), DEAD_LINES)):
        key, where, white = jax.random.split(key, 3)
        dead = jax.random.uniform(where, shape) < strength * share
        x = jnp.where(dead, 255.0 * jax.random.bernoulli(white, shape=shape), x)
    return x


def drift(x: Array, key: Array, strength: Array) -> Array:
    """An offset, up or down, and a ramp in a random direction, as of a thermal camera that warms up."""
    H, W, _ = x.shape
    up, turn = jax.random.split(key)
    angle = jax.random.uniform(turn, maxval=2 * jnp.pi)
    ramp = jnp.sin(angle) * jnp.linspace(-1, 1, H)[:, None] + jnp.cos(angle) * jnp.linspace(-1, 1, W)
    return x + 255 * DRIFT * strength * (jax.random.rademacher(up, (), x.dtype) + ramp[..., None])


def blur(x: Array, key: Array, strength: Array) -> Array:
    """Out of focus: nearly Gaussian, by binomial weights 1, 2, 1 again and again, each time with a variance of 1/2."""
    times = jnp.ceil(2 * (BLUR * x.shape[0] * strength) ** 2).astype(jnp.int32)
    return jax.lax.fori_loop(0, times, lambda _, x: toning.blurred(x), x)


def noise(x: Array, key: Array, strength: Array) -> Array:
    """Gaussian noise, the same in all channels, as on a grey picture."""
    return x + 255 * NOISE * strength * jax.random.normal(key, (*x.shape[:2], 1))


def exposure(x: Array, key: Array, strength: Array) -> Array:
    """Over- or underexposed."""
    return x * jnp.exp2(STOPS * strength * jax.random.rademacher(key, (), x.dtype))


def bar(x: Array, key: Array, strength: Array) -> Array:
    """Hidden behind a grey bar across the picture, upright or not, at a random place."""
    flat, place, grey = jax.random.uniform(key, (3,))
    y, x_ = (jnp.linspace(0, 1, side) for side in x.shape[:2])
    along = jnp.where(flat < 0.5, y[:, None], x_[None, :])
    hidden = jnp.abs(along - place) < strength * BAR / 2
    return jnp.where(hidden[..., None], 255 * grey, x)


CHANGED: dict[str, Callable[[Array, Array, Array], Array]] = {
    "misaligned": misaligned,
    "dead_pixels": dead_pixels,
    "drift": drift,
    "blur": blur,
    "noise": noise,
    "exposure": exposure,
    "bar": bar,
}
REPLACED = ("swapped", "frozen")  # another picture in place of a fraction of the rows: all of them at strength 1
KINDS = (*CHANGED, *REPLACED)


@functools.partial(jax.jit, static_argnames=("kind", "seed"))
def damage(images: Array, others: Array, rows: Array, strength: Array, *, kind: str, seed: int) -> Array:
    """Pictures [B,H,W,3] uint8 with a damage of one of KINDS, of the same shape and type.

    others [B,H,W,3] are what takes the place of the pictures in kinds of REPLACED, not used by the rest; rows [B] are
    numbers of the rows in their split; strength is in [0, 1].
    """

    def one(image: Array, other: Array, row: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(seed), row), zlib.crc32(kind.encode()))
        if kind in REPLACED:
            return jnp.where(jax.random.uniform(key) < strength, other, image)
        found = CHANGED[kind](image.astype(jnp.float32), key, strength)
        return jnp.where(strength > 0, jnp.round(jnp.clip(found, 0, 255)).astype(jnp.uint8), image)

    return jax.vmap(one)(images, others, rows)
