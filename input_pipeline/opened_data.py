"""A dataset opened for training and evaluation: its splits, its training masks, its captions as token ids."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from input_pipeline import datasets
from input_pipeline.data_config import DataConfig, MissingConfig
from input_pipeline.reading import loader, masks, packed
from input_pipeline.reading.sampler import IdentitySampler, PairSampler
from input_pipeline.records import Records, single_identities
from input_pipeline.text.token_table import tokenize
from input_pipeline.text.tokenizer import Tokenizer
from jax_mmreid.batch import Batch, DataSpec, Share
from jax_mmreid.errors import ConfigError, DataError

WHOLE = Share()


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedData:
    """An opened dataset: the `Data` protocol of `jax_mmreid.batch`, and its training masks."""

    spec: DataSpec
    present_train: np.ndarray  # [N,M] bool over the whole training list, all-False rows included
    missing_rates: dict[str, float]  # of the rows trained on
    _splits: dict[str, loader.Reader]
    _sampler: IdentitySampler | PairSampler
    _eval_batch_size: int
    _reading: dict  # threads and share, for the loader
    _tokenizer: Tokenizer | None
    _train_list: str  # fingerprint of the whole training list

    def train(self, start: int, stop: int) -> Iterator[Batch]:
        """Training batches of steps start..stop-1; batch t is a pure function of (seed, t)."""
        if start < 0:
            raise ValueError(f"data: cannot start at step {start}")
        return loader.train_batches(self._splits["train"], self._sampler, start, stop, **self._reading)

    def split(self, name: str) -> Iterator[Batch]:
        """Every row of a split once, in order, unaugmented; "train" is masked as in training and has labels.

        Raises ConfigError for a split that does not exist, as do the methods below.
        """
        return loader.eval_batches(self._find(name), self._eval_batch_size, **self._reading)

    def num_rows(self, name: str) -> int:
        """Rows of a split, padding not counted."""
        return len(self._find(name).split.records)

    def present(self, name: str) -> dict[str, np.ndarray]:
        """Which pictures and captions the rows of a split have, {key: [N] bool}; those of "train" after masking.

        The keys are the modalities, and with captions "text/m" for every modality m that they describe and "text" for
        rows that have all of these.
        """
        split = self._find(name).split
        pictures = dict(zip(self.spec.modalities, split.present.T))
        return pictures if split.captions is None else pictures | split.captions.present

    def text_length(self, name: str) -> int:
        """L of the captions of a split, 0 without captions."""
        captions = self._find(name).split.captions
        return 0 if captions is None else captions.ids.shape[1]

    def columns(self, name: str) -> dict[str, np.ndarray]:
        """pid, camid and view of the rows of a split, each [N] int32."""
        records = self._find(name).split.records
        return {"pid": records.pid, "camid": records.camid, "view": records.view}

    def pictures(self, name: str, rows: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The pictures of rows [n] of a split, {modality: [n,H,W,3] uint8}, and which exist, {modality: [n] bool}.

        They are those of `split`, zeros where there is none. Raises DataError for a picture that cannot be read.
        """
        reader = self._find(name)
        batch = reader.batch(rows, reader.evaluation)
        return batch["images"], batch["present"]

    def sentences(self, name: str, rows: np.ndarray) -> dict[str, list[str]]:
        """The captions of rows [n] of a split, {modality that they describe: n strings}; {} if none are read."""
        split = self._find(name).split
        described = () if split.captions is None else split.captions.captions
        return {m: split.records.captions[m][rows].tolist() for m in described}

    def tokenize(self, sentences: Sequence[str]) -> np.ndarray:
        """Token ids [n,L] int32, L = `text.context`; raises ConfigError without a tokenizer."""
        if self._tokenizer is None:
            raise ConfigError("config.data.text.tokenizer='': sentences cannot be encoded without a tokenizer; set one")
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
            raise ConfigError(f"data: no split {name!r}; there are {', '.join(self._splits)}")
        return self._splits[name]


def open_data(config: DataConfig, *, missing: MissingConfig, seed: int, share: Share = WHOLE) -> OpenedData:
    """Opens a dataset for training and evaluation.

    `missing` says which training pictures are hidden; `seed` decides the order of training rows and which captions
    are rephrased; of every batch, the rows of a `share` are read.
    Raises ConfigError for a config that cannot be, DataError for data that cannot be used.
    """
    records = load_records(config)
    whole = records["train"]
    _check_modalities(config.name, whole)
    present = _masks(whole, config.modalities, missing)
    kept = np.flatnonzero(present.any(axis=1))
    train = whole.take(kept)
    if config.instances > 1 or config.pairs:  # else the loss does not compare pictures of one identity
        _check_identities(config.name, train, [r for split, r in records.items() if split != "train"])
    config = _fitted(config, len(np.unique(train.pid)))
    _check_share(share, config.identities * config.instances, config.eval_batch_size)
    tables, tokenizer = tokenize(config.name, records | {"train": train}, config.text, seed=seed)
    pids, label = np.unique(train.pid, return_inverse=True)
    splits = {split: loader.Split(r, r.has_file(), None, tables.get(split)) for split, r in records.items()}
    splits["train"] = loader.Split(train, present[kept], label.astype(np.int32), tables.get("train"))
    sampler = _sampler(config, splits["train"], seed)
    spec = DataSpec(
        name=config.name,
        fingerprint=_fingerprint(records, present),
        modalities=config.modalities,
        image_size=config.image_size,
        pids=tuple(pids.tolist()),
        cameras=tuple(np.unique(train.camid).tolist()),
        batch_size=config.identities * config.instances,
        steps_per_epoch=sampler.steps_per_epoch,
        text=tuple(tables["train"].captions) if "train" in tables else (),
        text_length=tables["train"].ids.shape[1] if "train" in tables else 0,
        vocab=tokenizer.vocab if tokenizer else 0,
        resize=config.resize,
        range16=config.range16,
    )
    return OpenedData(
        spec=spec,
        present_train=present,
        missing_rates=masks.rates(present[kept], config.modalities),
        _splits={split: _reader(config, x, drop=split == "train") for split, x in splits.items()},
        _sampler=sampler,
        _eval_batch_size=config.eval_batch_size,
        _reading=dict(threads=config.threads, share=share),
        _tokenizer=tokenizer,
        _train_list=whole.fingerprint(),
    )


