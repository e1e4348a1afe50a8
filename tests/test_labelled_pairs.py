"""Labelled pairs with their scores, and retrieval by what query and gallery have, against their definitions."""

import itertools

import jax
import numpy as np
import pytest
from test_similarity import drawn_rows, loop

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics import ranking
from jax_mmreid.metrics.similarity import Parts
from jax_mmreid.search import pairs, sensors
from jax_mmreid.search.calibration import Calibration
from jax_mmreid.search.pairs import Labelled
from jax_mmreid.search.thresholds import FMRS, UNKNOWN, Threshold
from jax_mmreid.sharding import make_mesh

NAMES = ("rgb", "nir", "tir")
MESH = make_mesh(data=1, model=1, devices=jax.devices()[:1])


def labels(n, identities=5, cameras=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(3, 3 + identities, n), rng.integers(-1, cameras, n)


def labelled(n=29, seed=0, **sizes):
    """Random rows, each with some of the modalities, as a store has them."""
    rows = drawn_rows(seed, n)
    return Labelled(NAMES, pairs.hide(rows, NAMES), *labels(n, **sizes)), rows


def test_all_pairs_but_junk():
    pids, camids = labels(31)
    rows, weights = pairs.draw(pids, camids)
    expected = {
        (i, j)
        for i, j in itertools.combinations(range(31), 2)
        if pids[i] != pids[j] or camids[i] != camids[j] or camids[i] < 0
    }
    assert {tuple(sorted(pair)) for pair in rows.tolist()} == expected and len(rows) == len(expected)
    assert (weights == 1).all() and len(expected) < 31 * 30 / 2


def test_of_many_pairs_as_many_are_drawn_as_the_limit_says():
    pids, camids = labels(400, identities=8, cameras=5)
    every, _ = pairs.draw(pids, camids)
    rows, weights = pairs.draw(pids, camids, limit=3000)
    assert len({tuple(sorted(pair)) for pair in rows.tolist()}) == len(rows) < 6000
    for found in (rows, every):
        assert (camids[found[:, 0]] != camids[found[:, 1]])[pids[found[:, 0]] == pids[found[:, 1]]].mean() > 0.9
    for kind in (True, False):
        chosen, all_of_them = ((pids[x[:, 0]] == pids[x[:, 1]]) == kind for x in (rows, every))
        assert len(set(weights[chosen])) == 1 and 2300 < chosen.sum() <= 3000
        assert weights[chosen].sum() == pytest.approx(all_of_them.sum(), rel=0.03)
        share = np.bincount(rows[chosen].ravel(), minlength=400) / chosen.sum()  # every row is in about as many
        expected = np.bincount(every[all_of_them].ravel(), minlength=400) / all_of_them.sum()
        np.testing.assert_allclose(share, expected, atol=0.005)
    again, _ = pairs.draw(pids, camids, limit=3000)
    np.testing.assert_array_equal(again, rows)
    assert len(np.setdiff1d(pairs.draw(pids, camids, limit=3000, seed=1)[0] @ (400, 1), rows @ (400, 1))) > 1000


def test_numbers_of_pairs():
    i, j = pairs._triangle(np.arange(5 * 4 // 2))
    assert list(zip(i.tolist(), j.tolist())) == sorted(itertools.combinations(range(5), 2), key=lambda pair: pair[::-1])
    later = np.arange(2, 10**6, 997)  # the numbers of pairs (0, j), and those next to them, up to 5 * 10^11
    numbers = np.concatenate([later * (later - 1) // 2 + step for step in (-1, 0, 1)])
    i, j = pairs._triangle(numbers)
    assert (i >= 0).all() and (i < j).all() and (j * (j - 1) // 2 + i == numbers).all()


@pytest.mark.parametrize(
    ("pids", "camids", "message"),
    [
        ([], [], "no row has an identity"),
        ([7, 7, 7], [1, 2, 3], "all 3 labelled rows are of identity 7; a false match needs two identities"),
        ([1, 2, 3], [1, 2, 3], "no identity has rows of two cameras"),
        ([1, 1, 2], [4, 4, 4], "no identity has rows of two cameras"),
    ],
)
def test_rows_without_a_pair_of_either_kind_are_refused(pids, camids, message):
    with pytest.raises(DataError, match=message):
        pairs.draw(np.array(pids), np.array(camids))


def test_scores_are_those_of_rows_that_had_only_these_modalities():
    given, rows = labelled()
    found = pairs.score(given)
    assert (found.pids == given.pids[found.rows]).all() and (found.weights == 1).all()
    drawn, _ = pairs.draw(given.pids, given.camids)
    for shown in pairs.combinations(NAMES):
        common = np.isin(NAMES, shown)
        part = found.take((found.common == common).all(axis=1))
        both = rows.present[drawn].all(axis=1)[:, common].all(axis=1)
        assert {*map(tuple, part.rows)} == {*map(tuple, drawn[both])} and len(part.scores) == both.sum() > 0
        only = Parts(rows.parts, rows.present & common, rows.fallback)
        expected = loop(only, only)[tuple(part.rows.T)]
        np.testing.assert_allclose(part.scores, expected, rtol=0, atol=1e-6)


def test_rows_as_they_are_without_a_common_modality_have_the_score_of_their_fallback_vectors():
    given, rows = labelled()
    found = pairs.score(given)
    part = found.take(~found.common.any(axis=1))
    drawn, _ = pairs.draw(given.pids, given.camids)
    apart = ~rows.present[drawn].all(axis=1).any(axis=1)
    assert {*map(tuple, part.rows)} == {*map(tuple, drawn[apart])} and 0 < len(part.scores) == apart.sum()
    np.testing.assert_allclose(part.scores, loop(rows, rows)[tuple(part.rows.T)], rtol=0, atol=1e-6)
    without = given._replace(views={shown: view._replace(fallback=None) for shown, view in given.views.items()})
    assert pairs.score(without).common.any(axis=1).all()


def test_a_pair_shows_nothing_in_common_in_every_way_about_as_often():
    """Of three modalities there are 12 ways: the fallback vectors of each view say which one it is."""
    n = 160
    rows = drawn_rows(0, n)
    ways = [(a, b) for a, b in itertools.product(pairs.combinations(NAMES), repeat=2) if not set(a) & set(b)]
    assert len(ways) == 12
    codes = {shown: 1.0 + i for i, shown in enumerate(pairs.combinations(NAMES))}
    present = np.ones((n, 3), bool)
    parts = np.ones_like(rows.parts)
    views = {
        shown: Parts(parts, present & np.isin(NAMES, shown), np.full((n, 1), 10.0 ** codes[shown]))
        for shown in pairs.combinations(NAMES)
    }
    found = pairs.score(Labelled(NAMES, views, *labels(n)))
    part = found.take(~found.common.any(axis=1))
    assert len(part.scores) == len(pairs.draw(*labels(n))[0])
    kinds, counts = np.unique(np.round(np.log10(part.scores)), return_counts=True)
    expected = {}
    for a, b in ways:
        expected[codes[a] + codes[b]] = expected.get(codes[a] + codes[b], 0) + len(part.scores) / 12
    assert kinds.tolist() == sorted(expected)
    np.testing.assert_allclose(counts, [expected[kind] for kind in kinds], rtol=0.1)


def test_vectors_that_are_not_finite_are_refused():
    given, rows = labelled()
    rows.parts[3] = np.inf
    with pytest.raises(DataError, match="scores of labelled pairs are not finite; check the weights"):
        pairs.score(given._replace(views=pairs.hide(rows, NAMES)))


def known(value=0.5):
    """A calibration that has a threshold for each combination at 1e-2 and none at lower rates."""
    limits = {1e-2: Threshold(value, value, value), 1e-3: UNKNOWN, 1e-4: UNKNOWN}
    names = ["+".join(shown) for shown in pairs.combinations(NAMES)]
    return Calibration("m", NAMES, "", 0.1, {}, {}, dict.fromkeys(names, limits), {})


def test_cells_are_retrieval_by_rows_that_have_only_these_modalities():
    given, rows = labelled(120, identities=6)
    shown = ("rgb", "tir")
    cells = sensors.measure(given, known(), MESH, fmr=1e-2, shown=shown)
    assert len(cells) == 9
    camids = np.where(given.camids < 0, 100 + np.arange(120), given.camids)
    for q, g in itertools.product(pairs.combinations(shown), repeat=2):
        cell, common = cells["+".join(q), "+".join(g)], set(q) & set(g)
        sides, chosen = [], []
        for use in (q, g):
            mask = np.isin(NAMES, use)
            has = rows.present[:, mask].all(axis=1)
            if not common:  # a row that loses a modality has no fallback vector here
                has &= ~rows.present[:, ~mask].any(axis=1)
            chosen.append(np.flatnonzero(has))
            sides.append(Parts(rows.parts[has], rows.present[has] & mask, rows.fallback[has]))
        columns = [dict(pid=given.pids[x], camid=camids[x]) for x in chosen]
        relevance = ranking.relevance("same_camera", *columns)
        expected = ranking.rank(-loop(*sides), relevance)
        assert cell.mAP == pytest.approx(expected["mAP"], abs=1e-9) and cell.queries == expected["num_valid"]
        assert cell.rank1 == pytest.approx(expected["rank1"])
        negative = ranking.num_negative_pairs(relevance, ranking.positives(relevance)[1])
        if common and negative / (2 if q == g else 1) * 1e-2 >= 10:
            assert cell.detection == pytest.approx(expected["TPR@1e-2"])
        else:
            assert np.isnan(cell.detection)
    assert 1 < np.isfinite([cell.detection for cell in cells.values()]).sum() < 9
    without = sensors.measure(given, known(), MESH, fmr=1e-3, shown=shown)
    assert np.isnan([cell.detection for cell in without.values()]).all()
    assert [cell.mAP for cell in without.values()] == [cell.mAP for cell in cells.values()]


def test_cells_without_rows_or_matches_are_empty():
    given, rows = labelled(60)
    present = np.zeros_like(rows.present)
    present[:30, 0], present[30:, 1] = True, True
    rows = rows._replace(present=present, parts=np.ones_like(rows.parts))
    pids = np.repeat([1, 2, 3], [15, 15, 30])  # nobody has both
    given = Labelled(NAMES, pairs.hide(rows, NAMES), pids, np.arange(60))
    cells = sensors.measure(given, known(), MESH, fmr=1e-2)
    assert {pair for pair, cell in cells.items() if cell} == {
        *itertools.product(("rgb",), ("rgb",)),
        *itertools.product(("nir",), ("nir",)),
    }
    text = sensors.markdown(cells, 1e-2)
    assert text.count("\n| rgb | ") == 3 and "| – | – | – |" in text
    assert "| detection rate at a false-match rate of 0.01 in %: query \\ gallery | rgb | nir | tir | rgb+nir" in text


def test_a_table_of_what_does_not_exist_is_refused():
    given, _ = labelled()
    with pytest.raises(ConfigError, match="no modality named 'xray'; the model has rgb, nir, tir"):
        sensors.measure(given, known(), MESH, fmr=1e-2, shown=("rgb", "xray"))
    with pytest.raises(ConfigError, match="no detection rate at a false-match rate of 0.5; there are 0.01, 0.001"):
        sensors.measure(given, known(), MESH, fmr=0.5)
    assert tuple(sensors.DETECTION) == FMRS and set(sensors.DETECTION.values()) == set(ranking.FPRS)
