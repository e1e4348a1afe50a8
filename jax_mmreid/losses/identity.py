"""Identity classification: cross-entropy with label smoothing (Miss-ReID, NeurIPS 2025, L_CE of Eq. 11).

target = (1 - e) onehot(y) + e / K
"""

import jax
import jax.numpy as jnp

from jax_mmreid.ops import masked


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    smoothing: float = 0.1,
    where: jax.Array | None = None,
    classes: int | None = None,
) -> jax.Array:
    """Smoothed cross-entropy per row (Szegedy et al., 2016).

    logits [B,K], labels [B] in 0..K-1, where [B] the rows that exist  ->  [B] float32, 0 in the other rows. Of columns
    that only fill up, `classes` come first, K in the formula, and the logits of the others are -inf.
    """
    where = jnp.ones(labels.shape, bool) if where is None else where
    logits = masked.blank(logits.astype(jnp.float32), where)
    columns = logits.shape[-1]
    classes = columns if classes is None else classes
    log_p = jax.nn.log_softmax(logits)
    if classes < columns:
        log_p = jnp.where(jnp.arange(columns) < classes, log_p, 0)
    target = (1 - smoothing) * jax.nn.one_hot(labels, columns) + smoothing / classes
    return masked.blank(-jnp.sum(target * log_p, axis=-1), where)
