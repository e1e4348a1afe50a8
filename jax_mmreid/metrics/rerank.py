"""k-reciprocal re-ranking (Zhong, Zheng, Cao, Li, CVPR 2017), in memory that grows with the rows and not their square.

Over all N rows, queries first, and with d the squared Euclidean distances of a row divided by their maximum:

    R(i, k)  = the rows j such that each of i and j is among the k+1 nearest rows of the other
    R*(i)    = R(i, k1) and each R(c, k1/2), c in R(i, k1), of which more than two thirds are in R(i, k1)
    V[i, j]  = exp(-d[i, j]) / sum of the same over R*(i), for j in R*(i), else 0
    V[i]     = mean of V[j] over the k2 nearest rows j of i
    m[i, j]  = sum over c of min(V[i, c], V[j, c])
    distance = (1 - lam) * (1 - m / (2 - m)) + lam * d

Neighbours are searched on the device; sets and V are sparse matrices on the host.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from jax_mmreid.errors import ConfigError, DataError

# Numbers in the largest temporary array of a block: 16 MiB in float32.
BLOCK = 1 << 22


def rerank(
    query: np.ndarray | jax.Array, gallery: np.ndarray | jax.Array, *, k1: int = 20, k2: int = 6, lam: float = 0.3
) -> Iterator[np.ndarray]:
    """Final distances of query [Q,D] to gallery [G,D], in blocks [b,G] float32 in the order of the queries.

    As in the authors' code, k1 takes k1+1 rows, since row i is normally the nearest to itself; k1/2 is rounded, halves
    to even, and takes one row more too; k2 takes k2 rows, and 1 leaves V as it is. Where there are fewer rows, it is
    all of them. Equal distances rank by index, and nothing forces row i ahead of its duplicates: where they are more
    than k1+1, R(i, k1) may be empty, and V[i] before the mean 0. A row whose distances are all 0 has d = 0. Features
    that are both on one device stay there.

    Raises, at the call, ConfigError for constants that `check` refuses, DataError for features that have no rows, are
    not finite, or are too large to be squared in float32, ValueError if they are not two matrices of one width D.
    """
    check(k1=k1, k2=k2, lam=lam)
    query, gallery = (x if isinstance(x, jax.Array) else np.asarray(x, np.float32) for x in (query, gallery))
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"re-ranking: query {query.shape} and gallery {gallery.shape} must be [Q,D] and [G,D]")
    for name, side in (("query", query), ("gallery", gallery)):
        if len(side) == 0:
            raise DataError(f"re-ranking: the {name} has no rows; check the split")
        # A distance is at most four times the largest square; NaN is not below anything.
        if not (_squares(side) < np.finfo(np.float32).max / 4).all():
            raise DataError(f"re-ranking: {name} features are not finite, or too large to be squared in float32")
    sides = [query, gallery]
    on_device = all(isinstance(x, jax.Array) for x in sides)
    feats = jnp.concatenate(sides) if on_device else jax.device_put(np.concatenate(jax.device_get(sides)))
    return _blocks(feats, len(query), k1, k2, float(lam))


def check(*, k1: int, k2: int, lam: float) -> None:
    """Raises ConfigError for constants that `rerank` cannot take."""
    if k1 < 1 or k2 < 1:
        raise ConfigError(f"re-ranking: k1={k1} and k2={k2} must be at least 1")
    if not 0 <= lam <= 1:
        raise ConfigError(f"re-ranking: lam={lam} must lie in [0, 1]: 0 is the Jaccard distance alone, 1 the plain one")


def _squares(x: np.ndarray | jax.Array) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return np.einsum("nd,nd->n", x, x, dtype=np.float64)
    return jax.device_get(jnp.einsum("nd,nd->n", x, x, precision=jax.lax.Precision.HIGHEST))


def _blocks(feats: jax.Array, Q: int, k1: int, k2: int, lam: float) -> Iterator[np.ndarray]:
    """The blocks of `rerank` of checked feats [N,D], of which the first Q are queries."""
    N = len(feats)
    squares = jnp.einsum("nd,nd->n", feats, feats, precision=jax.lax.Precision.HIGHEST)
    size = min(max(1, BLOCK // N), N)
    near, far = _neighbours(feats, squares, size, min(max(k1 + 1, k2), N))
    vectors = _vectors(feats, _expanded(near, k1), far)
    queries, columns = vectors[:Q], vectors[Q:].tocsc()
    if k2 != 1:
        mean = _rows(near[:, :k2], np.float32(1 / min(k2, N)))
        queries, columns = mean[:Q] @ vectors, mean[Q:].tocsc() @ vectors.tocsc()
    for start in range(0, Q, size):
        stop = min(start + size, Q)
        # The device's block has one shape: it may go on past the queries, or begin before `start`.
        first = min(start, N - size)
        dist = _fetch(_squared, feats, squares, first, size)[start - first : stop - first, Q:]
        shared = _shared(queries[start:stop], columns)
        yield (1 - lam) * (1 - shared / (2 - shared)) + lam * (dist / far[start:stop, None])


@partial(jax.jit, static_argnames="size")
def _squared(feats: jax.Array, squares: jax.Array, start: int, size: int) -> jax.Array:
    """Squared distances [size,N] of the rows from `start` on to all of feats [N,D], with squares [N] their norms."""
    rows, own = (jax.lax.dynamic_slice_in_dim(x, start, size) for x in (feats, squares))
    dots = jnp.einsum("nd,gd->ng", rows, feats, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(own[:, None] + squares - 2 * dots, 0)


@partial(jax.jit, static_argnames=("size", "count"))
def _nearest(feats: jax.Array, squares: jax.Array, start: int, size: int, count: int) -> tuple[jax.Array, jax.Array]:
    """The nearest rows [size,count] of the rows from `start` on, equal ones by index, and their maximum [size]."""
    dist = _squared(feats, squares, start, size)
    return jax.lax.top_k(-dist, count)[1], jnp.max(dist, axis=1)


@jax.jit
def _between(feats: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Squared distances [P] of rows a [P] of feats [N,D] to rows b [P]."""
    return jnp.sum(jnp.square(feats[a] - feats[b]), axis=-1)


