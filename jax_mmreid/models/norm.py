"""Batch normalisation as PyTorch computes it, with a mask over rows: the neck's (vectors) and the ResNet's (maps)."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jax_mmreid.ops import masked


class BatchNorm(nn.Module):
    """BatchNorm over every axis but the last, with a trainable scale; statistics of the rows in `where` only.

    As in PyTorch, rows are normalised with the biased variance, and the running variance is the unbiased one. Without
    any row in `where` the statistics do not change. They are float32; the output has the dtype of x.
    x [B,...,D], where [B] or None for all rows -> [B,...,D]. Call with `mutable=["batch_stats"]` when `train`.
    """

    use_bias: bool = False
    momentum: float = 0.9
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, where: Array | None = None, *, train: bool) -> Array:
        dim = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (dim,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (dim,))
        scale = self.param("scale", nn.initializers.ones, (dim,))
        bias = self.param("bias", nn.initializers.zeros, (dim,)) if self.use_bias else 0.0
        if not train:
            return _affine(x, running_mean.value, running_var.value, scale, bias, self.eps)
        y, mean, var, count = _normalise(x, where, scale, bias, self.eps)
        if not self.is_initializing():
            keep = jnp.where(count > 0, self.momentum, 1.0)
            unbiased = var * count / jnp.maximum(count - 1.0, 1.0)
            running_mean.value = keep * running_mean.value + (1.0 - keep) * mean
            running_var.value = keep * running_var.value + (1.0 - keep) * unbiased
        return y


@functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("moment"), static_argnums=4)
def _normalise(
    x: Array, where: Array | None, scale: Array, bias: Array | float, eps: float
) -> tuple[Array, Array, Array, Array | float]:
    """x normalised by its own statistics, and the mean [D], the variance [D] and the count of its values.

    The backward pass keeps x and the moments and recomputes the rest. Keeping that too, in float32 for every layer,
    would be most of the memory that training a ResNet takes.
    """
    values = x.astype(jnp.float32)
    if where is not None:
        values = masked.blank(values, where)  # first: NaN times a gradient of zero is NaN
    mean, count = _mean(values, where)
    mean = checkpoint_name(mean, "moment")
    var = checkpoint_name(_mean(jnp.square(values - mean), where)[0], "moment")
    return _affine(values, mean, var, scale, bias, eps).astype(x.dtype), mean, var, count


def _affine(x: Array, mean: Array, var: Array, scale: Array, bias: Array | float, eps: float) -> Array:
    """x [B,...,D] less the mean, over the deviation, times the scale, plus the bias; computed in float32."""
    y = (x.astype(jnp.float32) - mean) * jnp.reciprocal(jnp.sqrt(var + eps)) * scale + bias
    return y.astype(x.dtype)


def _mean(x: Array, where: Array | None) -> tuple[Array, Array | float]:
    """The mean of x [B,...,D] over all but D, of the rows in `where`, and the number of values behind it."""
    axes = tuple(range(x.ndim - 1))
    if where is None:
        return x.mean(axes), float(math.prod(x.shape[:-1]))
    count = where.sum().astype(jnp.float32) * math.prod(x.shape[1:-1])
    return masked.mean(x, where.reshape(-1, *[1] * (x.ndim - 1)), axes), count
