"""Retrieval: rank a gallery for every query, with the modalities that each side's row allows it to use.

Every picture is encoded once per evaluation, whatever the number of rows; a row then embeds, and embeddings that
two rows share are made once.

    row = dict(query=dict(split="test", use=("rgb", "nir")), gallery=dict(split="test", use=...),
               junk="same_camera", options={},      # options: fields of the method that this row changes
               incomplete="error")                  # or "skip": leave out what has no picture of its side's `use`
"""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mmreid.batch import Batch, Data, DataError
from jax_mmreid.config import ConfigError
from jax_mmreid.methods import Features, Method
from jax_mmreid.metrics import ranking
from jax_mmreid.ops import augment, distance
from jax_mmreid.sharding import to_global

log = logging.getLogger(__name__)

COLUMNS = ("pid", "camid", "view")
INCOMPLETE = ("error", "skip")


class Encoded(NamedTuple):
    """A split on the host: what `method.encode` says, batch by batch as read, and one row of columns a picture."""

    features: list[Features]
    valid: list[np.ndarray]
    columns: dict[str, np.ndarray]  # pid, camid, view [n] int32
    present: dict[str, np.ndarray]  # [n] bool


def check(name: str, row: dict, data: Data) -> None:
    """Raises ConfigError if the row names what does not exist, DataError for pictures that it cannot do without."""
    for side in (row["query"], row["gallery"]):
        unknown = [m for m in side["use"] if m not in data.modalities]
        if unknown or not side["use"]:
            raise ConfigError(f"evals.{name} uses {tuple(side['use'])}; data.modalities are {tuple(data.modalities)}")
        try:
            data.num_rows(side["split"])
        except ValueError as error:
            raise ConfigError(f"evals.{name}: {error}") from error
    if row["junk"] not in ranking.JUNK_RULES:
        raise ConfigError(f"evals.{name}: no junk rule {row['junk']!r}; there are {', '.join(ranking.JUNK_RULES)}")
    if row.get("incomplete", "error") not in INCOMPLETE:
        raise ConfigError(f"evals.{name}: incomplete={row['incomplete']!r}, expected one of {', '.join(INCOMPLETE)}")
    if row.get("incomplete", "error") == "error":
        for side in (row["query"], row["gallery"]):
            _require(name, side, _have_some(side, data.present(side["split"])))


def run(
    rows: Mapping[str, dict], *, method: Method, variables: dict, data: Data, mesh: Mesh, mean: float, std: float
) -> dict[str, dict]:
    """{row name: {"mAP", "mINP", "rank1", "rank5", "rank10", "protocol", "feature"}}.

    A row that skips what is incomplete adds "skipped", {"query": n, "gallery": n}; `check` has seen that no other
    needs to. Raises DataError where nothing can match.
    """
    splits = sorted({row[side]["split"] for row in rows.values() for side in ("query", "gallery")})
    encoded = {name: encode(method, variables, data.split(name), mesh, mean=mean, std=std) for name in splits}

    @functools.cache
    def embedded(split: str, use: tuple[str, ...], options: tuple[tuple[str, Any], ...]) -> np.ndarray:
        return embed(dataclasses.replace(method, **dict(options)), variables, encoded[split], use, mesh)

    results = {}
    for name, row in rows.items():
        options = tuple(sorted(row.get("options", {}).items()))
        sides, skipped = [], {}
        for key in ("query", "gallery"):
            side, split = row[key], encoded[row[key]["split"]]
            some = _have_some(side, split.present)
            skipped[key] = int(np.sum(~some))
            vectors = embedded(side["split"], tuple(side["use"]), options)
            sides.append((vectors[some], {column: x[some] for column, x in split.columns.items()}))
        (query, query_columns), (gallery, gallery_columns) = sides
        dist = jax.device_get(_squared(*jax.device_put((query, gallery))))
        match = query_columns["pid"][:, None] == gallery_columns["pid"][None, :]
        try:
            scores = ranking.rank(dist, match, ranking.junk_mask(row["junk"], query_columns, gallery_columns))
        except ValueError as error:
            raise DataError(f"evals.{name}: {error}") from error
        results[name] = {key: scores[key] for key in ("mAP", "mINP", "rank1", "rank5", "rank10")}
        results[name] |= {"protocol": _protocol(row), "feature": _feature(row)}
        if row.get("incomplete") == "skip":
            results[name]["skipped"] = skipped
        if any(skipped.values()):
            log.warning("evals.%s leaves out %d queries and %d gallery rows without a picture", name, *skipped.values())
    return results