def _fetch(function: Callable, *args: Any) -> Any:
    """What a jitted function returns, on the host; intended transfers, also where a guard forbids them."""
    with jax.transfer_guard("allow"):
        return jax.device_get(function(*args))


def _starts(total: int, size: int) -> list[int]:
    """Starts of full blocks that cover `total`: the last overlaps the one before, so that one shape is compiled."""
    return [min(i, total - size) for i in range(0, total, size)]


def _neighbours(feats: jax.Array, squares: jax.Array, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of feats [N,D]: the `count` nearest, [N,count] int32 by distance, and what to divide by, [N]."""
    near, far = np.empty((len(feats), count), np.int32), np.empty(len(feats), np.float32)
    for i in _starts(len(feats), size):
        near[i : i + size], far[i : i + size] = _fetch(_nearest, feats, squares, i, size, count)
    return near, np.where(far > 0, far, 1)


def _rows(columns: np.ndarray, value: np.generic) -> sparse.csr_array:
    """The sparse [N,N] matrix that has `value` in the given columns [N,k] of each row."""
    N, k = columns.shape
    return sparse.csr_array((np.full(N * k, value), columns.ravel(), np.arange(N + 1) * k), shape=(N, N))


def _expanded(near: np.ndarray, k1: int) -> sparse.csr_array:
    """R* of all rows, from their nearest rows near [N,.]: sparse [N,N], nonzero at the members."""
    forward, narrow = (_rows(near[:, : k + 1], np.int32(1)) for k in (k1, int(np.around(k1 / 2))))
    mutual, half = forward.multiply(forward.T), narrow.multiply(narrow.T)
    members = np.diff(half.indptr)
    step = max(1, BLOCK // min((k1 + 1) ** 2, len(near)))
    blocks = []
    for i in range(0, len(near), step):
        own = mutual[i : i + step]
        # `half` equals its transpose, so that [i,c] of the product counts what R(c, k1/2) and R(i, k1) have in common.
        joins = (own @ half).multiply(own)
        joins.data = (3 * joins.data > 2 * members[joins.indices]).astype(np.int32)
        joins.eliminate_zeros()
        blocks.append(own + joins @ half)
    return sparse.vstack(blocks, format="csr")


def _vectors(feats: jax.Array, sets: sparse.csr_array, far: np.ndarray) -> sparse.csr_array:
    """V before its local mean, sparse [N,N] float32, of the members `sets` [N,N] of R* and the maxima far [N]."""
    N, total = len(far), sets.nnz
    rows = np.repeat(np.arange(N, dtype=np.int32), np.diff(sets.indptr))
    dist = np.empty(total, np.float32)
    size = max(1, min(BLOCK // feats.shape[1], total))
    for i in _starts(total, size):
        dist[i : i + size] = _fetch(_between, feats, rows[i : i + size], sets.indices[i : i + size])
    weights = np.exp(-dist / far[rows])
    weights /= np.bincount(rows, weights, N).astype(np.float32)[rows]
    return sparse.csr_array((weights, sets.indices, sets.indptr), shape=(N, N))


def _shared(queries: sparse.csr_array, columns: sparse.csc_array) -> np.ndarray:
    """m [b,G] float32, of rows of V for queries [b,N] and for the gallery, the latter by column: [G,N]."""
    out = np.empty((queries.shape[0], columns.shape[0]), np.float32)
    for i in range(len(out)):
        own = slice(queries.indptr[i], queries.indptr[i + 1])
        met = columns[:, queries.indices[own]]
        least = np.minimum(met.data, np.repeat(queries.data[own], np.diff(met.indptr)))
        out[i] = np.bincount(met.indices, least, len(out[i]))
    return out
