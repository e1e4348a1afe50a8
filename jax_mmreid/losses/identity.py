"""Identity classification: cross-entropy with label smoothing (Miss-ReID, NeurIPS 2025, L_CE of Eq. 11).

target = (1 - e) onehot(y) + e / K
"""

import jax
import jax.numpy as jnp

from jax_mmreid.ops import masked


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.1, where: jax.Array | None = None
) -> jax.Array:
    """Smoothed cross-entropy per row (Szegedy et al., 2016).

    logits [B,K], labels [B] in 0..K-1, where [B] the rows that exist  ->  [B] float32, 0 in the other rows.
    """
    where = jnp.ones(labels.shape, bool) if where is None else where
    logits = masked.blank(logits.astype(jnp.float32), where)
    classes = logits.shape[-1]
    target = (1 - smoothing) * jax.nn.one_hot(labels, classes) + smoothing / classes
    return masked.blank(-jnp.sum(target * jax.nn.log_softmax(logits), axis=-1), where)
