"""Scoring features: every protocol against loops from its definition, its draws, and arrays that are refused."""

import json
import random

import numpy as np
import pytest
from scored import (
    DEFINITIONS,
    GALLERY,
    GF,
    GPATHS,
    QF,
    QUERY,
    SIDES,
    arrays,
    assert_same,
    cosine,
    euclidean,
    loop,
    rows,
)

from jax_mmreid import sharding
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics import galleries, ranking
from jax_mmreid.metrics.device_ranking import rank
from jax_mmreid.metrics.rerank import rerank
from jax_mmreid.tools.score import score

SMALL = dict(pids=np.array([1, 2]), camids=np.array([1, 2]))


def lengthened(row, times):
    return row._replace(vector=tuple(times * x for x in row.vector))


@pytest.mark.parametrize("protocol", DEFINITIONS)
@pytest.mark.parametrize("metric", [cosine, euclidean])
def test_numbers_are_those_of_the_definition(protocol, metric):
    """Galleries that are drawn already; cameras 3 and 6 there make the rule of a camera bite."""
    query, gallery = QUERY, rows("gallery", 53, 2, (2, 3, 6))
    if metric is euclidean:  # vectors of lengths 2, 4 and 6
        query, gallery = ([lengthened(row, 1 + i % 3) for i, row in enumerate(side)] for side in (query, gallery))
    got = score(arrays(query), arrays(gallery), protocol, metric=metric.__name__, trials=0)
    assert_same(got, loop(query, gallery, protocol, metric))
    assert (got["protocol"], got["metric"]) == (protocol, metric.__name__)
    assert (got["num_query"], got["num_gallery"], got["num_identities"]) == (17, 53, len({q.pid for q in QUERY}))
    assert "trials" not in got and "reranked" not in got


def test_protocols_differ():
    """So that no test above would pass with the rule of another."""
    gallery = rows("gallery", 53, 2, (2, 3, 6))
    found = {protocol: json.dumps(loop(QUERY, gallery, protocol)) for protocol in DEFINITIONS}
    assert len(set(found.values())) == 5  # three of the seven are one


# Made by the official TVI-LFM code, of these distances: five ranks of the CMC, mAP, mINP.
OFFICIAL = {
    "sysu_mm01": ([0.16666667, 0.33333334, 0.83333331, 0.83333331, 1.0], 0.38737373737373737, 0.3386363636363636),
    "llcm": ([0.16666667, 0.33333334, 0.66666669, 0.66666669, 0.83333331], 0.37136844636844635, 0.3344035594035594),
    "regdb": ([0.16666667, 0.33333334, 0.5, 0.66666669, 0.83333331], 0.37136844636844635, 0.3344035594035594),
}


@pytest.mark.parametrize("protocol", OFFICIAL)
def test_numbers_are_the_official_ones(protocol):
    dist = np.random.RandomState(0).rand(6, 12)
    query = dict(features=-dist, pids=np.array([1, 2, 3, 4, 5, 1]), camids=np.array([3, 6, 3, 6, 3, 6]))
    pids, camids = np.array([1, 1, 2, 2, 3, 3, 4, 4, 6, 7, 8, 5]), np.array([1, 2, 2, 4, 2, 5, 1, 5, 4, 1, 2, 4])
    got = score(query, dict(features=np.eye(12), pids=pids, camids=camids), protocol, trials=0)
    cmc, average, penalty = OFFICIAL[protocol]
    np.testing.assert_allclose(got["cmc"][:5], cmc, atol=1e-6)
    np.testing.assert_allclose([got["mAP"], got["mINP"]], [average, penalty], atol=1e-6)


def test_lengths_count_for_euclid_and_not_for_cosine():
    query = SMALL | dict(features=np.array([[1, 0, 0, 0], [0, 1, 0, 0]]))
    gallery = SMALL | dict(features=np.array([[9, 1, 0, 0], [1, 9, 0, 0]]), camids=np.array([3, 3]))
    assert score(query, gallery, "market")["rank1"] == 1
    gallery["features"] = np.array([[9, 1, 0, 0], [0.1, 0.2, 0, 0]])
    assert score(query, gallery, "market")["mAP"] == 1
    assert score(query, gallery, "market", metric="euclidean")["mAP"] == 0.75  # the first finds the near one first


