"""What the kinds of evaluation share: a split as the towers see it, and the checks of what any row names.

Nothing of a split but what an evaluator asks for stays: features and vectors, on the host, of rows that are no padding.
"""

import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mmreid.batch import Batch, Data, DataError, says
from jax_mmreid.config import ConfigError
from jax_mmreid.methods import Features, Method
from jax_mmreid.ops import augment
from jax_mmreid.sharding import to_global

Level = float | tuple[float, ...]  # of a picture's channels: one number or one each

TEXT = "text"  # in what `embed` uses, and in `present`


class Encoded(NamedTuple):
    """A split on the host: what `method.encode` says, batch by batch as read, and some columns of its rows."""

    features: list[Features]
    valid: list[np.ndarray]
    columns: dict[str, np.ndarray]  # [n,...], those that were asked for
    present: dict[str, np.ndarray]  # [n] bool; no key for a modality that no batch has


def encode(
    method: Method,
    variables: dict,
    batches: Iterable[Batch],
    mesh: Mesh,
    *,
    mean: Level,
    std: Level,
    columns: Sequence[str] = (),
) -> Encoded:
    """Runs the towers over a split, each row once; `mean` and `std` normalise the pictures.

    `columns` names what else of the batches to keep.
    """
    features, valid, kept, present = [], [], [], []
    for batch in batches:
        features.append(_fetch(_encode(variables, to_global(batch, mesh), method=method, mean=mean, std=std)))
        own = ({key: batch[key] for key in columns}, batch["present"], batch["valid"])
        if jax.process_count() > 1:
            own = multihost_utils.process_allgather(own, tiled=True)
        valid.append(own[2])
        kept.append(jax.tree.map(lambda x, keep=own[2]: x[keep], own[0]))
        present.append(jax.tree.map(lambda x, keep=own[2]: x[keep], own[1]))
    return Encoded(features, valid, _concatenate(kept), _concatenate(present))


def embed(method: Method, variables: dict, split: Encoded, use: tuple[str, ...], mesh: Mesh) -> np.ndarray:
    """Vectors [n,D] float32 of an encoded split from the modalities in `use`."""
    placed = NamedSharding(mesh, PartitionSpec("data"))
    vectors = [
        _fetch(_embed(variables, jax.device_put(features, placed), method=method, use=use))[valid]
        for features, valid in zip(split.features, split.valid)
    ]
    return np.concatenate(vectors).astype(np.float32, copy=False)


def described(batches: Iterable[Batch], modality: str, *, text: bool) -> Iterator[Batch]:
    """The batches with no pictures but of `modality`, and a column "caption" [B,L] of ids of what is said of them.

    With `text`, the captions are there for the text tower too. Raises ValueError for captions of something else.
    """
    for batch in batches:
        captions = batch["text"]
        if modality not in captions:
            raise ValueError(f"captions describe {', '.join(captions)}, not {modality}")
        ids = captions[modality]
        one = {key: x for key, x in batch.items() if key != "text"}
        one |= {"images": {modality: batch["images"][modality]}, "caption": ids}
        one["present"] = {modality: batch["present"][modality]}
        if text:
            one["text"] = {modality: ids}
            one["present"][TEXT] = says(ids)
        yield one


@functools.partial(jax.jit, static_argnames=("method", "mean", "std"))
def _encode(variables: dict, batch: Batch, *, method: Method, mean: Level, std: Level) -> Features:
    images = {name: augment.normalise(x, mean, std) for name, x in batch["images"].items()}
    return method.encode(variables, batch | {"images": images})


@functools.partial(jax.jit, static_argnames=("method", "use"))
def _embed(variables: dict, features: Features, *, method: Method, use: tuple[str, ...]) -> Array:
    return method.embed(variables, features, use)


def _fetch(tree: Any) -> Any:
    """Global arrays as numpy arrays, whole on every process."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def _concatenate(trees: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *trees)


def check_keys(where: str, given: Collection[str], required: Collection[str], optional: Collection[str] = ()) -> None:
    """Raises ConfigError for a key that is not known and for one that is required and not there."""
    known = (*required, *optional)
    for key in given:
        if key not in known:
            raise ConfigError(f"{where} has a key {key!r}; there are {', '.join(known)}")
    for key in required:
        if key not in given:
            raise ConfigError(f"{where} lacks the key {key!r}")


def check_split(where: str, split: str, data: Data) -> None:
    """Raises ConfigError for a split that does not exist."""
    try:
        data.num_rows(split)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_text(where: str, split: str, data: Data, otherwise: str) -> None:
    """Raises ConfigError for a split without captions; `otherwise` is the way to do without them."""
    if TEXT not in data.present(split):
        raise ConfigError(
            f"{where} uses text, of which split {split!r} has none; set data.text.tokenizer and name captions with "
            f"data.options.captioner or data.options.query_captions, or {otherwise}"
        )


def check_described(where: str, split: str, modality: str, data: Data) -> None:
    """Raises ConfigError unless there are the split, the modality and captions, DataError if there is no picture."""
    check_split(where, split, data)
    if modality not in data.modalities:
        raise ConfigError(f"{where}: modality={modality!r}, data.modalities are {tuple(data.modalities)}")
    check_text(where, split, data, "take this row out of config.evals")
    if not data.present(split)[modality].any():
        raise DataError(f"{where}: split {split!r} has no picture of {modality}; name another modality or split")


def check_vectors(where: str, *vectors: np.ndarray) -> None:
    """Raises DataError if one of the vectors [n,D] has no direction: such a row would rank as it happens to."""
    for x in vectors:
        norms = np.linalg.norm(x, axis=1)
        if not (np.isfinite(norms) & (norms > 0)).all():
            raise DataError(f"{where}: the vector of a picture or caption is zero or not finite")
