"""M-iOSM: learnable queries read one structure vector per picture from patch tokens (Miss-ReID, Eq. 5-7)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jax_mmreid.models.clip import LayerNorm


@dataclasses.dataclass(frozen=True)
class StructureFields:
    """`config.model.structure`; all but `tokens` are the fields of `StructureQueries`."""

    queries: int
    width: int
    heads: int
    out_proj: bool
    tokens: str  # what the queries read: patch tokens before ("pre_proj") or after ("proj") the tower's projection


class StructureQueries(nn.Module):
    """One cross-attention layer; its queries are shared by all pictures and modalities.

    Q_h = LN(Q) Wq_h, K_h = LN(F) Wk_h, V_h = LN(F) Wv_h; heads concatenated; no residual, no feed-forward part
    (Eq. 5-6). tokens [B,N,D] -> structure [B,width], the mean over queries, and attention [B,queries,heads,N].
    """

    queries: int
    width: int
    heads: int
    out_proj: bool = False  # the paper's equations have none

    @nn.compact
    def __call__(self, tokens: Array) -> tuple[Array, Array]:
        split = (self.heads, self.width // self.heads)
        query = self.param("query", nn.initializers.normal(self.width**-0.5), (self.queries, self.width))

        def dense(name):
            return nn.DenseGeneral(split, use_bias=False, kernel_init=nn.initializers.xavier_uniform(), name=name)

        tokens = LayerNorm(name="ln_tokens")(tokens)
        q = dense("query_projection")(LayerNorm(name="ln_query")(query)).transpose(1, 0, 2)  # [heads,queries,d]
        k = dense("key_projection")(tokens).transpose(0, 2, 1, 3)  # [B,heads,N,d]
        v = dense("value_projection")(tokens).transpose(0, 2, 1, 3)
        attention = jax.nn.softmax(jnp.einsum("hqd,bhnd->bhqn", q, k) * split[1] ** -0.5)
        # The mean over queries commutes with everything after it.
        x = jnp.einsum("bhn,bhnd->bhd", attention.mean(axis=2), v).reshape(-1, self.width)
        if self.out_proj:
            x = nn.Dense(self.width, name="out_projection")(x)
        return x, attention.transpose(0, 2, 1, 3)


def kept_in_training(present: Array, rng: Array | None, drop: float) -> Array:
    """Which pictures a structure vector is read from in training, [B,M]: of each row at least one that is present.

    The others, a share `drop` of those present [B,M], are drawn with `rng`, which is not used without any.
    """
    if not drop:
        return present
    kept = present & jax.random.bernoulli(rng, 1 - drop, present.shape)
    return jnp.where(kept.any(axis=1, keepdims=True), kept, present)
