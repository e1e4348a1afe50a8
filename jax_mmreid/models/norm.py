"""Batch normalisation as PyTorch computes it, with a mask over rows: the neck's (vectors) and the ResNet's (maps)."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jax_mmreid.ops import masked


class BatchNorm(nn.Module):
    """BatchNorm over every axis but the last, with a trainable scale; statistics of the rows in `where` only.

    Rows are normalised with the biased variance and the running one is the unbiased, as in PyTorch. Where no row
    counts, statistics stay as they were. They are float32; the output has the dtype of x.
    x [B,...,D], where [B] or None for all rows -> [B,...,D]. Call with `mutable=["batch_stats"]` when `train`.
    """

    use_bias: bool = False
    momentum: float = 0.9
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, where: Array | None = None, *, train: bool) -> Array:
        dim, dtype = x.shape[-1], x.dtype
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (dim,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (dim,))
        scale = self.param("scale", nn.initializers.ones, (dim,))
        x = x.astype(jnp.float32)
        if train:
            if where is not None:
                x = masked.blank(x, where)  # first: NaN times a gradient of zero is NaN
            mean, count = _mean(x, where)
            var, _ = _mean(jnp.square(x - mean), where)
            if not self.is_initializing():
                keep = jnp.where(count > 0, self.momentum, 1.0)
                unbiased = var * count / jnp.maximum(count - 1.0, 1.0)
                running_mean.value = keep * running_mean.value + (1.0 - keep) * mean
                running_var.value = keep * running_var.value + (1.0 - keep) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        y = (x - mean) * jnp.reciprocal(jnp.sqrt(var + self.eps)) * scale
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (dim,))
        return y.astype(dtype)


def _mean(x: Array, where: Array | None) -> tuple[Array, Array | float]:
    """The mean of x [B,...,D] over all but D, of the rows in `where`, and the number of values behind it."""
    axes = tuple(range(x.ndim - 1))
    if where is None:
        return x.mean(axes), float(math.prod(x.shape[:-1]))
    count = where.sum().astype(jnp.float32) * math.prod(x.shape[1:-1])
    return masked.mean(x, where.reshape(-1, *[1] * (x.ndim - 1)), axes), count
