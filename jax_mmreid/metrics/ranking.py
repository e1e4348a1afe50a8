"""Retrieval metrics of a distance matrix: CMC, mAP (Zheng et al., 2015) and mINP (Ye et al., 2021), in numpy.

    AP = mean over the hits of (hits so far / rank),    INP = hits / rank of the last hit

Ranks count the gallery rows that are not junk for the query. Equal distances rank by gallery index.
"""

from collections.abc import Mapping

import numpy as np

MAX_RANK = 50
RANKS = (1, 5, 10, 20)  # of the CMC that have a name of their own in a result
METRICS = ("mAP", "mINP", *(f"rank{r}" for r in RANKS))
# A gallery row is junk for a query if it agrees with it in all of these columns.
SAME = {"none": (), "same_camera": ("pid", "camid"), "same_view": ("pid", "view")}
# SYSU-MM01's cameras 3 (infrared) and 2 (visible) stand in one place: to a query of 3, all of 2 is junk.
SYSU_QUERY, SYSU_HIDDEN = 3, 2
JUNK_RULES = (*SAME, "sysu_cameras")
# Entries ranked at once; a block takes about 80 bytes an entry.
BLOCK = 1 << 22


def junk_mask(rule: str, query: Mapping[str, np.ndarray], gallery: Mapping[str, np.ndarray]) -> np.ndarray:
    """[Q,G] bool, the gallery rows that `rule` of `JUNK_RULES` hides from each query.

    query and gallery map pid, and what else the rule compares, to columns [Q] and [G]. Raises ValueError for an
    unknown rule or a missing column.
    """
    if rule not in JUNK_RULES:
        raise ValueError(f"junk: no rule {rule!r}; there are {', '.join(JUNK_RULES)}")
    columns = SAME.get(rule, ("camid",))
    for name in columns:
        if name not in query or name not in gallery:
            raise ValueError(f"junk: rule {rule!r} needs the column {name!r} on both sides")
    if rule == "sysu_cameras":
        return (np.asarray(query["camid"]) == SYSU_QUERY)[:, None] & (np.asarray(gallery["camid"]) == SYSU_HIDDEN)
    mask = np.full((len(query["pid"]), len(gallery["pid"])), bool(columns))
    for name in columns:
        mask &= np.asarray(query[name])[:, None] == np.asarray(gallery[name])[None, :]
    return mask


def rank(dist: np.ndarray, match: np.ndarray, junk: np.ndarray, identities: np.ndarray | None = None) -> dict:
    """Metrics of dist [Q,G], where match [Q,G] marks the query's identity and junk [Q,G] what to leave out.

    Returns, over the queries that have a match left, the means `mAP`, `mINP`, `rank1`, `rank5`, `rank10`, `rank20` as
    fractions and `cmc` [50] (entry r-1 is rank r; past the gallery's end the last value repeats), and
    `num_valid`, the number of those queries. With `identities` [G] the CMC and its ranks count identities: of every
    identity only the best row that is not junk has a rank. `mAP` and `mINP` count rows either way. Raises ValueError
    if the shapes differ, a distance is NaN, or no query has a match.
    """
    if dist.ndim != 2 or not dist.shape == match.shape == junk.shape:
        raise ValueError(f"ranking: dist {dist.shape}, match {match.shape}, junk {junk.shape} must be one [Q,G]")
    if identities is not None and identities.shape != dist.shape[1:]:
        raise ValueError(f"ranking: identities {identities.shape} must be the [G] of dist {dist.shape}")
    if np.isnan(dist).any():
        raise ValueError("ranking: dist has NaN; the features of a query or gallery row are not finite")
    queries = np.flatnonzero((match & ~junk).any(axis=1))
    if len(queries) == 0:
        raise ValueError("ranking: no query has a match in the gallery; check the split and the junk rule")
    step = max(1, BLOCK // dist.shape[1])
    blocks = [queries[i : i + step] for i in range(0, len(queries), step)]
    ap, inp, first = np.concatenate([_rank_block(dist[b], match[b], junk[b], identities) for b in blocks], axis=1)
    cmc = np.array([np.mean(first <= r) for r in range(1, MAX_RANK + 1)])
    return {
        "mAP": float(np.mean(ap)),
        "mINP": float(np.mean(inp)),
        **{f"rank{r}": float(cmc[r - 1]) for r in RANKS},
        "cmc": cmc,
        "num_valid": len(queries),
    }


def _rank_block(dist: np.ndarray, match: np.ndarray, junk: np.ndarray, identities: np.ndarray | None) -> np.ndarray:
    """AP, INP and rank of the first hit, [3,Q] float64, of queries that each have a hit."""
    order = np.argsort(dist, axis=1, kind="stable")
    kept = ~np.take_along_axis(junk, order, axis=1)
    hit = np.take_along_axis(match, order, axis=1) & kept
    place = np.cumsum(kept, axis=1)  # rank among the kept rows, 0 before the first
    found = np.cumsum(hit, axis=1)
    total = found[:, -1]
    ap = np.sum(found / np.maximum(place, 1), axis=1, where=hit) / total
    last = np.max(place, axis=1, where=hit, initial=0)
    first = np.min(place, axis=1, where=hit, initial=dist.shape[1])
    if identities is not None:
        # Own rows come after every identity whose best row is ahead of the first hit.
        best = _best_places(np.where(kept, place, dist.shape[1] + 1), order, identities)
        first = 1 + np.sum(best < first[:, None], axis=1)
    return np.stack([ap, total / last, first])


def _best_places(place: np.ndarray, order: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """The least of the places [Q,G], given in ranked order [Q,G], that each of I identities [G] has: [Q,I]."""
    by_row = np.empty_like(place)
    np.put_along_axis(by_row, order, place, axis=1)
    grouped = np.argsort(identities, kind="stable")
    _, starts = np.unique(identities[grouped], return_index=True)
    return np.minimum.reduceat(by_row[:, grouped], starts, axis=1)
