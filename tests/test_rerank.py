"""k-reciprocal re-ranking in sparse matrices against sets and loops written from the definition, and its memory."""

import math
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics import rerank as module
from jax_mmreid.metrics.rerank import rerank


def loop(query, gallery, k1, k2, lam):
    """The definition, one row, one set and one pair at a time, in float64."""
    x = np.concatenate([query, gallery]).astype(np.float64)
    rows = range(len(x))
    far = [max(np.sum((a - b) ** 2) for b in x) or 1 for a in x]
    d = [[np.sum((a - b) ** 2) / far[i] for b in x] for i, a in enumerate(x)]
    order = [sorted(rows, key=lambda j: (d[i][j], j)) for i in rows]

    def mutual(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    V = np.zeros((len(x), len(x)))
    for i in rows:
        own = mutual(i, k1)
        expanded = set(own)
        for c in own:
            half = mutual(c, round(k1 / 2))
            if 3 * len(half & own) > 2 * len(half):
                expanded |= half
        total = sum(math.exp(-d[i][j]) for j in expanded)
        for j in expanded:
            V[i, j] = math.exp(-d[i][j]) / total
    if k2 != 1:
        V = np.array([np.mean([V[j] for j in order[i][:k2]], axis=0) for i in rows])
    out = np.zeros((len(query), len(gallery)))
    for i in range(len(query)):
        for j in range(len(gallery)):
            m = np.minimum(V[i], V[len(query) + j]).sum()
            out[i, j] = (1 - lam) * (1 - m / (2 - m)) + lam * d[i][len(query) + j]
    return out


def whole(query, gallery, **options):
    blocks = list(rerank(query, gallery, **options))
    assert all(b.dtype == np.float32 and b.shape[1] == len(gallery) and len(b) for b in blocks)
    out = np.concatenate(blocks)
    assert len(out) == len(query)
    return out


def check(query, gallery, atol=1e-6, **options):
    np.testing.assert_allclose(whole(query, gallery, **options), loop(query, gallery, **options), rtol=0, atol=atol)


# Few shapes, since each is compiled. At times k1 and k2 are more than there are rows.
SHAPES = [(1, 1), (1, 19), (5, 3), (7, 13), (8, 20)]
OPTIONS = dict(k1=st.integers(1, 12), k2=st.integers(1, 6), lam=st.sampled_from([0, 0.3, 1]))


@st.composite
def problems(draw, integers):
    """(query, gallery): whole numbers, of which few differ and whose distances are exact, or normal ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels, shape = draw(st.integers(1, 4)), draw(st.sampled_from(SHAPES))
    if integers:
        return [rng.integers(0, levels, (n, 3)).astype(np.float32) for n in shape]
    # In fewer dimensions rows may be so close that in float32 their distance has few digits.
    return [rng.standard_normal((n, 11)).astype(np.float32) for n in shape]


@settings(max_examples=60, deadline=None)
@given(problems(integers=True), st.fixed_dictionaries(OPTIONS))
def test_equals_the_loop_where_ties_are_the_rule(problem, options):
    check(*problem, **options)


@settings(max_examples=40, deadline=None)
@given(problems(integers=False), st.fixed_dictionaries(OPTIONS))
def test_equals_the_loop_where_no_distances_are_equal(problem, options):
    check(*problem, **options, atol=5e-6)


def clustered(seed, identities, each, D):
    """Whole numbers [identities*each,D], in random order, where rows of one identity are near each other."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(-9, 10, (identities, D)).repeat(each, axis=0)
    return rng.permutation(centres + rng.integers(-2, 3, centres.shape)).astype(np.float32)


@pytest.mark.parametrize("options", [dict(), dict(k1=7, k2=3), dict(k1=13, k2=1, lam=0.0), dict(k1=50, k2=15)])
def test_equals_the_loop_on_identities_with_many_rows(options):
    x = clustered(0, identities=7, each=11, D=3)
    check(x[:17], x[17:], **dict(k1=20, k2=6, lam=0.3) | options)
    if not options:
        np.testing.assert_array_equal(whole(x[:17], x[17:]), whole(x[:17], x[17:], k1=20, k2=6, lam=0.3))


# Of 77 rows: a row at a time, 3 rows, 13, 38, and all of them.
@pytest.mark.parametrize("block", [1, 77 * 3 + 5, 77 * 13, 77 * 38, 10**6])
def test_blocks_of_any_size_give_the_same(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    x = clustered(1, identities=7, each=11, D=3)
    for queries in (1, 17, 76):
        sizes = [len(b) for b in rerank(x[:queries], x[queries:], k1=7, k2=3)]
        step = max(1, min(block // 77, queries))
        assert sizes == [min(step, queries - i) for i in range(0, queries, step)]
        check(x[:queries], x[queries:], k1=7, k2=3, lam=0.3)


def test_known_values():
    # On a line; the halves of R(., 1) are the rows themselves, R(0) = R(1) = {0, 1} and R(2) = {2}.
    query, gallery = np.array([[0.0]]), np.array([[1.0], [10.0]])
    near, far = math.exp(-1 / 100), math.exp(-1 / 81)  # of row 1 as row 0 sees it, and the other way about
    m = near / (1 + near) + far / (1 + far)
    expected = [[0.7 * (1 - m / (2 - m)) + 0.3 / 100, 0.7 + 0.3]]
    np.testing.assert_allclose(whole(query, gallery, k1=1, k2=1), expected, rtol=0, atol=1e-6)


def test_more_neighbours_than_rows_are_all_rows():
    x = clustered(2, identities=3, each=4, D=2)
    at_most = whole(x[:5], x[5:], k1=24, k2=12)  # of which the half takes all 12 rows too
    np.testing.assert_array_equal(whole(x[:5], x[5:], k1=1000, k2=999), at_most)
    check(x[:5], x[5:], k1=1000, k2=999, lam=0.3)


def test_lam_of_one_ranks_as_the_plain_distances():
    rng = np.random.default_rng(0)
    query, gallery = (rng.standard_normal((n, 7)).astype(np.float32) for n in (11, 29))
    plain = np.sum((query[:, None] - gallery) ** 2, axis=-1)
    got = whole(query, gallery, lam=1, k1=5)
    np.testing.assert_array_equal(np.argsort(got, kind="stable"), np.argsort(plain, kind="stable"))
    assert (np.argsort(whole(query, gallery, k1=5)) != np.argsort(plain)).any()


def test_features_on_a_device_give_the_same_and_stay_there():
    x = clustered(5, identities=7, each=11, D=3)
    expected = whole(x[:17], x[17:], k1=7, k2=3)
    query, gallery = jax.device_put(x[:17]), jax.device_put(x[17:])
    np.testing.assert_array_equal(whole(query, gallery, k1=7, k2=3), expected)
    np.testing.assert_array_equal(whole(query, x[17:], k1=7, k2=3), expected)  # one that did not fit
    for side in (query * np.inf, query * np.float32(1e19), query[:0]):
        with pytest.raises(DataError, match="re-ranking: the query has no rows|query features are not finite"):
            rerank(side, gallery)


def test_a_query_that_is_in_the_gallery_finds_itself_first():
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((53, 97)).astype(np.float32)
    query = gallery[[3, 52, 0, 17, 3]]
    got = whole(query, gallery, k1=6, k2=3)
    assert np.isfinite(got).all() and got.argmin(axis=1).tolist() == [3, 52, 0, 17, 3]


@pytest.mark.parametrize("k2", [1, 3])
def test_more_duplicates_than_neighbours(k2):
    # Past the first three rows none has itself among its nearest: their sets are empty, and the mean is of others.
    check(np.ones((3, 2)), np.ones((8, 2)), k1=2, k2=k2, lam=0.3)
    check(np.ones((5, 2)), np.r_[np.ones((3, 2)), np.zeros((4, 2))], k1=2, k2=k2, lam=0.3)


def test_rounding_does_not_make_a_distance_negative():
    # The norms and the product of equal rows cancel only nearly.
    x = np.random.default_rng(0).standard_normal((11, 97)).astype(np.float32)
    got = whole(x, x, k1=3, k2=2, lam=1)
    assert (got >= 0).all() and (np.diag(got) < 1e-6).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64])
def test_other_types_are_read_as_float32_and_left_alone(dtype):
    x = clustered(3, identities=3, each=5, D=3)
    query, gallery = x[:4].astype(dtype), x[4:].astype(dtype)
    copies = query.copy(), gallery.copy()
    np.testing.assert_array_equal(whole(query, gallery, k1=3, lam=np.float64(0.3)), whole(x[:4], x[4:], k1=3))
    for before, after in zip(copies, (query, gallery)):
        np.testing.assert_array_equal(before, after)


def peak(rows):
    """Bytes at the peak on the host, and the most numbers in a block, where a quarter of the rows are queries."""
    x = clustered(4, identities=rows // 8, each=8, D=4)
    tracemalloc.start()
    try:
        largest = max(block.size for block in rerank(x[: rows // 4], x[rows // 4 :], k1=10, k2=4))
        return tracemalloc.get_traced_memory()[1], largest
    finally:
        tracemalloc.stop()


def test_memory_of_the_host_grows_with_the_rows_and_not_their_square(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1 << 16)
    (half, _), (full, largest) = peak(2000), peak(4000)
    assert largest <= module.BLOCK
    assert full < 4000**2 * 4 / 5
    assert full < 2.5 * half


def test_memory_of_the_device_is_a_block():
    feats = jax.ShapeDtypeStruct((20_000, 64), np.float32)
    squares = jax.ShapeDtypeStruct((20_000,), np.float32)
    size = module.BLOCK // 20_000
    found = module._nearest.lower(feats, squares, 0, size=size, count=21).compile().memory_analysis()
    assert found.temp_size_in_bytes < 3 * 4 * module.BLOCK < 20_000**2 * 4 / 10
    assert found.output_size_in_bytes < 2 * size * 22 * 4


ONES = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(k1=0), ConfigError, "k1=0 and k2=6 must be at least 1"),
        (dict(k2=0), ConfigError, "k1=20 and k2=0 must be at least 1"),
        (dict(lam=-0.1), ConfigError, r"lam=-0.1 must lie in \[0, 1\]"),
        (dict(lam=1.1), ConfigError, r"lam=1.1 must lie in \[0, 1\]"),
        (dict(lam=math.nan), ConfigError, r"lam=nan must lie in \[0, 1\]"),
        (dict(query=np.ones(2)), ValueError, r"query \(2,\) and gallery \(3, 2\) must be \[Q,D\] and \[G,D\]"),
        (dict(gallery=np.ones((1, 3, 2))), ValueError, r"gallery \(1, 3, 2\) must be"),
        (dict(gallery=np.ones((3, 5))), ValueError, r"query \(3, 2\) and gallery \(3, 5\) must be"),
        (dict(query=ONES[:0]), DataError, "the query has no rows"),
        (dict(gallery=ONES[:0]), DataError, "the gallery has no rows"),
        (dict(query=ONES * np.nan), DataError, "query features are not finite"),
        (dict(gallery=np.array([[1, 2], [3, np.inf]])), DataError, "gallery features are not finite"),
        (dict(gallery=ONES * 1e19), DataError, "gallery features .* too large to be squared"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_one_line_at_the_call(change, error, message):
    arguments = dict(query=ONES, gallery=ONES) | change
    with pytest.raises(error, match=message) as raised:
        rerank(arguments.pop("query"), arguments.pop("gallery"), **arguments)
    assert "\n" not in str(raised.value)
