"""Batch-hard triplet loss (Miss-ReID, NeurIPS 2025, L_Tri of Eq. 11).

d_ap = max over rows of the anchor's identity, d_an = min over rows of the others, Euclidean, raw features
softplus(d_ap - d_an),  or  max(0, d_ap - d_an + margin)
"""

import jax
import jax.numpy as jnp

from jax_mmreid.ops import distance, masked


def batch_hard_triplet(
    feats: jax.Array, labels: jax.Array, *, margin: float | None = None, where: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Batch-hard triplet loss per anchor (Hermans et al., 2017); soft margin when `margin` is None.

    feats [B,D], labels [B], where [B] the anchors and candidates that exist  ->  (loss [B] float32,
    anchors [B] bool). An anchor counts if it exists and some existing row has another identity; elsewhere the
    loss is 0. So the loss of the batch is `masked.mean(loss, anchors)`. An anchor is one of its own positives.
    """
    where = jnp.ones(labels.shape, bool) if where is None else where
    feats = masked.blank(feats.astype(jnp.float32), where)
    # Features share a large common part early in training. Distances do not depend on it, float32 rounding does.
    feats = feats - jax.lax.stop_gradient(masked.mean(feats, where[:, None], axis=0))
    # The distance of a row to itself is known; computed, it would be rounding noise with a gradient.
    itself = jnp.eye(len(labels), dtype=bool)
    dist = jnp.where(itself, distance.FLOOR**0.5, distance.euclidean(feats, feats))  # [B,B]
    same = labels[:, None] == labels[None, :]
    farthest = jnp.max(jnp.where(same & where[None, :], dist, 0), axis=1)
    nearest = jnp.min(jnp.where(~same & where[None, :], dist, jnp.inf), axis=1)
    anchors = where & jnp.isfinite(nearest)
    gap = jnp.where(anchors, farthest - nearest, 0)
    loss = jax.nn.softplus(gap) if margin is None else jax.nn.relu(gap + margin)
    return masked.blank(loss, anchors), anchors