def encode(
    method: Method, variables: dict, batches: Iterable[Batch], mesh: Mesh, *, mean: float, std: float
) -> Encoded:
    """Runs the towers over a split, each picture once; `mean` and `std` normalise the pictures."""
    features, valid, columns, present = [], [], [], []
    for batch in batches:
        features.append(_fetch(_encode(variables, to_global(batch, mesh), method=method, mean=mean, std=std)))
        own = ({key: batch[key] for key in COLUMNS}, batch["present"], batch["valid"])
        if jax.process_count() > 1:
            own = multihost_utils.process_allgather(own, tiled=True)
        valid.append(own[2])
        columns.append(jax.tree.map(lambda x, keep=own[2]: x[keep], own[0]))
        present.append(jax.tree.map(lambda x, keep=own[2]: x[keep], own[1]))
    return Encoded(features, valid, _concatenate(columns), _concatenate(present))


def embed(method: Method, variables: dict, split: Encoded, use: tuple[str, ...], mesh: Mesh) -> np.ndarray:
    """Retrieval vectors [n,D] of an encoded split from the modalities in `use`."""
    placed = NamedSharding(mesh, PartitionSpec("data"))
    vectors = [
        _fetch(_embed(variables, jax.device_put(features, placed), method=method, use=use))[valid]
        for features, valid in zip(split.features, split.valid)
    ]
    return np.concatenate(vectors)


@functools.partial(jax.jit, static_argnames=("method", "mean", "std"))
def _encode(variables: dict, batch: Batch, *, method: Method, mean: float, std: float) -> Features:
    images = {name: augment.normalise(x, mean, std) for name, x in batch["images"].items()}
    return method.encode(variables, batch | {"images": images})


@functools.partial(jax.jit, static_argnames=("method", "use"))
def _embed(variables: dict, features: Features, *, method: Method, use: tuple[str, ...]) -> Array:
    return method.embed(variables, features, use)


_squared = jax.jit(distance.squared)


def _fetch(tree: Any) -> Any:
    """Global arrays as numpy arrays, whole on every process."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def _concatenate(trees: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *trees)


def _have_some(side: dict, present: dict[str, np.ndarray]) -> np.ndarray:
    """Which rows of a split have a picture of a modality that a side uses, [n] bool."""
    absent = np.zeros(len(next(iter(present.values()))), bool)
    return np.any([present.get(m, absent) for m in side["use"]], axis=0)


def _require(name: str, side: dict, some: np.ndarray) -> None:
    if not some.all():
        raise DataError(
            f"evals.{name}: row {np.argmin(some)} of split {side['split']!r} has none of {', '.join(side['use'])} "
            f"({np.sum(~some)} such rows); give it a picture, set incomplete='skip' in config.evals.{name} "
            "to leave such rows out, or take this setting out of config.evals"
        )


def _protocol(row: dict) -> str:
    query, gallery = row["query"], row["gallery"]
    return f"query {query['split']}, gallery {gallery['split']}, junk {row['junk']}"


def _feature(row: dict) -> str:
    sides = ["+".join(row[side]["use"]) for side in ("query", "gallery")]
    options = [f"{key}={value}" for key, value in sorted(row.get("options", {}).items())]
    return ", ".join([sides[0] if sides[0] == sides[1] else ">".join(sides), *options])
