"""Weights from elsewhere: reading them from any place, keeping them in a folder, starting a run from them.

Weights are a flat dict of our leaves by path, as in `layouts`. A converted folder holds

    weights/     the leaves (Orbax), in the dtypes of their source
    about.json   where they came from: source, layout, attention heads, SHA-256 of every file

`config.init` names such a folder, the workdir of a run (its last checkpoint counts), a .safetensors file, or a folder
with one; or several of them joined by ",", each with parts of its own. "PLACE:text" or "PLACE:image+text" takes these
parts of a place only. `start_from` puts the weights into a new state.
"""

import functools
import json
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from safetensors.numpy import save_file

from jax_mmreid.errors import DataError
from jax_mmreid.models.clip import ImageTower, TextTower, resize_positions, stretch_projection
from jax_mmreid.models.resnet import ResNet
from jax_mmreid.state import TrainState, merge
from jax_mmreid.weights import layouts
from jax_mmreid.weights.sources import Source, list_files, read

log = logging.getLogger(__name__)

# Leaves of one dataset's cameras and identities: taken over where they fit, else left as they start.
OF_A_DATASET = r"(.*/)?(camera_embedding|classifier/kernel)"
STATE_FIELDS = {"params": "params", "frozen": "params", "batch_stats": "batch_stats"}  # by kind of leaf

Weights = Mapping[str, np.ndarray]


def to_weights(source: Source, layout: str) -> Weights:
    """Our leaves from the tensors of a source in `layout`; "auto" tells the layout from their names.

    Raises DataError listing every tensor that is missing, unknown or mis-shaped.
    """
    try:
        layout = layouts.detect(source.tensors) if layout == "auto" else layout
        weights = layouts.to_ours(source.tensors, layout, source.heads)
    except layouts.LayoutError as error:
        raise DataError(f"weights: {source.files[0]}: {error}") from error
    try:
        expected = {} if layout == "jax_mmreid" else _expected(weights)
    except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:  # sizes that make no tower
        raise DataError(f"weights: {source.files[0]}: its towers cannot be built ({error})") from error
    bad = [f"{path} {weights[path].shape} instead of {s}" for path, s in expected.items() if weights[path].shape != s]
    if bad:
        raise DataError(f"weights: {source.files[0]}: mis-shaped {_some(bad)}")
    return weights


def save(folder: str | Path, weights: Weights, about: dict[str, Any]) -> None:
    """Writes a converted folder; raises DataError if there is something in its place."""
    folder = Path(folder).absolute()
    if folder.exists():
        raise DataError(f"weights: {folder} exists; choose another folder or remove it")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "weights", traverse_util.unflatten_dict(dict(weights), sep="/"))
    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n")


def load(place: str | Path) -> Weights:
    """The weights at a place that `config.init` may name; see above.

    Raises DataError if there are none, if PyTorch would be needed to read them, if a part that is asked for is not
    there, or if two of several places have the same part.
    """
    weights, origin = {}, {}
    for one, parts in init_sources(place):
        found = _load_one(one)
        if lacking := parts - _parts(found):
            raise DataError(f"weights: {one} has {_some(_parts(found))} and lacks {_some(lacking)}")
        found = {path: leaf for path, leaf in found.items() if not parts or _part(path) in parts}
        for part in sorted(_parts(found)):
            if part in origin:
                raise DataError(f"weights: {origin[part]} and {one} both have {part}; each part has one source")
            origin[part] = one
        weights |= found
    return weights


def init_sources(init: str | Path) -> list[tuple[str, set[str]]]:
    """The places that `config.init` names, and which parts of each it takes, {} for all.

    A name with a comma or a colon in it, as of a workdir, is one place if it exists.
    """
    if Path(init).exists():
        return [(str(init), set())]
    found = []
    for place in str(init).split(","):
        named = None if Path(place).exists() else re.fullmatch(r"(.+):([a-z_]+(?:\+[a-z_]+)*)", place)
        found.append((named[1], set(named[2].split("+"))) if named else (place, set()))
    return found


