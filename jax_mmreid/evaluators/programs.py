"""The towers as compiled programs over the rows of a batch, and the forms in which rows are compared."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from jax_mmreid.batch import Batch
from jax_mmreid.evaluators import Use
from jax_mmreid.methods import Features, Method
from jax_mmreid.metrics import similarity
from jax_mmreid.metrics.similarity import Packing, Parts
from jax_mmreid.ops import augment

Level = float | tuple[float, ...]  # of a picture's channels: one number or one each

# A batch goes through a tower in so many parts, one after the other on one device, side by side on several. A tower
# that always sees the same number of rows rounds in the same way, so results are equal on 1, 2, 4 and 8 devices.
PARTS = 8
# How rows are compared: by the vectors of `Method.embed`; by the modalities that both have (`metrics.similarity`), and
# without a common one not at all; or then by the vectors of `Method.embed_available`.
EMBED, COMMON, COMMON_OR_AVAILABLE = FORMS = ("embed", "common", "common or available")


def rows_at_once(rows: int, devices: int) -> int:
    """How many of the rows of a batch on so many devices a tower sees at once."""
    return rows // PARTS if rows % PARTS == PARTS % devices == 0 else rows // devices


@functools.partial(jax.jit, static_argnames=("method", "devices", "part_rows", "mean", "std"))
def encode(
    variables: dict, batch: Batch, *, method: Method, devices: int, part_rows: int, mean: Level, std: Level
) -> Features:
    """`method.encode` of a global batch of uint8 pictures, normalised by mean and std.

    A tower sees `part_rows` rows of each of the devices at once; the rows of the batch, which are split over the
    devices, must be a multiple of that on each.
    """

    def one(batch: Batch) -> Features:
        images = {name: augment.normalise(x, mean, std) for name, x in batch["images"].items()}
        return method.encode(variables, batch | {"images": images})

    return _in_parts(one, batch, devices, part_rows)


@functools.partial(jax.jit, static_argnames=("method", "devices", "part_rows", "use", "form"))
def embed(
    variables: dict,
    features: Features,
    *,
    method: Method,
    devices: int,
    part_rows: int,
    use: Use,
    form: str = EMBED,
) -> Array:
    """Vectors of features of `encode` or `impute` in one of FORMS: [B,D]; devices and part_rows as for `encode`."""
    return _in_parts(lambda part: row_vectors(method, variables, part, use, form), features, devices, part_rows)


@functools.partial(jax.jit, static_argnames=("method", "devices", "part_rows", "use"))
def terms(
    variables: dict, features: Features, *, method: Method, devices: int, part_rows: int, use: Use
) -> dict[str, Array]:
    """`method.terms` of features of `encode` or `impute`; devices and part_rows as for `encode`."""
    return _in_parts(lambda part: method.terms(variables, part, use), features, devices, part_rows)


def row_vectors(method: Method, variables: dict, features: Features, use: Use, form: str) -> Array:
    """Vectors [B,D] of features of `encode` or `impute` in one of FORMS."""
    if form == EMBED:
        return method.embed(variables, features, use)
    return similarity.pack(row_parts(method, variables, features, use, fallback=form != COMMON))


def row_parts(method: Method, variables: dict, features: Features, use: Use, *, fallback: bool) -> Parts:
    """Rows by modality, and if asked for, what rows without a common modality are compared by."""
    parts, present = method.parts(variables, features, use)
    return Parts(parts, present, method.embed_available(variables, features, use) if fallback else None)


@functools.partial(jax.jit, static_argnames=("method", "devices", "part_rows"))
def impute(
    variables: dict, features: Features, used: Array, *, method: Method, devices: int, part_rows: int
) -> Features:
    """`method.impute` of features of `encode` for the modalities used [M]; devices and part_rows as for `encode`."""
    return _in_parts(lambda part: method.impute(variables, part, used), features, devices, part_rows)


def packing_of(method: Method, variables: dict, features: Features, use: Use, form: str) -> Packing | None:
    """How `embed` packs its rows in one of FORMS; None for vectors that are compared by their dot products."""
    if form == EMBED:
        return None
    function = functools.partial(row_parts, method, use=use, fallback=form != COMMON)
    return jax.eval_shape(function, variables, features).packing


def _in_parts(function: Callable, rows: Any, devices: int, part_rows: int) -> Any:
    """`function` of trees of arrays [B,...] whose rows lie on so many devices, in turns of `part_rows` on each."""
    B = count_rows(rows)
    turns = B // (devices * part_rows)

    def split(x: Array) -> Array:  # each turn takes rows of every device
        return x.reshape(devices, turns, -1, *x.shape[1:]).swapaxes(0, 1).reshape(turns, B // turns, *x.shape[1:])

    def join(x: Array) -> Array:
        return x.reshape(turns, devices, -1, *x.shape[2:]).swapaxes(0, 1).reshape(B, *x.shape[2:])

    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(split, rows)))


def count_rows(tree: Any) -> int:
    """B of a tree of arrays [B,...]."""
    return len(jax.tree.leaves(tree)[0])
