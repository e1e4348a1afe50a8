"""Thresholds at false-match rates, with intervals from a bootstrap over identities.

Identities are resampled, not pairs: all pairs of one identity share its pictures, so they are far from independent. A
person who looks like many others raises hundreds of scores at once, and a bootstrap over pairs, which cannot see this,
gives intervals that are many times too narrow. In a resample in which identity a occurs n_a times, a pair of a and b
counts n_a n_b times.

The resamples tell how many independent pairs the pairs are worth: as many, n, as would let the share of pairs beyond a
score vary as it does. The interval of a threshold is then that of a quantile of n independent values: its ends are the
scores beyond which the least and the greatest share of the pairs lie that could, by chance, where the share x is the
true one (Garwood, 1936). With x n below -log(0.025), or 3.7, even none may be, and there is no answer. n is that at
twice the rate: at the rate itself, just the samples without such a person would look as if they were worth many pairs.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import gammaincinv

from jax_mmreid.search.pairs import Pairs

FMRS = (1e-2, 1e-3, 1e-4)
REPLICATES = 200
ENDS = (0.025, 0.975)
MIN_FALSE, MIN_IDENTITIES = 10, 10  # pairs beyond a threshold, identities to resample


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
    found = {fmr: (UNKNOWN, _lack(different, len(ids), fmr)) for fmr in FMRS}
    rates = np.array([fmr for fmr, (_, why) in found.items() if not why])
    if not len(rates):
        return found
    order = np.argsort(-pairs.scores)
    scores, sums = pairs.scores[order], np.cumsum(pairs.weights[order])
    beyond = [order[:place] for place in _places(sums, 2 * rates)]
    worth = _worth(pairs.weights, numbers.reshape(-1, 2), beyond, replicates, np.random.default_rng(seed))
    for fmr, independent in zip(rates.tolist(), worth):
        expected, needed = fmr * independent, -np.log(ENDS[0]) / fmr
        if independent < needed:
            why = f"{different} pairs of {len(ids)} identities are worth {independent:.0f} independent ones"
            found[fmr] = UNKNOWN, f"{why}; a false-match rate of {fmr:g} needs {needed:.0f}"
            continue
        least, most = gammaincinv([expected, expected + 1], ENDS) / independent
        found[fmr] = Threshold(*scores[_places(sums, np.array([fmr, most, least]))].tolist()), ""
    return found


def _worth(
    weights: np.ndarray, numbers: np.ndarray, beyond: list[np.ndarray], replicates: int, rng: np.random.Generator
) -> np.ndarray:
    """How many independent pairs would let the share of each of several choices of pairs vary as resamples do.

    `weights` [P] and identities `numbers` [P,2] from 0 are those of all pairs, `beyond` the pairs of each choice.
    """
    count = 1 + numbers.max()
    both, edges = np.unique(numbers @ (count, 1), return_inverse=True)  # resamples choose pairs of identities
    mass = [np.bincount(edges[x], weights[x], len(both)) for x in (slice(None), *beyond)]
    a, b = np.divmod(both, count)
    shares = []
    for _ in range(replicates):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        total, *parts = mass @ (times[a] * times[b])
        shares.append(np.divide(parts, total))
    share = np.array([x.sum() for x in mass[1:]]) / mass[0].sum()
    return share * (1 - share) / np.var(shares, axis=0)


def _lack(different: int, identities: int, fmr: float) -> str:
    """What so many pairs of different identities lack for a threshold at a rate, in words; "" for nothing."""
    needed = round(MIN_FALSE / fmr)
    if different < needed:
        return f"{different} pairs of different identities; a false-match rate of {fmr:g} needs {needed}"
    if identities < MIN_IDENTITIES:
        return f"{identities} identities; an interval needs {MIN_IDENTITIES}"
    return ""


def _places(sums: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """How many scores, the greatest first, are at most these shares of all, from their cumulated weights [P]."""
    return np.minimum(np.searchsorted(sums, sums[-1] * shares * (1 + 1e-9), "right"), len(sums) - 1)
