"""Segments of a store: folders of arrays that are written once, synced, and never changed.

columns.npy   [n] of FIELDS            paths.npy     the paths in UTF-8, one after another
parts.npy     [n,M,D] float32, zeros where absent     present.npy   [n,M] bool     fallback.npy  [n,F] float32
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format

from jax_mmreid.errors import DataError
from jax_mmreid.metrics.similarity import Packing, Parts
from jax_mmreid.search.manifest import sync

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


def write(folder: Path, sources: Sequence[tuple[Rows, np.ndarray]]) -> int:
    """Writes the entries [n] bool of every source, in their order, as a new segment; returns their number.

    Vectors are copied in chunks, so that segments may be larger than memory. All is on the disk on return.
    """
    folder.mkdir()
    rows = sum(int(kept.sum()) for _, kept in sources)
    _write_columns(folder, [Columns(*(x[kept] for x in rows.columns)) for rows, kept in sources])
    for name in Parts._fields:
        if getattr(sources[0][0].vectors, name) is not None:
            _write_array(folder / f"{name}.npy", rows, [(getattr(x.vectors, name), kept) for x, kept in sources])
    sync(folder)
    return rows


def read(folder: Path, packing: Packing) -> Rows:
    """The entries of a segment, their vectors memory-mapped. Raises DataError if its files are not whole."""
    try:
        table, text = np.load(folder / "columns.npy"), np.load(folder / "paths.npy").tobytes()
        columns = {name: np.ascontiguousarray(table[name]) for name in FIELDS.names}
        names = Parts._fields if packing.fallback else Parts._fields[:2]
        vectors = Parts(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))
        lengths = {len(table)} | {len(x) for x in vectors if x is not None}
        if len(lengths) > 1 or vectors.packing != packing:
            raise ValueError(f"arrays of {sorted(lengths)} rows, {vectors.packing}")
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise DataError(f"{folder} is damaged ({error}); restore the store or make it anew") from error
    ends, paths = columns.pop("path_end"), np.empty(len(table), object)
    starts = np.concatenate([[0], ends[:-1]])
    paths[:] = [text[start:end].decode("utf-8", "surrogateescape") for start, end in zip(starts, ends)]
    return Rows(Columns(path=paths, **columns), vectors)


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


def _write_columns(folder: Path, parts: Sequence[Columns]) -> None:
    columns = Columns(*map(np.concatenate, zip(*parts)))
    texts = [path.encode("utf-8", "surrogateescape") for path in columns.path]
    table = np.empty(len(texts), FIELDS)
    for name in FIELDS.names:
        table[name] = np.cumsum([len(x) for x in texts]) if name == "path_end" else getattr(columns, name)
    for name, array in (("columns", table), ("paths", np.frombuffer(b"".join(texts), np.uint8))):
        _write_array(folder / f"{name}.npy", len(array), [(array, np.ones(len(array), bool))])


def _write_array(path: Path, rows: int, sources: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """The rows [n] bool of every source as one .npy file. A full disk is an error here, a signal in a mapped file."""
    array = sources[0][0]
    header = {"shape": (rows, *array.shape[1:]), "fortran_order": False, "descr": format.dtype_to_descr(array.dtype)}
    with open(path, "xb") as file:
        format.write_array_header_1_0(file, header)
        for array, kept in sources:
            index = np.flatnonzero(kept)
            for start in range(0, len(index), CHUNK):
                file.write(np.ascontiguousarray(array[index[start : start + CHUNK]]).tobytes())
    sync(path)
