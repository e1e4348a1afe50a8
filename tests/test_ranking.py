"""CMC, mAP, mINP and TPR of given distances against loops written from the definitions."""

import numpy as np
import pytest
from brute import metrics, problems, ranks
from hypothesis import given, settings

from jax_mmreid.errors import DataError
from jax_mmreid.metrics import ranking
from jax_mmreid.metrics.ranking import Relevance


def check(dist, rows, by_identity=False):
    expected = metrics(dist, rows, by_identity)
    if expected is None:
        with pytest.raises(DataError, match="no query has a match in the gallery"):
            ranking.rank(dist, rows, by_identity=by_identity)
        return
    got = ranking.rank(dist, rows, by_identity=by_identity)
    assert set(got) == set(expected) == {*ranking.METRICS, "cmc", "num_valid"}
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-12, err_msg=name)


def one_query(match, junk, dist=None):
    """(dist, rows) of one query whose gallery is marked by hand."""
    dist = np.arange(len(match))[None] / 10 if dist is None else np.array([dist], float)
    gallery_pid = np.where(match, 0, 1 + np.arange(len(match)))
    return dist, Relevance(np.zeros(1, int), gallery_pid, np.zeros(1, int), np.where(junk, 0, 1))


@pytest.mark.parametrize("by_identity", [False, True])
def test_metrics_are_those_of_the_definitions(by_identity):
    @settings(max_examples=700, deadline=None, database=None)
    @given(problems())
    def each(problem):
        check(*problem, by_identity)

    each()


@settings(max_examples=500, deadline=None, database=None)
@given(problems())
def test_every_rank_is_that_of_the_definition(problem):
    dist, rows = problem
    for q, (hits, first) in enumerate(ranks(dist, rows, by_identity=True)):
        if hits:
            kept = rows.gallery_junk != rows.query_junk[q]
            own = np.flatnonzero(kept & (rows.gallery_pid == rows.query_pid[q]))
            got = ranking._rank_row(dist[q], own, kept, rows.gallery_pid)
            assert (got[0].tolist(), got[1]) == (hits, first)


def crowd(seed, Q, G, people=9, levels=40):
    """A problem of many rows, with ties; every rule of junk has something to hide."""
    rng = np.random.default_rng(seed)
    sides = [{"pid": rng.integers(0, people, n), "camid": rng.integers(1, 5, n)} for n in (Q, G)]
    return rng.integers(0, levels, (Q, G)) / levels, ranking.relevance("same_camera", *sides)


@pytest.mark.parametrize("block", [1, 7, 17, 100])
def test_blocks_of_any_size_give_the_same(block):
    dist, rows = crowd(0, 17, 211)
    got = ranking.rank((dist[i : i + block] for i in range(0, 17, block)), rows)
    expected = ranking.rank(dist, rows)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_a_gallery_longer_than_the_cmc_and_than_one_in_a_hundred_pairs():
    dist, rows = crowd(1, 40, 601, levels=100_000)
    check(dist, rows)
    check(dist, rows, by_identity=True)
    got = ranking.rank(dist, rows)
    assert 0 <= got["TPR@1e-4"] <= got["TPR@1e-3"] < got["TPR@1e-2"] < 0.03  # as chance has it: about the rate itself


def test_as_many_negative_pairs_pass_as_may_and_no_more():
    """100 negative pairs at 0, 1, .., 99: at a rate of 1 % one may pass, at less none."""
    dist = np.concatenate([np.arange(100), [0.5, 1.0, 1.5, -1.0]])[None]
    rows = Relevance(np.zeros(1, int), np.repeat([1, 0], [100, 4]), np.zeros(1, int), np.ones(104, int))
    got = ranking.rank(dist, rows)
    assert got["TPR@1e-2"] == 2 / 4  # nearer than the negative pair at 1; a tie with it is not
    assert got["TPR@1e-3"] == got["TPR@1e-4"] == 1 / 4


def test_what_is_kept_for_tprs_stays_small():
    nearest = ranking._Nearest(1_000_000)
    rng = np.random.default_rng(0)
    values = rng.random(1_000_000)
    for part in np.split(values, 100):
        nearest.add(part)
        assert sum(map(len, nearest.parts)) < 70_000
    own = np.sort(values)[[9_999, 10_000, 10_001]]
    assert nearest.share(own, 100) == 1 / 3


def test_without_negative_pairs_all_may_pass():
    dist, rows = np.zeros((1, 3)), Relevance(*(np.array(x) for x in ([0], [0, 0, 0], [0], [1, 1, 1])))
    got = ranking.rank(dist, rows)
    assert [got[name] for name in ranking.FPRS] == [1.0, 1.0, 1.0]


