"""Thresholds at false-match rates, with intervals from a bootstrap over identities.

Identities are resampled, not pairs: all pairs of one identity share its pictures, so they are far from independent. A
person who looks like many others raises hundreds of scores at once, and a bootstrap over pairs, which cannot see this,
gives intervals that are many times too narrow. In a resample in which identity a occurs n_a times, a pair of a and b
counts n_a n_b times.

The resamples also tell how many independent pairs the pairs are worth: as many as would let the share x beyond the
threshold vary as it does, x (1 - x) / variance. Intervals hold from about three independent false matches on, so a rate
x is answered from INDEPENDENT / x such pairs on, with MIN_FALSE pairs beyond the threshold and MIN_IDENTITIES.
"""

from typing import NamedTuple

import numpy as np

from jax_mmreid.search.pairs import Pairs

FMRS = (1e-2, 1e-3, 1e-4)
REPLICATES = 200
INTERVAL = (0.025, 0.975)
MIN_FALSE, INDEPENDENT, MIN_IDENTITIES = 10, 3, 10


class Threshold(NamedTuple):
    """Scores greater than `value` are matches; its 95 % interval. All nan where nothing can be said."""

    value: float
    low: float
    high: float


UNKNOWN = Threshold(np.nan, np.nan, np.nan)


def find(
    pairs: Pairs, *, different: int, replicates: int = REPLICATES, seed: int = 0
) -> dict[float, tuple[Threshold, str]]:
    """{rate: (threshold, "")} of FMRS, or (UNKNOWN, why), of pairs of different identities.

    `different` says how many of them are of other rows; a pair of rows that was compared in several ways is one.
    """
    ids, numbers = np.unique(pairs.pids, return_inverse=True)
    lacks = {fmr: _lack(different, len(ids), fmr) for fmr in FMRS}
    rates = np.array([fmr for fmr in FMRS if not lacks[fmr]])
    found = {fmr: (UNKNOWN, why) for fmr, why in lacks.items()}
    if not len(rates):
        return found
    order = np.argsort(-pairs.scores)
    a, b = numbers.reshape(-1, 2)[order].T
    scores, weights = pairs.scores[order], pairs.weights[order]
    places = _places(np.cumsum(weights), rates)
    rng, limits, shares = np.random.default_rng(seed), [], []
    for _ in range(replicates):
        times = np.bincount(rng.integers(0, len(ids), len(ids)), minlength=len(ids))
        sums = np.cumsum(weights * times[a] * times[b])
        limits.append(scores[_places(sums, rates)])
        shares.append(sums[places - 1] / sums[-1])
    bounds = np.quantile(limits, INTERVAL, axis=0)
    independent = rates * (1 - rates) / np.var(shares, axis=0)
    for fmr, limit, worth in zip(rates.tolist(), zip(scores[places], *bounds), independent):
        needed = round(INDEPENDENT / fmr)
        if worth >= needed:
            found[fmr] = Threshold(*map(float, limit)), ""
        else:
            why = f"{different} pairs of {len(ids)} identities are worth {worth:.0f} independent ones"
            found[fmr] = UNKNOWN, f"{why}; a false-match rate of {fmr:g} needs {needed}"
    return found


def _lack(different: int, identities: int, fmr: float) -> str:
    """What so many pairs of different identities lack for a threshold at a rate, in words; "" for nothing."""
    needed = round(MIN_FALSE / fmr)
    if different < needed:
        return f"{different} pairs of different identities; a false-match rate of {fmr:g} needs {needed}"
    if identities < MIN_IDENTITIES:
        return f"{identities} identities; an interval needs {MIN_IDENTITIES}"
    return ""


def _places(sums: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """How many scores, the greatest first, may be beyond thresholds at these rates, from cumulated weights [P]."""
    return np.minimum(np.searchsorted(sums, sums[-1] * rates * (1 + 1e-9), "right"), len(sums) - 1)