def test_unit_vectors_are_ranked_as_evaluation_ranks_them():
    """Many similarities are equal to the last bits, so that vectors which are scaled again have other ranks."""
    rng = np.random.default_rng(0)
    near = rng.normal(size=(1, 24)) + 1e-4 * rng.normal(size=(150, 24))
    features = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    columns = dict(pid=rng.integers(0, 9, 150), camid=np.arange(150))
    mesh = sharding.make_mesh(data=-1, model=1)
    expected = rank(features, features, ranking.relevance("same_camera", columns, columns), mesh)
    got = score(dict(features=features, pids=columns["pid"], camids=columns["camid"]), None, "market")
    assert [got[name] for name in ranking.METRICS] == [expected[name] for name in ranking.METRICS]


def test_pairs_of_a_short_and_a_long_query_compare_by_their_distance():
    """Of all distances between different persons the least is 20, those of the matches are 1 and 3."""
    query = SMALL | dict(features=np.array([[0, 0, 0, 1], [100, 0, 0, 0]]))
    features = np.array([[0, 0, 0, 2], [100, 3, 0, 0], [100, 0, 0, 20]])
    gallery = dict(features=features, pids=np.array([1, 2, 3]), camids=np.array([3, 3, 3]))
    assert score(query, gallery, "regdb", metric="euclidean")["TPR@1e-2"] == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_features_of_any_kind_of_number(dtype):
    sides = [side | {"features": side["features"].astype(dtype)} for side in SIDES]
    assert_same(score(*sides, "regdb"), loop(QUERY, GALLERY, "regdb"))


def test_the_gallery_left_out_is_the_queries():
    everything = QUERY + rows("query2", 36, 5, (3, 6))
    got = score(arrays(everything), None, "rgbnt201")
    assert_same(got, loop(everything, everything, "rgbnt201"))
    assert got["num_gallery"] == 53


@pytest.mark.parametrize(
    "search, cameras, shots, trials",
    [
        (None, (1, 2, 4, 5), None, None),
        ("all", (1, 2, 4, 5), 10, 2),
        ("indoor", (1, 2), 1, 3),
        ("indoor", (1, 2), 10, 1),
    ],
)
def test_sysu_draws_are_those_of_the_files_in_the_order_of_their_names(search, cameras, shots, trials):
    ordered = sorted(GALLERY, key=lambda row: row.path)
    assert ordered != GALLERY
    columns = dict(zip(("pid", "camid"), (np.array(x, np.int32) for x in list(zip(*ordered))[1:3])))
    draws = [galleries.draw(columns, cameras=cameras, shots=shots or 1, trial=trial) for trial in range(trials or 10)]
    got = score(*SIDES, "sysu_mm01", search=search, shots=shots, trials=trials)
    assert_same(got, *(loop(QUERY, [ordered[i] for i in draw], "sysu_mm01") for draw in draws))
    assert (got["trials"], tuple(got["cameras"]), got["shots"], got["order"]) == (
        trials or 10,
        cameras,
        shots or 1,
        "paths",
    )
    assert (got["num_gallery"], got["drawn_from"]) == (len(draws[0]), 53)


def test_llcm_draws_as_the_official_code_does():
    gallery = rows("gallery", 53, 3, (1, 2, 3, 9))
    query = rows("query", 17, 4, (1, 2, 9))
    trials = []
    for trial in range(4):
        random.seed(trial)
        places = [(pid, camid) for pid in range(3, 8) for camid in range(1, 10)]
        files = [sorted((g for g in gallery if (g.pid, g.camid) == place), key=lambda g: g.path) for place in places]
        trials.append(loop(query, [random.choice(some) for some in files if some], "llcm"))
    assert_same(score(arrays(query), arrays(gallery), "llcm", trials=4), *trials)


def test_without_paths_draws_are_from_the_file_as_it_stands():
    nameless = {key: x for key, x in SIDES[1].items() if key != "paths"}
    got = score(SIDES[0], nameless, "sysu_mm01", trials=3)
    ordered = nameless | {"paths": np.array([f"{i:03d}" for i in range(53)])}
    assert got["order"] == "file" and got["trials"] == 3
    assert got | {"order": "paths"} == score(SIDES[0], ordered, "sysu_mm01", trials=3)
    assert got["mAP"] != score(*SIDES, "sysu_mm01", trials=3)["mAP"]


