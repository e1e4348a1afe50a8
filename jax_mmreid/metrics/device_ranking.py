"""Ranks on devices: similarities in blocks, never the matrix of all, with the gallery's rows split over a mesh.

The similarity of two vectors is their dot product, or that of `metrics.similarity` for rows that it packed. The
greater ranks first, of equal ones the lower gallery index. Nothing is sorted: the rank of a match is one more than the
number of rows ahead of it, and such numbers add up over blocks and devices. Every similarity comes from matrix
products of one shape, whatever the sizes and the number of devices, so that its last bit, and with it every rank, is
the same for any of them.

A TPR needs the k-th greatest similarity of negative pairs, exactly. The bits of a float sort as it does: one pass
counts the upper halves, a second the lower halves of those with the upper half in question.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_mmreid.errors import DataError
from jax_mmreid.metrics import ranking, vectors
from jax_mmreid.metrics.ranking import FPRS, Ranks, Relevance
from jax_mmreid.metrics.similarity import Packing, similarities
from jax_mmreid.metrics.vectors import WHOLE, Vectors, block_side

QUERIES, GALLERY = 256, 1024  # the longest sides of a block
HALF = 1 << 16  # values of half a float32


class Side(NamedTuple):
    """Queries [b,...], or a gallery in tiles [T,g,...]; `pid` is -1 on rows that pad."""

    vectors: Array
    pid: Array
    junk: Array


def rank(
    query: np.ndarray | Vectors,
    gallery: np.ndarray | Vectors,
    rows: Relevance,
    mesh: Mesh,
    *,
    by_identity: bool = False,
) -> dict:
    """The metrics of `ranking.rank` for the negated dot products of query [Q,D] and gallery [G,D] float32.

    Vectors on devices are ranked there, with the same result. Raises DataError if a vector is not finite or no query
    has a match, ValueError if the shapes do not fit.
    """
    search = _Search(query, gallery, rows, mesh)
    found, keys, upper = search.first_pass(by_identity, pairs=True)
    return ranking.scores(found) | search.tprs(keys, upper)


def ranks(
    query: np.ndarray | Vectors,
    gallery: np.ndarray | Vectors,
    rows: Relevance,
    mesh: Mesh,
    *,
    by_identity: bool = False,
) -> Ranks:
    """The ranks of each query's matches; arguments and errors are those of `rank`."""
    return _Search(query, gallery, rows, mesh).first_pass(by_identity, pairs=False)[0]


def scores(
    query: np.ndarray | Vectors, gallery: np.ndarray | Vectors, rows: Relevance, mesh: Mesh, chosen: np.ndarray
) -> np.ndarray:
    """Similarities [n,G] of the queries chosen [n], those that `rank` compares to the last bit; -inf of junk.

    The other arguments and errors are those of `rank`. `ranking.order` of -similarities is the order behind the ranks.
    """
    return _Search(query, gallery, rows, mesh).scores(chosen)


