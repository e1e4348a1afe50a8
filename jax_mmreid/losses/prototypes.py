"""M-bHIPR (Miss-ReID, NeurIPS 2025, Eq. 2-4 and Eq. 10): contrast with prototypes, and their update in a training step.

The prototypes and their updates as such (Eq. 2-3) are in `ops.memory`, the loss of a row (Eq. 4, Eq. 10) in
`losses.contrastive`. Shapes: feats and text [B,M,D], label [B], present [B,M], prototypes [M,K,D].
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from jax_mmreid.losses.contrastive import prototype_nce
from jax_mmreid.ops import masked, memory

ORDERS = ("after_loss", "before_loss")


@dataclasses.dataclass(frozen=True)
class MemoryFields:
    """`config.model.memory`: how prototypes are kept."""

    alpha: float  # of Eq. 3: the weight of the old prototype in an update
    update: str  # one of memory.UPDATES
    order: str  # one of ORDERS: when prototypes are updated
    passive: bool  # keep prototypes for the text loss alone in rows without the visual one, as in row E of Table 1


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """The two contrastive terms of Eq. 11 and the memory behind them."""

    fields: MemoryFields
    tau: float
    steps_per_epoch: int
    visual: bool  # whether there is the term of Eq. 4

    def init(self, modalities: int, identities: int, dim: int) -> dict[str, Array]:
        """The memory before any feature."""
        return memory.empty(modalities, identities, dim, update=self.fields.update)

    def terms(
        self, bank: dict[str, Array], step: Array, label: Array, feats: Array, present: Array, text: Array | None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """The terms nce (Eq. 4) and, given text features f~, text_nce (Eq. 10), and the memory after this step."""
        updated = self._update(bank, step, label, feats, present, text)
        proto = (updated if self.fields.order == "before_loss" else bank)["proto"]
        terms = {}
        if self.visual:
            terms["nce"] = self._contrast(proto, feats, label, present)
        if text is not None:
            some = jnp.broadcast_to(present.any(axis=1, keepdims=True), present.shape)
            terms["text_nce"] = self._contrast(proto, text, label, some)
        return terms, updated

    def _contrast(self, proto: Array, feats: Array, label: Array, where: Array) -> Array:
        """Mean over the rows in `where` [B,M] whose prototype exists, summed over modalities."""
        valid = memory.valid(proto)
        total = 0.0
        for m in range(len(proto)):
            counted = where[:, m] & valid[m, label]
            nce = prototype_nce(feats[:, m], label, proto[m], tau=self.tau, valid=valid[m], where=counted)
            total += masked.mean(nce, counted)
        return total

    def _update(
        self, bank: dict[str, Array], step: Array, label: Array, feats: Array, present: Array, text: Array | None
    ) -> dict[str, Array]:
        """Moves the prototypes towards this batch (Eq. 3).

        Text features move only prototypes of identities that have no training picture of the modality (Section 3.4).
        """
        if text is not None:
            unseen = ~bank["has_visual"][:, label].T  # [B,M]
            feats = jnp.where(unseen[..., None], text, feats)
            present = present | (unseen & present.any(axis=1, keepdims=True))
        ends = (step + 1) % self.steps_per_epoch == 0
        options = dict(alpha=self.fields.alpha, update=self.fields.update, epoch_ends=ends)
        return memory.update(bank, feats, label, present, **options)