def test_identities_ahead_count_once_and_hidden_rows_not_at_all():
    identities = np.array([5, 5, 9, 5, 2, 2, 7])
    dist = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]])

    def rank(hidden, by_identity=True):
        junk = np.ones(7, int)
        junk[hidden] = 0
        return ranking.rank(dist, Relevance(np.array([2]), identities, np.zeros(1, int), junk), by_identity=by_identity)

    by_row, by_identity = rank([], False), rank([])
    assert np.argmax(by_row["cmc"]) + 1 == 5 and np.argmax(by_identity["cmc"]) + 1 == 3
    assert [by_row[name] for name in ("mAP", "mINP")] == [by_identity[name] for name in ("mAP", "mINP")]
    assert np.argmax(rank([0, 1])["cmc"]) + 1 == 3  # identity 5 has a row left ahead, and is still one
    assert np.argmax(rank([0, 1, 3])["cmc"]) + 1 == 2


def test_fewer_identities_than_ranks_repeat_the_last_value():
    identities = np.arange(60) % 3
    rows = Relevance(np.arange(3), identities, np.zeros(3, int), np.ones(60, int))
    dist = np.where(np.arange(3)[:, None] == identities, 1.0, 0.5)  # own rows come last, behind 40 of two identities
    got = ranking.rank(dist, rows, by_identity=True)
    assert got["cmc"].shape == (50,) and got["cmc"].tolist() == [0, 0] + 48 * [1]
    assert (ranking.rank(dist, rows)["cmc"][:40] == 0).all()


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
    got = ranking.rank(dist, ranking.relevance(rule, query, gallery), by_identity=rule != "none")  # RegDB: pictures
    cmc, average, penalty = OFFICIAL[rule][number]
    np.testing.assert_allclose(got["cmc"][:5], cmc, atol=1e-6)
    np.testing.assert_allclose([got["mAP"], got["mINP"]], [average, penalty], atol=1e-6)


def test_known_values():
    dist, rows = one_query([False, True, False, True, True], [True, False, False, False, False])
    got = ranking.rank(dist, rows)
    assert got["mAP"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 4) / 3)
    assert got["mINP"] == 3 / 4 and got["rank1"] == 1 and got["num_valid"] == 1
    without = ranking.rank(dist, rows._replace(gallery_junk=np.ones(5, int)))
    assert without["mAP"] == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert without["rank1"] == 0 and without["cmc"][1] == 1


@pytest.mark.parametrize("place", [0, 16, 36])
def test_equal_distances_rank_by_gallery_index(place):
    dist, rows = one_query(np.arange(37) == place, np.zeros(37, bool), dist=np.zeros(37))
    assert ranking.rank(dist, rows)["mAP"] == 1 / (place + 1)
    assert ranking.rank(dist, rows, by_identity=True)["mAP"] == 1 / (place + 1)


@pytest.mark.parametrize("match, junk, valid", [(True, False, True), (True, True, False), (False, False, False)])
def test_a_gallery_of_one(match, junk, valid):
    problem = one_query([match], [junk])
    check(*problem)
    if valid:
        got = ranking.rank(*problem)
        assert got["mAP"] == got["mINP"] == 1 and (got["cmc"] == 1).all() and got["cmc"].shape == (50,)


def test_queries_without_a_match_are_left_out():
    dist, rows = crowd(2, 7, 53)
    pid, junk = rows.query_pid.copy(), rows.query_junk.copy()
    pid[2] = 100  # of no gallery row
    junk[4] = 100
    rows = rows._replace(query_pid=pid, query_junk=junk, gallery_junk=np.where(rows.gallery_pid == pid[4], 100, 0))
    keep = [0, 1, 3, 5, 6]
    few = rows._replace(query_pid=pid[keep], query_junk=junk[keep])
    got, expected = ranking.rank(dist, rows), ranking.rank(dist[keep], few)
    assert got["num_valid"] == 5 and all(np.array_equal(got[name], expected[name]) for name in expected)


def test_agrees_with_scikit_learn():
    average_precision = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn").average_precision_score
    dist, rows = crowd(3, 9, 31, levels=100_000)
    rows = rows._replace(gallery_junk=np.full(31, -1))
    match = rows.query_pid[:, None] == rows.gallery_pid
    expected = np.mean([average_precision(m, -d) for d, m in zip(dist, match) if m.any()])
    assert ranking.rank(dist, rows)["mAP"] == pytest.approx(expected, abs=1e-12)


def test_tprs_agree_with_scikit_learn():
    curve = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn").roc_curve
    dist, rows = crowd(4, 60, 400, levels=1_000_000)
    dist -= 0.3 * (rows.query_pid[:, None] == rows.gallery_pid)
    kept = rows.query_junk[:, None] != rows.gallery_junk
    match = rows.query_pid[:, None] == rows.gallery_pid
    fprs, tprs, _ = curve(match[kept], -dist[kept], drop_intermediate=False)
    got = ranking.rank(dist, rows)
    for name, one_in in ranking.FPRS.items():
        assert got[name] == pytest.approx(tprs[fprs <= 1 / one_in].max(), abs=1e-12)


