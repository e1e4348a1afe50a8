"""What pictures look like, as vectors that nothing has learned: what learned features must be better than.

Each function takes pictures [...,H,W,3] float32 in [0, 1] and returns [...,D] float32; each picture has its own vector.
"""

import jax
import jax.numpy as jnp
import numpy as np

SIDE = 32  # of the grey picture of `pixels`
CELLS = (8, 4)  # of `gradients`, along the longer and the shorter side
BINS = 8
FLAT = 1e-3  # cells whose gradients are weaker than this do not count as much as others
LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601


def pixels(images: jax.Array) -> jax.Array:
    """The grey picture in 32 x 32 pixels: D = 1024."""
    small = jax.image.resize(_grey(images), (*images.shape[:-3], SIDE, SIDE), "linear")
    return small.reshape(*images.shape[:-3], SIDE * SIDE)


def mean_free(images: jax.Array) -> jax.Array:
    """`pixels` less their mean, so that brightness does not count and the cosine is a correlation: D = 1024."""
    x = pixels(images)
    return x - x.mean(axis=-1, keepdims=True)


def gradients(images: jax.Array) -> jax.Array:
    """Histograms of unsigned gradient directions in 8 x 4 cells, at about unit length in each (HOG): D = 256.

    Dalal & Triggs, 2005, "Histograms of Oriented Gradients for Human Detection", without their overlapping blocks. A
    pixel adds its gradient's magnitude to the two nearest of 8 directions in [0, pi), linearly; an edge of dark on
    bright and one of bright on dark count alike, as they may be in two spectra. Landscape pictures have 4 x 8 cells.
    """
    grey = _grey(images)
    H, W = grey.shape[-2:]
    inner = [(0, 0)] * (grey.ndim - 2)
    dy = jnp.pad(grey[..., 2:, :] - grey[..., :-2, :], [*inner, (1, 1), (0, 0)])
    dx = jnp.pad(grey[..., :, 2:] - grey[..., :, :-2], [*inner, (0, 0), (1, 1)])
    direction = jnp.mod(jnp.arctan2(dy, dx), jnp.pi) / jnp.pi * BINS
    away = jnp.abs(direction[..., None] - jnp.arange(BINS))
    votes = jnp.maximum(1 - jnp.minimum(away, BINS - away), 0) * jnp.hypot(dy, dx)[..., None]
    rows, columns = CELLS if H >= W else CELLS[::-1]
    cells = jnp.einsum("yh,...hwk,xw->...yxk", _means(rows, H), votes, _means(columns, W), precision="highest")
    cells = cells / (jnp.linalg.norm(cells, axis=-1, keepdims=True) + FLAT)
    return cells.reshape(*images.shape[:-3], -1)


DESCRIPTORS = {"pixels": pixels, "mean_free": mean_free, "gradients": gradients}


def _grey(images: jax.Array) -> jax.Array:
    return jnp.einsum("...c,c->...", images, LUMA, precision="highest")


def _means(parts: int, size: int) -> np.ndarray:
    """The matrix [parts,size] that takes means over `parts` intervals of a line of `size` pixels."""
    inside = np.arange(size) * parts // size == np.arange(parts)[:, None]
    return (inside / np.maximum(inside.sum(axis=1, keepdims=True), 1)).astype(np.float32)
