"""Reading data. `open_data` is the public door; what it returns follows `jax_mmreid.batch.Data`. `describe` returns
what the same data would look like, from published counts and without a look at a picture.

Everything here is numpy, Pillow and grain on the host: pictures leave as uint8, augmentation is the device's work.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from input_pipeline import datasets, validation
from input_pipeline.data_spec import DescribedData, describe
from input_pipeline.reading import images, loader, masks, packed
from input_pipeline.reading.sampler import IdentitySampler, PairSampler
from input_pipeline.records import Records, single_identities
from input_pipeline.text.token_table import Options, tokenize
from input_pipeline.text.tokenizer import Tokenizer
from jax_mmreid.batch import Batch, DataSpec
from jax_mmreid.errors import DataError

__all__ = ["DescribedData", "OpenedData", "describe", "load_records", "open_data"]


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedData:
    """An opened dataset: the `Data` protocol of `jax_mmreid.batch`, and its training masks."""

    spec: DataSpec
    present_train: np.ndarray  # [N,M] bool over the whole training list, all-False rows included
    missing_rates: dict[str, float]  # of the rows trained on
    _splits: dict[str, loader.Reader]
    _sampler: IdentitySampler | PairSampler
    _eval_batch_size: int
    _reading: dict  # threads and shard, for the loader
    _tokenizer: Tokenizer | None
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
        """Which pictures the rows of a split have, {modality: [N] bool}; of "train" those that are shown.

        "text" tells which rows are described in all modalities that the split has captions of, if it has any.
        """
        split = self._find(name).split
        present = dict(zip(self.spec.modalities, split.present.T))
        return present if split.captions is None else present | {"text": split.captions.present}

    def columns(self, name: str) -> dict[str, np.ndarray]:
        """pid, camid and view of the rows of a split, each [N] int32."""
        records = self._find(name).split.records
        return {"pid": records.pid, "camid": records.camid, "view": records.view}

    def tokenize(self, sentences: Sequence[str]) -> np.ndarray:
        """Token ids [n,L] int32, L = `text.context`; raises ValueError without a tokenizer."""
        if self._tokenizer is None:
            raise ValueError("data: no sentence can be read, as there is no tokenizer; set data.text.tokenizer")
        return self._tokenizer.encode(sentences)

    def save_masks(self, path: str) -> None:
        """Writes the training masks to an .npz file that `missing.mask_file` can name."""
        masks.save(path, self.present_train, self._train_list)

    def save_tokenizer(self, folder: str) -> None:
        """Writes the vocabulary to a folder that `text.tokenizer` can name; nothing if there is none, or "builtin"."""
        if self._tokenizer is not None:
            self._tokenizer.save(folder)

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
    pairs: bool = False,
    text: dict | None = None,
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
    `pairs`: True for training rows that are a picture of each modality, drawn apart, of one identity.
    `text`: fields of `token_table.Options`, how captions become token ids; none do by default.
    Raises ValueError for an argument that cannot be, DataError for data that cannot be used.
    """
    modalities, batch_size, words = validation.distinct(modalities), identities * instances, Options(**text or {})
    validation.check_sizes(identities=identities, instances=instances, eval_batch_size=eval_batch_size, threads=threads)
    validation.check_shard(shard, batch_size, eval_batch_size)
    validation.check_reading(cache, on_bad_image, range16, resize)
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
    if instances > 1 or pairs:  # else nothing is learned from what an identity's pictures have in common
        _check_identities(name, train, [r for split, r in records.items() if split != "train"])
    captions, tokenizer = tokenize(name, records | {"train": train}, words, seed=seed)
    pids, label = np.unique(train.pid, return_inverse=True)
    label = label.astype(np.int32)
    splits = {split: loader.Split(r, r.has_file(), None, captions.get(split)) for split, r in records.items()}
    splits["train"] = loader.Split(train, present[kept], label, captions.get("train"))
    draw = dict(identities=identities, instances=instances, seed=seed)
    shown = dict(zip(modalities, present[kept].T))
    sampler = PairSampler(train.pid, shown, **draw) if pairs else IdentitySampler(label, **draw)
    reader = functools.partial(
        loader.Reader, image_size=image_size, range16=range16, resize=resize, cache=cache == "memory"
    )
    spec = DataSpec(
        name=name,
        fingerprint=_fingerprint(records, present),
        modalities=modalities,
        image_size=tuple(image_size),
        pids=tuple(pids.tolist()),
        cameras=tuple(np.unique(train.camid).tolist()),
        batch_size=batch_size,
        steps_per_epoch=sampler.steps_per_epoch,
        text=tuple(captions["train"].captions) if "train" in captions else (),
        text_length=next((table.ids.shape[1] for table in captions.values()), 0),
        vocab=tokenizer.vocab if tokenizer else 0,
        resize=tuple(resize),
        range16=tuple(range16),
    )
    return OpenedData(
        spec=spec,
        present_train=present,
        missing_rates=masks.rates(present[kept], modalities),
        _splits={split: reader(x, drop=split == "train" and on_bad_image == "drop") for split, x in splits.items()},
        _sampler=sampler,
        _eval_batch_size=eval_batch_size,
        _reading=dict(threads=threads, shard=shard),
        _tokenizer=tokenizer,
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
