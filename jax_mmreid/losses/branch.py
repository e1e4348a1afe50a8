"""Triplet and identity loss of several features, each behind a head of its own (Miss-ReID, NeurIPS 2025, Eq. 11)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jax_mmreid.losses.identity import cross_entropy
from jax_mmreid.losses.triplet import batch_hard_triplet, in_blocks
from jax_mmreid.ops import masked


class Branch(NamedTuple):
    """Scalars, and the statistics of all heads after the step."""

    triplet: Array
    identity: Array
    accuracy: Array
    stats: dict[str, Any]

    def terms(self, prefix: str) -> dict[str, Array]:
        """The loss terms, by names that begin with `prefix`."""
        return {f"{prefix}triplet": self.triplet, f"{prefix}identity": self.identity}


@dataclasses.dataclass(frozen=True)
class BranchLoss:
    """The losses of several features in training, summed over their names, and the mean accuracy of their heads.

    The triplet loss takes the features themselves, soft margin when `margin` is None; with a `temperature` it takes the
    features less their mean, at unit length, and divides distances by it. It finds its pairs within each of `blocks`
    blocks of the batch. The cross-entropy, with label smoothing, takes the logits.
    """

    head: nn.Module  # of `models.heads.Head`
    margin: float | None
    smoothing: float
    temperature: float = 0.0
    blocks: int = 1

    @classmethod
    def create(cls, head: nn.Module, config: Any) -> Self:
        """The losses of a method with the fields margin, label_smooth, triplet_tau and mining_blocks."""
        margin = config.margin if config.margin >= 0 else None
        return cls(head, margin, config.label_smooth, config.triplet_tau, config.mining_blocks)

    def __call__(
        self,
        params: dict[str, Any],
        stats: dict[str, Any],
        names: Sequence[str],
        feats: Array,
        where: Array,
        label: Array,
    ) -> Branch:
        """feats [B,len(names),D], of which where [B,len(names)] exist, label [B].

        Parameters and statistics of the heads are {name: ...}.
        """
        hard = functools.partial(batch_hard_triplet, margin=self.margin)
        triplet = identity = accuracy = 0.0
        for i, name in enumerate(names):
            x, w = feats[:, i], where[:, i]
            variables = {"params": params[name], "batch_stats": stats[name]}
            logits, updated = self.head.apply(variables, x, w, train=True, mutable=["batch_stats"])
            stats = stats | {name: updated["batch_stats"]}
            if self.temperature:
                x = masked.unit(x - masked.mean(x, w[:, None], axis=0)) / self.temperature
            if self.blocks == 1:
                triplet += masked.mean(*hard(x, label, where=w))
            else:
                triplet += masked.mean(*in_blocks(hard, self.blocks, [x], label, [w]))
            loss = cross_entropy(logits, label, smoothing=self.smoothing, where=w, classes=self.head.classes)
            identity += masked.mean(loss, w)
            accuracy += masked.mean((logits.argmax(-1) == label).astype(jnp.float32), w) / len(names)
        return Branch(triplet, identity, accuracy, stats)
