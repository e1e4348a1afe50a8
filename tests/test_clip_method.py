"""Contrastive training: the pairs of the loss, the vectors, and the same numbers on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close, build, open_tiny, start, tiny_clip_config, tiny_config
from test_image_text_loss import naive

from jax_mmreid import train
from jax_mmreid.batch import has_caption
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.ops import augment
from jax_mmreid.sharding import to_global
from jax_mmreid.state import merge, streams

MODALITIES = ("rgb", "nir", "tir")


@pytest.fixture(scope="module")
def tiny(drawn):
    """Method, state, and a normalised batch with a missing picture, an empty caption and two equal captions."""
    exp, data, state = start(tiny_clip_config(drawn))
    batch = next(iter(data.train(0, 1)))
    images = {m: augment.normalise(x, 0.5, 0.5) for m, x in batch["images"].items()}
    batch["present"]["tir"][2] = False
    ids = batch["text"]["rgb"]
    ids[5] = ids[1]
    batch["text"]["nir"][4] = data.tokenize([""])[0, : ids.shape[1]]
    return exp.phases[0].method, state, jax.tree.map(jnp.asarray, batch | {"images": images})


def loss_of(method, params, state, batch):
    out = method.loss(merge(params, state.frozen), state, batch, streams(state.rng, state.step, ("dropout",)))
    return out.terms["contrast"], out.scalars


@pytest.fixture(scope="module")
def value_and_gradients(tiny):
    """((loss, scalars), gradients) of (state, batch), compiled once for the tests below."""
    method, _, _ = tiny

    @jax.jit
    def found(state, batch):
        objective = functools.partial(loss_of, method, state=state, batch=batch)
        return jax.value_and_grad(objective, has_aux=True)(state.params)

    return found


@pytest.fixture(scope="module")
def features(tiny):
    """What the method encodes the batch to."""
    method, state, batch = tiny
    return jax.jit(method.encode)(state.variables, batch)


def vectors(features):
    """Features of pictures and captions, [B,M,D] each."""
    return [np.stack([features[kind][m] for m in MODALITIES], axis=1) for kind in ("feats", "text")]


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_the_loss_is_over_all_pairs_of_the_batch(drawn, tiny, features, loss):
    _, state, batch = tiny
    x, y = (side.reshape(24, -1) for side in vectors(features))
    ids = np.stack([batch["text"][m] for m in MODALITIES], axis=1).reshape(24, -1)
    where = np.stack([batch["present"][m] for m in MODALITIES], axis=1).reshape(-1) & has_caption(ids)
    assert where.sum() == 22
    configs = [tiny_clip_config(drawn, loss, **{"model.dedup_captions": x, "model.block": 6}) for x in (True, False)]
    experiments = [build(config, open_tiny(config)) for config in configs]

    @jax.jit
    def losses(key, batch):
        # The towers of `tiny`; of what a run of this loss starts with, only scale and bias.
        params = {name: x for name, x in experiments[0].create(key).params.items() if name.startswith("logit_")}
        return [loss_of(exp.phases[0].method, state.params | params, state, batch) for exp in experiments]

    found = losses(jax.random.PRNGKey(0), batch)
    scale, bias = {"info_nce": (1 / 0.07, 0.0), "sigmoid": (10.0, -10.0)}[loss]
    apart = np.arange(24)
    keys = np.unique(ids, axis=0, return_inverse=True)[1].reshape(-1), apart
    each = [naive(loss, x, y, scale, key, where, bias) for key in keys]
    for (value, scalars), expected in zip(found, each, strict=True):
        assert value == pytest.approx(expected.sum() / 22, rel=1e-5) and scalars["scale"] == pytest.approx(scale)
        assert scalars["has_caption"] == pytest.approx(22 / 24)
    if loss == "info_nce":  # two captions of the batch are equal
        assert abs(each[0].sum() - each[1].sum()) > 1e-3


def test_different_captions_have_different_keys(tiny):
    method, _, _ = tiny
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 530, (4000, 40)).astype(np.int32)
    ids[:2000, 5:] = ids[0, 5:]  # most differ in a few words
    ids[1] = ids[0]
    keys = np.asarray(method._keys(ids))
    assert len(np.unique(keys)) == len(np.unique(ids, axis=0)) == 3999 and keys[0] == keys[1]
    swapped = ids[:2, [1, 0, *range(2, 40)]]
    assert method._keys(swapped)[0] != keys[0]


@pytest.mark.parametrize("junk", [np.nan, 1e30])
def test_pixels_of_missing_pictures_have_no_influence(tiny, value_and_gradients, junk):
    _, state, batch = tiny
    spoilt = batch["images"] | {"tir": batch["images"]["tir"].at[2].set(junk)}
    results = [value_and_gradients(state, batch | {"images": x}) for x in (batch["images"], spoilt)]
    assert_trees_close(*results, atol=0)
    assert np.isfinite(results[0][0][0])


def test_the_caption_of_a_missing_picture_has_no_influence(tiny, value_and_gradients):
    _, state, batch = tiny
    other = batch["text"] | {"tir": batch["text"]["tir"].at[2].set(batch["text"]["rgb"][0])}
    assert_trees_close(*(value_and_gradients(state, batch | {"text": x}) for x in (batch["text"], other)), 1e-7)


def test_the_scale_is_bounded_and_the_loss_stays_finite(tiny, value_and_gradients):
    _, state, batch = tiny
    for exponent in (50.0, 500.0):  # exp(500) is infinite in float32
        scale = jax.device_put(np.float32(exponent), state.params["logit_scale"].sharding)
        hot = state.replace(params=state.params | {"logit_scale": scale})
        (value, scalars), gradients = value_and_gradients(hot, batch)
        assert scalars["scale"] == pytest.approx(100) and np.isfinite(value)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_a_batch_without_a_pair_has_zero_loss(tiny, value_and_gradients):
    _, state, batch = tiny
    nothing = {m: jnp.zeros(8, bool) for m in batch["present"]}
    (value, _), gradients = value_and_gradients(state, batch | {"present": nothing})
    assert value == 0 and all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradients))


def test_a_vector_is_the_mean_of_what_a_row_has(tiny, features):
    method, state, _ = tiny
    x, y = vectors(features)
    x, y = (side / np.linalg.norm(side, axis=-1, keepdims=True) for side in (x, y))
    for use, expected in (
        (("rgb",), x[:, 0]),
        (MODALITIES, np.where(np.arange(8)[:, None] == 2, x[:, :2].sum(axis=1), x.sum(axis=1))),
        (("text",), np.where(np.arange(8)[:, None] == 4, y[:, 0] + y[:, 2], y.sum(axis=1))),
        (("rgb", "text"), x[:, 0] + np.where(np.arange(8)[:, None] == 4, y[:, 0] + y[:, 2], y.sum(axis=1))),
    ):
        found = method.embed(state.variables, features, use)
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=str(use))
    for use in (("ir",), ("rgb", "ir"), ("text/ir",)):
        with pytest.raises(
            ConfigError, match="clip has no vector of .* there are pictures of rgb, nir, tir and captions"
        ):
            method.embed(state.variables, features, use)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "loss, mesh",
    [("info_nce", (8, 1)), ("info_nce", (4, 2)), ("sigmoid", (8, 1))],
)
@pytest.mark.slow  # the loss itself is held on eight devices in test_image_text_loss.py
def test_eight_devices_equal_one(drawn, tmp_path, loss, mesh):
    def run(workdir, **mesh):
        # Adam's eps: see test_sharding.py
        config = tiny_clip_config(drawn, loss, **{f"mesh.{k}": v for k, v in mesh.items()}, **{"optim.eps": 1e-3})
        data = open_tiny(config)
        exp = build(config, data, devices=jax.devices())
        with Checkpoints(workdir) as checkpoints:
            state = train.start_or_resume(config, exp, data, checkpoints)
        step, losses = train.compile_step(config, exp, exp.phases[0]), []
        for batch in data.train(0, 3):
            state, scalars = step(state, to_global(batch, exp.mesh))
            losses.append(jax.device_get(scalars))
        return losses, jax.device_get(state)

    one, eight = run(tmp_path / "1", data=1), run(tmp_path / "8", data=mesh[0], model=mesh[1])
    assert_trees_close(one, eight, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_towers_start_another_method(drawn, tmp_path):
    config = tiny_clip_config(drawn)
    train.train(config, tmp_path / "clip", open_tiny(config))
    with Checkpoints(tmp_path / "clip") as checkpoints:
        state = checkpoints.restore(checkpoints.last(), start(config)[0].abstract)
    words = {"data.text.tokenizer": str(tmp_path / "clip" / "tokenizer"), "data.text.context": 60}
    model = {"model.text.vocab": 530, "model.text.context": 60, "init": f"{tmp_path}/clip:image+text"}
    config = tiny_config(drawn, **words, **model)
    config.model.sie_camera = False
    data = open_tiny(config)
    assert data.spec.text == () and data.spec.vocab == open_tiny(tiny_clip_config(drawn)).spec.vocab
    exp = build(config, data, devices=jax.devices())
    with Checkpoints(tmp_path / "miss") as checkpoints:
        begun = train.start_or_resume(config, exp, data, checkpoints)
    assert_trees_close(begun.frozen["text"], state.params["text"], atol=0)
    assert_trees_close(begun.params["image"], state.params["image"], atol=0)
    sentence = exp.phases[-1].method.language.template
    spoken = data.tokenize(["an image of a x person, who shows the x x x x attributes."])[0]
    assert sentence.ids == tuple(spoken[: spoken.argmax() + 1].tolist())
    gaps = [i for i, token in enumerate(sentence.ids) if token == sentence.ids[sentence.word]]
    assert gaps == [sentence.word, *range(sentence.prompt, sentence.prompt + 4)]


def test_one_picture_per_identity_is_enough(tmp_path):
    once = {"data.options.cameras": 1, "data.options.images_per_camera": 1}
    data = open_tiny(tiny_clip_config(tmp_path / "once", **once))
    (batch,) = data.train(0, 1)
    assert len(set(batch["pid"].tolist())) == 8 and has_caption(batch["text"]["tir"]).all()
    with pytest.raises(DataError, match="no training identity has two images"):
        open_tiny(tiny_config(tmp_path / "once", **once))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.loss": "triplet"}, "config.model.loss=triplet: expected one of info_nce, sigmoid"),
        ({"model.text.heads": 3}, "config.model.text.heads=3 does not divide config.model.text.width=8"),
        ({"model.text.vocab": 520}, "config.model.text.vocab=520 is too small for the captions .* set it to 530"),
        ({"model.text.context": 9}, "config.model.text.context=9 is too small for the captions of the data; set it to"),
        (
            {"data.text.tokenizer": "", "data.options.captioner": ""},
            "clip is trained with captions of rgb, nir, tir; set data.text.tokenizer",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(drawn, changes, message):
    with pytest.raises(ConfigError, match=message):
        start(tiny_clip_config(drawn, **changes))


def test_test_captions_longer_than_the_text_tower_are_refused_before_training(drawn, monkeypatch):
    config = tiny_clip_config(drawn)
    data = open_tiny(config)
    exp = build(config, data)
    train.check_evals(config, exp, data)
    monkeypatch.setattr(type(data), "text_length", lambda data, name: 61)
    message = "captions of 61 tokens are longer than config.model.text.context=60; lower config.data.text.context"
    with pytest.raises(ConfigError, match=message):
        train.check_evals(config, exp, data)
