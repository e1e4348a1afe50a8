"""Exact search: the k most similar rows of a gallery, whose rows are split over the devices of a mesh.

Pairs are compared by the modalities that both have (`metrics.similarity`). The greater similarity comes first, of equal
ones the lower row. A gallery lies on the devices in tiles of one shape, whatever their number, so that every
similarity has the same bits on any mesh. Each tile leaves its k best behind; the matrix of all similarities is
never made.
"""

import functools
from collections.abc import Collection, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics import similarity, vectors
from jax_mmreid.metrics.similarity import NO_SCORE, Packing, Parts
from jax_mmreid.search.segments import Columns
from jax_mmreid.sharding import make_mesh

QUERIES, GALLERY = 256, 8192  # the longest sides of a block
GROUP = 64  # neighbouring rows of which the greatest is taken first


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
        _check("gallery", rows)
        self.side = _side(len(self) // 8, GALLERY)
        self.tiles = _placed(rows, self.side, self.mesh)
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
        _check("query", query)
        mask = self.all if where is None else self._mask(where)
        found = [self._block(Parts(*block), n, k, mask) for n, block in self._blocks(query)]
        rows, scores = (np.concatenate(x) for x in zip(*found, (np.zeros((0, k), np.int64), np.zeros((0, k), "f4"))))
        return Matches(rows, scores, *_shares(query, self.rows, rows))

    def _mask(self, where: np.ndarray) -> Array:
        if where.shape != (len(self),):
            raise ValueError(f"where {where.shape} must be ({len(self)},)")
        padded = np.zeros(self.tiles.shape[:2], bool)
        padded.reshape(-1)[: len(self)] = where
        return vectors.put(padded, self.mesh, P(self.mesh.axis_names))

    def _blocks(self, query: Parts) -> Iterator[tuple[int, list]]:
        """Queries in blocks of one shape, and how many of a block are no padding."""
        side = _side(len(query.parts), QUERIES)
        for start in range(0, len(query.parts), side):
            yield min(side, len(query.parts) - start), _padded(query, start, side)

    def _block(self, query: Parts, n: int, k: int, mask: Array) -> tuple[np.ndarray, np.ndarray]:
        query = Parts(*(None if x is None else vectors.put(x, self.mesh) for x in query))
        most = min(1 << (k - 1).bit_length(), len(self))  # few numbers, so few compilations
        rows, scores = jax.device_get(_search(query, self.tiles, mask, mesh=self.mesh, packing=self.packing, k=most))
        rows, scores = rows[:n, :k].astype(np.int64), scores[:n, :k]
        return np.where(scores > NO_SCORE, rows, -1), scores


def _side(rows: int, most: int) -> int:
    """A power of two near `rows`, so that few shapes are compiled, and at most `most`."""
    return min(most, max(16, 1 << (rows - 1).bit_length()))


def _check(name: str, rows: Parts) -> None:
    """Raises DataError if a row has nothing that it could be compared by."""
    some = np.asarray(rows.present).any(axis=1)
    if rows.fallback is not None:
        some |= np.asarray(rows.fallback).any(axis=1)
    if not some.all():
        raise DataError(f"{name} row {some.argmin()} has neither a part nor a fallback vector ({np.sum(~some)} such)")


def _padded(rows: Parts, start: int, side: int) -> list:
    """Rows from `start` on, zeros after the last."""
    block = [None if x is None else np.asarray(x[start : start + side]) for x in rows]
    return [None if x is None else np.pad(x, [(0, side - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in block]


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
                shard = _set(shard, i - start, Parts(*_padded(rows, i * side, side)))
        shards.append(shard)
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


@functools.partial(jax.jit, donate_argnums=0)
def _set(shard: Array, place: int, tile: Parts) -> Array:
    return shard.at[place].set(similarity.pack(tile))


@functools.partial(jax.jit, static_argnames=("mesh", "packing", "k"))
def _search(query: Parts, tiles: Array, mask: Array, *, mesh: Mesh, packing: Packing, k: int) -> tuple[Array, Array]:
    """Rows [b,k] and their scores [b,k]; NO_SCORE where the mask [T,g] leaves too few."""

    def body(query: Array, tiles: Array, mask: Array) -> tuple[Array, Array]:
        first = jax.lax.axis_index(mesh.axis_names) * mask.size

        def step(best: tuple, tile: tuple) -> tuple[tuple, None]:
            number, gallery, mask = tile
            scores = similarity.similarities(gallery, query, packing)  # [g,b]
            scores = jnp.where(mask[:, None], jnp.where(scores == 0, 0, scores), NO_SCORE)  # one zero, not two
            scores, place = _best(scores, k)
            return _merged(best, (place + (first + number * len(mask)), scores), k), None

        none = jnp.zeros((len(query), 0), jnp.int32), jnp.zeros((len(query), 0), jnp.float32)
        none = tuple(jnp.pad(x, [(0, 0), (0, k)], constant_values=c) for x, c in zip(none, (-1, NO_SCORE)))
        none = jax.lax.pcast(none, mesh.axis_names, to="varying")
        best, _ = jax.lax.scan(step, none, (jnp.arange(len(tiles)), tiles, mask))
        gathered = (jax.lax.all_gather(x, mesh.axis_names, axis=1, tiled=True) for x in best)
        rows, scores = gathered
        return _merged((rows[:, :0], scores[:, :0]), (rows, scores), k)

    split, whole = P(mesh.axis_names), P()
    search = jax.shard_map(body, mesh=mesh, in_specs=(whole, split, split), out_specs=(whole, whole), check_vma=False)
    return search(similarity.pack(query), tiles, mask)


def _best(scores: Array, k: int) -> tuple[Array, Array]:
    """The greatest min(k, g) of each column of scores [g,b] and their places, of equal ones the lower place first.

    The k best of all are among the k groups of neighbours with the greatest maxima, so only these are looked through.
    """
    g, b = scores.shape
    if g < 2 * k * GROUP:
        return jax.lax.top_k(scores.T, min(k, g))
    groups = scores.reshape(g // GROUP, GROUP, b)
    _, chosen = jax.lax.top_k(groups.max(axis=1).T, k)
    chosen = jnp.sort(chosen, axis=1)[..., None]  # in the order of the rows, for equal scores
    within = jnp.arange(GROUP)
    candidates = groups[chosen, within, jnp.arange(b)[:, None, None]].reshape(b, -1)
    scores, place = jax.lax.top_k(candidates, k)
    return scores, jnp.take_along_axis((chosen * GROUP + within).reshape(b, -1), place, axis=1)


def _merged(first: tuple, second: tuple, k: int) -> tuple[Array, Array]:
    """The k best of two (rows, scores) [b,...], of equal ones those of the first, in their order."""
    rows, scores = (jnp.concatenate(x, axis=1) for x in zip(first, second))
    scores, place = jax.lax.top_k(scores, k)
    return jnp.take_along_axis(rows, place, axis=1), scores


def _shares(query: Parts, gallery: Parts, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The modalities [Q,k,M] that count between queries and the rows [Q,k] found for them, and what each adds."""
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
