"""Batches from records: threads read whole batches, and each batch is a pure function of its number.

Threads, not processes: decoders release the interpreter's lock, and nothing is copied between processes.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.reading import images
from input_pipeline.reading.sampler import IdentitySampler, PairSampler
from input_pipeline.records import Records
from input_pipeline.text.token_table import TokenTable
from jax_mmreid.batch import Batch, Share
from jax_mmreid.errors import DataError

log = logging.getLogger(__name__)

RESIZE = ("bicubic", "bilinear")  # of Pillow: in training, in evaluation
MAX_DROPPED = 0.01  # of the training pictures may be dropped as unreadable, and always one


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The rows of a split with their masks, with class labels if it is trained on, and with captions if it has text."""

    records: Records
    present: np.ndarray  # [N,M] bool, modalities in the order of records.paths
    label: np.ndarray | None  # [N] int32 0..K-1
    captions: TokenTable | None = None


class Reader:
    """Reads rows of a split as batches of one size.

    `resize` names the resampling filters of training and of evaluation. `cache` keeps every picture that was read with
    the filter that the split uses. `drop` treats unreadable pictures as absent, up to 1 % of the split, and logs each
    once.
    """

    def __init__(
        self,
        split: Split,
        image_size: tuple[int, int],
        *,
        range16: tuple[int, int] = images.RANGE16,
        resize: tuple[str, str] = RESIZE,
        cache: bool = False,
        drop: bool = False,
    ):
        self.split, self.image_size = split, tuple(image_size)
        self.training, self.evaluation = (Image.Resampling[name.upper()] for name in resize)
        self._range16, self._drop = range16, drop
        self._present = split.present.copy()  # less what proved unreadable
        self._lock = threading.Lock()
        self._cached = None
        if cache:
            # Pages are allocated as pictures arrive. Two threads that write one picture write the same pixels.
            shape = (len(split.present), *self.image_size, 3)
            try:
                self._cached = [np.empty(shape, np.uint8) for _ in split.records.paths]
            except MemoryError:
                raise DataError(
                    f"data: {split.present.size} pictures do not fit into memory; set data.cache=''"
                ) from None
            self._done = np.zeros_like(split.present)

    @property
    def present(self) -> np.ndarray:
        """[N,M] bool: the masks of the split without the pictures dropped so far."""
        return self._present.copy()

    def batch(
        self,
        rows: np.ndarray,
        resample: Image.Resampling,
        modalities: Sequence[str] | None = None,
        replace: bool = False,
    ) -> Batch:
        """One batch of the given rows, unaugmented and without captions; absent pictures are zeros.

        `modalities` are those to read, by default all; no other file is opened, and none for an absent picture. With
        `replace`, a row that lost all its pictures by `drop` is replaced by the next row of its identity that has a
        picture in a modality that it had. Raises DataError for a picture that cannot be read.
        """
        records, rows = self.split.records, np.array(rows)
        names = {column: m for column, m in enumerate(records.paths) if modalities is None or m in modalities}
        pixels = {column: np.zeros((len(rows), *self.image_size, 3), np.uint8) for column in names}
        present = self._present[rows] & np.isin(np.arange(len(records.paths)), list(names))
        first = {}
        for i, row in enumerate(rows.tolist()):
            same = first.setdefault(row, i)
            if same < i:  # padding and repeated rows are not decoded twice
                present[i] = present[same]
                for x in pixels.values():
                    x[i] = x[same]
            else:
                self._fill(row, resample, {column: x[i] for column, x in pixels.items()}, present[i])
        if replace:
            for i in np.flatnonzero(~present.any(axis=1)):
                rows[i] = self._replace(rows[i], resample, {column: x[i] for column, x in pixels.items()}, present[i])
        batch = {"images": {m: pixels[column] for column, m in names.items()}}
        batch["present"] = {m: present[:, column].copy() for column, m in names.items()}
        if self.split.label is not None:
            batch["label"] = self.split.label[rows]
        batch |= {"pid": records.pid[rows], "camid": records.camid[rows], "view": records.view[rows]}
        return batch | {"index": np.asarray(rows, np.int32)}

    def _fill(self, row: int, resample: Image.Resampling, out: dict[int, np.ndarray], present: np.ndarray) -> None:
        """Writes the pictures of a row into `out` and sets `present` to False for those that are dropped."""
        keep = self._cached is not None and resample == (self.evaluation if self.split.label is None else self.training)
        names, files = tuple(self.split.records.paths), {}
        for column in np.flatnonzero(present):
            if keep and self._done[row, column]:
                out[column][...] = self._cached[column][row]
                continue
            try:
                settings = dict(size=self.image_size, resample=resample, range16=self._range16)
                out[column][...] = picture(self.split.records, names[column], row, files=files, **settings)
            except images.BadImageError as error:
                if not self._drop:
                    raise
                present[column] = False
                self._drop_picture(row, column, error)
                continue
            if keep:
                self._cached[column][row] = out[column]
                self._done[row, column] = True

    def _replace(self, row: int, resample: Image.Resampling, out: dict[int, np.ndarray], present: np.ndarray) -> int:
        """Reads the next row of the identity that can replace `row`, and returns its number."""
        shown = np.isin(np.arange(len(present)), list(out))
        label, wanted = self.split.label, self.split.present[row] & shown
        same = np.flatnonzero(label == label[row])
        for other in np.roll(same, -np.searchsorted(same, row))[1:]:
            present[:] = self._present[other] & shown
            if (present & wanted).any():
                self._fill(other, resample, out, present)
            if (present & wanted).any():
                return other
            for x in out.values():
                x[...] = 0
        path = self.split.records.path(tuple(self.split.records.paths)[np.argmax(wanted)], row)
        raise DataError(
            f"data: training identity {self.split.records.pid[row]} has no other picture to use instead of the "
            f"unreadable {path}; replace that file"
        )

    def _drop_picture(self, row: int, column: int, error: DataError) -> None:
        """Records a picture as unreadable; raises DataError if too many are."""
        with self._lock:
            if not self._present[row, column]:
                return
            self._present[row, column] = False
            whole = np.count_nonzero(self.split.present)
            count = whole - np.count_nonzero(self._present)
        if count > max(1, MAX_DROPPED * whole):
            raise DataError(
                f"data: {count} of {whole} training pictures cannot be read, more than data.on_bad_image='drop' "
                f"allows ({MAX_DROPPED:.0%}); the last one: {error}"
            ) from error
        log.warning("dropped from training (%d of %d pictures so far): %s", count, whole, error)


