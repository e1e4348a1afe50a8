"""Unit vectors as sums of terms, so that the score of two vectors is the sum of what each term adds to it."""

from collections.abc import Collection, Mapping, Sequence

import jax.numpy as jnp
from jax import Array

from jax_mmreid.ops import masked


def terms_of_blocks(vectors: Array, names: Sequence[str], imputed: Array) -> dict[str, Array]:
    """The blocks of vectors [B,M*D], each [B,M*D] with zeros around it.

    Those that are `imputed` [B,M] are terms of their own, "imputed rgb": a row has zeros in one of the two.
    """
    blocks = vectors.reshape(len(vectors), len(names), -1)
    found = {}
    for i, name in enumerate(names):
        alone = jnp.zeros_like(blocks).at[:, i].set(blocks[:, i]).reshape(vectors.shape)
        found[name] = masked.blank(alone, ~imputed[:, i])
        found[f"imputed {name}"] = masked.blank(alone, imputed[:, i])
    return found


def terms_of_sum(whole: Array, parts: Mapping[str, Array], alone: Collection[str] = ()) -> dict[str, Array]:
    """The terms of unit(unit(whole) + sum of unit(parts[name]) over `alone`), all [B,D]; the parts add up to `whole`.

    So without `alone` those of unit(whole).
    """
    first = masked.inverse_length(whole)
    own = {name: masked.inverse_length(parts[name]) for name in alone}
    last = masked.inverse_length(whole * first + sum(parts[name] * own[name] for name in alone))
    return {name: x * ((first + own.get(name, 0.0)) * last) for name, x in parts.items()}
