"""Triplet losses on Euclidean distances of raw features.

Batch-hard (Miss-ReID, NeurIPS 2025, L_Tri of Eq. 11): softplus(d_ap - d_an), or max(0, d_ap - d_an + margin), with
d_ap = max over rows of the anchor's identity, d_an = min over rows of the others.

Weighted (TVI-LFM, NeurIPS 2024; Ye et al., 2021, "AGW"): softplus(d_ap - d_an), with d_ap and d_an means under softmax
weights of d and of -d.

Both look at all rows of a batch, or with `in_blocks` at each of several equal blocks of it by itself.
"""

from collections.abc import Callable, Sequence

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
    dist = _distances(feats, where)
    same = labels[:, None] == labels[None, :]
    farthest = jnp.max(jnp.where(same & where[None, :], dist, 0), axis=1)
    nearest = jnp.min(jnp.where(~same & where[None, :], dist, jnp.inf), axis=1)
    anchors = where & jnp.isfinite(nearest)
    gap = jnp.where(anchors, farthest - nearest, 0)
    loss = jax.nn.softplus(gap) if margin is None else jax.nn.relu(gap + margin)
    return masked.blank(loss, anchors), anchors


def weighted_triplet(
    feats: jax.Array, labels: jax.Array, *, where: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Weighted-regularised triplet loss per anchor, with its weights as the published results have them.

    feats, labels, where -> (loss, anchors) as in `batch_hard_triplet`. The weights are exp(d - max d) for positives,
    the anchor included, and exp(-d) for negatives, each divided by its sum + 1e-6. The 1e-6 is part of the loss: from
    distances of about 14 on it is larger than the sum of the negatives, so that d_an falls towards 0, and early in
    training features are that far apart. A softmax would be a different loss.
    """
    where = jnp.ones(labels.shape, bool) if where is None else where
    dist = _distances(feats, where)
    candidates = where[None, :]
    same = labels[:, None] == labels[None, :]
    positive, negative = same & candidates, ~same & candidates
    farthest = jnp.max(jnp.where(positive, dist, 0), axis=1, keepdims=True)
    pull = jnp.where(positive, jnp.exp(jnp.where(positive, dist - farthest, 0)), 0)
    push = jnp.where(negative, jnp.exp(-dist), 0)
    d_ap, d_an = ((weight * dist).sum(axis=1) / (weight.sum(axis=1) + 1e-6) for weight in (pull, push))
    anchors = where & negative.any(axis=1)
    return masked.blank(jax.nn.softplus(d_ap - d_an), anchors), anchors


def in_blocks(
    loss: Callable, blocks: int, feats: Sequence[jax.Array], labels: jax.Array, where: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """A triplet loss of features of several kinds, of each of `blocks` equal blocks of the batch by itself.

    feats [B,D] and where [B] of each kind, labels [B] -> loss and anchors of all kinds. With a block for every device
    that has rows, none needs the features of another.
    """
    # The kinds of a row stay beside each other, so that a block has them all.
    columns = [jnp.stack(x, axis=1) for x in (feats, [labels] * len(feats), where)]
    columns = [x.reshape(blocks, -1, *x.shape[2:]) for x in columns]
    found = jax.vmap(lambda feats, labels, where: loss(feats, labels, where=where))(*columns)
    return tuple(x.reshape(-1) for x in found)


def _distances(feats: jax.Array, where: jax.Array) -> jax.Array:
    """Distances [B,B] float32 between the rows that exist; entries of other rows are undefined."""
    feats = masked.blank(feats.astype(jnp.float32), where)
    # Early in training features have a large common part. Distances do not depend on it, but their rounding does.
    feats = feats - jax.lax.stop_gradient(masked.mean(feats, where[:, None], axis=0))
    # The distance of a row to itself is known; computing it gives rounding noise with a gradient.
    itself = jnp.eye(len(feats), dtype=bool)
    return jnp.where(itself, distance.FLOOR**0.5, distance.euclidean(feats, feats))
