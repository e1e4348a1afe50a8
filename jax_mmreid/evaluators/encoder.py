"""A split as the towers see it: features and vectors, made once per evaluation whatever the number of rows.

A picture or caption goes through its tower once, if any row uses it; what is imputed for missing pictures is made once
for every subset of modalities that a row allows; rows that use the same of a split share their vectors. Features and
vectors stay on the devices as long as they fit there, see `KEPT_BYTES`.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mmreid import distributed
from jax_mmreid.batch import Batch, Data, has_caption, one_row
from jax_mmreid.errors import DataError
from jax_mmreid.evaluators import TEXT, Use
from jax_mmreid.evaluators.programs import (
    COMMON,
    EMBED,
    PARTS,
    Level,
    count_rows,
    embed,
    encode,
    impute,
    packing_of,
    rows_at_once,
    terms,
)
from jax_mmreid.methods import Features, Method
from jax_mmreid.metrics import galleries, vectors
from jax_mmreid.metrics.similarity import Packing
from jax_mmreid.metrics.vectors import Vectors
from jax_mmreid.sharding import replicated, to_global

KEPT_BYTES = 1 << 30  # of features and vectors on a device, in one evaluation; what goes beyond is kept on the host
NUMBERS = ("pid", "camid", "view", "index")


class Side(NamedTuple):
    """What a row of `config.evals` compares on one side."""

    split: str
    use: Use
    mixed: int | None = None  # seed of the random subset of its pictures that each row shows; None: all of them


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

    def vectors(self, split: str, use: Use, options: dict, *, mixed: int | None = None, form: str = EMBED) -> Vectors:
        """The vectors of the n rows of a split from what they have of `use`, with options of the method changed.

        With `mixed`, a seed, from a random subset of that; in one of the FORMS of `programs`. Raises ConfigError for
        options that the method does not have, and a `use` that it has no vector of.
        """
        method = self.method.with_options(options, "options")
        side = Side(split, tuple(use), mixed)
        key = method, side, form
        if key not in self._vectors:
            features = self._encoded(side).features if form == COMMON else self._features(method, side)
            valid = self._encoded(side).valid
            self._vectors[key] = self._embed(features, valid, method=method, use=side.use, form=form)
        return self._vectors[key]

    def changed(
        self, split: str, use: Use, options: dict, changes: Sequence[Callable[[Batch], Batch]], *, form: str = EMBED
    ) -> list[Vectors]:
        """The `vectors` of a split after each of these changes of its batches, which are on the devices.

        The split is read once and encoded once per change; features and vectors are not kept.
        """
        found, valid, packing = [[] for _ in changes], [], None
        for batch in self.data.split(split):
            batch = {key: x for key, x in _only(batch, self._uses[split]).items() if key != "captions"}
            batch = to_global(batch, self.mesh)
            valid.append(distributed.gather(batch["valid"]))
            for own, change in zip(found, changes):
                x, packing = self._read(change(batch), use, options, form)
                own.append(x)
        whole = (np.concatenate([x[keep] for x, keep in zip(own, valid)]) for own in found)
        return [vectors.on_host(x, packing) for x in whole]

    def of_batch(self, batch: Batch, use: Use, options: dict, *, form: str = EMBED) -> Vectors:
        """The `vectors` of the valid rows of a host batch, which may have been changed after it was read.

        The devices share its rows evenly. Nothing is kept.
        """
        batch = {key: x for key, x in _only(batch, use).items() if key != "captions"}
        batch = to_global(batch, self.mesh)
        found, packing = self._read(batch, use, options, form)
        return vectors.on_host(found[distributed.gather(batch["valid"])], packing)

    def terms(
        self, split: str, use: Use, options: dict, rows: np.ndarray, *, mixed: int | None = None
    ) -> dict[str, np.ndarray]:
        """`Method.terms` of rows [n] of a split, {name: [n,D]}, which add up to their `vectors`; raises as that."""
        method = self.method.with_options(options, "options")
        side = Side(split, tuple(use), mixed)
        features, valid = self._features(method, side), self._encoded(side).valid
        ends = np.cumsum([np.count_nonzero(keep) for keep in valid])
        number, found = np.searchsorted(ends, rows, "right"), {}
        for i in np.unique(number):
            static = dict(method=method, use=side.use) | self._settings(count_rows(features[i]))
            own = distributed.gather(terms(self.variables, self._spread(features[i]), **static))
            place = np.flatnonzero(valid[i])[rows[number == i] - ends[i] + np.count_nonzero(valid[i])]
            for name, x in own.items():
                found.setdefault(name, np.zeros((len(rows), x.shape[1]), x.dtype))[number == i] = x[place]
        return found

    def forget_vectors(self) -> None:
        """Frees the vectors, which are made again from features if they are needed again."""
        self._vectors.clear()

    def captions(self, split: str, modality: str) -> np.ndarray:
        """Ids [n,L] of the captions of a modality that `check_use` has found to exist."""
        return self._encoded(Side(split, ())).captions[modality]

    def sentences(self, ids: np.ndarray, modality: str) -> np.ndarray:
        """Vectors [C,D] of sentences ids [C,L] that describe pictures of `modality`."""
        encoded = self._encode([_sentences(ids, modality, self.mesh)])
        use = (f"{TEXT}/{modality}",)
        return self.fetch(self._embed(encoded.features, encoded.valid, method=self.method, use=use))

    def fetch(self, found: Vectors) -> np.ndarray:
        """Vectors [n,D] on the host."""
        return jax.device_get(found.local(self.mesh))

    def _read(self, batch: Batch, use: Use, options: dict, form: str) -> tuple[np.ndarray, Packing | None]:
        """The vectors [B,D] of all rows of a global batch, on the host, and how they are packed."""
        method = self.method.with_options(options, "options")
        imputer = None if form == COMMON else method.imputer(use)
        settings = self._settings(count_rows(batch))
        x = encode(self.variables, batch, method=self.method, **settings, **self._normalization)
        if imputer is not None:
            x = impute(self.variables, x, self._used(use), method=imputer, **settings)
        found = embed(self.variables, x, method=method, use=use, form=form, **settings)
        return distributed.gather(found), packing_of(method, self.variables, x, use, form)

    def _encoded(self, side: Side) -> Encoded:
        """The split of a side; without `mixed` all rows of `config.evals` share it, whatever they use."""
        key = side if side.mixed is not None else side.split
        if key not in self._splits:
            batches = (_only(batch, self._uses[side.split]) for batch in self.data.split(side.split))
            if side.mixed is not None:
                shown = shown_pictures(side, self.data)
                batches = (_show(batch, shown) for batch in batches)
            self._splits[key] = self._encode(batches)
        return self._splits[key]

    def _encode(self, batches: Iterable[Batch]) -> Encoded:
        features, valid, captions, last = [], [], [], -1
        for batch in batches:
            batch = to_global(batch, self.mesh)
            # Fetched from the devices as the features are, so that both come in the order that the mesh gives them.
            ids, keep, index = distributed.gather((batch.pop("captions"), batch["valid"], batch["index"]))
            index = index[keep]
            if (np.diff(index, prepend=last) <= 0).any():
                raise RuntimeError("evaluation: the rows of a batch came in another order than they have in the split")
            last = index[-1] if len(index) else last
            settings = self._settings(len(keep)) | self._normalization
            found = encode(self.variables, batch, method=self.method, **settings)
            features.append(self._keep(found))
            valid.append(keep)
            captions.append({name: x[keep] for name, x in ids.items()})
        return Encoded(features, valid, jax.tree.map(lambda *parts: np.concatenate(parts), *captions))

    def _features(self, method: Method, side: Side) -> list[Features]:
        """The features of a side, with what is imputed for those that its `use` leaves out if the method imputes."""
        imputer = method.imputer(side.use)
        if imputer is None:
            return self._encoded(side).features
        key = imputer, side
        if key not in self._imputed:
            used = self._used(side.use)
            self._imputed[key] = [
                self._keep(
                    impute(self.variables, self._spread(x), used, method=imputer, **self._settings(count_rows(x)))
                )
                for x in self._encoded(side).features
            ]
        return self._imputed[key]

    def _used(self, use: Use) -> jax.Array:
        """Which modalities are used [M], on every device."""
        return jax.device_put(np.array([m in use for m in self.data.spec.modalities]), replicated(self.mesh))

    def _embed(
        self, features: list[Features], valid: list[np.ndarray], *, method: Method, use: Use, form: str = EMBED
    ) -> Vectors:
        found, fits, static = [], True, dict(method=method, use=use, form=form)
        for x in features:
            one = embed(self.variables, self._spread(x), **static, **self._settings(count_rows(x)))
            fits = fits and (bool(found) or self._take_room(one, len(features)))
            found.append(one if fits else distributed.gather(one))
        packing = packing_of(method, self.variables, features[0], use, form)
        if fits:
            return vectors.on_devices([self._spread(x) for x in found], valid, self.mesh, packing)
        return vectors.on_host(np.concatenate([x[keep] for x, keep in zip(found, valid)]), packing)

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


def check_vectors(found: Vectors, rows: np.ndarray, split: str, use: Use) -> None:
    """Raises DataError if the vector of one of these rows of a split has no direction: it would rank by chance."""
    squares = found[rows].squared_lengths
    wrong = ~(np.isfinite(squares) & (squares > 0))
    if wrong.any():
        raise DataError(
            f"row {np.asarray(rows)[wrong.argmax()]} of split {split!r} has a vector of {'+'.join(use)} that is zero "
            f"or not finite ({wrong.sum()} such rows); check the weights, and the pictures and captions of this row"
        )


def one_row_of(split: str, names: Collection[str], data: Data) -> Batch:
    """A blank row as `method.encode` gets it from a split of which the rows of `config.evals` use these names."""
    there = data.present(split)
    images = [m for m in data.spec.modalities if m in names and there[m].any()]
    captioned = [key.removeprefix(f"{TEXT}/") for key in there if key.startswith(f"{TEXT}/")]
    text = [m for m in captioned if TEXT in names or f"{TEXT}/{m}" in names]
    return one_row(data.spec, images, text, data.text_length(split))


def shown_pictures(side: Side, data: Data) -> dict[str, np.ndarray]:
    """Which pictures the rows of a side show, {modality of its `use`: [n] bool}."""
    present = data.present(side.split)
    names = [m for m in side.use if m in data.spec.modalities]
    if side.mixed is None:
        return {m: present[m] for m in names}
    shown = galleries.subsets(np.stack([present[m] for m in names], axis=1), seed=side.mixed)
    return dict(zip(names, shown.T))


def _show(batch: Batch, shown: dict[str, np.ndarray]) -> Batch:
    """The batch as if it lacked the pictures that are not shown, {modality: [n] bool} over the rows of the split."""
    present = {m: batch["present"][m] & x[batch["index"]] for m, x in shown.items() if m in batch["present"]}
    return batch | {"present": batch["present"] | present}


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
    batch |= {name: np.arange(rows, dtype=np.int32) for name in NUMBERS}
    own = distributed.share(lambda: mesh).rows(rows)
    return {"images": {}, "captions": {}} | jax.tree.map(lambda x: x[own], batch)