def _load_one(place: str | Path) -> dict[str, np.ndarray]:
    path = Path(place).absolute()
    if (path / "about.json").exists():
        return traverse_util.flatten_dict(_restore(path / "weights"), sep="/")
    if (path / "checkpoints").is_dir():
        return _load_run(path)
    if not path.exists():
        raise DataError(f"weights: no file or folder {place}; tools.convert makes one from a Hub id or a PyTorch file")
    files = list_files(path) if path.is_dir() else (path,)
    if any(file.suffix != ".safetensors" for file in files):
        raise DataError(
            f"weights: {files[0]} must be converted before a run can start from it: "
            f"python -m jax_mmreid.tools.convert --input={place} --output=DIR"
        )
    return to_weights(read(str(place)), "auto")


def _load_run(workdir: Path) -> Weights:
    """Parameters and statistics of the last checkpoint."""
    steps = [int(step.name) for step in (workdir / "checkpoints").iterdir() if step.name.isdigit()]
    if not steps:
        raise DataError(f"weights: {workdir} has no checkpoint yet")
    model = _restore(workdir / "checkpoints" / str(max(steps)) / "model")
    frozen = _restore(workdir / "frozen") if (workdir / "frozen").exists() else {}
    tree = {"params": merge(model["params"], frozen), "batch_stats": model.get("batch_stats", {})}
    return traverse_util.flatten_dict(tree, sep="/")


def _restore(folder: Path) -> Any:
    """What Orbax wrote to `folder`, as numpy arrays, whatever devices it came from."""
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            shapes = ocp.PyTreeCheckpointHandler().metadata(folder).tree
            return checkpointer.restore(folder, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes))
    except (ValueError, OSError, AttributeError) as error:
        raise DataError(f"weights: cannot read {folder} ({str(error).splitlines()[0]})") from error


def export(file: str | Path, weights: Weights, layout: str) -> None:
    """Writes a .safetensors file in a layout; raises DataError listing the leaves that have no place in it."""
    try:
        tensors = layouts.from_ours(weights, layout)
    except layouts.LayoutError as error:
        raise DataError(f"weights: {error}") from error
    save_file(tensors, file, metadata={"format": "np"} | {k: str(v) for k, v in heads(weights).items()})


def heads(weights: Weights) -> dict[str, int]:
    """The attention heads of the towers that there are."""
    kernels = {part: weights.get(f"params/{part}/block_0/attention/qkv/kernel") for part in ("image", "text")}
    return {part: kernel.shape[2] for part, kernel in kernels.items() if kernel is not None}


def start_from(
    state: TrainState, weights: Weights, image_size: tuple[int, int], required: Collection[str] | None = ()
) -> TrainState:
    """`state` with every part (image, text, ...) that `weights` has too taken from there, in its own dtype and place.

    The image tower's position table is resized to the grid of `image_size` (H, W), and the text projection to the
    method's features where pictures have no projection (see `_in_space`). Raises DataError if they share no part, if
    they lack one of the `required` parts (None: of all that the state has), or listing every leaf of a shared part that
    is missing, unknown or mis-shaped.
    """
    fields = {name: traverse_util.flatten_dict(getattr(state, name)) for name in STATE_FIELDS}
    leaves = {_path(name, keys): leaf for name, flat in fields.items() for keys, leaf in flat.items()}
    weights = _in_space(_resize_pos_embed(weights, image_size), leaves)
    shared = _require_fit(leaves, weights)
    anew = _parts(leaves) - shared
    lacking = anew if required is None else set(required) - shared
    if lacking:
        raise DataError(
            f"init: it has {_some(_parts(weights))} and lacks {_some(lacking)}, which cannot start anew here"
        )

    def start(path: str, leaf: jax.Array) -> jax.Array:
        found = weights.get(path)
        fits = found is not None and found.shape == leaf.shape
        return jax.device_put(np.asarray(found, leaf.dtype), leaf.sharding) if fits else leaf

    log.info("init: %s taken over; %s start anew", _some(shared), _some(anew) or "no others")
    started = {
        name: {keys: start(_path(name, keys), leaf) for keys, leaf in flat.items()} for name, flat in fields.items()
    }
    return state.replace(**{name: traverse_util.unflatten_dict(flat) for name, flat in started.items()})


