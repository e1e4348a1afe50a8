"""Scored pairs whose truth is known, for tests of calibration."""

import numpy as np

from jax_mmreid.search.pairs import Pairs

MODALITIES = ("rgb", "nir", "tir")
SCALE = 0.15  # scores are cosines


def two_normals(seed, same, different, *, gap=2.0, weight=1.0, shown=(True, True, True)):
    """Pairs with scores from N(gap/2, 1) if of the same identity, else N(-gap/2, 1), times SCALE.

    The log odds of the same identity are gap times the score before it is scaled. Each pair is of rows of its own, and
    the identities are many; of different ones each stands for `weight` pairs.
    """
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.normal(gap / 2, 1, same), rng.normal(-gap / 2, 1, different)])
    count = same + different
    pids = np.stack([np.arange(count) % 50, np.arange(count) % 50 + 50 * (np.arange(count) >= same)], axis=1)
    rows = np.arange(2 * count).reshape(-1, 2)
    weights = np.where(np.arange(count) < same, 1.0, weight)
    return Pairs(SCALE * scores, np.tile(np.array(shown), (count, 1)), rows, pids, weights)


def joined(*parts):
    """The pairs of several draws, whose rows differ."""
    ends = np.cumsum([0, *(part.rows.max() + 1 for part in parts)])
    parts = [part._replace(rows=part.rows + end) for part, end in zip(parts, ends)]
    return Pairs(*map(np.concatenate, zip(*parts)))


def of_identities(seed, identities, rows=4, *, spread=0.6, noise=0.5):
    """All pairs of different identities, whose scores have a part of each identity: u_a + u_b + e.

    So scores are from N(0, 2 spread^2 + noise^2), but far from independent.
    """
    rng = np.random.default_rng(seed)
    own, pids = rng.normal(0, spread, identities), np.repeat(np.arange(identities), rows)
    pairs = np.stack(np.triu_indices(len(pids), 1), axis=1)
    pairs = pairs[pids[pairs[:, 0]] != pids[pairs[:, 1]]]
    ids = pids[pairs]
    scores = own[ids].sum(axis=1) + rng.normal(0, noise, len(pairs))
    return Pairs(scores, np.ones((len(pairs), 3), bool), pairs, ids, np.ones(len(pairs)))
