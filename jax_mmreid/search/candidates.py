"""Candidates that something else has found, compared exactly: the last step of approximate and of remote search."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from jax_mmreid.errors import DataError
from jax_mmreid.metrics import similarity
from jax_mmreid.metrics.similarity import NO_SCORE, Packing, Parts
from jax_mmreid.metrics.vectors import block_side
from jax_mmreid.search.index import Matches, contributions, padded, take


def check(query: Parts) -> None:
    """Raises DataError for a query without anything to compare."""
    lengths = np.linalg.norm(np.where(query.present[..., None], query.parts, 0), axis=2)
    if query.fallback is not None:
        lengths = np.column_stack([lengths, np.linalg.norm(query.fallback, axis=1)])
    right = np.isfinite(lengths).all(axis=1) & lengths.any(axis=1)
    if not right.all():
        raise DataError(
            f"query row {right.argmin()} has no finite part or fallback vector to be compared by; leave such rows out"
        )


def rescored(query: Parts, gallery: Parts, candidates: Sequence[np.ndarray], k: int) -> Matches:
    """The k best rows for each of Q queries among its candidates, rows of the gallery in any order, -1 for none."""
    Q = len(query.parts)
    found, scores = np.full((Q, k), -1, np.int64), np.full((Q, k), NO_SCORE, np.float32)
    for i, rows in enumerate(candidates):
        rows = np.unique(rows[rows >= 0])
        block = padded(take(gallery, rows), block_side(len(rows)))
        compared = np.asarray(_compare(take(query, [i]), block, packing=gallery.packing))[0, : len(rows)]
        order = np.argsort(-compared, kind="stable")[:k]
        order = order[compared[order] > NO_SCORE]
        found[i, : len(order)], scores[i, : len(order)] = rows[order], compared[order]
    return Matches(found, scores, *contributions(query, gallery, found))


def recall(found: Matches, exact: Matches) -> float:
    """The share of the rows of an exact search that another one found too, averaged over the queries that have any."""
    shares = [np.isin(rows[rows >= 0], other).mean() for rows, other in zip(exact.rows, found.rows) if rows[0] >= 0]
    return float(np.mean(shares)) if shares else float("nan")


@functools.partial(jax.jit, static_argnames="packing")
def _compare(query: Parts, rows: Parts, *, packing: Packing) -> jax.Array:
    return similarity.common(similarity.pack(query), similarity.pack(rows), packing)[0]
