"""What a score means: the probability that two rows are of the same identity, thresholds, and a verdict.

A score of two rows that are compared by RGB alone means something else than one by all modalities, so each combination
of modalities has a curve and thresholds of its own, named "rgb+tir"; NONE are pairs that are compared by their fallback
vectors, POOLED all others together.

**Probability.** Isotonic regression (Zadrozny and Elkan, 2002) of "same identity" on the score, in which both kinds of
pairs weigh the same. What it finds, as odds, is the likelihood ratio p(score | same) / p(score | different), whatever
the share of pairs of each kind. Bayes' rule multiplies it by the odds of a prior: how many of the pairs that are asked
about are expected to be of the same identity. No ratio exceeds what so many pairs can support: it stays between
1 / (pairs of the same identity + 1) and pairs of different ones + 1.

**Thresholds.** At a false-match rate x, of the pairs of different identities at most the share x has a score greater
than the threshold. See `search.thresholds` for its interval.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from etils.epath import Path, PathLike

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics.similarity import NO_SCORE
from jax_mmreid.paths import place
from jax_mmreid.search import thresholds
from jax_mmreid.search.pairs import Pairs, combinations
from jax_mmreid.search.thresholds import FMRS, Threshold

FILE = "calibration.json"
NONE, POOLED = "none", "pooled"
FLOOR = 100  # pairs of either kind below which a combination has the curve of POOLED; identities: MIN_IDENTITIES
MATCH, NO_MATCH, CANNOT_SAY = VERDICTS = "match", "no match", "cannot say"


class Curve(NamedTuple):
    """The probability of "same identity" by score if both kinds are as frequent; linear between, constant outside."""

    scores: tuple[float, ...]  # ascending
    probabilities: tuple[float, ...]  # not descending


class Counts(NamedTuple):
    """What a combination was calibrated on."""

    same: int  # pairs of rows
    different: int  # pairs of rows
    identities: int  # of the latter


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What the scores of one model mean; made by `fit`, kept as calibration.json in a workdir or a store."""

    model: str  # TrainedModel.identity
    modalities: tuple[str, ...]  # the order of `common` below
    source: str  # the pairs that it is from, in words
    prior: float  # the share of pairs of the same identity that `probability` assumes
    counts: Mapping[str, Counts]
    curves: Mapping[str, Curve]  # of combinations that have enough pairs, NONE and POOLED alike
    thresholds: Mapping[str, Mapping[float, Threshold]]  # {combination: {false-match rate: (value, low, high)}}
    reasons: Mapping[str, Mapping[float, str]]  # {combination: {false-match rate: why there is no threshold}}

    @classmethod
    def fit(
        cls,
        pairs: Pairs,
        modalities: Sequence[str],
        *,
        model: str = "",
        source: str = "",
        prior: float | None = None,
        replicates: int = thresholds.REPLICATES,
        seed: int = 0,
    ) -> Self:
        """The calibration of scored pairs; `prior` None is the share of pairs of the same identity among them.

        Thresholds have intervals from so many `replicates`. Raises ConfigError for a prior outside (0, 1), DataError
        for pairs of one kind only.
        """
        check_prior(prior)
        if pairs.same.all() or not pairs.same.any():
            raise DataError("a calibration needs pairs of the same identity and of different ones; give it both")
        counts, curves, limits, reasons = {}, {}, {}, {}
        for name, mask in _groups(pairs.common, modalities).items():
            part = pairs.take(mask)
            counts[name] = count = _count(part)
            if min(count.same, count.different) >= FLOOR and count.identities >= thresholds.MIN_IDENTITIES:
                curves[name] = _curve(part, count)
            resampling = dict(different=count.different, replicates=replicates, seed=seed)
            found = thresholds.find(part.take(~part.same), **resampling)
            limits[name] = {fmr: limit for fmr, (limit, _) in found.items()}
            reasons[name] = {fmr: why for fmr, (_, why) in found.items() if why}
        share = float(np.average(pairs.same, weights=pairs.weights)) if prior is None else prior
        return cls(model, tuple(modalities), source, share, counts, curves, limits, reasons)

    def probability(self, scores: np.ndarray, common: np.ndarray, prior: float | None = None) -> np.ndarray:
        """The probability that pairs with these scores [...] are of the same identity, [...] float64.

        `common` [...,M] are the modalities that they were compared by. Of a combination without a curve it is that of
        POOLED, and nan where nothing can be said: of NONE without a curve of its own, and of a score that is none.
        `prior` replaces that of the calibration. Raises ConfigError for one outside (0, 1).
        """
        check_prior(prior)
        scores, names = np.asarray(scores, np.float64), self._names(scores, common)
        even = np.full(scores.shape, np.nan)
        for name in np.unique(names):
            curve = self.curves.get(name, None if name == NONE else self.curves.get(POOLED))
            if curve is not None:
                even = np.where(names == name, np.interp(scores, *curve), even)
        even = np.where(_is_score(scores), even, np.nan)
        share = self.prior if prior is None else prior
        return even * share / (even * share + (1 - even) * (1 - share))

    def verdict(self, score: float, common: np.ndarray, fmr: float) -> str:
        """One of VERDICTS on a pair with this score, compared by the modalities common [M], at a false-match rate.

        "match" above the whole interval of the threshold, "no match" below it, "cannot say" inside, and where there is
        no threshold or no score; `reason` says why there is no threshold. Raises ConfigError for a rate that is not
        one of FMRS.
        """
        _, low, high = self._threshold(str(self._names(score, common)), fmr)
        if math.isnan(low) or not _is_score(score):
            return CANNOT_SAY
        return MATCH if score > high else NO_MATCH if score <= low else CANNOT_SAY

    def reason(self, combination: str, fmr: float) -> str:
        """Why a combination has no threshold at a false-match rate, in words; "" if it has one."""
        self._threshold(combination, fmr)
        why = self.reasons.get(combination, dict.fromkeys(FMRS, "no pairs to calibrate on"))
        return f"{combination}: {why[fmr]}" if fmr in why else ""

    def mask(self, combination: str) -> np.ndarray:
        """The modalities of a combination such as "rgb+tir", or NONE, [M] bool; raises ConfigError for unknown ones."""
        named = () if combination == NONE else combination.split("+")
        for name in named:
            if name not in self.modalities:
                raise ConfigError(f"no modality named {name!r}; the calibration has {', '.join(self.modalities)}")
        return np.isin(self.modalities, named)

    def save(self, folder: PathLike) -> Path:
        """Writes calibration.json into a folder, replacing it whole; returns its path."""
        path = place(folder) / FILE
        part = path.with_name(f".{FILE}.{os.getpid()}")
        part.write_text(self.to_json())
        part.replace(path)
        return path

    @classmethod
    def load(cls, folder: PathLike, model: str) -> Self:
        """The calibration in a folder, of the model with this identity.

        Raises ConfigError if there is none, DataError if it cannot be read or is of another model.
        """
        path, again = place(folder) / FILE, "make one with python -m jax_mmreid.tools.calibrate"
        if not path.exists():
            raise ConfigError(f"{folder} has no {FILE}; {again}")
        try:
            found = cls.from_json(path.read_text())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"cannot read {path} ({error!r}); {again}") from error
        if found.model != model:
            raise DataError(f"{path} is of the model {found.model}, and this one is {model}; {again}")
        return found

    @classmethod
    def find(cls, folders: Sequence[PathLike], model: str) -> Self | None:
        """That in the first of these folders that has one, None if none has; raises DataError as `load`."""
        found = [folder for folder in folders if (place(folder) / FILE).exists()]
        return cls.load(found[0], model) if found else None

    def to_json(self) -> str:
        """The calibration as JSON text, which `from_json` reads."""
        fields = dataclasses.asdict(self)
        fields["thresholds"] = {
            name: {str(fmr): None if math.isnan(x.value) else x for fmr, x in found.items()}
            for name, found in self.thresholds.items()
        }
        return json.dumps(fields, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote; raises ValueError, TypeError, KeyError or AttributeError for anything else."""
        fields = json.loads(text)
        fields["modalities"] = tuple(fields["modalities"])
        fields["counts"] = {name: Counts(*x) for name, x in fields["counts"].items()}
        fields["curves"] = {name: Curve(*map(tuple, x)) for name, x in fields["curves"].items()}
        for key, read in (("thresholds", _threshold), ("reasons", str)):
            fields[key] = {
                name: {float(fmr): read(x) for fmr, x in found.items()} for name, found in fields[key].items()
            }
        return cls(**fields)

    def _threshold(self, combination: str, fmr: float) -> Threshold:
        if fmr not in FMRS:
            raise ConfigError(f"no threshold at a false-match rate of {fmr:g}; there are {', '.join(map(str, FMRS))}")
        return self.thresholds.get(combination, {}).get(fmr, thresholds.UNKNOWN)

    def _names(self, scores: np.ndarray, common: np.ndarray) -> np.ndarray:
        """The combinations [...] of masks [...,M]."""
        shape = np.shape(common)
        if shape != (*np.shape(scores), len(self.modalities)):
            raise ValueError(f"calibration: common {shape} does not fit scores {np.shape(scores)} of {self.modalities}")
        return _names(np.asarray(common), self.modalities)


def _threshold(saved: list[float] | None) -> Threshold:
    return thresholds.UNKNOWN if saved is None else Threshold(*saved)


def check_prior(prior: float | None) -> None:
    """Raises ConfigError for a prior outside (0, 1); None is allowed."""
    if prior is not None and not 0 < prior < 1:
        raise ConfigError(f"prior={prior:g}: the expected share of pairs of the same identity must lie in (0, 1)")


def _names(common: np.ndarray, modalities: Sequence[str]) -> np.ndarray:
    """The combinations [...] of masks [...,M]."""
    bits = 1 << np.arange(len(modalities))
    known = ["+".join(m for m, bit in zip(modalities, bits) if number & bit) for number in range(2 ** len(bits))]
    return np.array([NONE, *known[1:]], object)[common @ bits]


def _groups(common: np.ndarray, modalities: Sequence[str]) -> dict[str, np.ndarray]:
    """{combination that occurs: its pairs [P] bool} of masks [P,M], the small ones first, then NONE and POOLED."""
    names = _names(common, modalities)
    order = [*("+".join(subset) for subset in combinations(modalities)), NONE]
    groups = {name: names == name for name in order} | {POOLED: names != NONE}
    return {name: mask for name, mask in groups.items() if mask.any()}


def _count(pairs: Pairs) -> Counts:
    """How many pairs of rows there are of either kind, each counted once, and how many identities."""
    numbers = pairs.rows @ (1 + pairs.rows.max(), 1)  # one for each pair of rows
    same, different = (len(np.unique(numbers[kind])) for kind in (pairs.same, ~pairs.same))
    return Counts(same, different, len(np.unique(pairs.pids[~pairs.same])))


def _curve(pairs: Pairs, count: Counts) -> Curve:
    """The isotonic regression of "same identity" on the score, with as much weight on either kind of pairs."""
    kinds = [np.sum(pairs.weights, where=kind) for kind in (~pairs.same, pairs.same)]
    weights = pairs.weights / np.take(kinds, pairs.same.astype(int))
    low, high = 1 / (count.same + 2), (count.different + 1) / (count.different + 2)
    found = isotonic_regression()(y_min=low, y_max=high, out_of_bounds="clip")
    found.fit(pairs.scores, pairs.same, sample_weight=weights)
    return Curve(tuple(found.X_thresholds_.tolist()), tuple(found.y_thresholds_.tolist()))


def isotonic_regression() -> type:
    """The class of scikit-learn; raises ConfigError if that is not installed."""
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError as error:
        raise ConfigError("a calibration needs scikit-learn; pip install 'jax_mmreid[search]'") from error
    return IsotonicRegression


def _is_score(scores: np.ndarray | float) -> np.ndarray:
    return np.isfinite(scores) & (np.asarray(scores) > NO_SCORE)
