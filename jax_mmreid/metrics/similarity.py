"""Similarities of rows that differ in what they have: each pair is compared by the modalities that both have.

A row has M parts of D numbers, one per modality, of which some are present. The similarity "common" of two rows is the
cosine over the modalities m that both have,

    sum_m q_m.g_m / sqrt(sum_m |q_m|^2 * sum_m |g_m|^2)

With zeros in place of absent parts the numerator is one matrix product, and so are both sums below the root, of the
squared norms of one side with the mask of the other. `pack` puts all three into one row of numbers, so that such rows
are stored, moved and split over devices like any other vectors.

A pair without a common modality has the dot product of its `fallback` vectors, or without these NO_SCORE.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

NO_SCORE = -2.0  # less than any cosine: such pairs come last, in the order of the gallery


class Packing(NamedTuple):
    """How `pack` lays out a row: M*D numbers of parts, M squared norms, M masks, F numbers of the fallback."""

    modalities: int  # M
    width: int  # D
    fallback: int = 0  # F, 0 for none

    @property
    def total(self) -> int:
        return self.modalities * (self.width + 2) + self.fallback


class Parts(NamedTuple):
    """Rows by modality. Absent parts may hold any number."""

    parts: Array | np.ndarray  # [n,M,D]
    present: Array | np.ndarray  # [n,M] bool
    fallback: Array | np.ndarray | None = None  # [n,F] unit vectors

    @property
    def packing(self) -> Packing:
        """How these rows are packed."""
        return Packing(*self.parts.shape[1:], 0 if self.fallback is None else self.fallback.shape[1])


def pack(rows: Parts) -> Array:
    """The rows as [n,W] float32. The parts of a row are scaled to unit length together, which changes no similarity."""
    parts = jnp.where(rows.present[..., None], rows.parts, 0)
    parts = parts * _inverse_root(jnp.sum(parts * parts, axis=(1, 2), keepdims=True))
    columns = [parts.reshape(len(parts), -1), jnp.sum(parts * parts, axis=-1), rows.present.astype(jnp.float32)]
    return jnp.concatenate(columns + ([] if rows.fallback is None else [rows.fallback]), axis=1)


def unpack(rows: np.ndarray, packing: Packing) -> Parts:
    """The rows [n,W] of `pack` by modality, at unit length together."""
    parts, _, present, fallback = np.split(rows, _ends(packing), axis=1)
    M, D, F = packing
    return Parts(parts.reshape(-1, M, D), present > 0, fallback if F else None)


def similarities(query: Array, gallery: Array, packing: Packing | None = None, dtype: jnp.dtype = jnp.float32) -> Array:
    """Similarities [b,g] of rows [b,W] and [g,W]: of packed ones "common", else their dot products."""
    if packing is None:
        return _product(query, gallery, dtype)
    return common(query, gallery, packing, dtype)[0]


def common(query: Array, gallery: Array, packing: Packing, dtype: jnp.dtype = jnp.float32) -> tuple[Array, Array]:
    """Similarities [b,g] of packed rows [b,W] and [g,W], and which pairs have a modality in common [b,g].

    Parts and fallback vectors are rounded to `dtype` before they are multiplied; sums are in float32.
    """
    (q, q_squares, q_mask, q_fallback), (g, g_squares, g_mask, g_fallback) = (
        _columns(x, packing) for x in (query, gallery)
    )
    squares = _product(q_squares, g_mask) * _product(q_mask, g_squares)
    shared = _product(q_mask, g_mask) > 0
    cosine = _product(q, g, dtype) * _inverse_root(squares)
    other = _product(q_fallback, g_fallback, dtype) if packing.fallback else NO_SCORE
    return jnp.where(shared, cosine, other), shared


def _product(a: Array, b: Array, dtype: jnp.dtype = jnp.float32) -> Array:
    factors = a.astype(dtype), b.astype(dtype)
    exact = dict(precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    return jnp.einsum("bd,gd->bg", *factors, **exact)


def _inverse_root(squares: Array) -> Array:
    """1 / sqrt(x), 0 where x is too small for it."""
    long = squares > 1e-30
    return jnp.where(long, jax.lax.rsqrt(jnp.where(long, squares, 1)), 0)


def _columns(rows: Array, packing: Packing) -> list[Array]:
    return jnp.split(rows, _ends(packing), axis=1)


def _ends(packing: Packing) -> tuple[int, int, int]:
    M, D, _ = packing
    return M * D, M * D + M, M * D + 2 * M
