"""Retrieval metrics from ranks: CMC, mAP (Zheng et al., 2015), mINP (Ye et al., 2021), and TPR at a given FPR.

    AP = mean over the hits of (hits so far / rank),    INP = hits / rank of the last hit

Ranks count the gallery rows that are not junk for the query. **Equal distances rank by gallery index**, the lower one
first. A query without a match that is not junk is left out of every number.

TPR at FPR x looks at pairs instead of ranks: of all pairs that are neither matches nor junk, the k = floor(x * pairs)
nearest may be taken for matches; TPR is the share of true matches nearer than the next one. So no more than k such
pairs pass, ties included, and no interpolation is done.

This file ranks distances that are given, in numpy; `device_ranking` computes them on devices and ranks there.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jax_mmreid.errors import DataError

MAX_RANK = 50
RANKS = (1, 5, 10, 20)  # of the CMC that have a name of their own in a result
FPRS = {"TPR@1e-2": 100, "TPR@1e-3": 1_000, "TPR@1e-4": 10_000}  # {metric: one in how many pairs may pass}
METRICS = ("mAP", "mINP", *(f"rank{r}" for r in RANKS), *FPRS)
# A gallery row is junk for a query if it agrees with it in all of these columns.
SAME = {"same_camera": ("pid", "camid"), "same_view": ("pid", "view")}
# SYSU-MM01's cameras 3 (infrared) and 2 (visible) are at one location: for a query of 3, all of 2 is junk.
SYSU_QUERY, SYSU_HIDDEN = 3, 2
JUNK_RULES = ("none", *SAME, "sysu_cameras")


class Relevance(NamedTuple):
    """What matches a query and what is junk for it, as one int32 each for query rows [Q] and gallery rows [G].

    A gallery row is a match where `pid` is equal, and junk where `junk` is. Numbers of pid are 0..I-1.
    """

    query_pid: np.ndarray
    gallery_pid: np.ndarray
    query_junk: np.ndarray
    gallery_junk: np.ndarray


class Ranks(NamedTuple):
    """The ranks of matches."""

    hits: np.ndarray  # [Q,P] int64, the ranks of a query's matches from 1, ascending, then zeros
    first: np.ndarray  # [Q] int64, the rank of the first hit in the CMC; 0 without a match


def relevance(rule: str, query: Mapping[str, np.ndarray], gallery: Mapping[str, np.ndarray]) -> Relevance:
    """Matches and junk by a rule of JUNK_RULES, from the columns that it compares, of queries [Q] and gallery rows [G].

    Raises ValueError for an unknown rule or a missing column.
    """
    if rule not in JUNK_RULES:
        raise ValueError(f"junk: no rule {rule!r}; there are {', '.join(JUNK_RULES)}")
    for name in ("pid", *SAME.get(rule, ("camid",) if rule == "sysu_cameras" else ())):
        if name not in query or name not in gallery:
            raise ValueError(f"junk: rule {rule!r} needs the column {name!r} on both sides")
    sizes = len(query["pid"]), len(gallery["pid"])
    if rule == "none":
        junk = np.zeros(sizes[0]), np.ones(sizes[1])
    elif rule == "sysu_cameras":
        hidden = np.asarray(gallery["camid"]) == SYSU_HIDDEN
        junk = np.asarray(query["camid"]) == SYSU_QUERY, np.where(hidden, 1, 2)
    else:
        junk = _numbered(*(np.stack([side[name] for name in SAME[rule]], axis=1) for side in (query, gallery)))
    pids = _numbered(*(np.asarray(side["pid"])[:, None] for side in (query, gallery)))
    return Relevance(*(x.astype(np.int32) for x in (*pids, *junk)))


def _numbered(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [Q,c] and [G,c] as numbers 0.., alike where all columns are."""
    _, numbers = np.unique(np.concatenate([query, gallery]), axis=0, return_inverse=True)
    numbers = numbers.reshape(-1)
    return numbers[: len(query)], numbers[len(query) :]


def positives(rows: Relevance) -> tuple[np.ndarray, np.ndarray]:
    """The matches that are not junk: gallery rows [Q,P] int32, ascending, then -1; and how many there are, [Q].

    Raises DataError if no query has one.
    """
    order = np.argsort(rows.gallery_pid, kind="stable")
    sorted_pid = rows.gallery_pid[order]
    start, stop = (np.searchsorted(sorted_pid, rows.query_pid, side) for side in ("left", "right"))
    place = start[:, None] + np.arange(np.max(stop - start, initial=0))
    there = place < stop[:, None]
    found = np.where(there, order[np.minimum(place, len(order) - 1)], -1)
    there &= rows.gallery_junk[found] != rows.query_junk[:, None]
    count = there.sum(axis=1)
    if not count.any():
        raise DataError("ranking: no query has a match in the gallery; check the split and the junk rule")
    # Moves the matches to the front, in their order.
    front = np.argsort(~there, axis=1, kind="stable")[:, : count.max()]
    found = np.where(np.take_along_axis(there, front, axis=1), np.take_along_axis(found, front, axis=1), -1)
    return found.astype(np.int32), count


def num_negative_pairs(rows: Relevance, count: np.ndarray) -> int:
    """How many pairs are neither matches nor junk, of the queries with a match; `count` is that of `positives`."""
    junk = np.sort(rows.gallery_junk)
    hidden = np.searchsorted(junk, rows.query_junk, "right") - np.searchsorted(junk, rows.query_junk, "left")
    return int(np.sum(len(junk) - hidden - count, where=count > 0))


