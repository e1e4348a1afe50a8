"""Starting a state from weights: every part that the weights have, in place of what was drawn at random.

`config.init` names a source: a converted folder, the workdir of a run (its last checkpoint counts), a .safetensors
file or a folder with one. Several are joined by ",", each with parts of its own, and "SOURCE:text" or
"SOURCE:image+text" takes these parts of a source only.
"""

import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from jax_mmreid.errors import DataError
from jax_mmreid.models.clip import resize_positions, stretch_projection
from jax_mmreid.state import TrainState
from jax_mmreid.weights.files import Weights, load_one
from jax_mmreid.weights.layouts import some

log = logging.getLogger(__name__)

# Leaves of one dataset's cameras and identities: taken where they fit, else they keep their random values.
OF_A_DATASET = r"(.*/)?(camera_embedding|classifier/kernel)"
STATE_FIELDS = {"params": "params", "frozen": "params", "batch_stats": "batch_stats"}  # by kind of leaf


def load(init: str | Path) -> Weights:
    """The weights that a `config.init` names.

    Raises DataError if a source has none, if they must be converted first, if a part that is asked for is not there,
    or if two sources have the same part.
    """
    weights, origin = {}, {}
    for source, parts in init_sources(init):
        found = load_one(source)
        if missing := parts - _parts(found):
            raise DataError(f"weights: {source} holds {some(_parts(found))} but not {some(missing)}")
        found = {path: leaf for path, leaf in found.items() if not parts or _part(path) in parts}
        for part in sorted(_parts(found)):
            if part in origin:
                raise DataError(
                    f"weights: {origin[part]} and {source} both have {part}; each part has one source, as in "
                    "'SOURCE:image,OTHER:text'"
                )
            origin[part] = source
        weights |= found
    return weights


def init_sources(init: str | Path) -> list[tuple[str, set[str]]]:
    """The sources that a `config.init` names, and which parts of each it takes, {} for all.

    A name with a comma or a colon in it, as a workdir may have, is one source if it exists.
    """
    if os.path.exists(init):
        return [(str(init), set())]
    found = []
    for source in str(init).split(","):
        named = None if os.path.exists(source) else re.fullmatch(r"(.+):([a-z_]+(?:\+[a-z_]+)*)", source)
        found.append((named[1], set(named[2].split("+"))) if named else (source, set()))
    return found


def start_from(
    state: TrainState,
    weights: Weights,
    image_size: tuple[int, int],
    required: Collection[str] | None = (),
    source: str = "config.init",
) -> TrainState:
    """`state` with every part (image, text, ...) that `weights` have too replaced, in the state's dtypes and shardings.

    The image tower's position table is resized to the grid of `image_size` (H, W), and the text projection to the
    method's feature width where images have no projection (see `_resize_projection`). `required` are parts that the
    weights must have, None for all of the state; `source` names the weights in messages. Raises DataError if a required
    part is not there, if no part is shared, or listing every leaf of a shared part that is missing, unknown or
    mis-shaped.
    """
    fields = {name: traverse_util.flatten_dict(getattr(state, name)) for name in STATE_FIELDS}
    leaves = {_path(name, keys): leaf for name, flat in fields.items() for keys, leaf in flat.items()}
    weights = _resize_projection(_resize_pos_embed(weights, image_size), leaves)
    shared = _shared_parts(leaves, weights, source)
    others = _parts(leaves) - shared
    missing = others if required is None else set(required) - shared
    if missing:
        raise DataError(
            f"init: {source} holds {some(_parts(weights))} but not {some(missing)}; name weights that hold "
            f"{'it' if len(missing) == 1 else 'them'} too (several sources are joined by ',')"
        )

    def replace(path: str, leaf: jax.Array) -> jax.Array:
        found = weights.get(path)
        fits = found is not None and found.shape == leaf.shape
        return jax.device_put(np.asarray(found, leaf.dtype), leaf.sharding) if fits else leaf

    log.info("init: %s from %s; random: %s", some(shared), source, some(others) or "none")
    replaced = {
        name: {keys: replace(_path(name, keys), leaf) for keys, leaf in flat.items()} for name, flat in fields.items()
    }
    return state.replace(**{name: traverse_util.unflatten_dict(flat) for name, flat in replaced.items()})


def _resize_pos_embed(weights: Weights, image_size: tuple[int, int]) -> Weights:
    """`weights` with the position table of a vision transformer for images of this size."""
    path = "params/image/position_embedding"
    table, kernel = weights.get(path), weights.get("params/image/patch_embedding/kernel")
    if table is None or kernel is None or table.ndim != 2 or kernel.ndim != 4 or 0 in kernel.shape:
        return weights  # no such tower, or one that is refused by its shapes
    grid = tuple(side // p for side, p in zip(image_size, kernel.shape))
    try:
        return {**weights, path: resize_positions(table, grid)}
    except ValueError as error:
        raise DataError(f"init: {error}") from error


def _resize_projection(weights: Weights, leaves: Mapping[str, jax.Array]) -> Weights:
    """`weights` with the text projection as wide as the state's, if only its width differs and no picture needs it.

    Where images have a projection too, as in CLIP, both were trained for one space, and another width is an error.
    """
    path = "params/text/projection"
    theirs, ours = weights.get(path), leaves.get(path)
    if theirs is None or ours is None or "params/image/projection/kernel" in leaves:
        return weights
    if theirs.shape == ours.shape or theirs.shape[:-1] != ours.shape[:-1] or 0 in theirs.shape:
        return weights
    log.info("init: the text projection resized from %d to %d features", theirs.shape[-1], ours.shape[-1])
    return {**weights, path: stretch_projection(theirs, ours.shape[-1])}


def _shared_parts(leaves: Mapping[str, jax.Array], weights: Weights, source: str) -> set[str]:
    """The parts that both have; raises DataError unless each is the same in both, leaf by leaf."""
    shared = _parts(leaves) & _parts(weights)
    if not shared:
        raise DataError(
            f"init: {source} holds {some(_parts(weights))}, none of the method's parts {some(_parts(leaves))}"
        )
    ours = {path for path in leaves if _part(path) in shared}
    theirs = {path for path in weights if _part(path) in shared}
    faults = {
        "missing": ours - theirs,
        "unknown": theirs - ours,
        "mis-shaped": {path for path in ours & theirs if weights[path].shape != leaves[path].shape},
    }
    found = {name: [p for p in paths if not re.fullmatch(OF_A_DATASET, p)] for name, paths in faults.items()}
    found["mis-shaped"] = [f"{p} {weights[p].shape} instead of {leaves[p].shape}" for p in found["mis-shaped"]]
    if any(found.values()):
        listed = "; ".join(f"{name} {some(paths)}" for name, paths in found.items() if paths)
        raise DataError(f"init: {source} does not fit the model of the config: {listed}")
    return shared


def _path(field: str, keys: tuple[str, ...]) -> str:
    return "/".join((STATE_FIELDS[field], *keys))


def _part(path: str) -> str:
    return path.split("/")[1]


def _parts(paths: Iterable[str]) -> set[str]:
    return {_part(path) for path in paths if not path.startswith("extra/")}