def test_reranking_comes_beside_the_plain_numbers():
    plain, both = score(*SIDES, "regdb"), score(*SIDES, "regdb", rerank=dict(k1=7, k2=3))
    again = both.pop("reranked")
    assert plain == both and again["mAP"] != plain["mAP"]
    dist = np.concatenate(list(rerank(*(side["features"] / 2 for side in SIDES), k1=7, k2=3, lam=0.3)))
    columns = [{"pid": side["pids"]} for side in SIDES]
    expected = ranking.rank(dist, ranking.relevance("none", *columns))
    assert again == expected | {"cmc": expected["cmc"].tolist(), "k1": 7, "k2": 3, "lam": 0.3}


def test_every_drawn_gallery_is_reranked_by_the_rules_of_the_protocol():
    """With lam=1 nothing is left but the distance, so the order is that of the plain numbers."""
    got = score(*SIDES, "sysu_mm01", metric="euclidean", trials=2, rerank=dict(lam=1.0))
    again = got["reranked"]
    assert again["k1"] == 20 and again["k2"] == 6 and again["num_valid"] == got["num_valid"]
    for name in ("mAP", "mINP", "cmc", "rank1", "rank20"):
        np.testing.assert_allclose(again[name], got[name], rtol=0, atol=1e-12)
    assert got["mAP"] != score(*SIDES, "sysu_mm01", trials=1)["mAP"]


def changed(side, **changes):
    """SIDES with other arrays on one side; None takes one away."""
    both = [dict(x) for x in SIDES]
    both[side] = {key: x for key, x in (both[side] | changes).items() if x is not None}
    return both


def set_row(x, row, value):
    x = x.copy()
    x[row] = value
    return x


BAD_ARRAYS = {
    "no features": (changed(0, features=None), "regdb", "no array 'features'; regdb needs features, pids, camids$"),
    "no cameras": (changed(1, camids=None), "market", "gallery: no array 'camids'"),
    "no views": (changed(1, views=None), "msvr310", "gallery: no array 'views'; msvr310 needs .* views"),
    "one axis": (changed(0, features=QF[0]), "regdb", r"query: features is float32\(4,\), expected numbers of shape"),
    "no rows": (changed(0, features=QF[:0]), "regdb", r"features is float32\(0, 4\)"),
    "no numbers": (changed(1, features=GF.astype(str)), "regdb", r"gallery: features is <U\d+\(53, 4\)"),
    "complex numbers": (changed(1, features=GF * 1j), "regdb", "features is complex64"),
    "too few numbers": (changed(1, pids=np.arange(7)), "regdb", r"gallery: pids is int64\(7,\).*of shape \(53,\)"),
    "numbers with a point": (changed(0, camids=np.ones(17)), "regdb", r"query: camids is float64.*whole numbers"),
    "views of another length": (changed(0, views=np.arange(7)), "regdb", r"query: views is int64\(7,\)"),
    "paths that are bytes": (changed(0, paths=np.full(17, b"a")), "regdb", r"query: paths is \|S1\(17,\).*strings"),
    "NaN": (changed(0, features=set_row(QF, 5, np.nan)), "regdb", "query: row 5 of features is not finite"),
    "infinity": (changed(1, features=set_row(GF, (7, 2), np.inf)), "regdb", "gallery: row 7 of features is not finite"),
    "beyond float32": (changed(1, features=set_row(GF.astype(float), 8, 1e39)), "regdb", "gallery: row 8 .* float32"),
    "a zero row": (changed(1, features=set_row(GF, 9, 0)), "regdb", "gallery: row 9 of features is zero.*euclidean"),
    "widths that differ": (changed(1, features=GF[:, :3]), "regdb", r"\(17, 4\) of queries and \(53, 3\) of the gal"),
    "no match": (changed(1, pids=np.full(53, 99)), "regdb", "no query has a match"),
    "no camera to draw from": (
        changed(1, camids=np.full(53, 6)),
        "sysu_mm01",
        "no row has one of the cameras 1, 2, 4, 5",
    ),
    "cameras from 0": (
        changed(1, camids=SIDES[1]["camids"] - 1),
        "sysu_mm01",
        "gallery: row .* 1 to 6, the numbers",
    ),
    "camera 10": (changed(0, camids=set_row(SIDES[0]["camids"], 4, 10)), "llcm", "query: row 4 has a camera.* 1 to 9"),
    "identity -1": (
        changed(1, pids=set_row(SIDES[1]["pids"], 2, -1)),
        "market",
        "gallery: row 2 has an identity",
    ),
    "a path twice": (changed(1, paths=set_row(GPATHS, 9, GPATHS[4])), "regdb", f"gallery: row 9 .*'{GPATHS[4]}'"),
}


