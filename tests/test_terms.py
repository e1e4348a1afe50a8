"""What vectors are made of: the terms of every method and `use` add up to the vectors, and their shares to a score."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import build, noise, open_tiny, tiny_clip_config, tiny_config, tiny_tvi_config

from jax_mmreid.batch import one_row

ROWS = 9


@functools.partial(jax.jit, static_argnames=("method", "use"))
def both(method, variables, features, use):
    return method.embed(variables, features, use), method.terms(variables, features, use)


def random_features(method, variables, spec, captions=0):
    """Features of rows that lack pictures and captions at random, but never all of them."""
    rng = np.random.default_rng(5)
    row = one_row(spec, spec.modalities, spec.modalities if captions else (), captions)
    shapes = jax.eval_shape(method.encode, variables, row)

    def draw(x):
        shape = (ROWS, *x.shape[1:])
        return rng.random(shape) < 0.6 if x.dtype == bool else rng.normal(size=shape).astype(np.float32)

    found = jax.tree.map(draw, shapes)
    return jax.tree.map(jnp.asarray, found)


def model(config):
    """The method of a config with random weights, its variables and the spec of the data."""
    data = open_tiny(config)
    exp = build(config, data, devices=jax.devices()[:1])
    variables = noise(exp.abstract).variables
    variables |= {"batch_stats": jax.tree.map(lambda x: abs(x) + 0.5, variables["batch_stats"])}  # no variance below 0
    return exp.phases[-1].method, variables, data


def check(method, variables, features, use):
    """The terms add up to the vectors, and what they add to the scores with a gallery to the scores; returns them."""
    vectors, terms = both(method, variables, features, use)
    gallery = np.random.default_rng(7).normal(size=(4, vectors.shape[1]))
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    np.testing.assert_allclose(sum(map(np.asarray, terms.values())), vectors, rtol=0, atol=1e-6)
    shares = {name: np.asarray(x, np.float64) @ gallery.T for name, x in terms.items()}
    np.testing.assert_allclose(sum(shares.values()), np.asarray(vectors, np.float64) @ gallery.T, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=0, atol=1e-5)
    return {name: np.asarray(x) for name, x in terms.items()}


@pytest.fixture(scope="module")
def row_f(drawn):
    method, variables, data = model(tiny_config(drawn))
    features = random_features(method, variables, data.spec)
    present = features["present"].at[:, 1].set(True)  # so that no row is empty
    return method, variables, features | {"present": present.at[0].set(True)}


WHOLE = ("rgb", "nir", "tir")
MISS_REID_USES = [
    (WHOLE, {}),
    (WHOLE, {"imputation": "alone"}),
    (("nir",), {}),
    (("nir", "tir"), {"imputation": "zero"}),
    (("nir", "tir"), {"imputation": "alone"}),
    (("nir", "tir"), {"text_terms": False}),
]


@pytest.mark.parametrize(("use", "options"), MISS_REID_USES, ids=str)
def test_every_modality_of_miss_reid_has_a_block(row_f, use, options):
    method, variables, features = row_f
    method = method.with_options(options, "options")
    terms = check(method, variables, features, use)
    assert set(terms) == {*WHOLE, "imputed rgb", "imputed nir", "imputed tir"}
    width = method.config.dim
    for i, m in enumerate(method.modalities):
        for name in (m, f"imputed {m}"):
            outside = np.delete(terms[name], np.s_[i * width : (i + 1) * width], axis=1)
            assert not outside.any()
        there = np.asarray(features["present"][:, i]) & (m in use)
        assert not terms[m][~there].any() and not (terms[m].any(axis=1) & terms[f"imputed {m}"].any(axis=1)).any()
        if method.imputation != "alone":
            assert terms[m][there].any(axis=1).all()
    if method.text_terms and method.imputation == "text":
        assert terms["imputed rgb"][~np.asarray(features["present"][:, 0])].any(axis=1).all()


@pytest.mark.parametrize("fill", ["zero_feature", "mean_feature", "encode_zero_image"])
def test_rows_without_text_have_blocks_too(drawn, fill):
    config = tiny_config(drawn, row="A", **{"model.missing_fill": fill})
    method, variables, data = model(config)
    features = random_features(method, variables, data.spec)
    features["present"] = features["present"].at[:, 2].set(True)
    terms = check(method, variables, features, ("nir", "tir"))
    assert terms["imputed rgb"].any() == (fill != "zero_feature") and not terms["rgb"].any()


@pytest.fixture(scope="module")
def tvi(drawn_sysu):
    method, variables, data = model(tiny_tvi_config(drawn_sysu))
    return method, variables, random_features(method, variables, data.spec, captions=11)


TVI_USES = [
    (("rgb",), {}, ["rgb"]),
    (("ir",), {}, ["ir"]),
    (("ir",), {"neck": "base"}, ["ir"]),
    (("text",), {}, ["text"]),
    (("text/rgb",), {}, ["text/rgb"]),
    (("ir", "text"), {}, ["ir", "text/rgb", "-text/ir"]),
    (("ir", "text"), {"ensemble": True}, ["ir", "text/rgb", "-text/ir"]),
]


@pytest.mark.parametrize("sff", [True, False])
@pytest.mark.parametrize(("use", "options", "names"), TVI_USES, ids=str)
def test_a_fusion_of_tvi_lfm_is_its_image_and_its_captions(tvi, use, options, names, sff):
    method, variables, features = tvi
    method = dataclasses.replace(method.with_options(options, "options"), sff=sff)
    terms = check(method, variables, features, use)
    assert set(terms) == {name if sff else name.replace("-text/ir", "neck") for name in names}


def test_a_caption_alone_moves_the_terms_of_captions_only(tvi):
    """With another caption of the infrared picture, the directions of the other terms stay."""
    method, variables, features = tvi
    other = features | {"text": features["text"] | {"ir": features["text"]["ir"][::-1]}}
    one, two = (check(method, variables, x, ("ir", "text")) for x in (features, other))
    for name, changed in (("ir", False), ("text/rgb", False), ("-text/ir", True)):
        directions = [x[name] / np.linalg.norm(x[name], axis=1, keepdims=True) for x in (one, two)]
        cosine = np.prod(directions, axis=0).sum(axis=1)
        assert (cosine > 1 - 1e-5).all() != changed


def test_every_picture_and_caption_of_clip_is_a_term(drawn):
    method, variables, data = model(tiny_clip_config(drawn))
    features = random_features(method, variables, data.spec, captions=13)
    features["present"]["nir"] = jnp.ones(ROWS, bool)
    terms = check(method, variables, features, ("rgb", "nir", "text/rgb"))
    assert set(terms) == {"rgb", "nir", "text/rgb"}
    assert not terms["rgb"][~np.asarray(features["present"]["rgb"])].any() and terms["rgb"].any()


def test_a_method_that_says_nothing_has_one_term(tvi):
    method, variables, features = tvi
    terms = super(type(method), method).terms(variables, features, ("ir", "text"))
    assert list(terms) == ["ir+text"]
    np.testing.assert_array_equal(terms["ir+text"], method.embed(variables, features, ("ir", "text")))
