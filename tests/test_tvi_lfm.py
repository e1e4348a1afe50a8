"""TVI-LFM in small: what is frozen and what is trained, how vectors are composed, and both stages end to end."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close, build, open_tiny, tiny_tvi_config
from flax import traverse_util

from jax_mmreid import evaluate, train
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import config_hash
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import runner
from jax_mmreid.ops import augment
from jax_mmreid.recipes.tvi_lfm import ROWS
from jax_mmreid.sharding import to_global
from jax_mmreid.weights import files
from jax_mmreid.weights import init as weights_init


@pytest.fixture(scope="module")
def base(drawn_sysu, tmp_path_factory):
    """The workdir of a finished stage "base"."""
    config, workdir = tiny_tvi_config(drawn_sysu, "base"), tmp_path_factory.mktemp("base")
    data = open_tiny(config)
    train.train(config, workdir, data)
    evaluate.evaluate(config, workdir, data)
    return workdir


def begin(config):
    """Experiment, data and the state before step 0, as training makes it; all its weights are those of `config.init`.

    So none is drawn, which would have to be compiled.
    """
    data = open_tiny(config)
    exp = build(config, data, devices=jax.devices()[:1])
    zeros = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), exp.abstract)
    zeros = zeros.replace(rng=jax.device_put(jax.random.PRNGKey(config.seed), zeros.rng.sharding))
    state = weights_init.start_from(zeros, weights_init.load(config.init), data.spec.image_size)
    return exp, data, exp.phases[0].method.begin(state, ())


def some_steps(config, steps=None):
    """(experiment, data, state before, state and scalars after so many steps, or one epoch)."""
    exp, data, state = begin(config)
    before, step = jax.device_get(state), train.compile_step(config, exp, exp.phases[-1])
    for batch in data.train(0, steps or data.spec.steps_per_epoch):
        state, scalars = step(state, to_global(batch, exp.mesh))
    return exp, data, before, jax.device_get(state), jax.device_get(scalars)


@pytest.fixture(scope="module")
def stepped(drawn_sysu, base):
    """`some_steps` of the first epoch of stage "lfm"."""
    return some_steps(tiny_tvi_config(drawn_sysu, init=str(base)))


@pytest.fixture(scope="module")
def finished(drawn_sysu, base, tmp_path_factory):
    """The workdir of a finished stage "lfm" with an evaluation after every epoch."""
    config, workdir = tiny_tvi_config(drawn_sysu, init=str(base), eval_every=1), tmp_path_factory.mktemp("lfm")
    train.train(config, workdir, open_tiny(config))
    return workdir


def moved(before, after):
    """Which leaves differ, by path."""
    flat = traverse_util.flatten_dict(before, sep="/"), traverse_util.flatten_dict(after, sep="/")
    return {path for path in flat[0] if np.any(flat[0][path] != flat[1][path])}


def assert_all_but_the_visual_part_is_trained(before, after, scalars):
    assert np.isfinite(scalars["loss"])
    assert set(before.params) >= {"text", "head"} and set(before.frozen) >= {"image", "base", "logit_scale"}
    assert not moved(before.frozen, after.frozen)
    assert not moved(before.batch_stats["base"], after.batch_stats["base"])
    assert set(traverse_util.flatten_dict(before.params, sep="/")) == moved(before.params, after.params)


def test_the_visual_part_is_frozen(stepped):
    _, _, before, after, scalars = stepped
    assert set(before.params) == {"text", "head"} and set(before.frozen) == {"image", "pool", "base", "logit_scale"}
    assert_all_but_the_visual_part_is_trained(before, after, scalars)
    drifted = moved(before.batch_stats["image"], after.batch_stats["image"])
    assert len(drifted) == len(jax.tree.leaves(before.batch_stats["image"]))


@pytest.mark.slow
def test_in_row_b_the_exponent_of_the_pooling_is_trained_and_statistics_of_the_tower_can_be_kept(drawn_sysu, base):
    config = tiny_tvi_config(drawn_sysu, row="B", init=str(base), **{"model.frozen_bn": "eval"})
    _, _, before, after, scalars = some_steps(config, steps=1)
    assert_all_but_the_visual_part_is_trained(before, after, scalars)
    assert not moved(before.batch_stats["image"], after.batch_stats["image"])
    moves = (before.params["pool"]["p"] - after.params["pool"]["p"]) / config.optim.lr.visual
    assert abs(moves) == pytest.approx(config.optim.schedule.warmup_factor, rel=1e-2)  # one step of Adam


def test_the_exponent_of_the_pooling_is_trained_in_row_b_only(drawn_sysu):
    for row in ROWS:
        exp = build(config := tiny_tvi_config(drawn_sysu, row=row), open_tiny(config), jax.devices()[:1])
        assert ("pool" in exp.abstract.params) == (row == "B")


def test_the_base_neck_is_that_of_the_base_model(drawn_sysu, base, stepped):
    """Before its first step, the results of stage lfm for infrared queries are those of stage base."""
    config = tiny_tvi_config(drawn_sysu, init=str(base))
    exp, data, state, *_ = stepped
    state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, exp.abstract))
    rows, levels = config.evals.to_dict(), dict(mean=config.aug.mean, std=config.aug.std)
    results = runner.run(rows, exp.phases[-1].method, state.variables, data, exp.mesh, **levels)
    earlier = json.loads((base / "results.json").read_text())["evals"]["all/ir"]
    for key in ("mAP", "mINP", "rank1", "rank20"):
        assert results["all/ir_base"][key] == earlier[key] == results["all/ir"][key]


@pytest.fixture(scope="module")
def encode(stepped):
    """`method.encode` of a batch, with the weights after one epoch of stage lfm."""
    exp, _, _, after, _ = stepped
    return functools.partial(jax.jit(exp.phases[-1].method.encode), jax.device_put(after.variables))


@pytest.fixture(scope="module")
def encoded(stepped, encode):
    """(method, variables, batch of all queries, its features) after one epoch of stage lfm."""
    exp, data, _, after, _ = stepped
    (batch,) = data.split("query")
    batch = batch | {"images": {m: augment.normalise(x) for m, x in batch["images"].items()}}
    return exp.phases[-1].method, after.variables, batch, encode(batch)


def test_vectors_have_unit_length(encoded):
    method, variables, _, features = encoded
    for options, use in (({}, ("ir",)), ({"neck": "base"}, ("ir",)), ({}, ("text",)), ({}, ("ir", "text"))):
        x = dataclasses.replace(method, **options).embed(variables, features, use)
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)


def test_the_ensemble_ranks_by_the_sum_of_three_scores(encoded):
    method, variables, _, features = encoded
    parts = [method.embed(variables, features, use) for use in (("ir", "text"), ("ir",), ("text",))]
    gallery = np.random.default_rng(0).standard_normal((50, parts[0].shape[1]), np.float32)
    summed = sum(x @ gallery.T for x in parts)
    together = dataclasses.replace(method, ensemble=True).embed(variables, features, ("ir", "text")) @ gallery.T
    np.testing.assert_array_equal(np.argsort(-summed, axis=1), np.argsort(-together, axis=1))


def test_equal_captions_add_nothing_to_a_fused_query(encoded):
    method, variables, _, features = encoded
    same = features | {"text": dict.fromkeys(("rgb", "ir"), features["text"]["rgb"])}
    ir, fused = (method.embed(variables, same, use) for use in (("ir",), ("ir", "text")))
    np.testing.assert_allclose(ir, fused, atol=1e-5)
    unfiltered = dataclasses.replace(method, sff=False).embed(variables, same, ("ir", "text"))
    assert np.abs(unfiltered - ir).max() > 1e-2


def test_a_row_does_not_depend_on_its_batch(encoded, encode):
    _, _, batch, features = encoded
    alone = encode(jax.tree.map(lambda x: np.repeat(x[3:4], len(x), axis=0), batch))
    expected = jax.tree.map(lambda x: np.repeat(x[3:4], len(x), axis=0), features)
    assert_trees_close(alone, expected, atol=1e-5, rtol=1e-4)


def test_tokens_after_the_end_of_a_caption_have_no_influence(encoded, encode):
    _, _, batch, features = encoded
    behind = {m: np.arange(ids.shape[1]) > ids.argmax(axis=1)[:, None] for m, ids in batch["text"].items()}
    assert any(x.any() for x in behind.values())
    other = {m: np.where(behind[m], 7, ids) for m, ids in batch["text"].items()}
    again = encode(batch | {"text": other})
    assert_trees_close(features["text"], again["text"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "use, neck, message",
    [
        (("rgb", "ir"), "finetuned", "no vector of 'rgb.ir' with neck='finetuned'"),
        (("rgb", "text"), "finetuned", "no vector of 'rgb.text' with neck='finetuned'"),
        (("text",), "base", "no vector of 'text' with neck='base'"),
        (("rgb",), "finetuned", "rgb needs pictures of rgb, which are not there"),
    ],
)
def test_a_use_without_a_vector_is_refused(encoded, use, neck, message):
    method, variables, batch, features = encoded
    features = {"text": features["text"]} | {
        name: {"ir": features[name]["ir"]} for name in ("finetuned", "base")
    }  # of a split without visible pictures
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(method, neck=neck).embed(variables, features, use)


@pytest.mark.parametrize("use, lacking", [(("text",), "rgb"), (("ir", "text"), "rgb"), (("ir", "text"), "ir")])
def test_captions_that_the_split_does_not_have_are_an_error_of_the_config(encoded, use, lacking):
    method, variables, _, features = encoded
    captions = {name: x for name, x in features["text"].items() if name != lacking}
    with pytest.raises(ConfigError, match=f"needs captions of {lacking}, which are not there"):
        method.embed(variables, features | {"text": captions}, use)


def test_options_that_the_method_does_not_have_are_refused(encoded):
    method = encoded[0]
    assert method.with_options({"neck": "base"}, "evals.a") == dataclasses.replace(method, neck="base")
    for options, message in (
        ({"imputation": "zero"}, "evals.a: the method has no option 'imputation'; there are: neck, ensemble"),
        ({"neck": "backup"}, "evals.a: neck='backup': expected one of 'finetuned', 'base'"),
    ):
        with pytest.raises(ConfigError, match=message):
            method.with_options(options, "evals.a")


@pytest.mark.parametrize("stage", ["base", "lfm"])
def test_pixels_of_missing_pictures_have_no_influence(drawn_sysu, base, stage):
    exp, data, state = begin(tiny_tvi_config(drawn_sysu, stage, init=str(base)))
    method = exp.phases[-1].method
    (batch,) = data.train(0, 1)
    batch["images"]["rgb_strong"] = batch["images"]["rgb"]
    images = {m: augment.normalise(x) for m, x in batch["images"].items()}
    present = batch["present"] | {"ir": np.arange(8) > 2}

    @jax.jit
    @jax.value_and_grad
    def loss(params, images):
        out = method.loss(params, state, batch | {"images": images, "present": present}, {})
        return sum(out.terms.values())

    params = state.variables["params"]
    expected = loss(params, images)
    for noise in (np.nan, -7.0):
        spoilt = images | {"ir": jnp.where(present["ir"][:, None, None, None], images["ir"], noise)}
        assert_trees_close(expected, loss(params, spoilt), atol=0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("stage, shape", [("base", (8, 1)), ("lfm", (4, 2))])
def test_eight_devices_equal_one(drawn_sysu, base, tmp_path, stage, shape):
    """Three steps; Adam's eps is raised as in test_sharding."""

    def run(devices, folder, **mesh):
        config = tiny_tvi_config(drawn_sysu, stage, init=str(base), **{"optim.eps": 1e-3}, **mesh)
        data = open_tiny(config)
        exp = build(config, data, devices=devices)
        with Checkpoints(tmp_path / folder) as checkpoints:
            state = train.start_or_resume(config, exp, data, checkpoints)
        step = train.compile_step(config, exp, exp.phases[-1])
        for batch in data.train(0, 3):
            state, scalars = step(state, to_global(batch, exp.mesh))
        return jax.device_get((state, scalars))

    one = run(jax.devices()[:1], "one")
    many = run(jax.devices(), "many", **{"mesh.data": shape[0], "mesh.model": shape[1]})
    assert_trees_close(one, many, atol=1e-4, rtol=1e-4)


