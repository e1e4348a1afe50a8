"""Retrieval vectors of one block per modality, and what fills the blocks of pictures that are missing or not used."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from jax_mmreid.ops import masked

IMPUTATIONS = ("text", "zero", "alone")  # of rows with text features, and without them:
FILLS = ("zero_feature", "mean_feature", "encode_zero_image")


def without_text(kind: str, feats: Array, available: Array, blank: Array | None = None) -> Array:
    """What one of FILLS puts in place of absent features: feats [B,M,D], available [B,M] -> [B,M,D] or [B,1,D].

    Zeros, the mean of the available ones, or `blank` [B,D], the feature of a picture of zeros.
    """
    if kind == "mean_feature":
        return masked.mean(feats, available[..., None], axis=1)[:, None]
    return blank[:, None] if kind == "encode_zero_image" else jnp.zeros_like(feats)


def join(parts: Array, *, normalise: bool) -> Array:
    """Unit vectors [B,M*D] of parts [B,M,D]; with `normalise` each part has unit length before they are joined."""
    parts = masked.unit(parts) if normalise else parts
    return masked.unit(parts.reshape(len(parts), -1))


def split(vectors: Array, names: Sequence[str], imputed: Array) -> dict[str, Array]:
    """The blocks of vectors [B,M*D], each [B,M*D] with zeros around it; they add up to the vectors.

    Those that are `imputed` [B,M] are terms of their own, "imputed rgb": a row has zeros in one of the two.
    """
    blocks = vectors.reshape(len(vectors), len(names), -1)
    found = {}
    for i, name in enumerate(names):
        alone = jnp.zeros_like(blocks).at[:, i].set(blocks[:, i]).reshape(vectors.shape)
        found[name] = masked.blank(alone, ~imputed[:, i])
        found[f"imputed {name}"] = masked.blank(alone, imputed[:, i])
    return found
