"""The layers between a tower and its losses: GeM pooling, the BN neck and a linear classifier (Luo et al., 2019)."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jax_mmreid.models.norm import BatchNorm


class GeM(nn.Module):
    """Generalised-mean pooling with one trainable exponent (Radenovic et al., 2018): x [B,h,w,D] -> [B,D] float32."""

    floor: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        p = self.param("p", nn.initializers.constant(3.0), (1,))
        x = jnp.maximum(x.astype(jnp.float32), self.floor)
        # Divided by the largest value first: the same result, and no power leaves the range of float32.
        top = jax.lax.stop_gradient(x.max((1, 2), keepdims=True))
        return jnp.power(jnp.power(x / top, p).mean((1, 2)), 1.0 / p) * top[:, 0, 0]


class Head(nn.Module):
    """Class logits of a feature through its neck: feats [B,D], where [B] or None for all rows -> logits [B,K].

    `fill` columns follow the classes, so that devices can share them evenly; their logits are -inf.
    """

    classes: int
    neck_bias: bool = False
    fill: int = 0

    def setup(self):
        self.neck = BatchNorm(self.neck_bias)
        columns = self.classes + self.fill
        self.classifier = nn.Dense(columns, use_bias=False, kernel_init=nn.initializers.normal(0.001))

    def __call__(self, feats: Array, where: Array | None = None, *, train: bool) -> Array:
        logits = self.classifier(self.neck(feats, where, train=train))
        if not self.fill:
            return logits
        return jnp.where(jnp.arange(logits.shape[-1]) < self.classes, logits, -jnp.inf)

    def bn_features(self, feats: Array, where: Array | None = None, *, train: bool = False) -> Array:
        """The neck's output alone, before the classifier: [B,D]."""
        return self.neck(feats, where, train=train)


def init_heads(head: Head, rng: Array, widths: Mapping[str, int]) -> tuple[dict, dict]:
    """Initial parameters and statistics {name: ...} of a head for each feature of `widths` {name: D}."""
    params, stats = {}, {}
    for i, (name, width) in enumerate(widths.items()):
        key = jax.random.fold_in(rng, i)
        variables = head.init(key, jnp.zeros((1, width)), jnp.ones(1, bool), train=False)
        params[name], stats[name] = variables["params"], variables["batch_stats"]
    return params, stats