def test_both_stages_end_in_a_table(drawn_sysu, base, finished):
    config = tiny_tvi_config(drawn_sysu, init=str(base), eval_every=1)
    results = evaluate.evaluate(config, finished, open_tiny(config))["evals"]
    assert list(results) == [f"all/{kind}" for kind in ("ir_base", "ir", "text", "fusion", "mer")]
    assert all(0 < row["mAP"] <= 1 and row["trials"] == 3 for row in results.values())
    weights = weights_init.load(finished)
    assert "params/base/head/classifier/kernel" in weights and "batch_stats/base/head/neck/mean" in weights


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(drawn_sysu, base, finished, stepped, tmp_path):
    config = tiny_tvi_config(drawn_sysu, init=str(base))
    _, data, _, state, _ = stepped
    steps = data.spec.steps_per_epoch
    with Checkpoints(finished) as checkpoints:
        assert checkpoints.last() == 2 * steps
    meta = {"fingerprint": data.spec.fingerprint, "config_hash": config_hash(config), "seed": config.seed}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_frozen(state.frozen)
        checkpoints.save(steps, state, meta)
    train.train(config, tmp_path, data)
    one, other = (weights_init.load(folder) for folder in (finished, tmp_path))
    assert_trees_close(dict(one), dict(other), atol=0)


def test_stage_lfm_needs_the_visual_part(drawn_sysu, base, tmp_path):
    weights = {path: x for path, x in weights_init.load(base).items() if path.split("/")[1] == "text"}
    files.save(tmp_path / "text", weights, {})
    config = tiny_tvi_config(drawn_sysu, init=str(tmp_path / "text"))
    with pytest.raises(DataError, match="head, image, pool"):
        train.train(config, tmp_path / "run", open_tiny(config))
