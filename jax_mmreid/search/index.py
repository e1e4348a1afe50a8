"""Exact search: the k most similar rows of a gallery, whose rows are split over the devices of a mesh.

Pairs are compared by the modalities that both have (`metrics.similarity`). The greater similarity comes first, of equal
ones the lower row. A gallery lies on the devices in tiles of one shape, whatever their number, so that every
similarity has the same bits on any mesh. The matrix of all similarities is never made (`search.scan`).
"""

import functools
import itertools
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics import similarity, vectors
from jax_mmreid.metrics.similarity import NO_SCORE, Packing, Parts
from jax_mmreid.metrics.vectors import WHOLE, block_side
from jax_mmreid.search import scan
from jax_mmreid.search.segments import Columns
from jax_mmreid.sharding import make_mesh

QUERIES, GALLERY = 512, 4096  # the longest sides of a block
COARSE = 2**26  # the most coarse scores that are kept at once
CANDIDATES = 4  # groups of rows that are compared exactly, for each match
MORE = 16  # how many times more groups are taken where these prove nothing


class Matches(NamedTuple):
    """The k best rows of a gallery for each of Q queries, the best first."""

    rows: np.ndarray  # [Q,k] int64, -1 where fewer may be found
    scores: np.ndarray  # [Q,k] float32, NO_SCORE where the row is -1
    common: np.ndarray  # [Q,k,M] bool, the modalities that counted; none: compared by the fallback vectors
    shares: np.ndarray  # [Q,k,M] float32, what each of these adds to the score


def choose(
    columns: Columns,
    *,
    cameras: Collection[int] = (),
    not_cameras: Collection[int] = (),
    since: float | None = None,
    until: float | None = None,
    ids: Collection[int] = (),
    not_paths: Collection[str] = (),
) -> np.ndarray:
    """A mask [n] of the entries that may be found; what is left at its default excludes none.

    `since` and `until` are Unix seconds, both included; an entry of unknown time is in no interval.
    """
    mask = np.ones(len(columns.id), bool)
    if cameras:
        mask &= np.isin(columns.camid, list(cameras))
    if not_cameras:
        mask &= ~np.isin(columns.camid, list(not_cameras))
    if since is not None:
        mask &= columns.time >= since
    if until is not None:
        mask &= columns.time <= until
    if ids:
        mask &= np.isin(columns.id, list(ids))
    if not_paths:
        hidden = set(map(str, not_paths))
        mask &= np.array([path not in hidden for path in columns.path], bool)
    return mask


