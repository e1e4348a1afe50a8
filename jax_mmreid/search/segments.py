"""Segments of a store: folders of arrays that are written once, synced, and never changed.

columns.npy   [n] of FIELDS            paths.npy     the paths in UTF-8, one after another
parts.npy     [n,M,D] float32, zeros where absent     present.npy   [n,M] bool     fallback.npy  [n,F] float32
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.format import open_memmap

from jax_mmreid.metrics.similarity import Packing, Parts

FIELDS = np.dtype(
    [("id", "<i8"), ("pid", "<i8"), ("camid", "<i4"), ("time", "<f8"), ("expires", "<f8"), ("path_end", "<i8")]
)
CHUNK = 4096  # rows that are copied at once


class Columns(NamedTuple):
    """What is known of n entries beside their vectors."""

    id: np.ndarray  # [n] int64, ascending
    path: np.ndarray  # [n] str, as objects
    pid: np.ndarray  # [n] int64, -1 unknown
    camid: np.ndarray  # [n] int32, -1 unknown
    time: np.ndarray  # [n] float64, Unix seconds, nan unknown
    expires: np.ndarray  # [n] float64, Unix seconds, nan never


class Rows(NamedTuple):
    """Entries with their vectors, as a segment holds them."""

    columns: Columns
    vectors: Parts

    def take(self, kept: np.ndarray) -> "Rows":
        """The entries of a mask or an index."""
        return Rows(Columns(*(x[kept] for x in self.columns)), _map(lambda x: x[kept], self.vectors))


def write(folder: Path, sources: Sequence[tuple[Rows, np.ndarray]]) -> int:
    """Writes the entries [n] bool of every source, in their order, as a new segment; returns their number.

    Vectors are copied in chunks, so that segments may be larger than memory. All is on the disk on return.
    """
    folder.mkdir()
    rows = sum(int(kept.sum()) for _, kept in sources)
    _write_columns(folder, [Columns(*(x[kept] for x in rows.columns)) for rows, kept in sources])
    for name in Parts._fields:
        arrays = [(getattr(rows.vectors, name), kept) for rows, kept in sources]
        first = arrays[0][0]
        if first is None:
            continue
        file = open_memmap(folder / f"{name}.npy", mode="w+", dtype=first.dtype, shape=(rows, *first.shape[1:]))
        start = 0
        for array, kept in arrays:
            index = np.flatnonzero(kept)
            for part in np.split(index, range(CHUNK, len(index), CHUNK)):
                file[start : start + len(part)] = array[part]
                start += len(part)
        file.flush()
        del file
        sync(folder / f"{name}.npy")
    sync(folder)
    return rows


def read(folder: Path) -> Rows:
    """The entries of a segment, their vectors memory-mapped. Raises OSError or ValueError if a file is not whole."""
    table = np.load(folder / "columns.npy")
    columns = {name: np.ascontiguousarray(table[name]) for name in FIELDS.names}
    text, ends = np.load(folder / "paths.npy").tobytes(), columns.pop("path_end")
    paths = np.empty(len(table), object)
    paths[:] = [
        text[start:end].decode("utf-8", "surrogateescape") for start, end in zip(np.concatenate([[0], ends[:-1]]), ends)
    ]
    files = {name: folder / f"{name}.npy" for name in Parts._fields}
    vectors = {name: np.load(file, mmap_mode="r") for name, file in files.items() if file.exists()}
    return Rows(Columns(path=paths, **columns), Parts(**vectors))


def join(segments: Sequence[Rows], packing: Packing) -> Rows:
    """The entries of all segments: those of a single one memory-mapped, those of several copied."""
    if len(segments) == 1:
        return segments[0]
    segments = segments or [empty(packing)]
    columns = Columns(*map(np.concatenate, zip(*(rows.columns for rows in segments))))
    arrays = zip(*(rows.vectors for rows in segments))
    return Rows(columns, Parts(*(None if x[0] is None else np.concatenate(x) for x in arrays)))


def empty(packing: Packing) -> Rows:
    """No entries."""
    M, D, F = packing
    columns = {name: np.zeros(0, FIELDS[name]) for name in FIELDS.names if name != "path_end"}
    fallback = np.zeros((0, F), np.float32) if F else None
    return Rows(
        Columns(path=np.zeros(0, object), **columns),
        Parts(np.zeros((0, M, D), np.float32), np.zeros((0, M), bool), fallback),
    )


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_columns(folder: Path, parts: Sequence[Columns]) -> None:
    columns = Columns(*map(np.concatenate, zip(*parts)))
    texts = [path.encode("utf-8", "surrogateescape") for path in columns.path]
    table = np.empty(len(texts), FIELDS)
    for name in FIELDS.names:
        table[name] = np.cumsum([len(x) for x in texts]) if name == "path_end" else getattr(columns, name)
    for name, array in (("columns", table), ("paths", np.frombuffer(b"".join(texts), np.uint8))):
        np.save(folder / f"{name}.npy", array)
        sync(folder / f"{name}.npy")


def _map(function, vectors: Parts) -> Parts:
    return Parts(*(None if x is None else function(x) for x in vectors))
