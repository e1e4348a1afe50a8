"""A split as the towers see it: features and vectors, made once per evaluation whatever the number of rows.

A picture or caption goes through its tower once, if any row uses it; what is imputed for missing pictures is made once
for every subset of modalities that a row allows; rows that use the same of a split share their vectors. Features and
vectors stay on the devices as long as they fit there, see `KEPT_BYTES`.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mmreid import distributed
from jax_mmreid.batch import Batch, Data, has_caption, one_row
from jax_mmreid.errors import DataError
from jax_mmreid.evaluators import TEXT, Use
from jax_mmreid.methods import Features, Method
from jax_mmreid.metrics import vectors
from jax_mmreid.metrics.vectors import Vectors
from jax_mmreid.ops import augment
from jax_mmreid.sharding import replicated, to_global

Level = float | tuple[float, ...]  # of a picture's channels: one number or one each

# A batch goes through a tower in so many parts, one after the other on one device, side by side on several. A tower
# that always sees the same number of rows rounds in the same way, so results are equal on 1, 2, 4 and 8 devices.
PARTS = 8
KEPT_BYTES = 1 << 30  # of features and vectors on a device, in one evaluation; what goes beyond is kept on the host
NUMBERS = ("pid", "camid", "view", "index")


class Encoded(NamedTuple):
    """A split batch by batch as read, with its padding."""

    features: list[Features]  # of `method.encode`, rows over the axis "data", or on the host
    valid: list[np.ndarray]  # [B] bool, False on padding
    captions: dict[str, np.ndarray]  # {modality: [n,L] ids} without padding


class Encoder:
    """A model and the data it is evaluated on. `uses` are those of the rows; nothing else is encoded.

    The variables, features and vectors die with it: nothing else refers to them, and it is in no reference cycle.
    """

    def __init__(
        self,
        method: Method,
        variables: dict,
        data: Data,
        mesh: Mesh,
        *,
        mean: Level,
        std: Level,
        uses: Iterable[tuple[str, Use]],
    ):
        self.method, self.variables, self.data, self.mesh = method, variables, data, mesh
        self._normalization = dict(mean=mean, std=std)
        self._uses = {}
        for split, use in uses:
            self._uses.setdefault(split, set()).update(use)
        self._room = KEPT_BYTES
        self._splits, self._imputed, self._vectors = {}, {}, {}

    def vectors(self, split: str, use: Use, options: dict) -> Vectors:
        """The vectors of the n rows of a split from what they have of `use`, with options of the method changed.

        Raises ConfigError for options that the method does not have, and a `use` that it has no vector of.
        """
        key = self.method.with_options(options, "options"), split, tuple(use)
        if key not in self._vectors:
            features, valid = self._features(*key), self._encoded(split).valid
            self._vectors[key] = self._embed(features, valid, method=key[0], use=key[2])
        return self._vectors[key]

    def captions(self, split: str, modality: str) -> np.ndarray:
        """Ids [n,L] of the captions of a modality that `check_use` has found to exist."""
        return self._encoded(split).captions[modality]

    def sentences(self, ids: np.ndarray, modality: str) -> np.ndarray:
        """Vectors [C,D] of sentences ids [C,L] that describe pictures of `modality`."""
        encoded = self._encode([_sentences(ids, modality, self.mesh)])
        use = (f"{TEXT}/{modality}",)
        return self.fetch(self._embed(encoded.features, encoded.valid, method=self.method, use=use))

    def fetch(self, found: Vectors) -> np.ndarray:
        """Vectors [n,D] on the host."""
        return jax.device_get(found.local(self.mesh))

    def _encoded(self, split: str) -> Encoded:
        if split not in self._splits:
            batches = (_only(batch, self._uses[split]) for batch in self.data.split(split))
            self._splits[split] = self._encode(batches)
        return self._splits[split]

    def _encode(self, batches: Iterable[Batch]) -> Encoded:
        features, valid, captions = [], [], []
        for batch in batches:
            own = batch.pop("captions"), batch["valid"]
            settings = self._settings(len(own[1]) * distributed.shard()[1]) | self._normalization
            found = encode(self.variables, to_global(batch, self.mesh), method=self.method, **settings)
            features.append(self._keep(found))
            ids, keep = distributed.gather(own)
            valid.append(keep)
            captions.append({name: x[keep] for name, x in ids.items()})
        return Encoded(features, valid, jax.tree.map(lambda *parts: np.concatenate(parts), *captions))

    def _features(self, method: Method, split: str, use: Use) -> list[Features]:
        """The features of a split, with what is imputed for those that `use` leaves out if the method imputes."""
        imputer = method.imputer(use)
        if imputer is None:
            return self._encoded(split).features
        key = imputer, split, use
        if key not in self._imputed:
            used = jax.device_put(np.array([m in use for m in self.data.spec.modalities]), replicated(self.mesh))
            self._imputed[key] = [
                self._keep(impute(self.variables, self._spread(x), used, method=imputer, **self._settings(_rows(x))))
                for x in self._encoded(split).features
            ]
        return self._imputed[key]

    def _embed(self, features: list[Features], valid: list[np.ndarray], *, method: Method, use: Use) -> Vectors:
        found, fits = [], True
        for x in features:
            one = embed(self.variables, self._spread(x), method=method, use=use, **self._settings(_rows(x)))
            fits = fits and (bool(found) or self._take_room(one, len(features)))
            found.append(one if fits else distributed.gather(one))
        if fits:
            return vectors.on_devices([self._spread(x) for x in found], valid, self.mesh)
        return vectors.on_host(np.concatenate([x[keep] for x, keep in zip(found, valid)]))

    def _settings(self, rows: int) -> dict:
        devices = self.mesh.shape["data"]
        return dict(devices=devices, part_rows=rows_at_once(rows, devices))

    def _keep(self, features: Features) -> Features:
        """The features where they are if they fit there, else on the host."""
        return self._spread(features) if self._take_room(features) else distributed.gather(features)

    def _take_room(self, tree: Any, times: int = 1) -> bool:
        """Whether arrays like these, so many times, fit into what is left of KEPT_BYTES; if so, it is taken."""
        size = times * sum(x.nbytes for x in jax.tree.leaves(tree)) // self.mesh.shape["data"]
        fits = size <= self._room
        self._room -= size if fits else 0
        return fits

    def _spread(self, tree: Any) -> Any:
        """Arrays [B,...] over the axis "data"; those that are there already stay there."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec("data")))


