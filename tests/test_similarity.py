"""Similarities of rows that differ in what they have: by the definition, in ranks, and in evaluation rows."""

import jax
import numpy as np
import pytest
from conftest import noise, start, tiny_clip_config, tiny_config, tiny_tvi_config

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import runner
from jax_mmreid.evaluators.encoder import Encoder
from jax_mmreid.evaluators.programs import COMMON, COMMON_OR_AVAILABLE
from jax_mmreid.metrics import device_ranking, galleries, ranking, similarity, vectors
from jax_mmreid.metrics.similarity import NO_SCORE, Packing, Parts
from jax_mmreid.recipes.missing_settings import missing_evals, settings
from jax_mmreid.sharding import make_mesh


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def drawn_rows(seed, n, *, modalities=3, width=5, fallback=7):
    """Random rows, each with at least one modality; absent parts are NaN."""
    rng = np.random.default_rng(seed)
    present = rng.random((n, modalities)) < 0.5
    present[np.arange(n), rng.integers(modalities, size=n)] = True
    parts = rng.normal(size=(n, modalities, width)) * rng.uniform(0.1, 10, (n, modalities, 1))
    parts[~present] = np.nan
    other = unit(rng.normal(size=(n, fallback))).astype(np.float32) if fallback else None
    return Parts(parts.astype(np.float32), present, other)


def loop(query, gallery):
    """The definition in float64, pair by pair."""
    found = np.empty((len(query.parts), len(gallery.parts)))
    for i, j in np.ndindex(*found.shape):
        both = query.present[i] & gallery.present[j]
        if not both.any():
            found[i, j] = NO_SCORE if query.fallback is None else np.float64(query.fallback[i]) @ gallery.fallback[j]
            continue
        q, g = (np.float64(x[both]).ravel() for x in (query.parts[i], gallery.parts[j]))
        found[i, j] = q @ g / np.linalg.norm(q) / np.linalg.norm(g)
    return found


@pytest.mark.parametrize("fallback", [0, 7])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_cosine_over_the_modalities_that_both_have(seed, fallback):
    query, gallery = (drawn_rows(2 * seed + i, n, fallback=fallback) for i, n in enumerate((23, 31)))
    assert query.packing == Packing(3, 5, fallback)
    packed = [np.asarray(similarity.pack(rows)) for rows in (query, gallery)]
    assert packed[0].shape == (23, query.packing.total)
    found, shared = similarity.common(*packed, query.packing)
    np.testing.assert_allclose(found, loop(query, gallery), rtol=0, atol=1e-6)
    both = (query.present[:, None] & gallery.present[None]).any(axis=-1)
    np.testing.assert_array_equal(shared, both)
    assert both.any() and not both.all()


def test_rows_with_the_same_modalities_are_compared_by_their_whole_vectors():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 3, 5)).astype(np.float32) for n in (19, 29)]
    for mask in ([True, True, True], [False, True, True], [False, False, True]):
        sides = [Parts(x, np.tile(mask, (len(x), 1))) for x in parts]
        whole = [unit(np.where(x.present[..., None], x.parts, 0).reshape(len(x.parts), -1)) for x in sides]
        found = similarity.similarities(*map(similarity.pack, sides), sides[0].packing)
        np.testing.assert_allclose(found, whole[0] @ whole[1].T, rtol=0, atol=1e-6)


def test_unpacked_rows_are_those_that_were_packed():
    rows = drawn_rows(0, 11)
    found = similarity.unpack(np.asarray(similarity.pack(rows)), rows.packing)
    np.testing.assert_array_equal(found.present, rows.present)
    np.testing.assert_array_equal(found.fallback, rows.fallback)
    parts = np.where(rows.present[..., None], rows.parts, 0)
    parts = parts / np.linalg.norm(parts.reshape(11, -1), axis=1)[:, None, None]
    np.testing.assert_allclose(found.parts, parts, rtol=0, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_ranks_are_those_of_the_matrix_on_any_number_of_devices(monkeypatch, devices):
    monkeypatch.setattr(device_ranking, "QUERIES", 16)
    monkeypatch.setattr(device_ranking, "GALLERY", 16)
    query, gallery = (drawn_rows(i, n) for i, n in enumerate((33, 97)))
    rng = np.random.default_rng(0)
    sides = [dict(pid=rng.integers(0, 12, n), camid=rng.integers(0, 3, n)) for n in (33, 97)]
    relevance = ranking.relevance("same_camera", *sides)
    packed = [vectors.on_host(np.asarray(similarity.pack(x)), x.packing) for x in (query, gallery)]
    mesh = make_mesh(data=devices, model=1, devices=jax.devices()[:devices])
    found = device_ranking.rank(*packed, relevance, mesh)
    matrix = np.asarray(similarity.similarities(*(x.array for x in packed), query.packing))
    expected = ranking.rank(-matrix.astype(np.float64), relevance)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-12, err_msg=name)
    with pytest.raises(ValueError, match="both sides must come from one model"):
        device_ranking.rank(packed[0], vectors.on_host(packed[1].array), relevance, mesh)


