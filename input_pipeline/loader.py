"""Batches from records: whole batches are read by threads, and each is a pure function of its number.

Threads, not processes: Pillow decodes without holding the interpreter's lock, and nothing is copied.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from input_pipeline import images
from input_pipeline.records import Records
from input_pipeline.sampler import IdentitySampler
from jax_mmreid.batch import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The rows of a split with their masks, and with class labels if it is trained on."""

    records: Records
    present: np.ndarray  # [N,M] bool, modalities in the order of records.paths
    label: np.ndarray | None  # [N] int32 0..K-1


def train_batches(
    split: Split,
    sampler: IdentitySampler,
    start: int,
    stop: int,
    *,
    image_size: tuple[int, int],
    threads: int,
    shard: tuple[int, int],
) -> Iterator[Batch]:
    """Batches of steps start..stop-1; process i of n (`shard`) gets the i-th block of rows of each."""

    def make(step: int) -> Batch:
        rows = np.split(sampler.rows(step), shard[1])[shard[0]]
        return read_rows(split, rows, image_size, Image.Resampling.BICUBIC)

    return _stream(make, start, stop, threads)


def eval_batches(
    split: Split, batch_size: int, *, image_size: tuple[int, int], threads: int, shard: tuple[int, int]
) -> Iterator[Batch]:
    """Every row once, in order; the last batch repeats the last row, with `valid` False and `index` -1 there.

    Process i of n (`shard`) gets the i-th block of rows of each batch, which may be padding only.
    """
    N = len(split.records)

    def make(number: int) -> Batch:
        rows = number * batch_size + np.split(np.arange(batch_size), shard[1])[shard[0]]
        batch = read_rows(split, np.minimum(rows, N - 1), image_size, Image.Resampling.BILINEAR)
        valid = rows < N
        return batch | {"valid": valid, "index": np.where(valid, batch["index"], np.int32(-1))}

    return _stream(make, 0, -(-N // batch_size), threads)


def read_rows(split: Split, rows: np.ndarray, image_size: tuple[int, int], resample: Image.Resampling) -> Batch:
    """One batch of the given rows, unaugmented; absent pictures are zeros and their files are not opened."""
    records = split.records
    batch = {"images": {}, "present": {}}
    for column, name in enumerate(records.paths):
        present = split.present[rows, column]
        pixels = np.zeros((len(rows), *image_size, 3), np.uint8)
        for i in np.flatnonzero(present):
            if i and rows[i] == rows[i - 1]:  # padding and repeated rows are not decoded twice
                pixels[i] = pixels[i - 1]
            else:
                pixels[i] = images.read(records.path(name, rows[i]), image_size, resample)
        batch["images"][name] = pixels
        batch["present"][name] = present
    if split.label is not None:
        batch["label"] = split.label[rows]
    batch |= {"pid": records.pid[rows], "camid": records.camid[rows], "view": records.view[rows]}
    return batch | {"index": np.asarray(rows, np.int32)}


def _stream(make: Callable[[int], Batch], start: int, stop: int, threads: int) -> Iterator[Batch]:
    """make(start), ..., make(stop - 1) in order, computed ahead by `threads` threads (0: by the caller)."""
    if stop <= start:
        return
    import grain  # here, because it loads jax, which the command lines of this package can do without

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads and threads + 2)
    batches = iter(grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()
