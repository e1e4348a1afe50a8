"""Pairwise distances in float32 at full matrix precision: reduced precision would reorder near neighbours."""

import jax
import jax.numpy as jnp

# Below this a squared distance is rounding, and the gradient of its root would be too.
FLOOR = 1e-12


def squared(x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared Euclidean distances, x [...,N,D], y [...,G,D] -> [...,N,G] float32, never negative."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    dots = jnp.einsum("...nd,...gd->...ng", x, y, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(x * x, -1)[..., :, None] + jnp.sum(y * y, -1)[..., None, :]
    return jnp.maximum(norms - 2 * dots, 0)


def euclidean(x: jax.Array, y: jax.Array) -> jax.Array:
    """Euclidean distances, x [...,N,D], y [...,G,D] -> [...,N,G] float32; below the floor the gradient is 0."""
    return jnp.sqrt(jnp.maximum(squared(x, y), FLOOR))
