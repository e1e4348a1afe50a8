"""Retrieval by what pictures look like, without any learning: what a trained model must be better than.

    row = dict(
        kind="pixels",
        options=dict(feature="gradients"),  # one of ops.descriptors.DESCRIPTORS: pixels, mean_free, gradients
        query=dict(split="query", use=("nir",)), gallery=dict(split="gallery", use=("rgb",)), junk="same_camera",
        # and trials, cmc, incomplete, draw, mixed as in `retrieval`
    )

Rows are compared as `similarity="common"` of `retrieval` compares them: by the mean of the cosines of the modalities
that both have; without a common one, by the cosine of the means of what each has. So the numbers stand beside those of
a retrieval row with the same query, gallery and junk. No weights change them: training measures them once, at its end.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from jax_mmreid.batch import Batch, Data
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import Result
from jax_mmreid.evaluators.encoder import Encoder
from jax_mmreid.evaluators.retrieval import Retrieval
from jax_mmreid.methods import Features, Method
from jax_mmreid.ops import masked
from jax_mmreid.ops.descriptors import DESCRIPTORS

FIXED = ("similarity", "fallback", "rerank")  # fields of `retrieval` that rows of this kind do not have


@dataclasses.dataclass(frozen=True)
class Pictures(Method):
    """A method without parameters, whose features are DESCRIPTORS of the pictures, which are pixels in [0, 1]."""

    options: ClassVar = {"feature": tuple(DESCRIPTORS)}
    init = loss = None  # nothing is trained

    modalities: tuple[str, ...]
    feature: str = next(iter(DESCRIPTORS))

    def encode(self, variables: dict, batch: Batch) -> Features:
        """{descriptor: {modality: unit vectors [B,D]}} of the pictures in the batch, and "present" {modality: [B]}."""
        found = {
            name: {m: masked.unit(descriptor(x)) for m, x in batch["images"].items()}
            for name, descriptor in DESCRIPTORS.items()
        }
        return found | {"present": {m: batch["present"][m] for m in batch["images"]}}

    def parts(self, variables: dict, features: Features, use: tuple[str, ...]) -> tuple[Array, Array]:
        found, present = features[self.feature], features["present"]
        some = next(iter(found.values()))
        absent, never = jnp.zeros_like(some), jnp.zeros(len(some), bool)
        shown = [m in use and m in found for m in self.modalities]
        parts = [found[m] if there else absent for m, there in zip(self.modalities, shown)]
        where = [present[m] if there else never for m, there in zip(self.modalities, shown)]
        return jnp.stack(parts, axis=1), jnp.stack(where, axis=1)

    def embed(self, variables: dict, features: Features, use: tuple[str, ...]) -> Array:
        """The sum of a row's unit vectors, at unit length [B,D]; zeros where it has no picture of `use`."""
        parts, present = self.parts(variables, features, use)
        return masked.unit(jnp.sum(jnp.where(present[..., None], parts, 0), axis=1))


class Pixels(Retrieval):
    """See the module. The result is that of `Retrieval` with similarity="common"."""

    LEARNED = False
    DEFAULTS: ClassVar = Retrieval.DEFAULTS | dict(similarity="common")

    def method(self, data: Data) -> Method:
        return Pictures(tuple(data.spec.modalities))

    def check(self, data: Data) -> None:
        for key in FIXED:
            if key in self.row:
                raise ConfigError(f"{key} belongs to rows of kind 'retrieval'; leave it out")
        super().check(data)
        for _, use in self.uses():
            if not set(use) <= set(data.spec.modalities):
                raise ConfigError(f"use={use}: kind 'pixels' compares pictures; name modalities only")
        if "feature" not in self.row.get("options", {}):
            raise ConfigError(f"options lacks the key 'feature'; it is one of {', '.join(DESCRIPTORS)}")
        self.method(data).with_options(self.row["options"], "options")

    def check_method(self, method: Method, variables: Any, features: Mapping[str, Features]) -> None:
        """Nothing: a row does not depend on the trained method."""

    def run(self, encoder: Encoder) -> Result:
        result = super().run(encoder)
        encoder.forget_vectors()  # they are much wider than what they are made of
        return result