def picture(
    records: Records,
    modality: str,
    row: int,
    *,
    size: tuple[int, int],
    resample: Image.Resampling,
    range16: tuple[int, int],
    files: dict,
) -> np.ndarray:
    """One picture of a row, [H,W,3] uint8; raises DataError as `images.read` and `images.fit`.

    `files` caches what was read for this row, since a file may hold several of its pictures.
    """
    path = records.path(modality, row)
    if records.packed is not None:
        files.update(files or records.packed[records.rows[row]])
        pixels = images.decode(files[modality], path, range16)
    else:
        if path not in files:
            files[path] = images.read(path, range16)
        pixels = files[path]
    return images.fit(pixels, path, size, resample, records.part(modality, row))


def train_batches(
    reader: Reader,
    sampler: IdentitySampler | PairSampler,
    start: int,
    stop: int,
    *,
    threads: int,
    share: Share,
) -> Iterator[Batch]:
    """The rows of a share in the batches of steps start..stop-1, rows drawn by the sampler.

    A sampler of pairs gives rows [B,M]: the picture of each modality comes from a row of its own.
    """
    names, captions = tuple(reader.split.records.paths), reader.split.captions

    def make(step: int) -> Batch:
        rows = sampler.rows(step)
        mine = share.rows(len(rows))
        wanted = {names: rows[mine]} if rows.ndim == 1 else {(m,): rows[mine, i] for i, m in enumerate(names)}
        parts = [reader.batch(own, reader.training, modalities, replace=True) for modalities, own in wanted.items()]
        merged = {key: {m: x for part in parts for m, x in part[key].items()} for key in ("images", "present")}
        batch = parts[0] | merged
        if captions is None:
            return batch
        shown = {m: part["index"] for part in parts for m in part["images"]}
        paraphrase_mask = {m: mask[mine] for m, mask in captions.paraphrase_mask(step, len(rows)).items()}
        return captions.add(batch, {m: shown.get(m, batch["index"]) for m in captions.captions}, paraphrase_mask)

    return stream(make, start, stop, threads)


def eval_batches(reader: Reader, batch_size: int, *, threads: int, share: Share) -> Iterator[Batch]:
    """Every row once, in order; the last batch repeats the last row, with `valid` False and `index` -1 there.

    Of each batch the rows of a share are read, which may be padding only. A training row all of whose pictures were
    dropped counts as padding. Batches of a test split have no key for a modality that the split never has. Raises
    RuntimeError if a row of the share did not come exactly once.
    """
    N, captions = len(reader.split.records), reader.split.captions
    some = reader.split.present.any(axis=0) | (reader.split.label is not None)
    names = tuple(m for m, has in zip(reader.split.records.paths, some) if has)

    def make(number: int) -> Batch:
        rows = number * batch_size + share.rows(batch_size)
        shown = np.minimum(rows, N - 1)
        batch = reader.batch(shown, reader.evaluation, names)
        valid = (rows < N) & np.any(list(batch["present"].values()), axis=0)
        batch |= {"valid": valid, "index": np.where(valid, batch["index"], np.int32(-1))}
        return batch if captions is None else captions.add(batch, dict.fromkeys(captions.captions, shown), {})

    seen = np.zeros(N, np.int32)
    for batch in stream(make, 0, -(-N // batch_size), threads):
        np.add.at(seen, batch["index"][batch["valid"]], 1)
        yield batch
    mine = np.isin(np.arange(N) % batch_size, share.rows(batch_size))
    wrong = np.flatnonzero(seen != (mine & reader.present.any(axis=1)))
    if len(wrong):
        raise RuntimeError(f"loader: {len(wrong)} of {N} rows did not come once in a pass; the first is {wrong[0]}")


def stream(make: Callable[[int], Any], start: int, stop: int, threads: int) -> Iterator[Any]:
    """make(start), ..., make(stop - 1) in order, computed ahead by `threads` threads (0: by the caller)."""
    if stop <= start:
        return
    import grain  # here, because it loads jax, which the command line tools of this package do not need

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads and threads + 2)
    batches = iter(grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()
