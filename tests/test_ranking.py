"""CMC, mAP and mINP against a loop over queries and ranks written from the definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mmreid.metrics import ranking


def loop(dist, match, junk, identities=None):
    """The definitions, one query and one rank at a time."""
    aps, inps, firsts = [], [], []
    for q in range(len(dist)):
        order = sorted((g for g in range(dist.shape[1]) if not junk[q, g]), key=lambda g: (dist[q, g], g))
        hits = [r for r, g in enumerate(order, 1) if match[q, g]]
        if not hits:
            continue
        aps.append(np.mean([n / r for n, r in enumerate(hits, 1)]))
        inps.append(len(hits) / hits[-1])
        ahead = order[: hits[0] - 1]
        firsts.append(1 + len(ahead if identities is None else {identities[g] for g in ahead}))
    cmc = [np.mean([first <= r for first in firsts]) for r in range(1, 51)] if firsts else []
    return {"mAP": np.mean(aps), "mINP": np.mean(inps), "cmc": cmc, "num_valid": len(aps)} if aps else None


@st.composite
def problems(draw):
    queries, gallery, levels = draw(st.integers(1, 7)), draw(st.integers(1, 13)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Few distinct distances, so that ties are the rule.
    dist = rng.integers(0, levels, (queries, gallery)).astype(draw(st.sampled_from([np.float32, np.float64])))
    dist[rng.random(dist.shape) < draw(st.sampled_from([0, 0.2]))] = np.inf
    match = rng.random(dist.shape) < draw(st.sampled_from([0.1, 0.5, 1]))
    junk = rng.random(dist.shape) < draw(st.sampled_from([0, 0.3, 0.9]))
    return dist, match, junk


def check(*problem):
    expected = loop(*problem)
    if expected is None:
        with pytest.raises(ValueError, match="no query has a match in the gallery"):
            ranking.rank(*problem)
        return
    got = ranking.rank(*problem)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-15)
    assert [got[f"rank{r}"] for r in (1, 5, 10, 20)] == [got["cmc"][r - 1] for r in (1, 5, 10, 20)]
    assert set(got) == {*ranking.METRICS, "cmc", "num_valid"}


@settings(max_examples=300, deadline=None)
@given(problems())
def test_metrics_equal_the_loop(problem):
    check(*problem)


@st.composite
def crowds(draw):
    """A problem whose matches are those of identities, few or many, with numbers that do not begin at 0."""
    dist, _, junk = draw(problems())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    known = np.array([-3, 7, 8, 1000, 31])[: draw(st.integers(1, 5))]
    identities = rng.choice(known, dist.shape[1])
    return dist, rng.choice(known, len(dist))[:, None] == identities, junk, identities


@settings(max_examples=300, deadline=None)
@given(crowds())
def test_metrics_equal_the_loop_where_the_cmc_counts_identities(problem):
    check(*problem)


@pytest.mark.parametrize("block", [1, 11, 25, 10**6])
def test_blocks_of_any_size_give_the_same(monkeypatch, block):
    rng = np.random.default_rng(0)
    dist = rng.integers(0, 9, (17, 11)).astype(np.float32)
    junk, identities = rng.random(dist.shape) < 0.3, rng.integers(0, 5, 11)
    match = rng.integers(0, 5, 17)[:, None] == identities
    monkeypatch.setattr(ranking, "BLOCK", block)
    check(dist, match, junk)
    check(dist, match, junk, identities)


def test_identities_ahead_count_once_and_hidden_rows_not_at_all():
    identities = np.array([5, 5, 9, 5, 2, 2, 7])
    dist = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]])
    match, junk = identities[None] == 2, np.zeros((1, 7), bool)
    by_row, by_identity = (ranking.rank(dist, match, junk, x) for x in (None, identities))
    assert np.argmax(by_row["cmc"]) + 1 == 5 and np.argmax(by_identity["cmc"]) + 1 == 3
    assert [by_row[name] for name in ("mAP", "mINP")] == [by_identity[name] for name in ("mAP", "mINP")]
    junk[0, :2] = True  # identity 5 has a row left ahead, and is still one
    assert np.argmax(ranking.rank(dist, match, junk, identities)["cmc"]) + 1 == 3
    junk[0, 3] = True
    assert np.argmax(ranking.rank(dist, match, junk, identities)["cmc"]) + 1 == 2


def test_fewer_identities_than_ranks_repeat_the_last_value():
    identities = np.arange(60) % 3
    match = np.array([0, 1, 2])[:, None] == identities
    dist = np.where(match, 1.0, 0.5)  # own rows come last, behind 40 rows of two identities
    got = ranking.rank(dist, match, np.zeros_like(match), identities)
    assert got["cmc"].shape == (50,) and got["cmc"].tolist() == [0, 0] + 48 * [1]
    assert (ranking.rank(dist, match, np.zeros_like(match))["cmc"][:40] == 0).all()


# Made by the official TVI-LFM code (its units eval and eval2): five ranks of the CMC, mAP, mINP.
OFFICIAL = {
    "sysu_cameras": (
        ([0.16666667, 0.33333334, 0.83333331, 0.83333331, 1.0], 0.38737373737373737, 0.3386363636363636),
        ([0.0, 0.0, 0.25, 0.41666666, 0.66666669], 0.20384674961578622, 0.17621184338102772),
    ),
    "same_camera": (
        ([0.16666667, 0.33333334, 0.66666669, 0.66666669, 0.83333331], 0.37136844636844635, 0.3344035594035594),
        ([0.0, 0.0, 0.08333334, 0.33333334, 0.5], 0.17098342959386137, 0.14501790157967245),
    ),
    "none": (
        ([0.16666667, 0.33333334, 0.5, 0.66666669, 0.83333331], 0.37136844636844635, 0.3344035594035594),
        ([0.0, 0.0, 0.16666667, 0.33333334, 0.41666666], 0.20217496029358398, 0.17449676131306677),
    ),
}


def official_case(number):
    """(dist, query, gallery) that the values above are of."""
    if number == 0:
        query = [1, 2, 3, 4, 5, 1], [3, 6, 3, 6, 3, 6]
        gallery = [1, 1, 2, 2, 3, 3, 4, 4, 6, 7, 8, 5], [1, 2, 2, 4, 2, 5, 1, 5, 4, 1, 2, 4]
        dist = np.random.RandomState(0).rand(6, 12)
    else:
        rs = np.random.RandomState(3)
        query, gallery = [(rs.randint(1, 8, n), rs.randint(1, 7, n)) for n in (12, 40)]
        query[1][:4] = 3
        dist = rs.rand(12, 40)
    return dist, *(dict(pid=np.array(pid), camid=np.array(camid)) for pid, camid in (query, gallery))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("rule", OFFICIAL)
def test_the_metrics_of_sysu_llcm_and_regdb_are_the_official_ones(rule, number):
    dist, query, gallery = official_case(number)
    match = query["pid"][:, None] == gallery["pid"]
    identities = None if rule == "none" else gallery["pid"]  # RegDB counts pictures
    got = ranking.rank(dist, match, ranking.junk_mask(rule, query, gallery), identities)
    cmc, average, penalty = OFFICIAL[rule][number]
    np.testing.assert_allclose(got["cmc"][:5], cmc, atol=1e-6)
    np.testing.assert_allclose([got["mAP"], got["mINP"]], [average, penalty], atol=1e-6)


def test_a_gallery_longer_than_the_cmc():
    rng = np.random.default_rng(0)
    dist = rng.random((5, 211))
    match = np.zeros(dist.shape, bool)
    np.put_along_axis(match, np.argsort(dist)[:, [3, 49, 50, 97, 210]][np.arange(5), np.arange(5)][:, None], True, 1)
    check(dist, match, np.zeros_like(match))
    cmc = ranking.rank(dist, match, np.zeros_like(match))["cmc"]
    assert cmc.shape == (50,) and cmc[2] == 0 and cmc[3] == 0.2 and cmc[48] == 0.2 and cmc[49] == 0.4


def test_known_values():
    dist = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]])
    match = np.array([[False, True, False, True, True]])
    junk = np.array([[True, False, False, False, False]])
    got = ranking.rank(dist, match, junk)
    assert got["mAP"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 4) / 3)
    assert got["mINP"] == 3 / 4 and got["rank1"] == 1 and got["num_valid"] == 1
    without = ranking.rank(dist, match, np.zeros_like(junk))
    assert without["mAP"] == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert without["rank1"] == 0 and without["cmc"][1] == 1


def test_equal_distances_rank_by_gallery_index():
    dist, junk = np.zeros((3, 37), np.float32), np.zeros((3, 37), bool)
    match = np.zeros_like(junk)
    match[0, 0] = match[1, 16] = match[2, 36] = True
    np.testing.assert_allclose(ranking.rank(dist, match, junk)["mAP"], np.mean([1, 1 / 17, 1 / 37]))


@pytest.mark.parametrize("match, junk, valid", [(True, False, True), (True, True, False), (False, False, False)])
def test_a_gallery_of_one(match, junk, valid):
    match, junk, dist = np.array([[match]]), np.array([[junk]]), np.array([[0.5]])
    check(dist, match, junk)
    if valid:
        got = ranking.rank(dist, match, junk)
        assert got["mAP"] == got["mINP"] == 1 and (got["cmc"] == 1).all() and got["cmc"].shape == (50,)


def test_queries_without_a_match_are_left_out():
    rng = np.random.default_rng(0)
    dist, match, junk = rng.random((7, 13)), rng.random((7, 13)) < 0.3, np.zeros((7, 13), bool)
    match[:, 0] = True
    match[2] = False
    junk[4] = True
    keep = [0, 1, 3, 5, 6]
    got, expected = ranking.rank(dist, match, junk), ranking.rank(dist[keep], match[keep], junk[keep])
    assert got["num_valid"] == 5 and got["mAP"] == expected["mAP"]


def test_agrees_with_scikit_learn():
    average_precision = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn").average_precision_score
    rng = np.random.default_rng(0)
    dist, match = rng.random((7, 31)), rng.random((7, 31)) < 0.3
    expected = np.mean([average_precision(m, -d) for d, m in zip(dist, match)])
    assert ranking.rank(dist, match, np.zeros_like(match))["mAP"] == pytest.approx(expected, abs=1e-12)


def test_the_input_is_left_alone():
    rng = np.random.default_rng(0)
    dist, match, junk = rng.random((5, 7)), rng.random((5, 7)) < 0.5, rng.random((5, 7)) < 0.5
    copies = dist.copy(), match.copy(), junk.copy()
    ranking.rank(dist, match, junk)
    for before, after in zip(copies, (dist, match, junk)):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(dist=np.full((3, 5), np.nan)), "NaN"),
        (dict(dist=np.zeros((3, 4))), r"\(3, 4\).*\(3, 5\)"),
        (dict(junk=np.zeros((2, 5), bool)), r"\(2, 5\)"),
        (dict(dist=np.zeros(15)), r"\(15,\)"),
        (dict(identities=np.zeros(3, int)), r"identities \(3,\) must be the \[G\] of dist \(3, 5\)"),
        (dict(match=np.zeros((3, 5), bool)), "no query has a match"),
        (dict(junk=np.ones((3, 5), bool)), "no query has a match"),
        (dict(dist=np.zeros((3, 0)), match=np.zeros((3, 0), bool), junk=np.zeros((3, 0), bool)), "no query"),
        (dict(dist=np.zeros((0, 5)), match=np.zeros((0, 5), bool), junk=np.zeros((0, 5), bool)), "no query"),
    ],
)
def test_what_cannot_be_ranked_is_said_in_one_line(change, message):
    fields = dict(dist=np.zeros((3, 5)), match=np.ones((3, 5), bool), junk=np.zeros((3, 5), bool)) | change
    with pytest.raises(ValueError, match=message) as error:
        ranking.rank(**fields)
    assert "\n" not in str(error.value)


QUERY = dict(pid=np.array([1, 1, 2]), camid=np.array([0, 1, 0]), view=np.array([5, 6, 7]))
GALLERY = dict(pid=np.array([1, 2, 1, 3, 2]), camid=np.array([0, 0, 1, 0, 1]), view=np.array([6, 7, 5, 5, 7]))


@pytest.mark.parametrize("rule, other", [("same_camera", "camid"), ("same_view", "view")])
def test_junk_agrees_in_identity_and_one_more_column(rule, other):
    mask = ranking.junk_mask(rule, QUERY, GALLERY)
    assert mask.dtype == bool and mask.shape == (3, 5)
    for q in range(3):
        for g in range(5):
            assert mask[q, g] == (QUERY["pid"][q] == GALLERY["pid"][g] and QUERY[other][q] == GALLERY[other][g])


def test_to_camera_3_of_sysu_camera_2_is_junk_whoever_it_shows():
    query = dict(pid=np.array([1, 1, 2]), camid=np.array([3, 6, 2]))
    gallery = dict(pid=np.array([1, 2, 1, 3, 2]), camid=np.array([2, 2, 1, 3, 2]))
    mask = ranking.junk_mask("sysu_cameras", query, gallery)
    assert mask.dtype == bool and mask.shape == (3, 5)
    assert mask.tolist() == [[True, True, False, False, True], 5 * [False], 5 * [False]]


def test_no_junk():
    mask = ranking.junk_mask("none", QUERY, GALLERY)
    assert mask.dtype == bool and mask.shape == (3, 5) and not mask.any()


def test_an_unknown_rule_or_a_missing_column_is_refused():
    with pytest.raises(ValueError, match="same_lens.*none, same_camera, same_view, sysu_cameras"):
        ranking.junk_mask("same_lens", QUERY, GALLERY)
    with pytest.raises(ValueError, match="same_view.*'view'"):
        ranking.junk_mask("same_view", QUERY, {k: v for k, v in GALLERY.items() if k != "view"})
    with pytest.raises(ValueError, match="sysu_cameras.*'camid'"):
        ranking.junk_mask("sysu_cameras", {"pid": QUERY["pid"]}, GALLERY)
