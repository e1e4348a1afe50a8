"""Pictures whose distances are exact and often equal, and every protocol by its definition, for tests of scoring."""

from typing import NamedTuple

import numpy as np

FPRS = {"TPR@1e-2": 0.01, "TPR@1e-3": 0.001, "TPR@1e-4": 0.0001}


class Row(NamedTuple):
    vector: tuple
    pid: int
    camid: int
    view: int
    path: str


def rows(side, count, seed, cameras):
    """Pictures of persons 3..7 with vectors of four times plus or minus 1: their unit rows and dot products are exact,
    and equal distances are the rule."""
    rng = np.random.default_rng(seed)
    vectors = rng.choice([-1, 1], (count, 4)).tolist()
    places = zip(rng.integers(3, 8, count).tolist(), rng.choice(cameras, count).tolist(), rng.integers(0, 3, count))
    names = [f"{side}/{i:03d}.jpg" for i in rng.permutation(count)]
    return [Row(tuple(v), pid, camid, int(view), name) for v, (pid, camid, view), name in zip(vectors, places, names)]


def arrays(side):
    """What a feature file holds of such rows."""
    vectors, *numbers, paths = zip(*side)
    numbers = dict(zip(("pids", "camids", "views"), map(np.array, numbers)))
    return {"features": np.array(vectors, np.float32), **numbers, "paths": np.array(paths)}


QUERY, GALLERY = rows("query", 17, 0, (3, 6)), rows("gallery", 53, 1, (1, 2, 4, 5))
SIDES = arrays(QUERY), arrays(GALLERY)
QF, GF, GPATHS = SIDES[0]["features"], SIDES[1]["features"], SIDES[1]["paths"]


def same_camera(q, g):
    return q.pid == g.pid and q.camid == g.camid


# {protocol: (which gallery row is hidden from a query, whether the CMC counts identities)}
DEFINITIONS = {
    "rgbnt201": (same_camera, False),
    "rgbnt100": (same_camera, False),
    "market": (same_camera, False),
    "msvr310": (lambda q, g: q.pid == g.pid and q.view == g.view, False),
    "regdb": (lambda q, g: False, False),
    "sysu_mm01": (lambda q, g: q.camid == 3 and g.camid == 2, True),
    "llcm": (same_camera, True),
}


def cosine(q, g):
    return -sum(a * b for a, b in zip(q.vector, g.vector)) / 4


def euclidean(q, g):
    return sum((a - b) ** 2 for a, b in zip(q.vector, g.vector))


def loop(query, gallery, protocol, distance=cosine):
    """The definitions, one query and one rank at a time."""
    hidden, by_identity = DEFINITIONS[protocol]
    aps, inps, firsts, matched, negatives = [], [], [], [], []
    for q in query:
        seen = sorted((distance(q, g), i) for i, g in enumerate(gallery) if not hidden(q, g))
        hits = [rank for rank, (_, i) in enumerate(seen, 1) if gallery[i].pid == q.pid]
        if not hits:
            continue
        aps.append(np.mean([n / rank for n, rank in enumerate(hits, 1)]))
        inps.append(len(hits) / hits[-1])
        ahead = [gallery[i].pid for _, i in seen[: hits[0] - 1]]
        firsts.append(1 + len(set(ahead) if by_identity else ahead))
        for dist, i in seen:
            (matched if gallery[i].pid == q.pid else negatives).append(dist)
    negatives.sort()
    cmc = [np.mean([first <= rank for first in firsts]) for rank in range(1, 51)]
    result = {"mAP": np.mean(aps), "mINP": np.mean(inps), "cmc": cmc, "num_valid": len(aps)}
    result |= {f"rank{rank}": cmc[rank - 1] for rank in (1, 5, 10, 20)}
    for name, rate in FPRS.items():
        result[name] = np.mean([dist < negatives[int(rate * len(negatives))] for dist in matched])
    return result


def assert_same(got, *expected):
    """Every number is the mean of what the loops say."""
    for name in expected[0]:
        values = np.mean([one[name] for one in expected], axis=0)
        np.testing.assert_allclose(got[name], values, rtol=0, atol=1e-12, err_msg=name)
