"""Retrieval vectors of one block per modality, and what fills the blocks of pictures that are missing or not used."""

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