def _resize_pos_embed(weights: Weights, image_size: tuple[int, int]) -> Weights:
    """`weights` with the position table of a vision transformer for images of this size."""
    table = weights.get("params/image/position_embedding")
    if table is None:
        return weights
    patch = weights["params/image/patch_embedding/kernel"].shape[:2]
    grid = tuple(side // p for side, p in zip(image_size, patch))
    try:
        return {**weights, "params/image/position_embedding": resize_positions(table, grid)}
    except ValueError as error:
        raise DataError(f"init: {error}") from error


def _in_space(weights: Weights, leaves: Mapping[str, jax.Array]) -> Weights:
    """`weights` with the text projection as wide as the state's, if only its width differs and no picture needs it.

    A state whose pictures have a projection of their own (CLIP's) compares them with text in the space that both were
    trained for, so there a projection of another width stays an error.
    """
    path = "params/text/projection"
    theirs, ours = weights.get(path), leaves.get(path)
    if theirs is None or ours is None or "params/image/projection/kernel" in leaves:
        return weights
    if theirs.shape == ours.shape or theirs.shape[:-1] != ours.shape[:-1]:
        return weights
    log.info("init: the text projection stretched from %d to %d features", theirs.shape[-1], ours.shape[-1])
    return {**weights, path: stretch_projection(theirs, ours.shape[-1])}


def _require_fit(leaves: Mapping[str, jax.Array], weights: Weights) -> set[str]:
    """The parts that both have; raises DataError unless each is whole in both."""
    shared = _parts(leaves) & _parts(weights)
    if not shared:
        raise DataError(f"init: it has {_some(_parts(weights))}, the method {_some(_parts(leaves))}: nothing in common")
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
        raise DataError(f"init: {'; '.join(f'{name} {_some(paths)}' for name, paths in found.items() if paths)}")
    return shared


def _expected(weights: Weights) -> dict[str, tuple[int, ...]]:
    """The shapes of towers as large as the first tensors of theirs say."""
    modules = {}
    sizes = heads(weights)
    layers = {part: len({p.split("/")[2] for p in weights if p.startswith(f"params/{part}/block_")}) for part in sizes}

    def size(path: str, axis: int) -> int:
        return weights[f"params/{path}"].shape[axis]

    if "image" in sizes:
        patch, tokens = size("image/patch_embedding/kernel", 0), size("image/position_embedding", 0)
        width, dim = size("image/position_embedding", 1), size("image/projection/kernel", 1)
        tower = ImageTower(patch, width, layers["image"], sizes["image"], dim)
        modules["image"] = functools.partial(tower.init, images=jnp.zeros((1, patch * (tokens - 1), patch, 3)))
    elif "params/image/layer1_0/conv1/kernel" in weights:
        images = {name: jnp.zeros((1, 32, 32, 3)) for name in ("rgb", "ir")}
        modules["image"] = functools.partial(ResNet().init, images=images, train=False)
    if "text" in sizes:
        vocab, width = size("text/token_embedding", 0), size("text/token_embedding", 1)
        context, dim = size("text/position_embedding", 0), size("text/projection", 1)
        tower = TextTower(vocab, context, width, layers["text"], sizes["text"], dim)
        modules["text"] = functools.partial(tower.init, embeddings=jnp.zeros((1, context, width)), end=0)
    expected = {}
    for part, init in modules.items():
        shapes = jax.eval_shape(lambda init=init: init(jax.random.PRNGKey(0)))
        for (collection, *keys), leaf in traverse_util.flatten_dict(shapes).items():
            expected["/".join((collection, part, *keys))] = leaf.shape
    return expected


def _path(field: str, keys: tuple[str, ...]) -> str:
    return "/".join((STATE_FIELDS[field], *keys))


def _part(path: str) -> str:
    return path.split("/")[1]


def _parts(paths: Mapping[str, Any]) -> set[str]:
    return {_part(path) for path in paths if not path.startswith("extra/")}


def _some(items) -> str:
    items = sorted(items)
    return ", ".join(items[:6]) + (f" and {len(items) - 6} more" if len(items) > 6 else "")
