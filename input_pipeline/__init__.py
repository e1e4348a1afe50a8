"""Reading data. `open_data` is the public door; what it returns follows `jax_mmreid.batch.Data`. `describe` returns
what the same data would look like, from published counts and without a look at the disk.

Everything here is numpy, Pillow and grain on the host: pictures leave as uint8, augmentation is the device's work.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from input_pipeline import datasets, images, loader, packed
from input_pipeline import missing as masks
from input_pipeline.records import Records, single_identities
from input_pipeline.sampler import IdentitySampler
from jax_mmreid.batch import Batch, DataError


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedData:
    """An opened dataset: the `Data` protocol of `jax_mmreid.batch`, and its training masks."""

    modalities: tuple[str, ...]
    image_size: tuple[int, int]  # H, W
    pids: tuple[int, ...]
    cameras: tuple[int, ...]
    batch_size: int
    steps_per_epoch: int
    fingerprint: str
    present_train: np.ndarray  # [N,M] bool over the whole training list, all-False rows included
    missing_rates: dict[str, float]  # of the rows trained on
    _splits: dict[str, loader.Reader]
    _sampler: IdentitySampler
    _eval_batch_size: int
    _reading: dict  # threads and shard, for the loader
    _train_list: str  # fingerprint of the whole training list

    def train(self, start: int, stop: int) -> Iterator[Batch]:
        """Training batches of steps start..stop-1; batch t is a pure function of (seed, t)."""
        if start < 0:
            raise ValueError(f"data: cannot start at step {start}")
        return loader.train_batches(self._splits["train"], self._sampler, start, stop, **self._reading)

    def split(self, name: str) -> Iterator[Batch]:
        """Every row of a split once, in order, unaugmented; "train" is masked as in training and has labels."""
        return loader.eval_batches(self._find(name), self._eval_batch_size, **self._reading)

    def num_rows(self, name: str) -> int:
        """Rows of a split, padding not counted."""
        return len(self._find(name).split.records)

    def present(self, name: str) -> dict[str, np.ndarray]:
        """Which pictures the rows of a split have, {modality: [N] bool}; of "train" those that are shown."""
        return dict(zip(self.modalities, self._find(name).split.present.T))

    def save_masks(self, path: str) -> None:
        """Writes the training masks to an .npz file that `missing.mask_file` can name."""
        masks.save(path, self.present_train, self._train_list)

    def _find(self, name: str) -> loader.Reader:
        if name not in self._splits:
            raise ValueError(f"data: no split {name!r}; there are {', '.join(self._splits)}")
        return self._splits[name]


def open_data(
    *,
    name: str,
    data_dir: str,
    modalities: Sequence[str],
    image_size: tuple[int, int],
    identities: int,
    instances: int,
    eval_batch_size: int,
    threads: int,
    allow_missing_files: bool,
    missing: dict,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    options: dict | None = None,
    cache: str = "",
    on_bad_image: str = "error",
    range16: tuple[int, int] = images.RANGE16,
    resize: tuple[str, str] = loader.RESIZE,
    source: str = "files",
) -> OpenedData:
    """Opens dataset `name` (a module of `input_pipeline.datasets`) for training and evaluation.

    `image_size` is (H, W); a training batch has `identities` x `instances` rows; `missing` holds eta, seed, mode,
    all_missing and mask_file ("" draws the masks); `shard` is (process index, number of processes), and each
    process reads its block of every batch; `options` are further keyword arguments of the dataset's `load`.

    `cache`: "memory" keeps what was decoded, at most all pictures in `image_size`; "" keeps nothing.
    `on_bad_image`: "error", or "drop" to train without a few unreadable pictures; evaluation never goes without.
    `range16`: which values of 16-bit pictures become black and white, see `images.decode`.
    `resize`: Pillow's resampling in training and in evaluation: nearest, bilinear, bicubic, lanczos, ...
    `source`: "files", or "tfds" for what `tfds_builder` packed below `data_dir`, with the same batches.
    Raises ValueError for an argument that cannot be, DataError for data that cannot be used.
    """
    modalities, batch_size = _distinct(modalities), identities * instances
    _check_sizes(identities=identities, instances=instances, eval_batch_size=eval_batch_size, threads=threads)
    _check_shard(shard, batch_size, eval_batch_size)
    _check_reading(cache, on_bad_image, range16, resize)
    records = load_records(
        name,
        data_dir,
        modalities=modalities,
        allow_missing_files=allow_missing_files,
        options=options or {},
        source=source,
    )
    whole = records["train"]
    present = _masks(whole, modalities, **missing)
    kept = np.flatnonzero(present.any(axis=1))
    train = whole.take(kept)
    _check_identities(name, train, [r for split, r in records.items() if split != "train"])
    pids, label = np.unique(train.pid, return_inverse=True)
    label = label.astype(np.int32)
    splits = {split: loader.Split(r, r.has_file(), None) for split, r in records.items()}
    splits["train"] = loader.Split(train, present[kept], label)
    sampler = IdentitySampler(label, identities=identities, instances=instances, seed=seed)
    reader = functools.partial(
        loader.Reader, image_size=image_size, range16=range16, resize=resize, cache=cache == "memory"
    )
    return OpenedData(
        modalities=modalities,
        image_size=tuple(image_size),
        pids=tuple(pids.tolist()),
        cameras=tuple(np.unique(train.camid).tolist()),
        batch_size=batch_size,
        steps_per_epoch=sampler.steps_per_epoch,
        fingerprint=_fingerprint(records, present),
        present_train=present,
        missing_rates=masks.rates(present[kept], modalities),
        _splits={split: reader(x, drop=split == "train" and on_bad_image == "drop") for split, x in splits.items()},
        _sampler=sampler,
        _eval_batch_size=eval_batch_size,
        _reading=dict(threads=threads, shard=shard),
        _train_list=whole.fingerprint(),
    )


def load_records(
    name: str,
    data_dir: str,
    *,
    modalities: Sequence[str],
    allow_missing_files: bool,
    options: dict,
    source: str = "files",
) -> dict[str, Records]:
    """The splits of dataset `name` as tables, from its files or as packed; raises as `open_data`."""
    if source not in ("files", "tfds"):
        raise ValueError(f"data.source={source!r}: there are 'files' and 'tfds'")
    given = dict(data_dir=data_dir, modalities=modalities, allow_missing_files=allow_missing_files)
    load = datasets.find(name, "load", options, **given)
    return packed.load(data_dir, name=name, modalities=modalities) if source == "tfds" else load()


@dataclasses.dataclass(frozen=True)
class DescribedData:
    """The fields of `jax_mmreid.batch.Data` that a model is built from; it has nothing to read."""

    modalities: tuple[str, ...]
    image_size: tuple[int, int]  # H, W
    pids: tuple[int, ...]  # 0..K-1
    cameras: tuple[int, ...]
    batch_size: int
    steps_per_epoch: int  # about: every row once
    _rows: int

    def num_rows(self, name: str) -> int:
        """Rows of the split "train"; ValueError for another, which nothing describes."""
        if name != "train":
            raise ValueError(f"data: no split {name!r} is described, only 'train'")
        return self._rows


def describe(
    *,
    name: str,
    data_dir: str,
    modalities: Sequence[str],
    image_size: tuple[int, int],
    identities: int,
    instances: int,
    options: dict | None = None,
    **_: object,
) -> DescribedData:
    """Dataset `name` by the counts that its module states, for a model that is built and not trained.

    Arguments are those of `open_data`; the others of them are taken and not needed. Raises ValueError for an argument
    that cannot be.
    """
    modalities = _distinct(modalities)
    _check_sizes(identities=identities, instances=instances, threads=0)
    counts = datasets.find(name, "counts", options or {}, data_dir=data_dir, modalities=modalities)()["train"]
    return DescribedData(
        modalities=modalities,
        image_size=tuple(image_size),
        pids=tuple(range(counts.identities)),
        cameras=counts.cameras,
        batch_size=identities * instances,
        steps_per_epoch=max(1, counts.rows // (identities * instances)),
        _rows=counts.rows,
    )


def _distinct(modalities: Sequence[str]) -> tuple[str, ...]:
    if len(set(modalities)) < len(modalities):
        raise ValueError(f"data.modalities={tuple(modalities)}: a modality is named twice")
    return tuple(modalities)


def _masks(
    records: Records,
    modalities: tuple[str, ...],
    *,
    eta: Sequence[float],
    seed: int,
    mode: str,
    all_missing: str,
    mask_file: str,
) -> np.ndarray:
    """Training masks [N,M], drawn or read; only "drop_sample" leaves rows all False."""
    has_file = records.has_file()
    if mask_file:
        present = masks.load(mask_file, records.fingerprint(), has_file.shape) & has_file
    else:
        options = dict(eta=eta, seed=seed, mode=mode, all_missing=all_missing)
        present = masks.draw(len(records), modalities, has_file=has_file, **options)
    empty = np.flatnonzero(~present.any(axis=1))
    if len(empty) and all_missing != "drop_sample":
        name = next(filter(None, (column[empty[0]] for column in records.paths.values())))
        raise DataError(
            f"missing: {mask_file} hides every picture of {name} ({len(empty)} such rows); "
            "show one, or set missing.all_missing='drop_sample'"
        )
    if len(empty) == len(records):
        raise DataError("missing: every training row lost all its pictures; lower missing.eta")
    return present


def _check_sizes(*, threads: int, **sizes: int) -> None:
    for key, size in sizes.items():
        if size < 1:
            raise ValueError(f"data.{key}={size}: must be at least 1")
    if threads < 0:
        raise ValueError(f"data.threads={threads}: must be 0 (no reading ahead) or more")


def _check_shard(shard: tuple[int, int], batch_size: int, eval_batch_size: int) -> None:
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"data: there is no process {index} among {count}")
    if batch_size % count:
        raise ValueError(
            f"data: {batch_size} training rows (data.identities x data.instances) do not divide by {count} processes"
        )
    if eval_batch_size % count:
        raise ValueError(f"data.eval_batch_size={eval_batch_size} does not divide by {count} processes")


def _check_reading(cache: str, on_bad_image: str, range16: tuple[int, int], resize: tuple[str, str]) -> None:
    filters = tuple(name.lower() for name in Image.Resampling.__members__)
    if len(resize) != 2 or not set(resize) <= set(filters):
        raise ValueError(f"data.resize={tuple(resize)}: must be two of {', '.join(filters)}")
    for key, value, known in (("cache", cache, ("", "memory")), ("on_bad_image", on_bad_image, ("error", "drop"))):
        if value not in known:
            raise ValueError(f"data.{key}={value!r}: there are {' and '.join(map(repr, known))}")
    whole = len(range16) == 2 and all(isinstance(x, int) for x in range16)
    if not whole or not 0 <= range16[0] < range16[1] <= 65535:
        raise ValueError(f"data.range16={tuple(range16)}: must be two whole numbers that ascend within 0..65535")


def _check_identities(name: str, train: Records, evaluation: list[Records]) -> None:
    """Tells of identities that cannot be told from a single picture; DataError where nothing could ever match."""
    single = single_identities(train)
    if len(single) == len(np.unique(train.pid)):
        raise DataError(f"{name}: no training identity has two images, so nothing can be matched; add images")
    if single:
        shown = ", ".join(map(str, single[:5])) + (", ..." if len(single) > 5 else "")
        message = "%s: identities with one training image, which their batches repeat: %s (%d in all)"
        logging.getLogger(__name__).warning(message, name, shown, len(single))
    # Query and gallery may be splits of their own: an identity needs two images over all of them.
    pids = np.concatenate([records.pid for records in evaluation])
    if len(np.unique(pids)) == len(pids):
        raise DataError(f"{name}: no test identity has two images, so nothing can be matched; add images")


def _fingerprint(records: dict[str, Records], present: np.ndarray) -> str:
    digest = hashlib.sha256(np.packbits(present).tobytes())
    for split in sorted(records):
        digest.update(f"{split} {records[split].fingerprint()}\n".encode())
    return digest.hexdigest()[:16]
