"""What the kinds of evaluation share: a split as the towers see it, and the checks of what any row names.

Everything that costs a tower is done once per evaluation, whatever the number of rows: a picture or caption goes
through its tower once, if any row uses it; what stands in for missing pictures is made once for every subset of
modalities that a row allows; rows that use the same of a split share their vectors.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mmreid.batch import Batch, Data, has_caption
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.methods import Features, Method
from jax_mmreid.ops import augment
from jax_mmreid.sharding import replicated, to_global

Level = float | tuple[float, ...]  # of a picture's channels: one number or one each
Use = tuple[str, ...]  # modalities whose pictures are read; "text" for captions, "text/rgb" for those of RGB pictures

TEXT = "text"  # in `Use`, and in `present`
# A batch goes through a tower in so many parts, one after the other on one device, side by side on several: a tower
# that always sees as many rows rounds alike, and tables are the same on 1, 2, 4 and 8 devices.
PARTS = 8
NUMBERS = ("pid", "camid", "view")  # what a rule may compare


class Encoded(NamedTuple):
    """A split on the host, its padding left out but in `features`."""

    features: list[Features]  # what `method.encode` says, batch by batch as read
    valid: list[np.ndarray]
    columns: dict[str, np.ndarray]  # [n] of NUMBERS, and "caption/rgb", .. [n,L], the ids of what is said
    present: dict[str, np.ndarray]  # [n] bool; no key for a modality that no batch has


class Encoder:
    """A model and the data it is evaluated on. `uses` says of which splits the rows use what; all else is not read."""

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
        self._normal = dict(mean=mean, std=std)
        self._names = {}
        for split, use in uses:
            self._names.setdefault(split, set()).update(use)
        self.split = functools.cache(self._split)
        self._vectors, self._completed = functools.cache(self._embed), functools.cache(self._complete)

    def vectors(self, split: str, use: Use, options: dict) -> np.ndarray:
        """Vectors [n,D] float32 of a split from what its rows have of `use`, with fields of the method changed.

        Raises ValueError for what the method cannot make a vector of, and for options that do not fit it.
        """
        try:
            method = dataclasses.replace(self.method, **options)
        except TypeError as error:
            raise ValueError(f"options={options} do not fit the method: {error}") from error
        return self._vectors(method, split, tuple(use))

    def captions(self, split: str, modality: str) -> np.ndarray:
        """Ids [n,L] of what is said of the pictures of a modality; raises ValueError if captions are of others."""
        columns = self.split(split).columns
        if f"caption/{modality}" not in columns:
            described = ", ".join(name.removeprefix("caption/") for name in columns if name not in NUMBERS)
            raise ValueError(f"captions describe {described}, not {modality}")
        return columns[f"caption/{modality}"]

    def sentences(self, ids: np.ndarray, modality: str) -> np.ndarray:
        """Vectors [C,D] of sentences ids [C,L] that describe pictures of `modality`."""
        encoded = self._run([_sentences(ids, modality, self.mesh)])
        return self._each(encoded.features, encoded.valid, _embed, method=self.method, use=(f"{TEXT}/{modality}",))

    def _split(self, name: str) -> Encoded:
        return self._run(_only(batch, self._names[name]) for batch in self.data.split(name))

    def _run(self, batches: Iterable[Batch]) -> Encoded:
        features, valid, rows = [], [], []
        for batch in batches:
            columns = {key: batch[key] for key in NUMBERS} | batch.pop("columns")
            settings = dict(method=self.method, devices=self.mesh.shape["data"], **self._normal)
            features.append(_fetch(_encode(self.variables, to_global(batch, self.mesh), **settings)))
            own, keep = (columns, batch["present"]), batch["valid"]
            if jax.process_count() > 1:
                own, keep = multihost_utils.process_allgather((own, keep), tiled=True)
            valid.append(keep)
            rows.append(jax.tree.map(lambda x, keep=keep: x[keep], own))
        columns, present = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
        return Encoded(features, valid, columns, present)

    def _embed(self, method: Method, split: str, use: Use) -> np.ndarray:
        encoded, imputer = self.split(split), method.imputer(use)
        features = self._completed(imputer, split, use) if imputer else encoded.features
        return self._each(features, encoded.valid, _embed, method=method, use=use)

    def _complete(self, method: Method, split: str, use: Use) -> list[Features]:
        used = jax.device_put(np.array([m in use for m in self.data.spec.modalities]), replicated(self.mesh))
        return [self._on_devices(x, _complete, used, method=method) for x in self.split(split).features]

    def _each(self, features: list[Features], valid: list[np.ndarray], function: Callable, **static: Any) -> np.ndarray:
        vectors = [self._on_devices(x, function, **static)[keep] for x, keep in zip(features, valid)]
        return np.concatenate(vectors).astype(np.float32, copy=False)

    def _on_devices(self, features: Features, function: Callable, *more: Array, **static: Any) -> Any:
        placed = jax.device_put(features, NamedSharding(self.mesh, PartitionSpec("data")))
        return _fetch(function(self.variables, placed, *more, devices=self.mesh.shape["data"], **static))


def _only(batch: Batch, names: Collection[str]) -> Batch:
    """The batch with no more pictures and captions than `names` say, and the ids of all captions as "columns"."""
    captions = batch.get("text", {})
    kept = {key: x for key, x in batch.items() if key != "text"}
    kept["columns"] = {f"caption/{m}": ids for m, ids in captions.items()}
    kept["images"] = {m: x for m, x in batch["images"].items() if m in names}
    kept["present"] = {m: batch["present"][m] for m in kept["images"]}
    told = {m: ids for m, ids in captions.items() if TEXT in names or f"{TEXT}/{m}" in names}
    if told:
        kept["text"], kept["present"][TEXT] = told, batch["present"][TEXT]
    return kept


def _sentences(ids: np.ndarray, modality: str, mesh: Mesh) -> Batch:
    """A batch without pictures of the sentences ids [C,L]; this process's rows of it, padded to fit the mesh."""
    count, over = len(ids), math.lcm(PARTS, mesh.shape["data"])
    rows = -(-count // over) * over
    ids = np.pad(ids, ((0, rows - count), (0, 0)), mode="edge")
    batch = {"text": {modality: ids}, "present": {TEXT: has_caption(ids)}, "valid": np.arange(rows) < count}
    batch |= {name: np.zeros(rows, np.int32) for name in (*NUMBERS, "index")}
    each = rows // jax.process_count()
    own = slice(jax.process_index() * each, (jax.process_index() + 1) * each)
    return {"images": {}, "columns": {}} | jax.tree.map(lambda x: x[own], batch)


@functools.partial(jax.jit, static_argnames=("method", "devices", "mean", "std"))
def _encode(variables: dict, batch: Batch, *, method: Method, devices: int, mean: Level, std: Level) -> Features:
    def one(batch: Batch) -> Features:
        images = {name: augment.normalise(x, mean, std) for name, x in batch["images"].items()}
        return method.encode(variables, batch | {"images": images})

    return _in_parts(one, batch, devices)


@functools.partial(jax.jit, static_argnames=("method", "devices", "use"))
def _embed(variables: dict, features: Features, *, method: Method, devices: int, use: Use) -> Array:
    return _in_parts(lambda part: method.embed(variables, part, use), features, devices)


@functools.partial(jax.jit, static_argnames=("method", "devices"))
def _complete(variables: dict, features: Features, used: Array, *, method: Method, devices: int) -> Features:
    return _in_parts(lambda part: method.impute(variables, part, used), features, devices)


def _in_parts(function: Callable, rows: Any, devices: int) -> Any:
    """`function` of trees of arrays [B,...] whose rows lie on so many devices, in PARTS parts where they divide."""
    B = len(jax.tree.leaves(rows)[0])
    turns = PARTS // devices if B % PARTS == PARTS % devices == 0 else 1

    def split(x: Array) -> Array:  # each turn takes rows of every device
        return x.reshape(devices, turns, -1, *x.shape[1:]).swapaxes(0, 1).reshape(turns, B // turns, *x.shape[1:])

    def join(x: Array) -> Array:
        return x.reshape(turns, devices, -1, *x.shape[2:]).swapaxes(0, 1).reshape(B, *x.shape[2:])

    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(split, rows)))


def _fetch(tree: Any) -> Any:
    """Global arrays as numpy arrays, whole on every process."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


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
    if modality not in data.spec.modalities:
        raise ConfigError(f"{where}: modality={modality!r}, data.modalities are {tuple(data.spec.modalities)}")
    check_text(where, split, data, "take this row out of config.evals")
    if not data.present(split)[modality].any():
        raise DataError(f"{where}: split {split!r} has no picture of {modality}; name another modality or split")


def check_vectors(where: str, *vectors: np.ndarray) -> None:
    """Raises DataError if one of the vectors [n,D] has no direction: such a row would rank as it happens to."""
    for x in vectors:
        norms = np.linalg.norm(x, axis=1)
        if not (np.isfinite(norms) & (norms > 0)).all():
            raise DataError(f"{where}: the vector of a picture or caption is zero or not finite")