def test_a_mixed_side_shows_every_subset_about_as_often_and_never_nothing():
    present = np.ones((7000, 3), bool)
    present[:1000, 0] = False
    present[0] = False
    shown = galleries.subsets(present, seed=3)
    assert not (shown & ~present).any() and not shown[0].any() and shown[1:].any(axis=1).all()
    _, counts = np.unique(shown[1000:], axis=0, return_counts=True)
    assert len(counts) == 7 and (abs(counts - 6000 / 7) < 5 * np.sqrt(6000 / 7)).all()
    np.testing.assert_array_equal(shown, galleries.subsets(present, seed=3))
    assert (shown != galleries.subsets(present, seed=4)).any()


@pytest.fixture(scope="module")
def tiny(drawn):
    exp, data, _ = start(tiny_config(drawn))
    return exp.phases[-1].method, noise(exp.abstract.variables, seed=1), data, exp.mesh


def run(tiny, rows):
    method, variables, data, mesh = tiny
    runner.check(rows, data)
    runner.check_method(rows, method, variables, data)
    return runner.run(rows, method, variables, data, mesh, mean=0.5, std=0.5)


@pytest.mark.parametrize("use", [("rgb", "nir", "tir"), ("nir", "tir"), ("tir",)])
def test_rows_with_the_same_modalities_have_the_scores_of_zero_blocks(tiny, use):
    method, variables, data, mesh = tiny
    encoder = Encoder(method, variables, data, mesh, mean=0.5, std=0.5, uses=[("test", use)])
    whole = encoder.fetch(encoder.vectors("test", use, {"imputation": "zero"}))
    for form in (COMMON, COMMON_OR_AVAILABLE):
        found = encoder.vectors("test", use, {}, form=form)
        rows = encoder.fetch(found)
        scores = similarity.similarities(rows, rows, found.packing)
        np.testing.assert_allclose(scores, whole @ whole.T, rtol=0, atol=1e-6)


def test_49_pairs_differ_from_zero_blocks_where_the_modalities_do(tiny):
    names, given = ("rgb", "nir", "tir"), ("test", "same_camera")
    rows = missing_evals(names, *given, "zero", options={"imputation": "zero"}, pairs=True)
    rows |= missing_evals(names, *given, "common", similarity="common", fallback="none", pairs=True)
    results = run(tiny, rows)
    uses, differ, expected = settings(names), set(), set()
    for pair in [f"{q}>{g}" for q in uses for g in uses]:
        zero, common = (results[f"{kind}/pairs/{pair}"]["mAP"] for kind in ("zero", "common"))
        query, gallery = (set(uses[end]) for end in pair.split(">"))
        # What the gallery has beyond the query shortens its rows' shares of zero blocks, each by another factor.
        differ |= {pair} if abs(zero - common) > 1e-4 else set()
        expected |= {pair} if query & gallery and gallery - query else set()
    assert len(expected) == 18 and differ == expected
    assert results["common/pairs/no_rn>no_nt"]["no_common"] == 1.0
    assert results["common/pairs/no_rn>no_r"]["no_common"] == 0.0
    assert "similarity=common, fallback=none" in results["common/full"]["feature"]


def test_pairs_without_a_common_modality_are_compared_by_imputed_text_features(tiny):
    sides = dict(query=dict(split="test", use=("rgb",)), gallery=dict(split="test", use=("tir",)), junk="same_camera")
    results = run(tiny, {"embed": sides, "common": sides | dict(similarity="common")})
    assert results["common"]["no_common"] == 1.0
    assert results["common"]["mAP"] == results["embed"]["mAP"]


