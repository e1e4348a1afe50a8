"""Ranks on devices: those of the definitions, to the last, on any number of devices."""

import functools
import math
import re

import jax
import numpy as np
import pytest
from brute import metrics, people, problems, ranks
from hypothesis import given, settings

from jax_mmreid.errors import DataError
from jax_mmreid.metrics import device_ranking, ranking, vectors
from jax_mmreid.sharding import make_mesh

ONE = make_mesh(data=1, model=1, devices=jax.devices()[:1])
MESHES = {
    "1": ONE,
    "3": make_mesh(data=3, model=1, devices=jax.devices()[:3]),
    "4x2": make_mesh(data=4, model=2),
}


def dots(query, gallery):
    """Distances whose ranks must be found; small whole numbers have exact products."""
    return -(query.astype(np.float64) @ gallery.T.astype(np.float64))


@pytest.mark.parametrize("by_identity", [False, True])
def test_ranks_are_those_of_the_definitions(by_identity):
    @settings(max_examples=150, deadline=None, database=None)
    @given(problems(vectors=True))
    def check(problem):
        query, gallery, rows = problem
        expected = metrics(dots(query, gallery), rows, by_identity)
        if expected is None:
            with pytest.raises(DataError, match="no query has a match in the gallery"):
                device_ranking.rank(*problem, ONE, by_identity=by_identity)
            return
        hits, first = device_ranking.ranks(*problem, ONE, by_identity=by_identity)
        found = [([r for r in row if r], f) for row, f in zip(hits.tolist(), first.tolist())]
        assert found == ranks(dots(query, gallery), rows, by_identity)
        got = device_ranking.rank(*problem, ONE, by_identity=by_identity)
        assert set(got) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-12, err_msg=name)

    check()


# A single row, whole tiles for every device, one row more, and several tiles each.
@pytest.mark.parametrize("mesh, G", [("3", 1), ("3", 48), ("3", 49), ("3", 301), ("4x2", 128), ("4x2", 301)])
def test_devices_change_nothing_to_the_last_bit(monkeypatch, mesh, G):
    """The metrics, and the ranks by identity, which are those of rows but for the first."""
    monkeypatch.setattr(device_ranking, "QUERIES", 32)
    monkeypatch.setattr(device_ranking, "GALLERY", 64)
    problem = people(G, 50, G, identities=2 if G == 1 else 20)
    one, many = (device_ranking.rank(*problem, m) for m in (ONE, MESHES[mesh]))
    for name, value in one.items():
        np.testing.assert_array_equal(many[name], value, err_msg=name)
    a, b = (device_ranking.ranks(*problem, m, by_identity=True) for m in (ONE, MESHES[mesh]))
    np.testing.assert_array_equal(a.hits, b.hits)
    np.testing.assert_array_equal(a.first, b.first)


@pytest.mark.parametrize("sides", [(1, 8), (37, 64)])
def test_blocks_of_any_size_give_the_same(monkeypatch, sides):
    rng = np.random.default_rng(0)
    query, gallery, rows = people(3, 90, 211)
    query, gallery = (rng.integers(-2, 3, x.shape).astype(np.float32) for x in (query, gallery))  # exact products
    expected = device_ranking.rank(query, gallery, rows, ONE)
    monkeypatch.setattr(device_ranking, "QUERIES", sides[0])
    monkeypatch.setattr(device_ranking, "GALLERY", sides[1])
    for name, value in device_ranking.rank(query, gallery, rows, MESHES["3"]).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def on_devices(x, mesh, batches, rng):
    """The rows of x [n,D] as a model makes them: in batches over the devices, with padding rows of NaN."""
    width = 8 * -(-len(x) // (8 * batches)) + 8
    spread = jax.NamedSharding(mesh, jax.P("data"))
    parts, valid = [], []
    for rows in np.array_split(np.arange(len(x)), batches):
        keep = np.sort(rng.permutation(width)[: len(rows)])
        part = np.full((width, x.shape[1]), np.nan, np.float32)
        part[keep] = x[rows]
        parts.append(jax.device_put(part, spread))
        valid.append(np.isin(np.arange(width), keep))
    return vectors.on_devices(parts, valid, mesh)


@pytest.mark.parametrize("mesh", ["1", "4x2"])
@pytest.mark.parametrize("by_identity", [False, True])
def test_vectors_on_devices_are_ranked_as_those_of_the_host(mesh, by_identity):
    """Rows are chosen and reordered on both sides, as settings and draws do; nothing else differs, to the last bit."""
    rng, mesh = np.random.default_rng(0), MESHES[mesh]
    query, gallery, _ = people(9, 70, 150)
    mine, theirs = rng.permutation(70)[:53], rng.permutation(150)[:131]
    numbers = [{"pid": rng.integers(0, 9, n), "camid": rng.integers(1, 4, n)} for n in (53, 131)]
    rows = ranking.relevance("same_camera", *numbers)
    host = query[mine], gallery[theirs]
    devices = on_devices(query, mesh, 3, rng)[mine], on_devices(gallery, mesh, 5, rng)[theirs]
    for x, y in zip(host, devices):
        np.testing.assert_array_equal(x, y.local(mesh))
    expected = device_ranking.rank(*host, rows, ONE, by_identity=by_identity)
    found = device_ranking.rank(*devices, rows, mesh, by_identity=by_identity)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_given_and_computed_distances_have_the_same_metrics():
    query, gallery, rows = people(5, 290, 1500, spread=1.0)
    for by_identity in (False, True):
        given = ranking.rank(-np.einsum("qd,gd->qg", query, gallery, dtype=np.float64), rows, by_identity=by_identity)
        found = device_ranking.rank(query, gallery, rows, ONE, by_identity=by_identity)
        for name, value in given.items():
            np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)  # near ties of float32
        assert 0 < given["TPR@1e-4"] < given["TPR@1e-3"] < given["TPR@1e-2"] < 1


