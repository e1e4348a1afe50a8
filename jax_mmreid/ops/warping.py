"""Random affine views of a picture: zoom, stretch, turn and shift, with bilinear interpolation and repeated edges."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

FIELDS = ("zoom", "stretch", "turn", "shift")  # of `draw`


class Warp(NamedTuple):
    """Pixel p of the view is the picture at `matrix @ (p - centre) + centre + offset`; rows before columns."""

    matrix: jax.Array  # [2,2]
    offset: jax.Array  # [2] pixels


def draw(
    key: jax.Array,
    size: tuple[int, int],
    *,
    zoom: float = 0.0,
    stretch: float = 0.0,
    turn: float = 0.0,
    shift: float = 0.0,
) -> Warp:
    """Draws the view of one picture of `size` (H, W); every number is uniform between minus and plus its range.

    zoom: logarithm of the scale; stretch: logarithm by which height grows and width shrinks; turn: degrees; shift:
    fractions of the sides.
    """
    scale, aspect, angle, *offset = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)
    angle = angle * turn * jnp.pi / 180
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    sides = jnp.exp(scale * zoom + jnp.stack([aspect, -aspect]) * stretch)  # of height and width
    matrix = sides[:, None] * jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    return Warp(matrix, shift * jnp.stack(offset) * jnp.asarray(size, jnp.float32))


def apply(image: jax.Array, warp: Warp) -> jax.Array:
    """The view of image [H,W,C], float32 of the same shape."""
    H, W, _ = image.shape
    centre = jnp.array([H - 1, W - 1], jnp.float32) / 2
    pixels = jnp.stack(jnp.meshgrid(jnp.arange(H), jnp.arange(W), indexing="ij"), axis=-1) - centre
    place = jnp.einsum("hwj,ij->hwi", pixels, warp.matrix, precision="highest") + centre + warp.offset
    place = jnp.clip(place, 0, 2 * centre)
    low = jnp.floor(place).astype(jnp.int32)
    high = jnp.minimum(low + 1, jnp.array([H - 1, W - 1]))
    (top, left), (bottom, right) = (jnp.moveaxis(x, -1, 0) for x in (low, high))
    part = (place - low)[..., None]
    down, across = part[..., 0, :], part[..., 1, :]
    image = image.astype(jnp.float32)
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return upper * (1 - down) + lower * down
