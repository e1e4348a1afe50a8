"""Contrast of features with the prototypes of all identities (Miss-ReID, NeurIPS 2025, Eq. 4 and Eq. 10).

    z[i,k] = unit(f[i]) . p[k] / tau,   loss[i] = logsumexp_k z[i,k] - z[i,y_i]

In Eq. 4 f is the class embedding of a picture, in Eq. 10 its text feature f~. `losses.prototypes` takes the mean.
"""

import jax
import jax.numpy as jnp

from jax_mmreid.ops import masked


def prototype_nce(
    feats: jax.Array,
    labels: jax.Array,
    proto: jax.Array,
    *,
    tau: float,
    valid: jax.Array,
    where: jax.Array | None = None,
) -> jax.Array:
    """ClusterNCE per row (Dai et al., 2022), no gradient into the prototypes.

    feats [B,D] of any norm, labels [B] in 0..K-1, proto [K,D] unit rows, valid [K] the prototypes that exist,
    where [B] the rows that exist  ->  [B] float32, 0 where a row or its own prototype does not exist.
    """
    counted = valid[labels] if where is None else where & valid[labels]
    feats = masked.unit(masked.blank(feats, counted))
    proto = masked.blank(jax.lax.stop_gradient(proto).astype(jnp.float32), valid)
    logits = jnp.einsum("bd,kd->bk", feats, proto, precision=jax.lax.Precision.HIGHEST) / tau
    # A counted row has at least one valid class, its own, so its logsumexp is finite; the others get zeros.
    logits = masked.blank(jnp.where(valid, logits, -jnp.inf), counted)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return masked.blank(jax.nn.logsumexp(logits, axis=1) - own, counted)
