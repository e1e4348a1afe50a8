"""What metrics mean, one query and one rank at a time, and problems full of ties to ask it of."""

import bisect

import numpy as np
from hypothesis import strategies as st

from jax_mmreid.metrics import ranking


def ranked(dist, rows, q):
    """Gallery rows of a query that are not junk, in their order."""
    kept = [g for g in range(len(dist[q])) if rows.gallery_junk[g] != rows.query_junk[q]]
    return sorted(kept, key=lambda g: (dist[q][g], g))


def ranks(dist, rows, by_identity=False):
    """(hits, first) of every query, from 1; ([], 0) without a match."""
    found = []
    for q in range(len(dist)):
        order = ranked(dist, rows, q)
        hits = [r for r, g in enumerate(order, 1) if rows.gallery_pid[g] == rows.query_pid[q]]
        ahead = order[: hits[0] - 1] if hits else []
        counted = {rows.gallery_pid[g] for g in ahead} if by_identity else ahead
        found.append((hits, 1 + len(counted) if hits else 0))
    return found


def metrics(dist, rows, by_identity=False):
    """All metrics; None if no query has a match."""
    found = ranks(dist, rows, by_identity)
    valid = [q for q, (hits, _) in enumerate(found) if hits]
    if not valid:
        return None
    firsts = [found[q][1] for q in valid]
    cmc = [np.mean([first <= r for first in firsts]) for r in range(1, 51)]
    return {
        "mAP": np.mean([np.mean([n / r for n, r in enumerate(found[q][0], 1)]) for q in valid]),
        "mINP": np.mean([len(found[q][0]) / found[q][0][-1] for q in valid]),
        **{f"rank{r}": cmc[r - 1] for r in (1, 5, 10, 20)},
        **{f"TPR@1e-{n}": tpr(dist, rows, valid, 10**n) for n in (2, 3, 4)},
        "cmc": cmc,
        "num_valid": len(valid),
    }


def tpr(dist, rows, valid, one_in):
    """The share of matches below the greatest threshold that lets no more negative pairs pass than may."""
    pairs = [(dist[q][g], rows.gallery_pid[g] == rows.query_pid[q]) for q in valid for g in ranked(dist, rows, q)]
    negatives = sorted(d for d, same in pairs if not same)
    allowed = len(negatives) // one_in
    passing = [t for t in {*negatives, np.inf} if bisect.bisect_left(negatives, t) <= allowed]
    own = [d for d, same in pairs if same]
    return np.mean([d < max(passing) for d in own])


def people(seed, Q, G, D=7, identities=20, spread=2.0):
    """(query, gallery, rows): unit vectors around identities of very different sizes, before four cameras."""
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(identities, D))
    share = rng.dirichlet(np.ones(identities))
    sides, columns = [], []
    for n in (Q, G):
        pid = rng.choice(identities, n, p=share)
        x = center[pid] + spread * rng.normal(size=(n, D))
        sides.append((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))
        columns.append({"pid": pid, "camid": rng.integers(1, 5, n)})
    sides[1][: G // 3] = sides[1][G // 3 : G // 3 + G // 3]  # duplicates, so that equal distances decide
    return *sides, ranking.relevance("same_camera", *columns)


KEYS = ("pid", "camid", "view")


@st.composite
def problems(draw, vectors=False):
    """(dist, rows), or with `vectors` (query, gallery, rows); ties are the rule, and any side may be of one row."""
    Q, G = draw(st.integers(1, 7)), draw(st.integers(1, 13))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    people, places = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    names = rng.permutation([-3, 7, 8, 1000, 31])[:people]
    sides = [{key: rng.choice(names if key == "pid" else places, n) + (key != "pid") for key in KEYS} for n in (Q, G)]
    rows = ranking.relevance(draw(st.sampled_from(ranking.JUNK_RULES)), *sides)
    if vectors:
        query, gallery = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (Q, G))
        return query, gallery, rows
    dist = rng.integers(0, draw(st.integers(1, 5)), (Q, G))
    return dist.astype(draw(st.sampled_from([np.float32, np.float64]))), rows
