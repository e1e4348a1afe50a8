"""Law: approximate search returns exact scores; with enough candidates it is exact search."""

import sys

import numpy as np
import pytest
from test_index import check, filled
from test_similarity import drawn_rows

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics.similarity import Parts
from jax_mmreid.search import approximate
from jax_mmreid.search.approximate import Approximate
from jax_mmreid.search.candidates import recall
from jax_mmreid.search.index import Index, Matches, take

needs_faiss = pytest.mark.usefixtures("faiss")


@pytest.fixture(scope="module")
def faiss():
    return pytest.importorskip("faiss", reason="needs the faiss extra")


def with_captions(rows):
    """Every seventh row has its fallback vector alone."""
    present = rows.present.copy()
    present[::7] = False
    return rows._replace(present=present)


@needs_faiss
@pytest.mark.parametrize("whole", [10_000, 20])
@pytest.mark.parametrize("fallback", [0, 7])
def test_with_all_candidates_it_is_exact_search(monkeypatch, whole, fallback):
    """Groups of about 30 rows, searched whole or by lists, of which all are looked through."""
    monkeypatch.setattr(approximate, "WHOLE", whole)
    monkeypatch.setattr(approximate, "CHUNK", 16)
    query, gallery = (drawn_rows(i, n, fallback=fallback) for i, n in enumerate((29, 203)))
    if fallback:
        query, gallery = with_captions(query), with_captions(gallery)
    found = Approximate(gallery).search(query, 9, candidates=203, probes=203)
    check(found, query, gallery, 9)
    where = np.random.default_rng(0).random(203) < 0.3
    check(Approximate(gallery).search(query, 70, where, candidates=203, probes=203), query, gallery, 70, where)


@needs_faiss
def test_few_candidates_find_most_and_more_of_them_more(monkeypatch):
    """Clustered rows, as those of people are: 60 clusters of 20 rows."""
    monkeypatch.setattr(approximate, "WHOLE", 100)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 3, 8))
    parts = (centres[rng.integers(60, size=1300)] + 0.5 * rng.normal(size=(1300, 3, 8))).astype(np.float32)
    present = rng.random((1300, 3)) < 0.7
    present[:, 0] |= ~present.any(axis=1)
    rows = Parts(parts, present)
    query, gallery = take(rows, slice(0, 100)), take(rows, slice(100, None))
    exact = Index(gallery).search(query, 10)
    searched = Approximate(gallery)
    few, some, all_lists = (searched.search(query, 10, probes=n, candidates=30) for n in (1, 4, 64))
    assert 0.4 < recall(few, exact) < recall(some, exact) < recall(all_lists, exact)
    assert recall(all_lists, exact) > 0.95 and recall(exact, exact) == 1
    same = few.rows == exact.rows
    np.testing.assert_allclose(few.scores[same], exact.scores[same], rtol=0, atol=1e-6)


def test_recall_is_the_share_of_what_exact_search_found():
    def matches(rows):
        return Matches(np.array(rows), None, None, None)

    exact = matches([[4, 2, 7, 1], [5, 6, -1, -1], [-1, -1, -1, -1]])
    assert recall(matches([[1, 9, 4, 8], [6, 5, -1, -1], [-1, -1, -1, -1]]), exact) == (0.5 + 1) / 2
    assert np.isnan(recall(exact, matches([[-1]])))


@needs_faiss
def test_what_cannot_be_searched_is_refused():
    with pytest.raises(DataError, match="the gallery is empty"):
        Approximate(take(drawn_rows(0, 3), []))
    query = drawn_rows(1, 4)
    query.fallback[2] = np.nan
    with pytest.raises(DataError, match="query row 2 has no finite part or fallback vector"):
        Approximate(drawn_rows(0, 3)).search(query, 1)


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"needs Faiss; pip install 'jax-mmreid\[faiss\]'"):
        Approximate(filled(drawn_rows(0, 5)))
