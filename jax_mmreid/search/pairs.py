"""Labelled pairs of rows and their scores, under every combination of modalities that both rows could have had.

A row is labelled by its identity and camera. A pair is of the same identity or of different ones; pairs of the same
identity and the same camera are junk and left out, as in the protocols of evaluation, for they are easier than what is
asked later.

Hiding modalities of rows that have them all gives the pairs of every combination from one encoding: `Views` are the
rows as they would be with only some modalities. The score of a pair that has modalities in common depends on these
alone (`metrics.similarity`), so each is scored once; one that has none in common is compared by the fallback vectors,
which depend on what each row shows.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jax_mmreid.errors import DataError
from jax_mmreid.metrics.similarity import Parts

LIMIT = 1 << 19  # pairs of each kind that are scored; where there are more, as many are drawn
CHUNK = 1 << 13  # pairs whose parts are in memory at once

Views = Mapping[tuple[str, ...], Parts]  # {modalities: all n rows with these shown}, zero fallbacks where there is none


class Labelled(NamedTuple):
    """n rows of one model with their labels."""

    modalities: tuple[str, ...]  # of the parts
    views: Views
    pids: np.ndarray  # [n]
    camids: np.ndarray  # [n], -1 unknown


class Pairs(NamedTuple):
    """P scored pairs. A pair of rows occurs once for each combination of modalities that it was scored by."""

    scores: np.ndarray  # [P] float64
    common: np.ndarray  # [P,M] bool, the modalities that it was compared by; none: by the fallback vectors
    rows: np.ndarray  # [P,2] int64, the rows
    pids: np.ndarray  # [P,2] their identities
    weights: np.ndarray  # [P] float64, how many pairs of rows it stands for

    @property
    def same(self) -> np.ndarray:
        """Which are of the same identity, [P] bool."""
        return self.pids[:, 0] == self.pids[:, 1]

    def take(self, chosen: np.ndarray) -> "Pairs":
        """The pairs of a mask [P] or an index."""
        return Pairs(*(x[chosen] for x in self))


def combinations(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """The non-empty subsets of the modalities, the small ones first."""
    sizes = range(1, len(modalities) + 1)
    return [subset for size in sizes for subset in itertools.combinations(modalities, size)]


def hide(rows: Parts, modalities: Sequence[str]) -> Views:
    """Views of rows whose towers are not at hand: a row that loses a modality has no fallback vector."""
    views = {}
    for shown in combinations(modalities):
        present = rows.present & np.isin(modalities, shown)
        whole = (present == rows.present).all(axis=1)
        fallback = None if rows.fallback is None else np.where(whole[:, None], rows.fallback, 0)
        views[shown] = Parts(rows.parts, present, fallback)
    return views


def draw(pids: np.ndarray, camids: np.ndarray, *, limit: int = LIMIT, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of n rows with identities and cameras [n], a camera -1 unknown: rows [P,2], and what each stands for [P].

    All pairs but junk; of those of different identities and of those of the same, if either are more than `limit`,
    about as many, drawn without replacement. Raises DataError where there are none of a kind.
    """
    if not len(pids):
        raise DataError("no row has an identity, and a calibration needs labelled rows")
    rng, n = np.random.default_rng(seed), len(pids)
    numbers, weight = _some(n * (n - 1) // 2, limit, rng)
    different = np.stack(_triangle(numbers), axis=1)
    different = different[pids[different[:, 0]] != pids[different[:, 1]]]
    if not len(different):
        raise DataError(f"all {n} labelled rows are of identity {pids[0]}; a false match needs two identities")
    order = np.argsort(pids, kind="stable")
    _, starts, counts = np.unique(pids[order], return_index=True, return_counts=True)
    ends = np.cumsum(counts * (counts - 1) // 2)
    numbers, same_weight = _some(int(ends[-1]), limit, rng)
    group = np.searchsorted(ends, numbers, "right")
    places = _triangle(numbers - np.concatenate([[0], ends])[group])
    same = np.stack([order[starts[group] + place] for place in places], axis=1)
    cameras = camids[same]
    same = same[(cameras[:, 0] != cameras[:, 1]) | (cameras[:, 0] < 0)]
    if not len(same):
        raise DataError("no identity has rows of two cameras, so there is no pair of the same identity to learn from")
    weights = np.repeat([same_weight, weight], [len(same), len(different)])
    return np.concatenate([same, different]), weights


def score(labelled: Labelled, *, limit: int = LIMIT, seed: int = 0) -> Pairs:
    """The pairs of `draw` under every combination of modalities that both rows have, and by their fallback vectors.

    By these, a pair is scored once, in a way drawn from those in which the two rows show nothing in common. Raises
    DataError as `draw` does, and for vectors that are not finite.
    """
    modalities, views, pids, camids = labelled
    rows, weights = draw(pids, camids, limit=limit, seed=seed)
    whole = views[max(views, key=len)]
    products, squares = _products(whole, rows)
    both = whole.present[rows].all(axis=1)
    parts = []
    for subset in combinations(modalities):
        common = np.isin(modalities, subset)
        chosen = np.flatnonzero(both[:, common].all(axis=1))
        length = np.sqrt(squares[chosen][:, :, common].sum(axis=2).prod(axis=1))
        found = products[chosen][:, common].sum(axis=1)
        with np.errstate(invalid="ignore"):  # what is not finite is refused below
            found = np.divide(found, length, out=np.zeros_like(found), where=length > 0)
        parts.append((found, chosen, common))
    found, chosen = _fallbacks(list(views.values()), rows, np.random.default_rng(seed))
    parts.append((found, chosen, np.zeros(len(modalities), bool)))
    scores = np.concatenate([found for found, _, _ in parts])
    if not np.isfinite(scores).all():
        raise DataError(f"{np.sum(~np.isfinite(scores))} scores of labelled pairs are not finite; check the weights")
    chosen = np.concatenate([part[1] for part in parts])
    common = np.concatenate([np.tile(mask, (len(part), 1)) for _, part, mask in parts])
    return Pairs(scores, common, rows[chosen], pids[rows[chosen]], weights[chosen])


def _some(total: int, limit: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """All numbers below `total`, or `limit` of them, ascending; and how many each stands for."""
    if total <= limit:
        return np.arange(total), 1.0
    return np.sort(rng.choice(total, limit, replace=False, shuffle=False)), total / limit


def _triangle(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs i < j with these numbers, counted as (0,1), (0,2), (1,2), (0,3), ..."""
    j = ((1 + np.sqrt(1 + 8 * numbers)) / 2).astype(np.int64)  # exact up to 2**50 pairs, of more rows than there are
    return numbers - j * (j - 1) // 2, j


def _products(whole: Parts, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs of rows [P,2]: dot products by modality [P,M], squared lengths [P,2,M]."""
    lengths = np.einsum("nmd,nmd->nm", whole.parts, whole.parts, dtype=np.float64)
    products = np.empty((len(rows), whole.parts.shape[1]))
    for start in range(0, len(rows), CHUNK):
        q, g = (np.asarray(whole.parts[side]) for side in rows[start : start + CHUNK].T)
        products[start : start + CHUNK] = np.einsum("pmd,pmd->pm", q, g)
    return products, lengths[rows]


def _fallbacks(views: Sequence[Parts], rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scores [p] by the fallback vectors, of those pairs of rows [P,2] that can show nothing in common; which, [p]."""
    views = [view for view in views if view.fallback is not None]
    has = [np.any(view.fallback, axis=1) for view in views]
    ways = list(itertools.product(range(len(views)), repeat=2))
    scores, taken = np.zeros(len(rows)), np.zeros(len(rows), bool)
    for start in range(0, len(rows) if ways else 0, CHUNK):
        q, g = rows[start : start + CHUNK].T
        possible = [has[u][q] & has[v][g] & ~(views[u].present[q] & views[v].present[g]).any(axis=1) for u, v in ways]
        place = np.cumsum(possible, axis=0) * possible  # 1, 2, .. on the ways that a pair may take
        drawn = 1 + (rng.random(len(q)) * place.max(axis=0)).astype(np.int64)
        taken[start : start + CHUNK] = place.any(axis=0)
        for (u, v), way in zip(ways, place == drawn):
            found = np.einsum("pd,pd->p", views[u].fallback[q[way]], views[v].fallback[g[way]])
            scores[start + np.flatnonzero(way)] = found
    return scores[taken], np.flatnonzero(taken)