def rank(dist: np.ndarray | Iterable[np.ndarray], rows: Relevance, *, by_identity: bool = False) -> dict:
    """Metrics of distances [Q,G], or of blocks [b,G] of them in the order of the queries, each used once.

    Returns `METRICS` as fractions, `cmc` [50] (entry r-1 is rank r; past the gallery's end the last value repeats), and
    `num_valid`, the number of queries with a match. With `by_identity` the CMC and its ranks count identities: of every
    identity only the best row that is not junk has a rank; all else counts rows either way. Raises ValueError if the
    shapes differ, DataError if a distance is NaN or no query has a match.
    """
    Q, G = len(rows.query_pid), len(rows.gallery_pid)
    found, count = positives(rows)
    hits, first = np.zeros(found.shape, np.int64), np.zeros(Q, np.int64)
    nearest, matched, done = _Nearest(num_negative_pairs(rows, count)), [], 0
    for block in [dist] if isinstance(dist, np.ndarray) else dist:
        if block.ndim != 2 or block.shape[1] != G or done + len(block) > Q:
            raise ValueError(f"ranking: dist has {block.shape} from row {done} on, expected rows of ({Q}, {G})")
        if np.isnan(block).any():
            raise DataError("ranking: dist has NaN; the features of a query or gallery row are not finite")
        for q, row in enumerate(block, done):
            if count[q]:
                own, kept = found[q, : count[q]], rows.gallery_junk != rows.query_junk[q]
                hits[q, : count[q]], first[q] = _rank_row(row, own, kept, rows.gallery_pid if by_identity else None)
                nearest.add(row[kept & (rows.gallery_pid != rows.query_pid[q])])
                matched.append(row[own])
        done += len(block)
    if done < Q:
        raise ValueError(f"ranking: dist has {done} rows, expected ({Q}, {G})")
    matched = np.concatenate(matched)
    tprs = {name: nearest.share(matched, one_in) for name, one_in in FPRS.items()}
    return scores(Ranks(hits, first)) | tprs


def order(dist: np.ndarray, rows: Relevance, query: int) -> np.ndarray:
    """The gallery rows [n] that are not junk for a query with distances dist [G], the nearest first."""
    kept = np.flatnonzero(rows.gallery_junk != rows.query_junk[query])
    return kept[np.argsort(dist[kept], kind="stable")]


def average_precisions(ranks: Ranks) -> np.ndarray:
    """AP of every query [Q], NaN without a match; their mean over those with one is mAP."""
    precision = np.arange(1, ranks.hits.shape[1] + 1) / np.maximum(ranks.hits, 1)
    count = np.where(ranks.first > 0, np.count_nonzero(ranks.hits, axis=1), np.nan)
    return np.sum(precision, axis=1, where=ranks.hits > 0) / count


def scores(ranks: Ranks) -> dict:
    """mAP, mINP, the CMC and its named ranks of queries with a match, and their number."""
    valid = ranks.first > 0
    hits = ranks.hits[valid]
    cmc = np.array([np.mean(ranks.first[valid] <= r) for r in range(1, MAX_RANK + 1)])
    return {
        "mAP": float(np.mean(average_precisions(ranks)[valid])),
        "mINP": float(np.mean(np.count_nonzero(hits, axis=1) / hits.max(axis=1))),
        **{f"rank{r}": float(cmc[r - 1]) for r in RANKS},
        "cmc": cmc,
        "num_valid": int(valid.sum()),
    }


def _rank_row(dist: np.ndarray, own: np.ndarray, kept: np.ndarray, pids: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Ranks, ascending, of the rows `own` [P] of dist [G] among those `kept` [G]; and that of the first hit.

    Sorting values and looking up a few is many times faster than sorting indices. With `pids` [G] the rank of the first
    hit counts identities: own rows come after every identity whose best row is ahead of it.
    """
    values = np.sort(dist[kept])
    ahead, upto = (np.searchsorted(values, dist[own], side) for side in ("left", "right"))
    if (upto - ahead > 1).any():  # equal distances: the order of the indices decides
        candidates = np.flatnonzero(kept)
        place = np.empty(len(candidates), np.int64)
        place[np.argsort(dist[candidates], kind="stable")] = np.arange(len(candidates))
        ahead = place[np.searchsorted(candidates, own)]
    first = 1 + ahead.min()
    if pids is not None:
        best = own[ahead.argmin()]
        closer = dist < dist[best]
        closer[:best] |= dist[:best] == dist[best]
        first = 1 + np.count_nonzero(np.bincount(pids[kept & closer]))
    return np.sort(ahead) + 1, first


class _Nearest:
    """Of distances that arrive part by part, `total` in all, as many of the smallest as TPRs need."""

    def __init__(self, total: int):
        self.total, self.size = total, total // min(FPRS.values()) + 1
        self.parts, self.waiting, self.limit = [], 0, np.inf

    def add(self, dist: np.ndarray) -> None:
        self.parts.append(dist[dist <= self.limit])
        self.waiting += len(self.parts[-1])
        if self.waiting > 4 * self.size + 1024:
            self._shrink()

    def share(self, matched: np.ndarray, one_in: int) -> float:
        """The share of `matched` that is nearer than the first of these that must not pass if one in `one_in` may."""
        self._shrink()
        return float(np.mean(matched < np.sort(self.parts[0])[self.total // one_in])) if self.total else 1.0

    def _shrink(self) -> None:
        values = np.concatenate([*self.parts, np.empty(0)])
        if len(values) > self.size:
            values = np.partition(values, self.size - 1)[: self.size]
            self.limit = values.max()
        self.parts, self.waiting = [values], len(values)