def load_records(config: DataConfig) -> dict[str, Records]:
    """The splits of a dataset as tables, from its files or as packed; raises as `open_data`."""
    given = dict(data_dir=config.data_dir, modalities=config.modalities, allow_missing_files=config.allow_missing_files)
    load = datasets.find(config.name, "load", config.options, **given)
    if config.source == "tfds":
        return packed.load(config.data_dir, name=config.name, modalities=config.modalities)
    return load()


def _fitted(config: DataConfig, identities: int) -> DataConfig:
    """With a batch that so many training identities can fill, if `fit_batch` asks for it."""
    if not config.fit_batch or not 2 <= identities < config.identities:
        return config
    instances = config.identities * config.instances // identities
    return dataclasses.replace(config, identities=identities, instances=instances)


def _check_share(share: Share, batch_size: int, eval_batch_size: int) -> None:
    if not share.blocks or not set(share.blocks) <= set(range(share.of)):
        raise ValueError(f"data: there are no blocks {share.blocks} of {share.of}")
    training, evaluation = "config.data.identities x config.data.instances", "config.data.eval_batch_size"
    for field, rows in ((training, batch_size), (evaluation, eval_batch_size)):
        if rows % share.of:
            raise ConfigError(f"{field}: {rows} rows do not divide over {share.of} devices of axis 'data'; change it")


def _masks(records: Records, modalities: tuple[str, ...], missing: MissingConfig) -> np.ndarray:
    """Training masks [N,M], drawn or read; only "drop_sample" leaves rows all False."""
    has_file = records.has_file()
    if missing.mask_file:
        present = masks.load(missing.mask_file, records.fingerprint(), has_file.shape) & has_file
    else:
        present = masks.draw(has_file, modalities, missing)
    empty = np.flatnonzero(~present.any(axis=1))
    if len(empty) and missing.all_missing != "drop_sample":
        name = next(filter(None, (column[empty[0]] for column in records.paths.values())))
        raise DataError(
            f"missing: {missing.mask_file} hides every picture of {name} ({len(empty)} such rows); "
            "show one, or set missing.all_missing='drop_sample'"
        )
    if len(empty) == len(records):
        raise DataError("missing: every training row lost all its pictures; lower missing.eta")
    return present


def _sampler(config: DataConfig, train: loader.Split, seed: int) -> IdentitySampler | PairSampler:
    options = dict(identities=config.identities, instances=config.instances, seed=seed)
    if not config.pairs:
        return IdentitySampler(train.label, **options)
    return PairSampler(train.records.pid, dict(zip(config.modalities, train.present.T)), **options)


def _reader(config: DataConfig, split: loader.Split, *, drop: bool) -> loader.Reader:
    return loader.Reader(
        split,
        config.image_size,
        range16=config.range16,
        resize=config.resize,
        cache=config.cache == "memory",
        drop=drop and config.on_bad_image == "drop",
    )


def _check_modalities(name: str, train: Records) -> None:
    """Raises DataError, with the numbers found, for a modality that no training row has."""
    found = dict(zip(train.paths, train.has_file().sum(axis=0).tolist()))
    if never := [m for m, count in found.items() if not count]:
        counts = ", ".join(f"{count} {m}" for m, count in found.items())
        raise DataError(
            f"{name}: no training row has an image of {' or '.join(never)} (images of {len(train)} rows: {counts}); "
            "add some, or leave it out of data.modalities"
        )


def _check_identities(name: str, train: Records, evaluation: list[Records]) -> None:
    """Warns of training identities with one picture; raises DataError where no two rows share an identity."""
    single = single_identities(train)
    if len(single) == len(np.unique(train.pid)):
        raise DataError(
            f"{name}: no training identity has two images ({len(train)} rows of {len(single)} identities), so nothing "
            "can be matched; add images"
        )
    if single:
        shown = ", ".join(map(str, single[:5])) + (", ..." if len(single) > 5 else "")
        message = "%s: identities with one training image, which their batches repeat: %s (%d in all)"
        logging.getLogger(__name__).warning(message, name, shown, len(single))
    # Query and gallery may be splits of their own: an identity needs two images over all of them.
    pids = np.concatenate([records.pid for records in evaluation])
    if len(np.unique(pids)) == len(pids):
        raise DataError(
            f"{name}: no test identity has two images ({len(pids)} rows of as many identities), so nothing can be "
            "matched; add images"
        )


def _fingerprint(records: dict[str, Records], present: np.ndarray) -> str:
    """Of the files of all splits, the training captions and the training masks; test captions may be exchanged."""
    digest = hashlib.sha256(np.packbits(present).tobytes())
    for split in sorted(records):
        digest.update(f"{split} {records[split].fingerprint(captions=split == 'train')}\n".encode())
    return digest.hexdigest()[:16]