def test_a_mixed_gallery_is_that_of_rows_that_lack_the_other_pictures(tiny):
    method, variables, data, mesh = tiny
    use = ("rgb", "nir", "tir")
    side = dict(split="test", use=use)
    row = dict(query=side, gallery=side | dict(mixed=5), junk="same_camera", similarity="common", fallback="none")
    results = run(tiny, {"mixed": row, "other": row | dict(gallery=side | dict(mixed=6))})
    assert results["mixed"]["mAP"] != results["other"]["mAP"]
    assert "gallery test (a random subset of each row's pictures, seed 5)" in results["mixed"]["protocol"]

    batch = [next(iter(data.split("test")))] if data.num_rows("test") <= 16 else list(data.split("test"))
    features = [jax.tree.map(np.asarray, method.encode(variables, _normalised(one))) for one in batch]
    valid = np.concatenate([one["valid"] for one in batch])
    parts = np.concatenate([one["feats"] for one in features])[valid]
    present = np.ones((len(parts), 3), bool)
    query, gallery = Parts(parts, present), Parts(parts, galleries.subsets(present, seed=5))
    columns = data.columns("test")
    expected = ranking.rank(-loop(query, gallery), ranking.relevance("same_camera", columns, columns))
    assert results["mixed"]["mAP"] == pytest.approx(expected["mAP"], abs=1e-6)


def _normalised(batch):
    images = {m: (x / np.float32(255) - 0.5) / 0.5 for m, x in batch["images"].items()}
    return jax.tree.map(jax.numpy.asarray, batch | {"images": images})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(similarity="cosine"), "similarity='cosine', expected one of embed, common"),
        (dict(similarity="common", fallback="text"), "fallback='text', expected one of available, none"),
        (dict(fallback="none"), "fallback belongs to similarity='common'; leave it out"),
        (dict(similarity="common", rerank=dict(k1=5, k2=2, lam=0.3)), "rerank needs vectors, so similarity='embed'"),
        (dict(gallery=dict(split="test", use=("rgb",), mixed=-1)), "gallery.mixed needs a seed of 0 or more"),
        (dict(gallery=dict(split="test", use=("rgb",), mixed="yes")), "gallery.mixed='yes'"),
    ],
)
def test_rows_that_cannot_be_are_refused(tiny, changes, message):
    side = dict(split="test", use=("rgb",))
    with pytest.raises(ConfigError, match=f"evals.row: {message}"):
        run(tiny, {"row": dict(query=side, gallery=side, junk="same_camera") | changes})


def test_rows_without_anything_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(galleries, "subsets", lambda present, seed: present & (np.arange(len(present)) != 4)[:, None])
    side = dict(split="test", use=("rgb", "nir"), mixed=0)
    row = dict(query=side, gallery=side, junk="same_camera", similarity="common", fallback="none")
    with pytest.raises(DataError, match=r"evals.row: row 4 of split 'test' has a vector of rgb\+nir that is zero"):
        run(tiny, {"row": row})


@pytest.mark.parametrize("make", [tiny_clip_config, tiny_tvi_config])
def test_images_and_captions_in_one_space_are_compared_without_a_common_modality(make, drawn, drawn_sysu):
    """A query with a caption alone, and rows with one modality or another, by `embed_available`."""
    config = make(drawn if make is tiny_clip_config else drawn_sysu, **{"requires_init": ()})
    exp, data, state = start(config)
    method, variables = exp.phases[-1].method, state.variables
    split = "test" if make is tiny_clip_config else "query"
    use = ("rgb", "nir") if make is tiny_clip_config else ("ir",)
    text = dict(split=split, use=("text",))
    row = dict(query=text, gallery=dict(split=split, use=use), junk="none")
    tiny = method, variables, data, exp.mesh
    results = run(tiny, {"embed": row, "common": row | dict(similarity="common")})
    assert results["common"]["mAP"] == pytest.approx(results["embed"]["mAP"], abs=1e-12)
    side = dict(split=split, use=use)
    results = run(tiny, {"alike": dict(query=side, gallery=side, junk="none", similarity="common")})
    assert results["alike"]["no_common"] == 0.0
