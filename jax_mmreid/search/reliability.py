"""Whether a calibration holds: on identities that it has not seen."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_mmreid.search.calibration import POOLED, Calibration
from jax_mmreid.search.pairs import Pairs

BINS = 10


class Reliability(NamedTuple):
    """A combination of modalities on held-out identities."""

    same: int  # pairs
    different: int
    error: float  # the expected calibration error at the prior of the calibration
    even: float  # that at a prior of a half, where both kinds of pairs weigh the same
    rates: dict[float, tuple[float, float, float]]  # {false-match rate: that of the threshold, of its high and low end}


def expected_error(
    probabilities: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None, bins: int = BINS
) -> float:
    """The expected calibration error (Naeini et al., 2015) of probabilities [P] that are not nan.

    Over bins of equal width, as scikit-learn's `calibration_curve` makes them: the mean, by weight, of the difference
    between the mean probability and the share of pairs of the same identity.
    """
    weights = np.ones(len(same)) if weights is None else weights
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities)
    gaps = np.bincount(place, weights * (probabilities - same), minlength=bins)
    return float(np.abs(gaps).sum() / weights.sum())


def halves(pairs: Pairs, seed: int = 0) -> tuple[Pairs, Pairs]:
    """The pairs within either half of the identities, which are split at random."""
    ids = np.random.default_rng(seed).permutation(np.unique(pairs.pids))
    first = np.isin(pairs.pids, ids[: len(ids) // 2])
    return pairs.take(first.all(axis=1)), pairs.take(~first.any(axis=1))


def measure(calibration: Calibration, pairs: Pairs, bins: int = BINS) -> dict[str, Reliability]:
    """{combination with a curve of its own: how it does} on pairs of other identities; POOLED is left out."""
    found = {}
    for name in calibration.curves:
        part = pairs.take((pairs.common == calibration.mask(name)).all(axis=1)) if name != POOLED else None
        if part is None or part.same.all() or not part.same.any():
            continue
        kinds = [np.sum(part.weights, where=kind) for kind in (~part.same, part.same)]
        errors = []
        for share in (calibration.prior, 0.5):
            weights = part.weights / np.take(kinds, part.same.astype(int)) * np.where(part.same, share, 1 - share)
            probabilities = calibration.probability(part.scores, part.common, prior=share)
            errors.append(expected_error(probabilities, part.same, weights, bins))
        apart = part.take(~part.same)
        rates = {}
        for fmr, (value, low, high) in calibration.thresholds[name].items():
            if not np.isnan(value):
                passed = (np.average(apart.scores > limit, weights=apart.weights) for limit in (value, high, low))
                rates[fmr] = tuple(map(float, passed))
        found[name] = Reliability(int(part.same.sum()), int((~part.same).sum()), *errors, rates)
    return found


def held_out(
    pairs: Pairs, modalities: Sequence[str], *, prior: float | None = None, seed: int = 0
) -> dict[str, Reliability]:
    """`measure` on one half of the identities of a calibration by the other; raises as `Calibration.fit`."""
    fitted, others = halves(pairs, seed)
    return measure(Calibration.fit(fitted, modalities, prior=prior, seed=seed), others)