class _Search:
    """The gallery on the devices, in whole tiles and as many on each; queries with a match, in blocks."""

    def __init__(self, query: np.ndarray | Vectors, gallery: np.ndarray | Vectors, rows: Relevance, mesh: Mesh):
        self.query, gallery = (_checked(name, x) for name, x in (("query", query), ("gallery", gallery)))
        _check_sizes(self.query, gallery, rows)
        self.rows, self.mesh = rows, mesh
        self.found, self.count = ranking.positives(rows)
        # A small gallery has small tiles, so that several devices share it; their number plays no part in that.
        self.side, side = block_side(len(self.query), QUERIES), block_side(len(gallery) // 8, GALLERY)
        over = -len(gallery) % (side * mesh.size)

        def tiles(x: np.ndarray, fill: int) -> np.ndarray:
            return np.pad(x, (0, over), constant_values=fill).reshape(-1, side)

        split = P(mesh.axis_names)
        numbers = (self.put(tiles(x, fill), split) for x, fill in ((rows.gallery_pid, -1), (rows.gallery_junk, 0)))
        self.tiles = Side(gallery.placed(tiles(np.arange(len(gallery)), -1), mesh, split), *numbers)

    def put(self, x: np.ndarray, spec: P = WHOLE) -> Array:
        return vectors.put(x, self.mesh, spec)

    def blocks(self) -> Iterator[tuple[np.ndarray, Side]]:
        """Rows of queries, and the block of them: with about as many matches each, which is what a block costs."""
        order = np.argsort(self.count, kind="stable")
        order = order[self.count[order] > 0]
        for start in range(0, len(order), self.side):
            chosen = order[start : start + self.side]
            yield chosen, self.block(chosen)

    def block(self, chosen: np.ndarray) -> Side:
        """The block of at most `side` queries."""
        rows = np.pad(chosen, (0, self.side - len(chosen)), constant_values=-1)
        pid = np.where(rows < 0, -1, self.rows.query_pid[rows])
        junk = np.where(rows < 0, 0, self.rows.query_junk[rows])
        return Side(self.query.placed(rows, self.mesh), self.put(pid), self.put(junk))

    def scores(self, chosen: np.ndarray) -> np.ndarray:
        """Similarities [n,G] of queries [n], -inf of junk."""
        G, found = len(self.rows.gallery_pid), [np.zeros((0, len(self.rows.gallery_pid)), np.float32)]
        for start in range(0, len(chosen), self.side):
            own = chosen[start : start + self.side]
            part = _block_scores(self.block(own), self.tiles, mesh=self.mesh, packing=self.query.packing)
            found.append(jax.device_get(part)[: len(own), :G])
        return np.concatenate(found)

    def first_pass(self, by_identity: bool, pairs: bool) -> tuple[Ranks, np.ndarray, np.ndarray]:
        """The ranks; and, with `pairs`, keys [n] of matches and counts [HALF] of negative pairs' keys by upper half."""
        Q, most = self.found.shape
        hits, first = np.zeros((Q, most), np.int64), np.zeros(Q, np.int64)
        keys, upper = np.zeros((Q, most), np.uint32), np.zeros(HALF, np.int64)
        identities = 1 + int(self.rows.gallery_pid.max()) if by_identity else 0
        for chosen, block in self.blocks():
            n = len(chosen)
            own = np.full((self.side, -(-most // 8) * 8), -1, np.int32)  # few widths, so few compilations
            own[:n, :most] = self.found[chosen]
            limit = self.count[chosen].max().astype(np.int32)
            args = block, self.put(own), self.put(limit), self.tiles
            static = dict(mesh=self.mesh, packing=self.query.packing, identities=identities, pairs=pairs)
            parts = jax.device_get(_block_ranks(*args, **static))
            hits[chosen], first[chosen], keys[chosen] = parts[0][:n, :most], parts[1][:n], parts[2][:n, :most]
            upper += parts[3]
        there = self.found >= 0
        hits = np.sort(np.where(there, hits, np.iinfo(hits.dtype).max), axis=1)
        return Ranks(np.where(there, hits, 0), first), keys[there], upper

    def tprs(self, matched: np.ndarray, upper: np.ndarray) -> dict[str, float]:
        """TPRs, from the counts of the first pass and a second one."""
        total = ranking.num_negative_pairs(self.rows, self.count)
        if not total:
            return dict.fromkeys(FPRS, 1.0)
        allowed = np.array([total // one_in for one_in in FPRS.values()])
        place, passed = _descend(upper, allowed)
        lower, wanted = np.zeros((len(place), HALF), np.int64), self.put(place.astype(np.uint32))
        for _, block in self.blocks():
            found = _block_lower(block, wanted, self.tiles, mesh=self.mesh, packing=self.query.packing)
            lower += jax.device_get(found)
        counts = [lower[np.flatnonzero(place == half)[-1]] for half in place]
        bounds = [half * HALF + _descend(x, n)[0] for half, x, n in zip(place, counts, allowed - passed)]
        return {name: float(np.mean(matched > bound)) for name, bound in zip(FPRS, bounds)}


def _descend(counts: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where, from the last of `counts` down, the sum first exceeds `allowed`; and the sum of those above."""
    sums = np.cumsum(counts[::-1])
    place = np.searchsorted(sums, allowed, "right")
    return len(counts) - 1 - place, np.where(place > 0, sums[place - 1], 0)


def _checked(name: str, x: np.ndarray | Vectors) -> Vectors:
    """Vectors that are finite, and so are their dot products; raises DataError if some are not."""
    if isinstance(x, np.ndarray):
        if x.ndim != 2:
            raise ValueError(f"ranking: {name} vectors {x.shape} must be [n,D]")
        x = vectors.on_host(x)
    finite = np.isfinite(x.squared_lengths)
    if not finite.all():
        raise DataError(f"ranking: {name} vector {finite.argmin()} is not finite ({np.sum(~finite)} such vectors)")
    return x


def _check_sizes(query: Vectors, gallery: Vectors, rows: Relevance) -> None:
    for name, x, numbers in (("query", query, rows.query_pid), ("gallery", gallery, rows.gallery_pid)):
        if len(x) != len(numbers):
            raise ValueError(f"ranking: there are {len(x)} {name} vectors and {len(numbers)} {name} rows")
    if query.width != gallery.width or query.packing != gallery.packing:
        raise ValueError(
            f"ranking: query vectors have {query.width} numbers, gallery vectors {gallery.width}; both sides must come "
            "from one model"
        )


def _on_mesh(body: Callable, mesh: Mesh, *args: Any) -> Any:
    """`body` on every device with its own tiles, the last argument; all else, and the result, is replicated."""
    specs = (WHOLE,) * (len(args) - 1) + (P(mesh.axis_names),)
    return jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=WHOLE)(*args)


@functools.partial(jax.jit, static_argnames=("mesh", "packing", "identities", "pairs"))
def _block_ranks(
    query: Side,
    own: Array,
    most: Array,
    tiles: Side,
    *,
    mesh: Mesh,
    packing: Packing | None,
    identities: int,
    pairs: bool,
) -> tuple[Array, ...]:
    """Ranks of the gallery rows own [b,P], of the first [b], their keys [b,P]; negative pairs by upper half, [HALF].

    No row has more than `most` of its own. With `identities`, the number of pids, the rank of the first counts pids.
    Without `pairs` the last of these is zeros.
    """

    def body(query: Side, own: Array, most: Array, tiles: Side) -> tuple:
        scores, pid, index = _scores(query, tiles, mesh, packing)
        mine = own - index[0]
        here = (mine >= 0) & (mine < len(index))
        found = jnp.take_along_axis(scores, jnp.clip(mine, 0, len(index) - 1), axis=1)
        found = jax.lax.psum(jnp.where(here, found, 0), mesh.axis_names)

        def ahead(value: Array, place: Array) -> Array:
            return (scores > value[:, None]) | ((scores == value[:, None]) & (index < place[:, None]))

        def one(i: Array, hits: Array) -> Array:
            return hits.at[:, i].set(ahead(found[:, i], own[:, i]).sum(axis=1, dtype=jnp.int32))

        hits = jax.lax.fori_loop(0, most, one, jax.lax.pcast(jnp.zeros_like(own), mesh.axis_names, to="varying"))
        hits = jnp.where(own >= 0, 1 + jax.lax.psum(hits, mesh.axis_names), jnp.iinfo(jnp.int32).max)
        first = hits.min(axis=1)
        if identities:
            best = hits.argmin(axis=1)[:, None]
            closer = ahead(*(jnp.take_along_axis(x, best, axis=1)[:, 0] for x in (found, own)))
            seen = jnp.zeros((len(own), identities), jnp.int32).at[:, pid].max(closer.astype(jnp.int32))
            first = 1 + (jax.lax.psum(seen, mesh.axis_names) > 0).sum(axis=1)
        upper = jnp.zeros(HALF, jnp.int32)
        if pairs:
            halves = jnp.where(_negatives(query, scores, pid), _keys(scores) // HALF, HALF)
            upper = jax.lax.psum(upper.at[halves].add(1, mode="drop"), mesh.axis_names)
        return hits, first, _keys(found), upper

    return _on_mesh(body, mesh, query, own, most, tiles)


@functools.partial(jax.jit, static_argnames=("mesh", "packing"))
def _block_lower(query: Side, upper: Array, tiles: Side, *, mesh: Mesh, packing: Packing | None) -> Array:
    """Negative pairs by lower half of the key, [n,HALF], for each upper half upper [n]; of equal ones, at the last."""

    def body(query: Side, upper: Array, tiles: Side) -> Array:
        scores, pid, _ = _scores(query, tiles, mesh, packing)
        keys, n = _keys(scores), len(upper)
        place = jnp.full(scores.shape, n * HALF, jnp.uint32)
        for i in range(n):
            place = jnp.where(keys // HALF == upper[i], i * HALF + keys % HALF, place)
        place = jnp.where(_negatives(query, scores, pid), place, n * HALF)
        counts = jnp.zeros(n * HALF, jnp.int32).at[place].add(1, mode="drop")
        return jax.lax.psum(counts, mesh.axis_names).reshape(n, HALF)

    return _on_mesh(body, mesh, query, upper, tiles)


@functools.partial(jax.jit, static_argnames=("mesh", "packing"))
def _block_scores(query: Side, tiles: Side, *, mesh: Mesh, packing: Packing | None) -> Array:
    """Similarities [b,T*g] with the whole gallery, on every device; -inf of what is hidden."""

    def body(query: Side, tiles: Side) -> Array:
        scores, _, index = _scores(query, tiles, mesh, packing)
        whole = jnp.full((len(scores), mesh.size * len(index)), -jnp.inf)
        whole = jax.lax.pcast(whole, mesh.axis_names, to="varying")
        return jax.lax.pmax(jax.lax.dynamic_update_slice(whole, scores, (0, index[0])), mesh.axis_names)

    return _on_mesh(body, mesh, query, tiles)


def _scores(query: Side, tiles: Side, mesh: Mesh, packing: Packing | None) -> tuple[Array, Array, Array]:
    """Similarities [b,g] with a device's part of the gallery, -inf of what is hidden; its pid [g] and index [g]."""
    scores = jax.lax.map(lambda vectors: similarities(query.vectors, vectors, packing), tiles.vectors)
    scores = scores.swapaxes(0, 1).reshape(len(query.pid), -1)
    pid, junk = tiles.pid.reshape(-1), tiles.junk.reshape(-1)
    hidden = (query.junk[:, None] == junk) | (pid < 0)
    index = jax.lax.axis_index(mesh.axis_names) * len(pid) + jnp.arange(len(pid), dtype=jnp.int32)
    return jnp.where(hidden, -jnp.inf, scores), pid, index


def _negatives(query: Side, scores: Array, pid: Array) -> Array:
    """[b,g], the pairs that are neither matches nor hidden, of queries that are no padding."""
    return (query.pid[:, None] != pid) & (scores > -jnp.inf) & (query.pid >= 0)[:, None]


def _keys(x: Array) -> Array:
    """float32 -> uint32, sorting alike; both zeros are one."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
