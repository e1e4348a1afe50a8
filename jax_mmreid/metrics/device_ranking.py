"""Ranks on devices: dot products in blocks, never the matrix of all, with the gallery's rows split over a mesh.

The greater dot product ranks first, of equal ones the lower gallery index. Nothing is sorted: the rank of a match is
one more than the number of rows ahead of it, and such numbers add up over blocks and devices. Every dot product comes
from a matrix product of one shape, whatever the sizes and the number of devices, so that its last bit, and with it
every rank, is the same for any of them.

A TPR needs the k-th greatest dot product of strangers, exactly. The bits of a float sort as it does: one pass counts
the upper halves, a second the lower halves of those in the right place.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_mmreid.metrics import ranking
from jax_mmreid.metrics.ranking import FPRS, Ranks, Relevance

QUERIES, GALLERY = 256, 1024  # the longest sides of a block
HALF = 1 << 16  # values of half a float32
WHOLE = P()  # on every device


class Side(NamedTuple):
    """Queries [b,...], or a gallery in tiles [T,g,...]; `pid` is -1 on rows that pad."""

    vectors: Array
    pid: Array
    junk: Array


def rank(query: np.ndarray, gallery: np.ndarray, rows: Relevance, mesh: Mesh, *, by_identity: bool = False) -> dict:
    """What `ranking.rank` says of the negated dot products of query [Q,D] and gallery [G,D] float32.

    Raises ValueError if the shapes do not fit, a vector is not finite, or no query has a match.
    """
    search = _Search(query, gallery, rows, mesh)
    found, keys, upper = search.first_pass(by_identity, pairs=True)
    return ranking.scores(found) | search.tprs(keys, upper)


def ranks(query: np.ndarray, gallery: np.ndarray, rows: Relevance, mesh: Mesh, *, by_identity: bool = False) -> Ranks:
    """Where each query of `rank` finds what it seeks."""
    return _Search(query, gallery, rows, mesh).first_pass(by_identity, pairs=False)[0]


class _Search:
    """The gallery on the devices, in whole tiles and as many on each; queries with a match, in blocks."""

    def __init__(self, query: np.ndarray, gallery: np.ndarray, rows: Relevance, mesh: Mesh):
        query, gallery = (x.astype(np.float32, copy=False) for x in (query, gallery))
        _check(query, gallery, rows)
        self.query, self.rows, self.mesh = query, rows, mesh
        self.found, self.count = ranking.positives(rows)
        # A small gallery has small tiles, so that several devices share it; how many there are plays no part in that.
        self.side, side = _side(len(query), QUERIES), _side(len(gallery) // 8, GALLERY)
        over = -len(gallery) % (side * mesh.size)

        def tiles(x: np.ndarray, fill: int) -> Array:
            x = np.pad(x, [(0, over)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
            return self.put(x.reshape(-1, side, *x.shape[1:]), P(mesh.axis_names))

        self.tiles = Side(tiles(gallery, 0), tiles(rows.gallery_pid, -1), tiles(rows.gallery_junk, 0))

    def put(self, x: np.ndarray, spec: P = WHOLE) -> Array:
        """A host array that every process has whole as a global one; a transfer that is meant, whoever forbids them."""
        with jax.transfer_guard("allow"):
            return jax.make_array_from_callback(x.shape, NamedSharding(self.mesh, spec), lambda index: x[index])

    def blocks(self) -> Iterator[tuple[np.ndarray, Side]]:
        """The rows of queries that have about as many matches each, which is what a block costs; and the block."""
        order = np.argsort(self.count, kind="stable")
        order = order[self.count[order] > 0]
        for start in range(0, len(order), self.side):
            chosen = order[start : start + self.side]
            over = (0, self.side - len(chosen))
            vectors = np.pad(self.query[chosen], (over, (0, 0)))
            pid = np.pad(self.rows.query_pid[chosen], over, constant_values=-1)
            yield chosen, Side(*map(self.put, (vectors, pid, np.pad(self.rows.query_junk[chosen], over))))

    def first_pass(self, by_identity: bool, pairs: bool) -> tuple[Ranks, np.ndarray, np.ndarray]:
        """The ranks; and, with `pairs`, keys [n] of matches and how many strangers' keys have an upper half, [HALF]."""
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
            parts = jax.device_get(_block_ranks(*args, mesh=self.mesh, identities=identities, pairs=pairs))
            hits[chosen], first[chosen], keys[chosen] = parts[0][:n, :most], parts[1][:n], parts[2][:n, :most]
            upper += parts[3]
        there = self.found >= 0
        hits = np.sort(np.where(there, hits, np.iinfo(hits.dtype).max), axis=1)
        return Ranks(np.where(there, hits, 0), first), keys[there], upper

    def tprs(self, matched: np.ndarray, upper: np.ndarray) -> dict[str, float]:
        """TPRs from what the first pass says, and a second."""
        total = ranking.num_negative_pairs(self.rows, self.count)
        if not total:
            return dict.fromkeys(FPRS, 1.0)
        allowed = np.array([total // one_in for one_in in FPRS.values()])
        place, passed = _descend(upper, allowed)
        lower, wanted = np.zeros((len(place), HALF), np.int64), self.put(place.astype(np.uint32))
        for _, block in self.blocks():
            lower += jax.device_get(_block_lower(block, wanted, self.tiles, mesh=self.mesh))
        counts = [lower[np.flatnonzero(place == half)[-1]] for half in place]
        bounds = [half * HALF + _descend(x, n)[0] for half, x, n in zip(place, counts, allowed - passed)]
        return {name: float(np.mean(matched > bound)) for name, bound in zip(FPRS, bounds)}


def _side(rows: int, most: int) -> int:
    """A power of two near `rows`, so that few shapes are compiled, and at most `most`."""
    return min(most, max(16, 1 << (rows - 1).bit_length()))


def _descend(counts: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where, from the last of `counts` down, the sum first exceeds `allowed`; and the sum of those above."""
    sums = np.cumsum(counts[::-1])
    place = np.searchsorted(sums, allowed, "right")
    return len(counts) - 1 - place, np.where(place > 0, sums[place - 1], 0)


def _check(query: np.ndarray, gallery: np.ndarray, rows: Relevance) -> None:
    for name, x, numbers in (("query", query, rows.query_pid), ("gallery", gallery, rows.gallery_pid)):
        if x.ndim != 2 or len(x) != len(numbers):
            raise ValueError(f"ranking: {name} vectors {x.shape} must be [n,D] with n={len(numbers)}")
        finite = np.isfinite(np.einsum("nd,nd->n", x, x))  # then so are all dot products
        if not finite.all():
            raise ValueError(f"ranking: {name} vector {finite.argmin()} is not finite ({np.sum(~finite)} such vectors)")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"ranking: query vectors have {query.shape[1]} numbers, gallery vectors {gallery.shape[1]}; "
            "both sides must come from one model"
        )


def _on_mesh(body: Callable, mesh: Mesh, *args: Any) -> Any:
    """`body` on every device with its own tiles, the last argument; all else, and what it returns, is everywhere."""
    specs = (WHOLE,) * (len(args) - 1) + (P(mesh.axis_names),)
    return jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=WHOLE)(*args)


@functools.partial(jax.jit, static_argnames=("mesh", "identities", "pairs"))
def _block_ranks(
    query: Side, own: Array, most: Array, tiles: Side, *, mesh: Mesh, identities: int, pairs: bool
) -> tuple[Array, ...]:
    """Ranks of the gallery rows own [b,P], of the first [b], their keys [b,P]; strangers' upper halves, [HALF] counts.

    No row has more than `most` of its own. With `identities`, the number of pids, the rank of the first counts pids.
    Without `pairs` nobody asks for the last of these, and it is zeros.
    """

    def body(query: Side, own: Array, most: Array, tiles: Side) -> tuple:
        dots, pid, index = _dots(query, tiles, mesh)
        mine = own - index[0]
        here = (mine >= 0) & (mine < len(index))
        found = jnp.take_along_axis(dots, jnp.clip(mine, 0, len(index) - 1), axis=1)
        found = jax.lax.psum(jnp.where(here, found, 0), mesh.axis_names)

        def ahead(value: Array, place: Array) -> Array:
            return (dots > value[:, None]) | ((dots == value[:, None]) & (index < place[:, None]))

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
            strangers = jnp.where(_strangers(query, dots, pid), _keys(dots) // HALF, HALF)
            upper = jax.lax.psum(upper.at[strangers].add(1, mode="drop"), mesh.axis_names)
        return hits, first, _keys(found), upper

    return _on_mesh(body, mesh, query, own, most, tiles)


@functools.partial(jax.jit, static_argnames=("mesh",))
def _block_lower(query: Side, upper: Array, tiles: Side, *, mesh: Mesh) -> Array:
    """[n,HALF] counts of the lower halves of strangers' keys whose upper half is `upper` [n]; of equal, of the last."""

    def body(query: Side, upper: Array, tiles: Side) -> Array:
        dots, pid, _ = _dots(query, tiles, mesh)
        keys, n = _keys(dots), len(upper)
        place = jnp.full(dots.shape, n * HALF, jnp.uint32)
        for i in range(n):
            place = jnp.where(keys // HALF == upper[i], i * HALF + keys % HALF, place)
        place = jnp.where(_strangers(query, dots, pid), place, n * HALF)
        counts = jnp.zeros(n * HALF, jnp.int32).at[place].add(1, mode="drop")
        return jax.lax.psum(counts, mesh.axis_names).reshape(n, HALF)

    return _on_mesh(body, mesh, query, upper, tiles)


def _dots(query: Side, tiles: Side, mesh: Mesh) -> tuple[Array, Array, Array]:
    """Dot products [b,g] with a device's part of the gallery, -inf of what is hidden; its pid [g] and index [g]."""
    product = functools.partial(jnp.einsum, "bd,gd->bg", precision=jax.lax.Precision.HIGHEST)
    dots = jax.lax.map(lambda vectors: product(query.vectors, vectors), tiles.vectors)
    dots = dots.swapaxes(0, 1).reshape(len(query.pid), -1)
    pid, junk = tiles.pid.reshape(-1), tiles.junk.reshape(-1)
    hidden = (query.junk[:, None] == junk) | (pid < 0)
    index = jax.lax.axis_index(mesh.axis_names) * len(pid) + jnp.arange(len(pid), dtype=jnp.int32)
    return jnp.where(hidden, -jnp.inf, dots), pid, index


def _strangers(query: Side, dots: Array, pid: Array) -> Array:
    """[b,g], the pairs that are neither matches nor hidden, of queries that are no padding."""
    return (query.pid[:, None] != pid) & (dots > -jnp.inf) & (query.pid >= 0)[:, None]


def _keys(x: Array) -> Array:
    """float32 -> uint32, sorting alike; both zeros are one."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