def test_the_input_is_left_alone():
    dist, rows = crowd(5, 5, 37)
    copies = dist.copy(), *(x.copy() for x in rows)
    ranking.rank(dist, rows, by_identity=True)
    for before, after in zip(copies, (dist, *rows)):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "dist, error, message",
    [
        (np.full((3, 5), np.nan), DataError, "dist has NaN"),
        (np.zeros((3, 4)), ValueError, r"dist has \(3, 4\) from row 0 on, expected rows of \(3, 5\)"),
        (np.zeros((4, 5)), ValueError, r"dist has \(4, 5\) from row 0 on"),
        (np.zeros(15), ValueError, r"dist has \(15,\) from row 0 on"),
        (np.zeros((2, 5)), ValueError, r"dist has 2 rows, expected \(3, 5\)"),
        (iter([np.zeros((2, 5)), np.zeros((2, 5))]), ValueError, r"dist has \(2, 5\) from row 2 on"),
    ],
)
def test_distances_that_cannot_be_ranked_are_refused_in_one_line(dist, error, message):
    rows = Relevance(np.zeros(3, int), np.zeros(5, int), np.zeros(3, int), np.ones(5, int))
    with pytest.raises(error, match=message) as raised:
        ranking.rank(dist, rows)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("Q, G, pid, junk", [(3, 5, 1, 1), (3, 5, 0, 0), (3, 0, 0, 1), (0, 5, 0, 1)])
def test_a_gallery_without_any_match_is_no_success(Q, G, pid, junk):
    rows = Relevance(np.zeros(Q, int), np.full(G, pid), np.zeros(Q, int), np.full(G, junk))
    with pytest.raises(DataError, match="no query has a match in the gallery; check the split and the junk rule"):
        ranking.rank(np.zeros((Q, G)), rows)


QUERY = dict(pid=np.array([1, 1, 2]), camid=np.array([0, 1, 0]), view=np.array([5, 6, 7]))
GALLERY = dict(pid=np.array([1, 2, 1, 3, 2]), camid=np.array([0, 0, 1, 0, 1]), view=np.array([6, 7, 5, 5, 7]))


def masks(rows):
    """[Q,G] bool: what matches, what is junk."""
    return rows.query_pid[:, None] == rows.gallery_pid, rows.query_junk[:, None] == rows.gallery_junk


@pytest.mark.parametrize("rule", ranking.JUNK_RULES)
def test_a_match_is_of_one_identity_under_any_rule(rule):
    names = {"pid": np.array(["anna", "bo"])}, {"pid": np.array(["bo", "anna", "cy"])}
    for query, gallery in ((QUERY, GALLERY), [side | {"camid": side["pid"], "view": side["pid"]} for side in names]):
        rows = ranking.relevance(rule, query, gallery)
        assert all(x.dtype == np.int32 for x in rows) and rows.gallery_pid.min() >= 0
        np.testing.assert_array_equal(masks(rows)[0], query["pid"][:, None] == gallery["pid"])


@pytest.mark.parametrize("rule, other", [("same_camera", "camid"), ("same_view", "view")])
def test_junk_agrees_in_identity_and_one_more_column(rule, other):
    junk = masks(ranking.relevance(rule, QUERY, GALLERY))[1]
    for q in range(3):
        for g in range(5):
            assert junk[q, g] == (QUERY["pid"][q] == GALLERY["pid"][g] and QUERY[other][q] == GALLERY[other][g])


def test_to_camera_3_of_sysu_camera_2_is_junk_of_any_identity():
    query = dict(pid=np.array([1, 1, 2]), camid=np.array([3, 6, 2]))
    gallery = dict(pid=np.array([1, 2, 1, 3, 2]), camid=np.array([2, 2, 1, 3, 2]))
    junk = masks(ranking.relevance("sysu_cameras", query, gallery))[1]
    assert junk.tolist() == [[True, True, False, False, True], 5 * [False], 5 * [False]]


def test_no_junk():
    assert not masks(ranking.relevance("none", QUERY, GALLERY))[1].any()


def test_an_unknown_rule_or_a_missing_column_is_refused():
    with pytest.raises(ValueError, match="same_lens.*none, same_camera, same_view, sysu_cameras"):
        ranking.relevance("same_lens", QUERY, GALLERY)
    with pytest.raises(ValueError, match="same_view.*'view'"):
        ranking.relevance("same_view", QUERY, {k: v for k, v in GALLERY.items() if k != "view"})
    with pytest.raises(ValueError, match="sysu_cameras.*'camid'"):
        ranking.relevance("sysu_cameras", {"pid": QUERY["pid"]}, GALLERY)
    with pytest.raises(ValueError, match="none.*'pid'"):
        ranking.relevance("none", QUERY, {})
