"""Triplet and identity loss of several features, each behind a head of its own (Miss-ReID, NeurIPS 2025, Eq. 11)."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jax_mmreid.losses.identity import cross_entropy
from jax_mmreid.losses.triplet import batch_hard_triplet
from jax_mmreid.ops import masked


class Branch(NamedTuple):
    """Scalars, and the statistics of all heads after the step."""

    triplet: Array
    identity: Array
    accuracy: Array
    stats: dict[str, Any]


def branch(
    head: nn.Module,
    params: dict[str, Any],
    stats: dict[str, Any],
    feats: dict[str, Array],
    where: dict[str, Array],
    label: Array,
    *,
    margin: float | None,
    smoothing: float,
    temperature: float = 0.0,
) -> Branch:
    """The losses of features {name: [B,D]} in training, summed over names, and the mean accuracy of their heads.

    `head` maps (feats [B,D], where [B]) to logits [B,K]; its parameters and statistics are {name: ...}. The triplet
    loss takes the features themselves, soft margin when `margin` is None; with a `temperature` it takes the features
    less their mean, at unit length, and divides distances by it. The cross-entropy, with label smoothing, takes the
    logits. where {name: [B]} are the rows that exist, label [B].
    """
    triplet = identity = accuracy = 0.0
    for name, x in feats.items():
        w = where[name]
        variables = {"params": params[name], "batch_stats": stats[name]}
        logits, updated = head.apply(variables, x, w, train=True, mutable=["batch_stats"])
        stats = stats | {name: updated["batch_stats"]}
        if temperature:
            x = masked.unit(x - masked.mean(x, w[:, None], axis=0)) / temperature
        hard, anchors = batch_hard_triplet(x, label, margin=margin, where=w)
        triplet += masked.mean(hard, anchors)
        identity += masked.mean(cross_entropy(logits, label, smoothing=smoothing, where=w), w)
        accuracy += masked.mean((logits.argmax(-1) == label).astype(jnp.float32), w) / len(feats)
    return Branch(triplet, identity, accuracy, stats)
