"""Approximate search with Faiss: candidates from inverted lists, compared exactly. Needs the `faiss` extra.

Rows with the same modalities are a group with lists of its own, of unit vectors of all their parts together. A query is
compared with a group by the parts that both have; where the query has all parts of the group, in the order of the
exact similarity, else about so. Pairs without a common modality are found by their fallback vectors. Groups that are
too small for lists are searched whole.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics.similarity import Parts
from jax_mmreid.search import candidates as exact
from jax_mmreid.search.index import Matches, take

WHOLE = 10_000  # a group with no more rows than these has no lists
TRAINED = 64  # rows for each list that its centre is learned from
CHUNK = 65_536  # rows that are added at once


class _Group(NamedTuple):
    """Rows with the same modalities."""

    present: np.ndarray  # [M] bool
    rows: np.ndarray  # [n], rows of the gallery
    index: Any  # of their parts, None if they have none


class Approximate:
    """A gallery in Faiss indexes; searched like `index.Index`, which is exact. Rows are read where they are."""

    def __init__(self, rows: Parts):
        """Learns the lists, of which a group of n rows has about sqrt(n). Raises ConfigError without Faiss, DataError
        for an empty gallery."""
        if not len(rows.parts):
            raise DataError("the gallery is empty; add entries before searching")
        self.rows, self.groups = rows, []
        present, group = np.unique(np.asarray(rows.present), axis=0, return_inverse=True)
        for number, mask in enumerate(present):
            own = np.flatnonzero(group.reshape(-1) == number)
            self.groups.append(_Group(mask, own, _built(own, self._parts(mask)) if mask.any() else None))

    def search(
        self, query: Parts, k: int, where: np.ndarray | None = None, *, probes: int = 32, candidates: int = 100
    ) -> Matches:
        """The k best of at least that many `candidates` a group for each query, of those where the mask [n] is True.

        Each query looks through `probes` lists of a group: more find more and take longer.
        """
        exact.check(query)
        found = [[] for _ in query.parts]
        patterns, pattern = np.unique(np.asarray(query.present), axis=0, return_inverse=True)
        for number, mask in enumerate(patterns):
            own = np.flatnonzero(pattern.reshape(-1) == number)
            for rows in self._candidates(take(query, own), mask, where, probes, max(k, candidates)):
                for i, one in zip(own, rows):
                    found[i].append(one)
        none = [np.zeros(0, np.int64)]
        return exact.rescored(query, self.rows, [np.concatenate(none + x) for x in found], k)

    def _candidates(self, query: Parts, present: np.ndarray, where: np.ndarray | None, probes: int, most: int) -> list:
        """Rows [q,most] of every group, for queries with the same modalities; -1 for none."""
        found, apart = [], np.zeros(len(self.rows.parts), bool)
        for group in self.groups:
            if (group.present & present).any():
                parts = np.where(present[:, None], query.parts, 0)[:, group.present].reshape(len(query.parts), -1)
                mask = None if where is None else where[group.rows]
                found.append(_search(group.index, parts, mask, probes, most))
                found[-1] = np.where(found[-1] < 0, -1, group.rows[found[-1]])
            else:
                apart[group.rows] = True
        if query.fallback is not None and apart.any():
            apart = apart if where is None else apart & where
            found.append(_search(self._fallback, np.asarray(query.fallback), apart, probes, most))
        return found

    @functools.cached_property
    def _fallback(self) -> Any:
        return _built(np.arange(len(self.rows.parts)), lambda rows: np.asarray(self.rows.fallback[rows]))

    def _parts(self, present: np.ndarray) -> Any:
        """A function of rows [n] that gives their parts of these modalities, at unit length together."""

        def read(rows: np.ndarray) -> np.ndarray:
            parts = self.rows.parts[rows][:, present].reshape(len(rows), -1)
            return parts / np.maximum(np.linalg.norm(parts, axis=1, keepdims=True), 1e-15)

        return read


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise ConfigError(
            "approximate search needs Faiss; pip install 'jax-mmreid[faiss]', or search exactly"
        ) from None
    return faiss


def _built(rows: np.ndarray, read: Any) -> Any:
    """An index of inner products of read(rows)."""
    faiss, width = _faiss(), read(rows[:1]).shape[1]
    if len(rows) <= WHOLE:
        index = faiss.IndexFlatIP(width)
    else:
        lists = round(len(rows) ** 0.5)
        index = faiss.index_factory(width, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        sample = np.random.default_rng(0).choice(rows, min(len(rows), TRAINED * lists), replace=False)
        index.train(np.ascontiguousarray(read(np.sort(sample))))
    for start in range(0, len(rows), CHUNK):
        index.add(np.ascontiguousarray(read(rows[start : start + CHUNK])))
    return index


def _search(index: Any, query: np.ndarray, where: np.ndarray | None, probes: int, most: int) -> np.ndarray:
    """Places [q,most] in an index, of those where the mask is True; -1 for none."""
    faiss = _faiss()
    bits = None if where is None else np.packbits(where, bitorder="little")
    chosen = {} if bits is None else {"sel": faiss.IDSelectorBitmap(bits)}
    lists = isinstance(index, faiss.IndexIVF)
    parameters = faiss.SearchParametersIVF(nprobe=probes, **chosen) if lists else faiss.SearchParameters(**chosen)
    return index.search(np.ascontiguousarray(query, np.float32), most, params=parameters)[1]
