"""Weights as a flat dict of our leaves by path (see `layouts`), and the folders and files that hold them.

A converted folder, which `tools.convert` writes, holds

    weights/     the leaves (Orbax), in the dtypes of their source
    about.json   where they came from: source, revision, attention heads, SHA-256 of every file
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils.epath import PathLike
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.models.clip import ImageTower, TextTower
from jax_mmreid.models.resnet import ResNet
from jax_mmreid.paths import absolute, on_disk
from jax_mmreid.state import merge
from jax_mmreid.weights import layouts
from jax_mmreid.weights.layouts import some
from jax_mmreid.weights.sources import StateDict, list_files, read

Weights = Mapping[str, np.ndarray]

# The leaves that give the sizes of CLIP's towers, with their number of axes.
MEASURED = {
    "image": {"patch_embedding/kernel": 4, "position_embedding": 2, "projection/kernel": 2},
    "text": {"token_embedding": 2, "position_embedding": 2, "projection": 2},
}
QKV = "block_0/attention/qkv/kernel"  # [width,3,heads,width/heads]


def to_weights(state_dict: StateDict, layout: str) -> Weights:
    """Our leaves from tensors in `layout`; with "auto" it is recognised by the names of the tensors.

    Raises DataError listing every tensor that is missing, unknown or mis-shaped.
    """
    file = state_dict.files[0]
    try:
        layout = layouts.detect(state_dict.tensors) if layout == "auto" else layout
        weights = layouts.to_ours(state_dict.tensors, layout, state_dict.heads)
    except layouts.LayoutError as error:
        raise DataError(f"weights: {file}: {error}") from error
    expected = {} if layout == "jax_mmreid" else _expected(file, weights)  # a run's may have any size
    bad = [f"{path} {weights[path].shape} instead of {s}" for path, s in expected.items() if weights[path].shape != s]
    if bad:
        raise DataError(f"weights: {file}: mis-shaped {some(bad)}")
    return weights


def heads(weights: Weights) -> dict[str, int]:
    """The number of attention heads of each CLIP tower."""
    kernels = {part: weights.get(f"params/{part}/{QKV}") for part in ("image", "text")}
    return {part: x.shape[2] for part, x in kernels.items() if x is not None and x.ndim == 4}


def save(folder: str | Path, weights: Weights, about: dict[str, Any]) -> None:
    """Writes a converted folder; raises ConfigError if the folder exists or cannot be made."""
    folder = Path(folder).absolute()
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"weights: {folder} exists; choose another folder or remove it") from None
    except OSError as error:
        raise ConfigError(f"weights: cannot write {folder} ({error.strerror}); choose another folder") from error
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "weights", traverse_util.unflatten_dict(dict(weights), sep="/"))
    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n")


def load_one(source: PathLike) -> Weights:
    """The weights of a converted folder, of a run's last checkpoint, or of a .safetensors file or a folder with one.

    Raises DataError if there are none, or if they must be converted first.
    """
    path = absolute(source)
    if (path / "about.json").exists():
        return traverse_util.flatten_dict(_restore(path / "weights"), sep="/")
    if (path / "checkpoints").is_dir():
        return _load_run(path)
    if not path.exists():
        raise DataError(f"weights: no file or folder {source}; tools.convert makes one from a Hub id or a PyTorch file")
    files = list_files(path) if path.is_dir() else (path,)
    if any(file.suffix != ".safetensors" for file in files):
        raise DataError(
            f"weights: {files[0]} must be converted before a run can start from it: "
            f"python -m jax_mmreid.tools.convert --input={source} --output=DIR"
        )
    with on_disk(path) as local:
        return to_weights(read(str(local)), "auto")


def export(file: str | Path, weights: Weights, layout: str) -> None:
    """Writes a .safetensors file.

    Raises DataError listing the leaves that `layout` has no name for, ConfigError if the file cannot be written.
    """
    try:
        tensors = layouts.from_ours(weights, layout)
    except layouts.LayoutError as error:
        raise DataError(f"weights: {error}") from error
    try:
        save_file(tensors, file, metadata={"format": "np"} | {k: str(v) for k, v in heads(weights).items()})
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"weights: cannot write {file} ({error}); choose another file") from error


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


def _expected(file: Path, weights: Weights) -> dict[str, tuple[int, ...]]:
    """The shapes of all leaves of the towers, by the sizes of a few; raises DataError if these make no tower."""
    expected = {}
    for part in heads(weights):
        measured = {f"params/{part}/{name}": axes for name, axes in MEASURED[part].items()}
        bad = [path for path, axes in measured.items() if weights[path].ndim != axes or 0 in weights[path].shape]
        if bad:
            raise DataError(f"weights: {file}: mis-shaped {some(f'{path} {weights[path].shape}' for path in bad)}")
        expected |= _clip_shapes(file, part, weights)
    if "params/image/layer1_0/conv1/kernel" in weights:
        images = dict.fromkeys(("rgb", "ir"), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
        expected |= _shapes("image", lambda key, x: ResNet().init(key, x, train=False), images)
    return expected


def _clip_shapes(file: Path, part: str, weights: Weights) -> dict[str, tuple[int, ...]]:
    """The shapes of a tower of CLIP by path."""

    def sizes(name: str) -> tuple[int, ...]:
        return weights[f"params/{part}/{name}"].shape

    count, layers = heads(weights)[part], len({p.split("/")[2] for p in weights if f"params/{part}/block_" in p})
    tokens, width = sizes("position_embedding")
    if width % max(count, 1) or tokens < 2:
        raise DataError(f"weights: {file}: no {part} tower has {tokens} positions, {count} heads and width {width}")
    if part == "image":
        patch, dim = sizes("patch_embedding/kernel")[0], sizes("projection/kernel")[1]
        tower = ImageTower(patch, width, layers, count, dim)
        images = jax.ShapeDtypeStruct((1, patch * (tokens - 1), patch, 3), jnp.float32)
        return _shapes(part, tower.init, images)
    tower = TextTower(sizes("token_embedding")[0], tokens, width, layers, count, sizes("projection")[1])
    return _shapes(part, tower.init, jax.ShapeDtypeStruct((1, tokens, width), jnp.float32), 0)


def _shapes(part: str, init: Any, *inputs: Any) -> dict[str, tuple[int, ...]]:
    """What `init(key, *inputs)` would make, by path; nothing is computed."""
    tree = jax.eval_shape(init, jax.random.PRNGKey(0), *inputs)
    flat = traverse_util.flatten_dict(tree).items()
    return {"/".join((collection, part, *keys)): leaf.shape for (collection, *keys), leaf in flat}