def test_vectors_of_any_length_and_zero_rank_by_their_products():
    rng = np.random.default_rng(0)
    query, gallery, rows = people(7, 40, 90)
    query, gallery = query * 2.0 ** rng.integers(-60, 40, (40, 1)), gallery * 2.0 ** rng.integers(-60, 20, (90, 1))
    gallery[::7] = 0
    query, gallery = query.astype(np.float32), gallery.astype(np.float32)
    hits = device_ranking.ranks(query, gallery, rows, ONE).hits
    halves = device_ranking.ranks(query * np.float32(0.5), gallery, rows, ONE).hits
    np.testing.assert_array_equal(hits, halves)
    zeros = np.zeros_like(gallery)
    flat = [([r for r in row if r]) for row in device_ranking.ranks(query, zeros, rows, ONE).hits.tolist()]
    assert flat == [hits for hits, _ in ranks(np.zeros((40, 90)), rows)]


def test_the_keys_of_floats_sort_as_they_do():
    special = [-np.inf, -3e38, -1.0, -2e-38, -0.0, 0.0, 2e-38, 1.0, np.nextafter(np.float32(1), np.float32(2)), 3e38]
    keys = np.asarray(device_ranking._keys(jax.numpy.array(special, np.float32)))
    assert keys[4] == keys[5] and (np.diff(np.delete(keys, 4).astype(np.int64)) > 0).all()


def test_no_device_holds_all_distances(monkeypatch):
    """The largest array of the compiled programs grows with the gallery, not with the queries."""
    monkeypatch.setattr(device_ranking, "QUERIES", 32)
    problem, programs = people(0, 70, 9000, identities=300), {}

    def watching(name, original, *args, **settings):
        if name not in programs:
            programs[name] = original.lower(*args, **settings).compile()
        return programs[name](*args)

    for name in ("_block_ranks", "_block_lower"):
        monkeypatch.setattr(device_ranking, name, functools.partial(watching, name, getattr(device_ranking, name)))
    device_ranking.rank(*problem, ONE)
    for program in programs.values():
        text = program.as_text()
        largest = max(math.prod(map(int, dims.split(","))) for dims in re.findall(r"\w\[([0-9,]+)\]", text))
        assert largest == 32 * 9 * 1024  # a block of queries by the gallery in whole tiles
    assert len(programs) == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(query=np.full((3, 2), np.nan)), DataError, r"query vector 0 is not finite \(3 such vectors\)"),
        (
            dict(gallery=np.array([[0, 1], [1e30, 0], [1, 0], [1, 1], [0, 0]])),
            DataError,
            "gallery vector 1 is not finite",
        ),
        (
            dict(query=np.ones((3, 4))),
            ValueError,
            "query vectors have 4 numbers, gallery vectors 2; both",
        ),
        (dict(query=np.ones((2, 2))), ValueError, "there are 2 query vectors and 3 query rows"),
        (dict(gallery=np.ones(5)), ValueError, r"gallery vectors \(5,\) must be \[n,D\]"),
        (dict(gallery=np.ones((0, 2)), pid=np.zeros(0, int)), DataError, "no query has a match"),
    ],
)
def test_vectors_that_cannot_be_ranked_are_refused_in_one_line(change, error, message):
    sides = dict(query=np.ones((3, 2)), gallery=np.ones((5, 2)), pid=np.zeros(5, int)) | change
    rows = ranking.relevance("none", {"pid": np.zeros(3, int)}, {"pid": sides["pid"]})
    with pytest.raises(error, match=message) as raised:
        device_ranking.rank(sides["query"], sides["gallery"], rows, ONE)
    assert "\n" not in str(raised.value)
