"""What scores mean: probabilities and thresholds where the truth is known, and what a calibration cannot say."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from made_scores import MODALITIES, SCALE, joined, of_identities, two_normals
from scipy import special, stats
from sklearn.calibration import calibration_curve

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics.similarity import NO_SCORE
from jax_mmreid.search import reliability, thresholds
from jax_mmreid.search.calibration import FLOOR, Calibration, Counts, Curve
from jax_mmreid.search.thresholds import FMRS, UNKNOWN, Threshold

ALL = np.ones(3, bool)
TWO = (True, False, True)
SOME = dict(same=400, different=3000)


def fit(pairs, **options):
    return Calibration.fit(pairs, MODALITIES, **dict(model="m", replicates=20) | options)


def at(calibration, scores, common=ALL, **options):
    """The probabilities of scores [n] by the same modalities."""
    return calibration.probability(scores, np.tile(common, (len(scores), 1)), **options)


@pytest.mark.parametrize("prior", [0.5, 0.02])
def test_the_probability_is_the_true_one(prior):
    found, scores = fit(two_normals(0, 20_000, 60_000)), np.linspace(-2, 2, 41)
    true = special.expit(2 * scores + special.logit(prior))
    np.testing.assert_allclose(at(found, SCALE * scores, prior=prior), true, rtol=0, atol=0.05)


def test_the_prior_is_the_share_of_pairs_unless_it_is_given():
    pairs, scores = two_normals(0, 20_000, 60_000), SCALE * np.linspace(-2, 2, 41)
    found = fit(pairs)
    assert found.prior == 0.25
    true = special.expit(2 * scores / SCALE - np.log(3))
    np.testing.assert_allclose(at(found, scores), true, rtol=0, atol=0.05)
    given = fit(pairs, prior=0.001)
    np.testing.assert_array_equal(at(given, scores), at(found, scores, prior=0.001))
    assert at(found, scores).mean() > 10 * at(given, scores).mean()
    for prior in (0.0, 1.0, 1.5, np.nan):
        with pytest.raises(ConfigError, match="must lie in"):
            fit(pairs, prior=prior)
        with pytest.raises(ConfigError, match="must lie in"):
            at(found, scores, prior=prior)


def test_pairs_that_stand_for_several_count_as_often():
    pairs = two_normals(0, 900, 4000)
    few = pairs._replace(weights=np.where(pairs.same, 1.0, 7.0))
    found, expected = fit(few), fit(pairs)
    assert found.prior == pytest.approx(900 / (900 + 7 * 4000))
    assert found.counts == expected.counts == {name: Counts(900, 4000, 100) for name in ("rgb+nir+tir", "pooled")}
    # The likelihood ratio does not depend on how many pairs there are of each kind.
    scores = np.linspace(-0.5, 0.5)
    np.testing.assert_allclose(at(found, scores, prior=0.3), at(expected, scores, prior=0.3))


def test_it_rises_with_the_score_and_is_no_surer_than_its_pairs_allow():
    found = fit(two_normals(1, 300, 2000))
    for prior in (1e-4, 0.1, 0.9):
        chances = at(found, np.linspace(-1.9, 1.9, 1000), prior=prior)
        assert (np.diff(chances) >= 0).all()
        odds = np.log(chances[[0, -1]] / (1 - chances[[0, -1]])) - special.logit(prior)
        np.testing.assert_allclose(odds, np.log([1 / 301, 2001]), atol=1e-6)


def test_each_combination_has_its_own_curve_or_that_of_all_pairs():
    parts = (
        two_normals(0, **SOME),
        two_normals(1, **SOME, shown=TWO, gap=4),
        two_normals(2, 20, 3000, shown=(True, 0, 0)),
    )
    found, scores = fit(joined(*parts)), SCALE * np.linspace(-1, 1, 9)
    assert set(found.curves) == {"rgb+tir", "rgb+nir+tir", "pooled"} and set(found.counts) == {*found.curves, "rgb"}
    assert found.counts["rgb+tir"] == Counts(400, 3000, 100) and found.counts["pooled"].same == 820
    np.testing.assert_array_equal(at(found, scores, TWO, prior=0.1), at(fit(parts[1]), scores, TWO, prior=0.1))
    pooled = found.curves["pooled"]
    for common in ((True, False, False), (False, True, False)):  # too few pairs, none at all
        np.testing.assert_allclose(at(found, scores, common, prior=0.5), np.interp(scores, *pooled))
    assert FLOOR > 20 and not np.allclose(at(found, scores), at(found, scores, TWO))


def test_pairs_by_their_fallback_vectors_are_calibrated_on_their_own():
    nothing = np.zeros(3, bool)
    found = fit(two_normals(0, **SOME))
    assert np.isnan(at(found, np.array([0.0, 1.0]), nothing)).all()
    both = fit(joined(two_normals(0, **SOME), two_normals(1, **SOME, shown=nothing, gap=1)))
    assert set(both.curves) == {"rgb+nir+tir", "none", "pooled"}
    assert both.curves["pooled"] == both.curves["rgb+nir+tir"] == found.curves["pooled"]
    assert both.counts["pooled"] == found.counts["pooled"]
    low, high = at(both, SCALE * np.array([-1.0, 1.0]), nothing, prior=0.5)
    assert 0.15 < low < 0.4 < 0.6 < high < 0.85


def test_what_is_no_score_has_no_probability():
    found = fit(two_normals(0, **SOME))
    assert np.isnan(at(found, np.array([np.nan, np.inf, -np.inf, NO_SCORE]))).all()
    several = found.probability(np.zeros((2, 5)), np.ones((2, 5, 3), bool))
    assert several.shape == (2, 5) and np.isfinite(several).all()
    with pytest.raises(ValueError, match=r"common \(5, 2\) does not fit scores \(5,\)"):
        found.probability(np.zeros(5), np.ones((5, 2), bool))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_threshold_is_the_quantile_of_the_other_pairs(weighted):
    pairs = two_normals(0, 200, 30_000)
    if weighted:  # small whole numbers: as if a pair were there several times
        pairs = pairs._replace(weights=np.random.default_rng(0).integers(1, 4, len(pairs.scores)).astype(float))
    others = np.repeat(pairs.scores[~pairs.same], pairs.weights[~pairs.same].astype(int))
    limits = fit(pairs).thresholds["rgb+nir+tir"]
    for fmr in FMRS[:2]:
        value, low, high = limits[fmr]
        assert value == np.quantile(others, 1 - fmr, method="inverted_cdf")
        assert low <= value <= high and low < high
        assert np.mean(others > value) <= fmr < np.mean(others >= value)
    assert np.isnan(limits[1e-4]).all()


def test_scores_that_are_often_equal_never_pass_more_pairs_than_stated():
    pairs = two_normals(0, 200, 20_000)
    pairs = pairs._replace(scores=np.round(pairs.scores, 1))
    value = fit(pairs).thresholds["pooled"][1e-2].value
    assert np.mean(pairs.scores[~pairs.same] > value) <= 1e-2 < np.mean(pairs.scores[~pairs.same] >= value)


def pair_interval(pairs, fmr, rng):
    """The interval of a bootstrap over pairs."""
    n, k = len(pairs.scores), int(fmr * len(pairs.scores))
    found = [np.sort(pairs.scores[rng.integers(0, n, n)])[-k - 1] for _ in range(60)]
    return np.quantile(found, thresholds.ENDS)


def test_intervals_over_identities_cover_the_true_threshold_and_those_over_pairs_do_not():
    true, fmr, rng = stats.norm.ppf(0.99, scale=np.sqrt(2 * 0.6**2 + 0.5**2)), 1e-2, np.random.default_rng(0)
    covered = {"identities": [], "pairs": []}
    for seed in range(40):
        pairs = of_identities(seed, 150, 2)
        (_, low, high), why = thresholds.find(pairs, different=len(pairs.scores), replicates=100)[fmr]
        if why:
            continue
        covered["identities"].append(low <= true <= high)
        low, high = pair_interval(pairs, fmr, rng)
        covered["pairs"].append(low <= true <= high)
    assert len(covered["pairs"]) >= 30
    assert np.mean(covered["identities"]) > 0.85 > 0.3 > np.mean(covered["pairs"])


def test_what_a_threshold_lacks_is_said():
    pairs = two_normals(0, 300, 5000)
    found = fit(pairs)
    assert found.reason("rgb+nir+tir", 1e-2) == ""
    message = "rgb+nir+tir: 5000 pairs of different identities; a false-match rate of 0.001 needs 10000"
    assert found.reason("rgb+nir+tir", 1e-3) == message
    assert found.reason("rgb", 1e-2) == "rgb: no pairs to calibrate on"
    few = fit(
        pairs._replace(pids=np.where(pairs.same[:, None], pairs.pids, np.stack([[i % 8, 8] for i in range(5300)])))
    )
    assert few.reason("pooled", 1e-2) == "pooled: 9 identities; an interval needs 10"
    assert few.curves == {} and few.thresholds["pooled"] == dict.fromkeys(FMRS, UNKNOWN)
    assert np.isnan(at(few, np.zeros(2))).all()
    hubs = of_identities(0, 14, 12, spread=2.0, noise=0.1)  # a few identities have all great scores
    (limit, why) = thresholds.find(hubs, different=len(hubs.scores))[1e-2]
    assert limit is UNKNOWN and "pairs of 14 identities are worth " in why and "of 0.01 needs 369" in why
    with pytest.raises(ConfigError, match="no threshold at a false-match rate of 0.05; there are 0.01, 0.001, 0.0001"):
        found.reason("rgb", 0.05)


def test_verdicts():
    limits = {"rgb+tir": {1e-2: Threshold(0.5, 0.4, 0.6), 1e-3: UNKNOWN, 1e-4: UNKNOWN}}
    found = Calibration("m", MODALITIES, "", 0.1, {}, {}, limits, {"rgb+tir": {1e-3: "few", 1e-4: "few"}})
    expected = {
        0.61: "match",
        0.6: "cannot say",
        0.5: "cannot say",
        0.41: "cannot say",
        0.4: "no match",
        -1: "no match",
    }
    assert {score: found.verdict(score, np.array(TWO), 1e-2) for score in expected} == expected
    for score, common, fmr in ((0.9, TWO, 1e-3), (0.9, ALL, 1e-2), (0.9, 0 * ALL, 1e-2), (np.nan, TWO, 1e-2)):
        assert found.verdict(score, np.array(common, bool), fmr) == "cannot say"
    assert found.verdict(NO_SCORE, np.array(TWO), 1e-2) == "cannot say"
    assert found.verdict(0.9, found.mask("rgb+tir"), 1e-2) == "match"
    assert found.mask("none").tolist() == [False] * 3
    with pytest.raises(ConfigError, match="no modality named 'xray'; the calibration has rgb, nir, tir"):
        found.mask("rgb+xray")
    with pytest.raises(ConfigError, match="no threshold at a false-match rate of 0.5"):
        found.verdict(0.9, np.array(TWO), 0.5)


def test_pairs_of_one_kind_are_refused():
    pairs = two_normals(0, **SOME)
    for kind in (pairs.same, ~pairs.same):
        with pytest.raises(DataError, match="needs pairs of the same identity and of different ones"):
            fit(pairs.take(kind))


def test_a_saved_calibration_is_the_same(tmp_path):
    found = fit(joined(two_normals(0, **SOME), two_normals(1, **SOME, shown=TWO)), source="split test of drawn")
    assert found.save(tmp_path) == tmp_path / "calibration.json" and len(list(tmp_path.iterdir())) == 1
    text = (tmp_path / "calibration.json").read_text()
    assert "NaN" not in text and json.loads(text)["thresholds"]["rgb+tir"]["0.001"] is None
    again = Calibration.load(tmp_path, "m")
    assert again.to_json() == text
    assert again.curves == found.curves and again.counts == found.counts and again.reasons == found.reasons
    assert again.thresholds["pooled"][1e-2] == found.thresholds["pooled"][1e-2] and isinstance(
        again.curves["pooled"], Curve
    )
    scores = np.linspace(-0.5, 0.5, 13)
    np.testing.assert_array_equal(at(again, scores, TWO), at(found, scores, TWO))
    assert again.verdict(9.0, ALL, 1e-2) == "match" and again.verdict(9.0, ALL, 1e-3) == "cannot say"


def test_calibrations_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match="has no calibration.json; make one with python -m jax_mmreid.tools.calibrate"
    ):
        Calibration.load(tmp_path, "m")
    fit(two_normals(0, **SOME)).save(tmp_path)
    with pytest.raises(DataError, match="is of the model m, and this one is other; make one with"):
        Calibration.load(tmp_path, "other")
    for broken in ("", "[]", "{}", '{"modalities": 3}', (tmp_path / "calibration.json").read_text()[:-20]):
        (tmp_path / "calibration.json").write_text(broken)
        with pytest.raises(DataError, match="cannot read .*calibration.json"):
            Calibration.load(tmp_path, "m")


def test_a_calibration_without_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.isotonic", None)
    with pytest.raises(ConfigError, match=r"needs scikit-learn; pip install 'jax_mmreid\[search\]'"):
        fit(two_normals(0, **SOME))


@pytest.mark.parametrize("bins", [10, 15])
def test_the_calibration_error_is_that_of_scikit_learns_bins(bins):
    rng = np.random.default_rng(0)
    chances = np.append(rng.beta(0.5, 2, 3000), [0, 1, 1 / bins, 2 / bins])
    same = rng.random(len(chances)) < chances**1.5
    true, said = calibration_curve(same, chances, n_bins=bins)
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], chances), minlength=bins)
    expected = np.sum(counts[counts > 0] * np.abs(true - said)) / len(chances)
    assert reliability.expected_error(chances, same, bins=bins) == pytest.approx(expected)
    twice = np.repeat([1.0, 2.0], [1000, 2004])
    repeated = reliability.expected_error(np.append(chances, chances[1000:]), np.append(same, same[1000:]), bins=bins)
    assert reliability.expected_error(chances, same, twice, bins) == pytest.approx(repeated)


def test_reliability_on_identities_that_were_not_calibrated_on():
    pairs = joined(two_normals(0, 4000, 30_000), two_normals(1, 4000, 30_000, shown=TWO, gap=3))
    found = fit(two_normals(2, 4000, 30_000), replicates=100)
    good = reliability.measure(found, pairs)
    assert set(good) == {"rgb+nir+tir"}
    measured = good["rgb+nir+tir"]
    assert (measured.same, measured.different) == (4000, 30_000) and measured.error < 0.01 and measured.even < 0.03
    value, beyond_high, beyond_low = measured.rates[1e-2]
    assert beyond_high <= 0.01 <= beyond_low and abs(value - 0.01) < 0.003 and set(measured.rates) == {1e-2, 1e-3}
    wrong = dataclasses.replace(found, curves={"rgb+nir+tir": Curve((0.0,), (0.9,))})
    assert reliability.measure(wrong, pairs)["rgb+nir+tir"].even == pytest.approx(0.4)


def test_halves_share_no_identity():
    pairs = of_identities(0, 15)
    first, second = reliability.halves(pairs)
    ids = [set(np.unique(half.pids)) for half in (first, second)]
    assert not ids[0] & ids[1] and sorted(map(len, ids)) == [7, 8] and ids[0] | ids[1] == set(range(15))
    assert set(map(tuple, reliability.halves(pairs, seed=1)[0].rows)) != set(map(tuple, first.rows))