class Index:
    """A gallery on devices. With several processes, each makes it from all rows and makes the same searches."""

    def __init__(self, rows: Parts, mesh: Mesh | None = None):
        """`mesh` is that of all devices by default. Raises DataError for a gallery that is empty or a row without
        anything to compare."""
        if not len(rows.parts):
            raise DataError("the gallery is empty; add entries before searching")
        self.rows, self.packing = rows, rows.packing
        self.mesh = make_mesh(data=-1, model=1) if mesh is None else mesh
        self.complete = bool(np.asarray(rows.present).all())
        self.side = block_side(len(self) // 8, GALLERY)
        self.tiles = _placed(rows, self.side, self.mesh)
        self._refuse("gallery", self.tiles, len(self))
        self.groups = self.tiles.shape[0] * self.side // (self.mesh.size * scan.GROUP)  # of a device
        self.dtype = scan.coarse_dtype(self.mesh)
        self.rounding = scan.greatest_rounding(self.tiles, mesh=self.mesh, packing=self.packing, dtype=self.dtype)
        self.all = self._mask(np.ones(len(self), bool))

    def __len__(self) -> int:
        return len(self.rows.parts)

    def search(self, query: Parts, k: int, where: np.ndarray | None = None) -> Matches:
        """The k best rows for each query, of those where the mask [n] is True.

        Raises ConfigError if k is not within the gallery or the vectors are not of one model, DataError for a query
        without anything to compare.
        """
        if not 1 <= k <= len(self):
            raise ConfigError(f"k={k} matches of a gallery of {len(self)} rows; ask for 1 to {len(self)}")
        if query.packing != self.packing:
            raise ConfigError(f"queries have {query.packing}, the gallery {self.packing}; use one model for both")
        mask = self.all if where is None else self._mask(where)
        rows, scores = (
            np.full((len(query.parts), k), -1, np.int64),
            np.full((len(query.parts), k), NO_SCORE, np.float32),
        )
        left, groups = np.arange(len(query.parts)), CANDIDATES * _round(k)
        complete = self.complete and bool(np.all(query.present))
        while len(left):
            found, best, proven = self._best(take(query, left), k, mask, complete, groups)
            rows[left], scores[left] = np.where(best > NO_SCORE, found, -1), best
            left, groups = left[~proven], MORE * groups
        return Matches(rows, scores, *contributions(query, self.rows, rows))

    def _best(self, query: Parts, k: int, mask: Array, complete: bool, groups: int) -> tuple[np.ndarray, ...]:
        """Rows [Q,k] and scores [Q,k], and for which queries [Q] they are proven to be the best."""
        most = min(_round(k), len(self))
        groups = max(scan.whole_chunks(min(groups, self.groups)), scan.whole_chunks(-(-most // scan.GROUP)))
        static = dict(mesh=self.mesh, packing=self.packing, complete=complete, k=most, groups=groups, dtype=self.dtype)
        found = []
        for start, block in self._blocks(query):
            self._refuse("query", block[None], len(query.parts) - start, first=start)
            best = scan.best(block, self.tiles, mask, **static)
            own = scan.rounding(block, packing=self.packing, dtype=self.dtype)
            found.append((best.rows, best.scores, best.left_out, scan.error(own, self.rounding, self.packing)))
        rows, scores, left_out, error = (np.concatenate(x)[: len(query.parts)] for x in zip(*jax.device_get(found)))
        proven = (left_out <= NO_SCORE) | (scores[:, k - 1] > left_out + error)
        return rows[:, :k], scores[:, :k], proven

    def _blocks(self, query: Parts) -> Iterator[tuple[int, Array]]:
        """Blocks of queries [b,W] on every device, zeros after the last, and the number of the first of each."""
        side = max(32, min(block_side(len(query.parts), QUERIES), COARSE // self.groups))
        for start in range(0, len(query.parts), side):
            block = _block(query, start, side)
            yield start, _pack(Parts(*(None if x is None else vectors.put(x, self.mesh) for x in block)))

    def _mask(self, where: np.ndarray) -> Array:
        if where.shape != (len(self),):
            raise ValueError(f"where {where.shape} must be ({len(self)},)")
        padded = np.zeros(self.tiles.shape[:2], bool)
        padded.reshape(-1)[: len(self)] = where
        return vectors.put(padded, self.mesh, P(self.mesh.axis_names))

    def _refuse(self, name: str, tiles: Array, rows: int, first: int = 0) -> None:
        """Raises DataError if one of so many rows of tiles [T,g,W] cannot be compared; `first` is the row's number."""
        wrong = jax.device_get(_useless(tiles, packing=self.packing, mesh=self.mesh))[:rows]
        if wrong.any():
            raise DataError(
                f"{name} row {first + wrong.argmax()} has no finite part or fallback vector to be compared by; "
                "leave such rows out"
            )


def take(rows: Parts, chosen: Any) -> Parts:
    """The rows of an index, a slice or a mask."""
    return Parts(*(None if x is None else x[chosen] for x in rows))


def _round(k: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..., so that few numbers are compiled."""
    return next(x for n in itertools.count() for x in (10**n, 2 * 10**n, 5 * 10**n) if x >= k)


@functools.partial(jax.jit, static_argnames=("packing", "mesh"))
def _useless(tiles: Array, *, packing: Packing, mesh: Mesh) -> Array:
    """Which packed rows [T,g,W] are not finite, or have neither part nor fallback vector: [T*g], on every device."""
    M, D, _ = packing
    squares, mask, fallback = jnp.split(tiles[..., M * D :], (M, 2 * M), axis=-1)
    something = (mask > 0).any(axis=-1) | (fallback != 0).any(axis=-1)
    finite = jnp.isfinite(squares).all(axis=-1) & jnp.isfinite(fallback).all(axis=-1)
    return jax.lax.with_sharding_constraint(~(something & finite).reshape(-1), NamedSharding(mesh, WHOLE))


def padded(rows: Parts, side: int) -> Parts:
    """So many rows, zeros after the last."""
    return Parts(*(None if x is None else np.pad(x, [(0, side - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in rows))


def _block(rows: Parts, start: int, side: int) -> Parts:
    """Rows from `start` on, zeros after the last."""
    return padded(take(rows, slice(start, start + side)), side)


def _placed(rows: Parts, side: int, mesh: Mesh) -> Array:
    """The packed rows [T,g,W], tiles split over the mesh; every device is filled tile by tile, so nothing is copied
    twice."""
    tiles = -(-len(rows.parts) // (side * mesh.size)) * mesh.size
    shape, sharding = (tiles, side, rows.packing.total), NamedSharding(mesh, P(mesh.axis_names))
    shards = []
    for device, (own, *_) in sharding.addressable_devices_indices_map(shape).items():
        start, stop, _ = own.indices(tiles)
        shard = jnp.zeros((stop - start, *shape[1:]), jnp.float32, device=device)
        for i in range(start, stop):
            if i * side < len(rows.parts):
                shard = _set(shard, i - start, _block(rows, i * side, side))
        shards.append(shard)
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


@functools.partial(jax.jit, donate_argnums=0)
def _set(shard: Array, place: int, tile: Parts) -> Array:
    return shard.at[place].set(similarity.pack(tile))


_pack = jax.jit(similarity.pack)


def contributions(query: Parts, gallery: Parts, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`common` and `shares` [Q,k,M] of `Matches`, for the gallery rows [Q,k] that were found for the queries."""
    M = gallery.packing.modalities
    common, shares = np.zeros((*rows.shape, M), bool), np.zeros((*rows.shape, M), np.float32)
    for i, found in enumerate(rows):
        found = found[found >= 0]
        both = gallery.present[found] & query.present[i]
        q, g = (np.where(both[..., None], x, 0).astype(np.float64) for x in (query.parts[i], gallery.parts[found]))
        squares = np.prod([np.einsum("kmd,kmd->k", x, x) for x in (q, g)], axis=0)
        terms = np.einsum("kmd,kmd->km", q, g)
        terms *= np.where(squares > 0, 1 / np.sqrt(np.where(squares > 0, squares, 1)), 0)[:, None]
        common[i, : len(found)], shares[i, : len(found)] = both, terms
    return common, shares
