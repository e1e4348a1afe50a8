"""Losses and features of Miss-ReID across modalities: options that no published row has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config
from miss_reid_batch import float_batch, loss_of
from shapes_only import build
from test_miss_reid import changed, embed, encode, start

from jax_mmreid.errors import ConfigError

ACROSS = {"model.shared_head": True, "model.missing_fill": "mean_feature", "model.part_norm": True}


@pytest.fixture(scope="module")
def across(drawn):
    """The method, a random state and a batch in which pictures are missing."""
    method, _, state = start(drawn, row="A", **ACROSS)
    return method, state, float_batch(np.random.default_rng(0), 12, method.modalities)


def loop(feats, label, tau=1.0):
    """The soft-margin batch-hard triplet loss of rows that exist, in float64."""
    dist = np.sqrt(np.square(feats[:, None] - feats[None]).sum(-1) + 1e-12)
    same = label[:, None] == label[None]
    hardest = np.where(same, dist, 0).max(axis=1) - np.where(same, np.inf, dist).min(axis=1)
    return np.log1p(np.exp(hardest / tau)).mean()


@pytest.mark.slow
@pytest.mark.parametrize("tau", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
def test_the_triplet_loss_is_over_the_rows_of_all_modalities(across, tau):
    method, state, batch = across
    present = np.stack([batch["present"][m] for m in method.modalities], axis=1)
    feats = np.asarray(method.tower.forward_all(state.params["image"], batch).feats, np.float64)[present]
    label = np.repeat(batch["label"], 3).reshape(12, 3)[present]
    if tau:
        feats -= feats.mean(axis=0)
        feats /= np.linalg.norm(feats, axis=1, keepdims=True)
    out = loss_of(changed(method, triplet_tau=tau))(state, batch)
    assert set(out.terms) == {"triplet", "identity"} and set(state.params["heads"]) == {"shared"}
    np.testing.assert_allclose(out.terms["triplet"], loop(feats, label, tau or 1.0), rtol=1e-4)
    assert not present.all()


def test_a_row_that_lacks_pictures_has_the_mean_of_the_others_in_their_place(across):
    method, state, batch = across
    batch = batch | {"present": {m: jnp.ones(12, bool) for m in method.modalities}}
    features = encode(method, state.variables, batch)
    f = np.asarray(features["feats"], np.float64)
    f /= np.linalg.norm(f, axis=-1, keepdims=True)
    whole = np.asarray(embed(method, state.variables, features, method.modalities))
    np.testing.assert_allclose(whole, f.reshape(12, -1) / 3**0.5, atol=1e-6)
    sides = [np.asarray(embed(method, state.variables, features, (m,))) for m in ("rgb", "tir")]
    np.testing.assert_allclose(sides[0] @ sides[1].T, f[:, 0] @ f[:, 2].T, atol=1e-5)  # unlike sides meet
    both = np.asarray(embed(method, state.variables, features, ("rgb", "tir")))
    mean = np.asarray(features["feats"], np.float64)[:, [0, 2]].mean(axis=1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(both[:, both.shape[1] // 3 : -both.shape[1] // 3], mean / 3**0.5, atol=1e-6)


def test_with_a_temperature_features_are_compared_less_their_running_mean(across):
    method, state, batch = across
    heads = jax.tree.map(lambda x: x + 0.5, state.batch_stats["heads"])
    variables = state.variables | {"batch_stats": {"heads": heads}}
    plain, less = (encode(m, variables, batch)["feats"] for m in (method, changed(method, triplet_tau=0.1)))
    np.testing.assert_allclose(plain - less, np.broadcast_to(heads["shared"]["neck"]["mean"], less.shape), atol=1e-5)


def test_without_one_head_for_all_every_modality_has_its_own_mean(drawn):
    method, _, state = start(drawn, row="A", **{"model.triplet_tau": 0.1})
    batch = float_batch(np.random.default_rng(1), 6, method.modalities)
    plain, less = (encode(m, state.variables, batch)["feats"] for m in (changed(method, triplet_tau=0.0), method))
    for i, m in enumerate(method.modalities):
        mean = state.batch_stats["heads"][m]["neck"]["mean"]
        np.testing.assert_allclose((plain - less)[:, i], np.broadcast_to(mean, less[:, i].shape), atol=1e-5, err_msg=m)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.triplet_tau": 0.1}, "ldmmc=True needs iosm=True, which makes the pseudo-word, and triplet_tau=0"),
        ({"model.backbone": "conv"}, "backbone='conv' has no camera embedding"),
        ({"model.backbone": "mlp"}, "backbone=mlp: expected one of vit, conv"),
        ({"model.missing_fill": "mode"}, "missing_fill=mode: expected one of zero_feature, mean_feature"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(drawn, changes, message):
    with pytest.raises(ConfigError, match=message):
        start(drawn, **changes)


def test_the_small_recipe_has_one_head_and_no_statistics_in_its_tower():
    config = load_config("manifest", "size=small,modalities=rgb/tir")
    exp = build(config)
    assert config.length.steps == 600 and config.data.fit_batch and "pixels/full" in config.evals
    assert set(exp.abstract.params["heads"]) == {"shared"} and set(exp.abstract.batch_stats) == {"heads"}
    count = sum(x.size for x in jax.tree.leaves(exp.abstract.params["image"]))
    assert 1_000_000 < count < 1_500_000
    row_d = load_config("manifest", "size=small,modalities=rgb/tir,row=D,object=vehicle,budget=10m")
    assert row_d.data.image_size == (32, 64) and dict(row_d.length) == dict(steps=0, seconds=600.0)
    assert "structure" in build(row_d).abstract.params
