"""The training head of person re-identification: a BN neck and a linear classifier (Luo et al., 2019)."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jax_mmreid.ops import masked


class BatchNorm(nn.Module):
    """BatchNorm1d with a mask, scale 1 trainable, no bias; statistics of the rows in `where` only.

    The running variance is the unbiased one, as in PyTorch. Where no row counts, statistics stay as they were.
    x [B,D], where [B] -> [B,D]. Call with `mutable=["batch_stats"]` when `train`.
    """

    momentum: float = 0.9
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, where: Array, *, train: bool) -> Array:
        dim = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (dim,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (dim,))
        scale = self.param("scale", nn.initializers.ones, (dim,))
        if train:
            count = where.sum().astype(jnp.float32)
            rows = where[:, None]
            x = masked.blank(x, where)  # first: NaN times a gradient of zero is NaN
            mean = masked.mean(x, rows, axis=0)
            var = masked.mean(jnp.square(x - mean), rows, axis=0)
            if not self.is_initializing():
                keep = jnp.where(count > 0, self.momentum, 1.0)
                unbiased = var * count / jnp.maximum(count - 1.0, 1.0)
                running_mean.value = keep * running_mean.value + (1.0 - keep) * mean
                running_var.value = keep * running_var.value + (1.0 - keep) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        return (x - mean) * jnp.reciprocal(jnp.sqrt(var + self.eps)) * scale


class Head(nn.Module):
    """Class logits of a feature through its neck: feats [B,D], where [B] -> logits [B,K]."""

    classes: int

    @nn.compact
    def __call__(self, feats: Array, where: Array, *, train: bool) -> Array:
        neck = BatchNorm(name="neck")(feats, where, train=train)
        init = nn.initializers.normal(0.001)
        return nn.Dense(self.classes, use_bias=False, kernel_init=init, name="classifier")(neck)