@pytest.mark.filterwarnings("error")  # the command would print them
@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_cannot_be_judged(case):
    sides, protocol, message = BAD_ARRAYS[case]
    with pytest.raises(DataError, match=message) as error:
        score(*sides, protocol)
    assert "\n" not in str(error.value)


def test_too_large_to_be_squared():
    large = changed(1, features=set_row(GF, 3, 1e19))
    with pytest.raises(DataError, match="gallery: row 3 of features is too large"):
        score(*large, "regdb", metric="euclidean")
    assert score(*large, "regdb")["num_valid"] == 17


def shared(protocol, **numbers):
    """Query rows 4 and 2 as gallery rows 0 and 1 too, with the numbers given."""
    query, gallery = SIDES
    for key in query:
        two = np.asarray(numbers.get(key, query[key][[4, 2]]))
        gallery = gallery | {key: np.concatenate([two, gallery[key][2:]])}
    return score(query, gallery, protocol, trials=0)


@pytest.mark.parametrize("protocol", DEFINITIONS)
def test_a_picture_must_not_find_itself(protocol):
    path = QUERY[2].path
    if protocol in ("regdb", "sysu_mm01"):  # a rule that hides no picture from itself
        with pytest.raises(DataError, match=rf"query: row 2 \('{path}'\) is a gallery row too.*\(2 such rows\)"):
            shared(protocol)
        return
    shared(protocol)
    other = "views" if protocol == "msvr310" else "camids"
    numbers = [QUERY[4]._asdict()[other[:-1]], QUERY[2]._asdict()[other[:-1]] + 1]
    with pytest.raises(DataError, match=rf"query: row 2 \('{path}'\) is a gallery row too.*\(1 such rows\)"):
        shared(protocol, **{other: numbers})
    with pytest.raises(DataError, match=r"query: row 4 .* is a gallery row too.*\(1 such rows\)"):
        shared(protocol, pids=[QUERY[4].pid + 1, QUERY[2].pid])


def test_queries_that_are_the_gallery_must_be_hidden_even_without_paths():
    with pytest.raises(DataError, match="query: row 0 is a gallery row too"):
        score({key: x for key, x in SIDES[0].items() if key != "paths"}, None, "regdb")


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(protocol="rgbnt300"), "no protocol named 'rgbnt300'; there are rgbnt201, rgbnt100, market, msvr310"),
        (dict(metric="manhattan"), "no metric named 'manhattan'; there are cosine, euclidean"),
        (dict(search="indoor"), "search=indoor: expected none for regdb"),
        (dict(shots=1), "shots=1: expected none for regdb"),
        (dict(trials=1), "trials=1: expected 0 for regdb"),
        (dict(protocol="llcm", shots=1), "shots=1: expected none for llcm with trials=10"),
        (dict(protocol="sysu_mm01", trials=-1), "trials=-1: expected 0 or more for sysu_mm01"),
        (dict(protocol="sysu_mm01", shots=5), "shots=5: expected 1 or 10 for sysu_mm01"),
        (dict(protocol="sysu_mm01", search="outdoor"), "search=outdoor: expected all or indoor for sysu_mm01"),
        (dict(protocol="sysu_mm01", search="all", trials=0), "search=all: expected none for sysu_mm01 with trials=0"),
        (dict(rerank=dict(k1=0)), "k1=0"),
        (dict(rerank=dict(lam=1.5)), "lam=1.5"),
        (dict(rerank=dict(k3=1)), "re-ranking has no constant k3; there are k1, k2, lam"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        score(*SIDES, **dict(protocol="regdb") | options)
    assert "\n" not in str(error.value)
