"""Oracle: exact search is a loop in float64; equality: on any number of devices and processes."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_processes import run
from test_similarity import drawn_rows, loop

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics.similarity import NO_SCORE, Parts, pack, similarities
from jax_mmreid.search import index, scan
from jax_mmreid.search.index import Columns, Index, choose, take
from jax_mmreid.sharding import make_mesh


def mesh(devices):
    return make_mesh(data=devices, model=1, devices=jax.devices()[:devices])


def filled(rows):
    """The rows with random numbers in place of absent parts."""
    noise = np.random.default_rng(0).normal(size=rows.parts.shape).astype(np.float32)
    return Parts(np.where(rows.present[..., None], rows.parts, noise), np.ones_like(rows.present), rows.fallback)


def best(scores, k, where=None):
    """The rows [Q,k] of the greatest scores [Q,n], of equal ones the lower; -1 for what may not be found."""
    scores = scores if where is None else np.where(where, scores, NO_SCORE)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(scores, order, axis=1) > NO_SCORE, order, -1)


def check(found, query, gallery, k, where=None):
    """Rows, scores, common modalities and shares are those of a loop; returns the scores of all pairs."""
    scores = loop(query, gallery)
    np.testing.assert_array_equal(found.rows, best(scores, k, where))
    there = found.rows >= 0
    expected = np.where(there, np.take_along_axis(scores, np.maximum(found.rows, 0), axis=1), NO_SCORE)
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-6)
    both = query.present[:, None] & gallery.present[found.rows] & there[..., None]
    np.testing.assert_array_equal(found.common, both)
    counted = both.any(axis=-1)
    np.testing.assert_allclose(found.shares.sum(axis=-1)[counted], found.scores[counted], rtol=0, atol=1e-6)
    assert not found.shares[~both].any()
    for i, j in np.argwhere(counted)[:40]:
        g = gallery.parts[found.rows[i, j]]
        squares = [sum(np.float64(x[m]) @ x[m] for m in np.flatnonzero(both[i, j])) for x in (query.parts[i], g)]
        terms = [np.float64(query.parts[i][m]) @ g[m] / np.sqrt(np.prod(squares)) for m in np.flatnonzero(both[i, j])]
        np.testing.assert_allclose(found.shares[i, j][both[i, j]], terms, rtol=0, atol=1e-6)
    return scores


@pytest.mark.parametrize("fallback", [0, 7])
@pytest.mark.parametrize("seed", range(2))
def test_matches_are_those_of_a_loop(seed, fallback):
    query, gallery = (drawn_rows(2 * seed + i, n, fallback=fallback) for i, n in enumerate((41, 203)))
    scores = check(Index(gallery).search(query, 9), query, gallery, 9)
    assert (scores == NO_SCORE).any() == (fallback == 0)
    both = (query.present[:, None] & gallery.present).any(axis=-1)
    assert not both.all() and both.any()


@pytest.mark.parametrize(("k", "dtype"), [(1, "bfloat16"), (30, "bfloat16"), (7, "float32")])
def test_few_groups_are_compared_exactly_and_that_is_proven(monkeypatch, k, dtype):
    """Half of the rows are copies, and some may not be found; one zero is no better than the other."""
    monkeypatch.setattr(scan, "coarse_dtype", lambda mesh: np.dtype(dtype))
    rng = np.random.default_rng(k)
    query, few = drawn_rows(0, 40), drawn_rows(1, 300)
    gallery, where = take(few, rng.integers(300, size=900)), rng.random(900) < 0.7
    check(Index(gallery).search(query, k, where), query, gallery, k, where)
    zeros = take(few, np.zeros(900, int))
    zeros.parts[:], zeros.present[:] = rng.choice([-0.0, 0.0], (900, 3, 5)), True
    found = Index(zeros).search(query, k, where)
    assert (found.rows == np.flatnonzero(where)[:k]).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0, 7]), st.sampled_from(["bfloat16", "float32"]))
def test_a_coarse_score_differs_by_no_more_than_its_error(seed, fallback, dtype):
    sides = [drawn_rows(seed + i, n, width=33, fallback=fallback) for i, n in enumerate((9, 40))]
    form, dtype = sides[0].packing, np.dtype(dtype)
    query, gallery = map(pack, sides)
    moved = [scan.rounding(x, packing=form, dtype=dtype) for x in (query, gallery)]
    error = np.asarray(scan.error(moved[0], moved[1].max(), form))
    coarse, exact = (np.asarray(similarities(query, gallery, form, x)) for x in (dtype, np.dtype(np.float32)))
    assert (np.abs(coarse - exact) <= error[:, None]).all() and error.max() < 0.01
    assert (np.abs(coarse - exact).max() > 1e-4) == (dtype != np.float32)


@pytest.mark.parametrize("devices", [1, 3])
def test_rows_too_alike_for_coarse_scores_are_compared_exactly(monkeypatch, devices):
    """Of rows that bfloat16 does not tell apart more groups are taken, until the best are proven to be so."""
    monkeypatch.setattr(scan, "coarse_dtype", lambda mesh: np.dtype("bfloat16"))
    taken, best = [], scan.best
    monkeypatch.setattr(scan, "best", lambda *x, **kw: taken.append(kw["groups"]) or best(*x, **kw))
    rng = np.random.default_rng(0)
    base = rng.standard_normal((1, 1, 64))
    rows = (base + 1e-2 * rng.standard_normal((3000, 1, 64))).astype(np.float32)
    gallery, query = (Parts(x, np.ones((len(x), 1), bool)) for x in (rows, rows[:5] + np.float32(1e-2)))
    found = Index(gallery, mesh(devices)).search(query, 1)
    scores = loop(query, gallery)
    np.testing.assert_allclose(found.scores[:, 0], scores.max(axis=1), rtol=0, atol=1e-6)
    assert len(taken) > 1 and sorted(set(taken)) == taken


@pytest.mark.parametrize("devices", [1, 3])
def test_of_equal_scores_the_lower_row_comes_first(monkeypatch, devices):
    """Copies of few rows, in random places of tiles of 16 rows: every score occurs often."""
    monkeypatch.setattr(index, "GALLERY", 16)
    rng = np.random.default_rng(0)
    query, few = (drawn_rows(i, n, width=85) for i, n in enumerate((37, 13)))
    gallery = take(few, rng.integers(13, size=301))
    check(Index(gallery, mesh(devices)).search(query, 150), query, gallery, 150)


def test_scores_of_zero_are_equal_whatever_their_sign():
    parts = np.zeros((3, 1, 4), np.float32)
    parts[:, 0, 1] = -1, 1, -1
    gallery, query = (Parts(x, np.ones((len(x), 1), bool)) for x in (parts, np.eye(4, dtype=np.float32)[:1, None]))
    assert Index(gallery).search(query, 3).rows.tolist() == [[0, 1, 2]]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 70), st.integers(0, 40), st.floats(0, 1), st.integers(0, 99))
def test_any_sizes_and_any_filter(n, Q, share, seed):
    query, gallery = drawn_rows(seed, Q), drawn_rows(seed + 1, n)
    rng = np.random.default_rng(seed)
    where, k = rng.random(n) < share, int(rng.integers(1, n + 1))
    found = Index(gallery, mesh(3)).search(query, k, where)
    assert found.rows.shape == found.scores.shape == (Q, k) and found.common.shape == found.shares.shape == (Q, k, 3)
    check(found, query, gallery, k, where)


@pytest.mark.parametrize(("n", "complete"), [(17, False), (1031, False), (1031, True)])
def test_eight_devices_are_one_bit_for_bit(monkeypatch, n, complete):
    monkeypatch.setattr(index, "GALLERY", 64)
    monkeypatch.setattr(index, "QUERIES", 64)
    sides = [drawn_rows(i, size, width=43) for i, size in enumerate((150, n))]
    if complete:
        sides = list(map(filled, sides))
    query, gallery = sides
    one, eight = (Index(gallery, mesh(devices)).search(query, 17) for devices in (1, 8))
    for name, a, b in zip(one._fields, one, eight):
        np.testing.assert_array_equal(a, b, err_msg=name)
    check(one, query, gallery, 17)


def test_rows_that_lack_nothing_have_the_same_scores_beside_those_that_do():
    """Without absent parts a score is one dot product; with one in the gallery it is that of common modalities."""
    sides = [drawn_rows(i, n, modalities=2, width=31) for i, n in enumerate((20, 90))]
    query, gallery = map(filled, sides)
    plain = Index(gallery).search(query, 90)
    present = gallery.present.copy()
    present[77, 0] = False
    masked = Index(gallery._replace(present=present)).search(query, 90)
    for i in range(20):
        a, b = (dict(zip(x.rows[i], x.scores[i])) for x in (plain, masked))
        assert all(abs(a[row] - b[row]) < 1e-6 for row in range(90) if row != 77)


def test_a_query_alone_has_the_scores_that_it_has_among_others():
    query, gallery = drawn_rows(0, 40, width=64), drawn_rows(1, 500, width=64)
    searched = Index(gallery)
    together = searched.search(query, 5)
    for i in (0, 39):
        alone = searched.search(take(query, [i]), 5)
        np.testing.assert_array_equal(alone.rows[0], together.rows[i])
        np.testing.assert_allclose(alone.scores[0], together.scores[i], rtol=0, atol=1e-6)


COLUMNS = Columns(
    id=np.array([4, 5, 9, 12]),
    path=np.array(["a", "b", "c", "d"], object),
    pid=np.full(4, -1),
    camid=np.array([1, 2, 2, -1], np.int32),
    time=np.array([10.0, 20.0, np.nan, 30.0]),
    expires=np.full(4, np.nan),
)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (dict(), [1, 1, 1, 1]),
        (dict(cameras=[2, -1]), [0, 1, 1, 1]),
        (dict(not_cameras=(2,)), [1, 0, 0, 1]),
        (dict(since=20), [0, 1, 0, 1]),
        (dict(until=20), [1, 1, 0, 0]),
        (dict(since=15, until=25, cameras={2}), [0, 1, 0, 0]),
        (dict(ids=[12, 4, 77]), [1, 0, 0, 1]),
        (dict(not_paths=["a", "x"]), [0, 1, 1, 1]),
    ],
)
def test_filters_leave_entries_out(filters, expected):
    assert choose(COLUMNS, **filters).tolist() == list(map(bool, expected))


def test_what_cannot_be_searched_is_refused_in_one_line():
    gallery, query = drawn_rows(0, 30), drawn_rows(1, 40)
    searched = Index(gallery)
    with pytest.raises(DataError, match="the gallery is empty; add entries before searching"):
        Index(take(gallery, []))
    for k in (0, 31):
        with pytest.raises(ConfigError, match=f"k={k} matches of a gallery of 30 rows; ask for 1 to 30"):
            searched.search(query, k)
    with pytest.raises(ConfigError, match="use one model for both"):
        searched.search(drawn_rows(1, 4, fallback=0), 3)
    for i, name in ((7, "query"), (33, "query"), (7, "gallery")):
        for field, value in (("parts", np.nan), ("parts", np.inf), ("fallback", np.nan), ("present", False)):
            rows = query if name == "query" else gallery
            rows = Parts(*(x.copy() for x in rows))
            getattr(rows, field)[i] = value
            if field == "present":
                rows.fallback[i] = 0
            with pytest.raises(DataError, match=f"{name} row {i} has no finite part or fallback vector"):
                searched.search(rows, 3) if name == "query" else Index(rows)
    with pytest.raises(ValueError, match="where"):
        searched.search(query, 3, np.ones(29, bool))


SEARCH = """
import json
(out,) = given
from test_similarity import drawn_rows
from jax_mmreid.search import index
index.GALLERY = 64
found = index.Index(drawn_rows(0, 1031, width=43)).search(drawn_rows(1, 70, width=43), 17)
with open(f"{out}-{jax.process_index()}", "w") as file:
    json.dump({"devices": jax.device_count()} | {name: x.tolist() for name, x in found._asdict().items()}, file)
"""


@pytest.mark.slow
def test_matches_are_the_same_bit_for_bit_on_any_devices_and_processes(tmp_path, port):
    found = []
    for count, devices in ((1, 1), (1, 8), (2, 8)):
        out = tmp_path / f"{count}x{devices}"
        run(SEARCH, count, port, out, devices=devices)
        found += [json.loads((tmp_path / f"{out}-{i}").read_text()) for i in range(count)]
    assert [one.pop("devices") for one in found] == [1, 8, 8, 8]
    assert found[0] == found[1] == found[2] == found[3] and len(found[0]["rows"]) == 70
