"""Reductions with a mask, and normalisation, all with finite gradients.

Missing entries may hold any value, NaN included. Multiplying by the mask, or selecting after the arithmetic, leaves
0 * NaN in the backward pass; so missing entries are replaced before they are used.
"""

import jax
import jax.numpy as jnp

# Vectors shorter than this count as zero: the derivative of |x|^-1 is still finite here in float32.
SHORTEST = 1e-12


def mean(x: jax.Array, where: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Mean of x over `axis` of the entries that `where` selects, float32; 0 where it selects none."""
    x, where = jnp.broadcast_arrays(x.astype(jnp.float32), where)
    return jnp.sum(jnp.where(where, x, 0), axis) / jnp.maximum(jnp.sum(where, axis), 1)


def blank(x: jax.Array, present: jax.Array) -> jax.Array:
    """x [B,...] with zeros in the rows that are not `present` [B]."""
    return jnp.where(present.reshape(present.shape + (1,) * (x.ndim - present.ndim)), x, 0)


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
    """x divided by its L2 norm along `axis`, float32; a zero vector stays zero and gets a zero gradient."""
    x = x.astype(jnp.float32)
    return x * inverse_length(x, axis)


def inverse_length(x: jax.Array, axis: int = -1) -> jax.Array:
    """1 divided by the L2 norm of float32 x along `axis`, which stays with size 1; 0, and no gradient, for zeros."""
    square = jnp.sum(x * x, axis, keepdims=True)
    long = square > SHORTEST**2
    return jnp.where(long, jax.lax.rsqrt(jnp.where(long, square, 1)), 0)
