"""Equality: a search in Qdrant is exact search, as long as there are enough candidates.

Qdrant's client answers for the server, in memory. With QDRANT_URL, a server answers too.
"""

import os
import sys

import numpy as np
import pytest
from stored import IDENTITY
from test_index import check
from test_similarity import drawn_rows

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics.similarity import NO_SCORE, Packing
from jax_mmreid.search.index import Columns, choose, take
from jax_mmreid.search.remote import Collection

NAME = "jax_mmreid_test"


@pytest.fixture(params=["memory", "server"])
def client(request):
    qdrant = pytest.importorskip("qdrant_client", reason="needs the qdrant extra")
    if request.param == "memory":
        yield qdrant.QdrantClient(":memory:")
        return
    if "QDRANT_URL" not in os.environ:
        pytest.skip("needs a Qdrant server; name it in QDRANT_URL")
    made = qdrant.QdrantClient(url=os.environ["QDRANT_URL"])
    made.delete_collection(NAME)
    yield made
    made.delete_collection(NAME)


def columns_of(n):
    rng = np.random.default_rng(0)
    time = np.where(rng.random(n) < 0.8, rng.uniform(0, 100, n), np.nan)
    path = np.array([f"{i}.png" for i in range(n)], object)
    return Columns(7 * np.arange(n), path, rng.integers(-1, 9, n), rng.integers(0, 4, n), time, np.full(n, np.nan))


def filled_collection(client, n=61, fallback=7):
    """A collection, what is in it, and queries; every ninth row and query has a fallback vector alone."""
    identity = IDENTITY._replace(packing=Packing(3, 5, fallback))
    rows, query = (drawn_rows(i, size, fallback=fallback) for i, size in enumerate((n, 13)))
    if fallback:
        rows.present[::9] = query.present[::9] = False
    made = Collection.create(client, NAME, identity)
    made.upload(columns_of(n), rows)
    return made, rows, query


def numbered(found):
    """Matches whose ids are rows again."""
    assert (found.rows[found.rows >= 0] % 7 == 0).all()
    return found._replace(rows=np.where(found.rows < 0, -1, found.rows // 7))


@pytest.mark.parametrize("fallback", [0, 7])
def test_with_enough_candidates_it_is_exact_search(client, fallback):
    made, rows, query = filled_collection(client, fallback=fallback)
    assert len(made) == 61
    scores = check(numbered(made.search(query, 9)), query, rows, 9)
    assert (scores == NO_SCORE).any() == (fallback == 0)


@pytest.mark.parametrize(
    "filters",
    [
        dict(cameras=[1, 3]),
        dict(not_cameras=[2], since=20.0),
        dict(until=50),
        dict(ids=[7 * i for i in range(0, 61, 2)], not_paths=["4.png", "6.png"]),
    ],
)
def test_filters_are_those_of_exact_search(client, filters):
    made, rows, query = filled_collection(client)
    where = choose(columns_of(61), **filters)
    assert 0 < where.sum() < 61
    check(numbered(made.search(query, 61, **filters)), query, rows, 61, where)


def test_deleted_entries_are_not_found_and_uploaded_ones_replaced(client):
    made, rows, query = filled_collection(client)
    gone = np.array([0, 5, 60])
    made.delete(7 * gone)
    made.delete([7])
    made.upload(*(type(x)(*(y[[1]] for y in x)) for x in (columns_of(61), rows)))
    made.upload(*(type(x)(*(y[[2]] for y in x)) for x in (columns_of(61), rows)))
    assert len(made) == 58
    where = ~np.isin(np.arange(61), gone)
    check(numbered(made.search(query, 58)), query, rows, 58, where)
    assert made.search(take(query, slice(0, 0)), 4).rows.shape == (0, 4)


def test_few_candidates_of_each_modality_still_have_exact_scores(client):
    made, rows, query = filled_collection(client)
    few, many = (numbered(made.search(query, 3, candidates=n)) for n in (3, 61))
    same = few.rows == many.rows
    assert 0.3 < same.mean() < 1
    np.testing.assert_allclose(few.scores[same], many.scores[same], rtol=0, atol=1e-6)


def test_points_of_other_models_are_not_found(client):
    made, rows, query = filled_collection(client)
    other = Collection(client, NAME, made.identity._replace(model="model-z"))
    assert len(other) == 0 and (other.search(query, 3).rows == -1).all()


def test_what_cannot_be_is_refused_in_one_line(client):
    made, rows, query = filled_collection(client)
    with pytest.raises(DataError, match="there is a collection jax_mmreid_test already"):
        Collection.create(client, NAME, made.identity)
    with pytest.raises(DataError, match="Qdrant collection none: .*"):
        Collection(client, "none", made.identity).search(query, 3)
    with pytest.raises(ConfigError, match="use one model"):
        made.search(drawn_rows(0, 3, fallback=0), 3)
    query.present[3], query.fallback[3] = False, 0
    with pytest.raises(DataError, match="query row 3 has no finite part or fallback vector"):
        made.search(query, 3)


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ConfigError, match=r"needs its client; pip install 'jax-mmreid\[qdrant\]'"):
        Collection(None, NAME, IDENTITY)