def rows_at_once(rows: int, devices: int) -> int:
    """How many of the rows of a batch on so many devices a tower sees at once."""
    return rows // PARTS if rows % PARTS == PARTS % devices == 0 else rows // devices


def check_vectors(found: Vectors, rows: np.ndarray, split: str, use: Use) -> None:
    """Raises DataError if the vector of one of these rows of a split has no direction: it would rank by chance."""
    squares = found[rows].squared_lengths
    wrong = ~(np.isfinite(squares) & (squares > 0))
    if wrong.any():
        raise DataError(
            f"row {np.asarray(rows)[wrong.argmax()]} of split {split!r} has a vector of {'+'.join(use)} that is zero "
            f"or not finite ({wrong.sum()} such rows); check the weights, and the pictures and captions of this row"
        )


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


@functools.partial(jax.jit, static_argnames=("method", "devices", "part_rows", "use"))
def embed(variables: dict, features: Features, *, method: Method, devices: int, part_rows: int, use: Use) -> Array:
    """`method.embed` of features of `encode` or `impute`: [B,D]; devices and part_rows as for `encode`."""
    return _in_parts(lambda part: method.embed(variables, part, use), features, devices, part_rows)


@functools.partial(jax.jit, static_argnames=("method", "devices", "part_rows"))
def impute(
    variables: dict, features: Features, used: Array, *, method: Method, devices: int, part_rows: int
) -> Features:
    """`method.impute` of features of `encode` for the modalities used [M]; devices and part_rows as for `encode`."""
    return _in_parts(lambda part: method.impute(variables, part, used), features, devices, part_rows)


def _in_parts(function: Callable, rows: Any, devices: int, part_rows: int) -> Any:
    """`function` of trees of arrays [B,...] whose rows lie on so many devices, in turns of `part_rows` on each."""
    B = _rows(rows)
    turns = B // (devices * part_rows)

    def split(x: Array) -> Array:  # each turn takes rows of every device
        return x.reshape(devices, turns, -1, *x.shape[1:]).swapaxes(0, 1).reshape(turns, B // turns, *x.shape[1:])

    def join(x: Array) -> Array:
        return x.reshape(turns, devices, -1, *x.shape[2:]).swapaxes(0, 1).reshape(B, *x.shape[2:])

    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(split, rows)))


def _rows(tree: Any) -> int:
    return len(jax.tree.leaves(tree)[0])


def one_row_of(split: str, names: Collection[str], data: Data) -> Batch:
    """A blank row as `method.encode` gets it from a split of which the rows of `config.evals` use these names."""
    there = data.present(split)
    images = [m for m in data.spec.modalities if m in names and there[m].any()]
    captioned = [key.removeprefix(f"{TEXT}/") for key in there if key.startswith(f"{TEXT}/")]
    text = [m for m in captioned if TEXT in names or f"{TEXT}/{m}" in names]
    return one_row(data.spec, images, text, data.text_length(split))


def _only(batch: Batch, names: Collection[str]) -> Batch:
    """The batch with no more pictures and captions than `names` ask for, and the ids of all captions as "captions"."""
    captions = batch.get("text", {})
    kept = {key: x for key, x in batch.items() if key != "text"} | {"captions": captions}
    kept["images"] = {m: x for m, x in batch["images"].items() if m in names}
    kept["present"] = {m: batch["present"][m] for m in kept["images"]}
    text = {m: ids for m, ids in captions.items() if TEXT in names or f"{TEXT}/{m}" in names}
    return kept | _with_captions(kept["present"], text) if text else kept


def _with_captions(present: dict, text: dict[str, np.ndarray]) -> dict:
    """The entries "text" and "present" of a batch that has these captions."""
    present = present | {f"{TEXT}/{m}": has_caption(ids) for m, ids in text.items()}
    return {"text": text, "present": present | {TEXT: np.all([present[f"{TEXT}/{m}"] for m in text], axis=0)}}


def _sentences(ids: np.ndarray, modality: str, mesh: Mesh) -> Batch:
    """A batch without pictures of the sentences ids [C,L]; this process's rows of it, padded to fit the mesh."""
    count, over = len(ids), math.lcm(PARTS, mesh.shape["data"])
    rows = -(-count // over) * over
    ids = np.pad(ids, ((0, rows - count), (0, 0)), mode="edge")
    batch = _with_captions({}, {modality: ids}) | {"valid": np.arange(rows) < count}
    batch |= {name: np.zeros(rows, np.int32) for name in NUMBERS}
    index, processes = distributed.shard()
    own = slice(index * rows // processes, (index + 1) * rows // processes)
    return {"images": {}, "captions": {}} | jax.tree.map(lambda x: x[own], batch)
