"""The laws of the CLIP towers: cameras and sentences, precision and memory, and how parameters start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_towers import (
    DIM,
    IMAGE,
    LENGTH,
    TEXT,
    WIDTH,
    B,
    H,
    W,
    encode,
    image_inputs,
    read,
)
from clip_towers import image_params as image_params
from clip_towers import text_params as text_params
from conftest import assert_trees_close
from parity import close, init, normal, randomized, shapes, stds

from jax_mmreid.models.clip import ImageTower, TextTower
from jax_mmreid.models.language import inject, template


def test_a_zero_camera_row_adds_nothing(image_params):
    images, camera = image_inputs()
    for a, b in zip(encode(image_params, images, np.zeros_like(camera)), encode(image_params, images)):
        np.testing.assert_array_equal(a, b)


def test_the_camera_is_added_to_the_class_token_only(image_params):
    images, camera = image_inputs()
    with_camera, _ = encode(image_params, images, camera, layers=0)
    without, _ = encode(image_params, images, layers=0)
    np.testing.assert_array_equal(with_camera[:, 1:], without[:, 1:])
    assert (np.abs(with_camera[:, 0] - without[:, 0]).max(axis=1) > 1e-2).all()


@pytest.mark.parametrize("shape", [(H + 1, W), (H, W - 1)])
def test_an_image_that_is_not_whole_patches_is_refused(image_params, shape):
    with pytest.raises(ValueError, match=f"image {shape[0]}x{shape[1]} is not a whole number of 2x2 patches"):
        encode(image_params, np.zeros((1, *shape, 3), np.float32))


def test_bfloat16_is_close_and_returns_float32(image_params, text_params):
    images, camera = image_inputs()
    embeddings = normal(4, B, LENGTH, WIDTH)
    full = *encode(image_params, images, camera), read(text_params, embeddings, 5)
    half = (
        *encode(image_params, images, camera, dtype=jnp.bfloat16),
        read(text_params, embeddings, 5, dtype=jnp.bfloat16),
    )
    for a, b in zip(half, full):
        assert a.dtype == jnp.float32
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert 1e-4 < error < 0.05, error


def test_the_projection_may_be_that_of_the_class_token_only(image_params):
    images, camera = image_inputs()
    tokens, projected = encode(image_params, images, camera)
    same, alone = encode(image_params, images, camera, project_all=False)
    np.testing.assert_array_equal(same, tokens)
    assert alone.shape == (B, 1, DIM)
    close(alone, projected[:, :1], 1e-6)


@pytest.mark.parametrize(
    "kind, change",
    [
        ("text", dict(remat=True)),
        pytest.param("text", dict(scan=True), marks=pytest.mark.slow),
        ("image", dict(remat=True, scan=True)),
    ],
    ids=str,
)
def test_remat_and_scan_change_neither_parameters_nor_results(image_params, text_params, kind, change):
    if kind == "image":
        plain, params, inputs = ImageTower(**IMAGE), image_params, image_inputs()
    else:
        plain, params, inputs = TextTower(**TEXT), text_params, (normal(4, B, LENGTH, WIDTH), np.array([6, 2, 4]))
    changed = plain.clone(**change)
    for a, b in zip(jax.tree.leaves(init(changed, *inputs)), jax.tree.leaves(init(plain, *inputs)), strict=True):
        np.testing.assert_array_equal(a, b)

    def gradients(tower):
        def scalar(params):
            outputs = tower.apply({"params": params}, *inputs)
            return sum(jnp.tanh(x).sum() for x in jax.tree.leaves(outputs)), outputs

        return jax.jit(jax.grad(scalar, has_aux=True))(params)

    assert_trees_close(gradients(changed), gradients(plain), atol=1e-5, rtol=1e-5)


def test_scan_compiles_one_block_and_remat_recomputes_it():
    def program(**change):
        tower = ImageTower(**IMAGE | dict(layers=5) | change)
        params = shapes(tower, normal(1, B, H, W, 3))
        loss = lambda params: tower.apply({"params": params}, normal(1, B, H, W, 3))[1].sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params))

    products = {name: program(**{name: True}).count("dot_general[") for name in ("scan", "remat")}
    plain = program().count("dot_general[")
    assert products["scan"] < plain / 3
    assert products["remat"] > plain * 1.2


def test_tokens_after_the_end_have_no_influence(text_params):
    embeddings, end = normal(4, B, LENGTH, WIDTH), 3
    other = embeddings.copy()
    other[:, end + 1 :] = 7 * normal(6, B, LENGTH - end - 1, WIDTH)
    expected = read(text_params, embeddings, end)
    close(read(text_params, other, end), expected, 1e-6)
    close(read(text_params, embeddings[:, : end + 1], end), expected, 1e-6)
    other[:, end - 1] *= 2
    assert np.abs(read(text_params, other, end) - expected).max() > 1e-3


def test_eighteen_tokens_give_the_feature_of_seventy_seven():
    tower = TextTower(**TEXT | dict(vocab=49408, context=77))
    short, long = (template("person", prompts=4, length=length) for length in (0, 77))
    words, prompts = normal(7, B, WIDTH), normal(8, 4, WIDTH)
    params = randomized(shapes(tower, jnp.zeros((1, 77, WIDTH)), 0))

    def feature(sentence):
        def whole(params):
            embedded = tower.apply({"params": params}, jnp.array(sentence.ids), method="embed")
            return tower.apply({"params": params}, inject(embedded, words, prompts, sentence), sentence.end)

        return jax.jit(whole)(params)

    assert (len(short.ids), len(long.ids)) == (18, 77)
    close(feature(short), feature(long), 1e-5)


def test_the_image_tower_is_initialised_like_clip():
    tower = ImageTower(patch=4, width=256, layers=3, heads=4, dim=128)
    found = stds(init(tower, jnp.zeros((1, 16, 12, 3)), jnp.zeros((1, 7))))
    for name, expected in {
        "class_embedding": 256**-0.5,
        "position_embedding": 256**-0.5,
        "camera_embedding": 0.02,
        "block_1/attention/qkv/kernel": 256**-0.5,
        "block_1/attention/out/kernel": 256**-0.5 * 6**-0.5,
        "block_2/fc/kernel": 512**-0.5,
        "block_2/proj/kernel": 256**-0.5 * 6**-0.5,
        "projection/kernel": 256**-0.5,
    }.items():
        assert found[name] == pytest.approx(expected, rel=0.13), name
    assert found["block_0/attention/qkv/bias"] == 0


def test_a_position_std_replaces_that_of_clip():
    tower = ImageTower(patch=4, width=256, layers=0, heads=4, dim=3, position_std=0.5)
    found = stds(init(tower, jnp.zeros((1, 16, 12, 3))))
    assert found["position_embedding"] == pytest.approx(0.5, rel=0.1)
    assert found["class_embedding"] == pytest.approx(256**-0.5, rel=0.13)


def test_the_text_tower_is_initialised_like_clip():
    tower = TextTower(vocab=211, context=77, width=128, layers=2, heads=4, dim=64)
    found = stds(init(tower, jnp.zeros((1, 5, 128)), 0))
    for name, expected in {
        "token_embedding": 0.02,
        "position_embedding": 0.01,
        "block_0/attention/qkv/kernel": 128**-0.5,
        "block_0/attention/out/kernel": 128**-0.5 * 4**-0.5,
        "block_1/fc/kernel": 256**-0.5,
        "block_1/proj/kernel": 128**-0.5 * 4**-0.5,
        "projection": 128**-0.5,
    }.items():
        assert found[name] == pytest.approx(expected, rel=0.05), name
