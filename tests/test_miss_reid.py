"""Miss-ReID: missing pictures have no influence, prototypes and their memory, imputation and vectors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close, build, noise, open_tiny, tiny_config
from miss_reid_batch import float_batch, loss_of

from jax_mmreid.errors import ConfigError
from jax_mmreid.models.clip import ImageTower
from jax_mmreid.models.shared_tower import SharedTower
from jax_mmreid.models.structure import kept_in_training
from jax_mmreid.ops import masked
from jax_mmreid.state import merge, streams

ONE_LAYER = {"model.image.layers": 1}


def changed(method, **fields):
    """The method with other fields of its config."""
    return dataclasses.replace(method, config=dataclasses.replace(method.config, **fields))


def with_pixels_of_missing(batch, value):
    images = {m: jnp.where(batch["present"][m][:, None, None, None], x, value) for m, x in batch["images"].items()}
    return batch | {"images": images}


def start(drawn, **changes):
    """Method, data and a state with random parameters and an empty memory."""
    config = tiny_config(drawn, **ONE_LAYER, **changes)
    data = open_tiny(config)
    exp = build(config, data, devices=jax.devices()[:1])
    state = noise(exp.abstract)
    return exp.phases[-1].method, data, state.replace(memory=jax.tree.map(np.zeros_like, state.memory))


# Compiled once for every method, `use` and shape.
encode = jax.jit(lambda method, variables, batch: method.encode(variables, batch), static_argnums=0)
embed = jax.jit(lambda method, variables, features, use: method.embed(variables, features, use), static_argnums=(0, 3))


@pytest.fixture(scope="module")
def row_f(drawn):
    """Method, state with a filled memory, and one jitted loss with gradients, shared by the tests below."""
    method, _, state = start(drawn)
    rng = np.random.default_rng(3)
    proto = masked.unit(jnp.asarray(rng.normal(size=state.memory["proto"].shape), jnp.float32))
    state = state.replace(memory={"proto": proto, "has_visual": jnp.ones(proto.shape[:2], bool)})

    @jax.jit
    def weighted(state, batch, others):
        def objective(params):
            rngs = streams(state.rng, state.step, ("augment", "dropout"))
            out = method.loss(merge(params, state.frozen), state, batch, rngs)
            return sum(term * (1.0 if name == "text_identity" else others) for name, term in out.terms.items()), out

        (_, out), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        return out, grads

    def gradients(state, batch, others=1.0):
        """The loss, and the gradients of the sum of its terms; `others` is the weight of all but text_identity."""
        return weighted(state, batch, others)

    return method, state, gradients


@pytest.mark.parametrize("junk", [np.nan, 1e30, -7.0])
def test_pixels_of_missing_pictures_have_no_influence(row_f, junk):
    method, state, gradients = row_f
    batch = float_batch(np.random.default_rng(0), 10, method.modalities)
    clean, dirty = (with_pixels_of_missing(batch, value) for value in (0.0, junk))
    assert_trees_close(gradients(state, clean), gradients(state, dirty), atol=0)
    assert_trees_close(encode(method, state.variables, clean), encode(method, state.variables, dirty), atol=0)


def test_a_modality_missing_everywhere_has_no_influence(row_f):
    method, state, gradients = row_f
    batch = float_batch(np.random.default_rng(1), 10, method.modalities)
    present = batch["present"] | {"nir": jnp.zeros(10, bool), "rgb": jnp.ones(10, bool)}
    out, grads = gradients(state, with_pixels_of_missing(batch | {"present": present}, np.nan))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, grads)))
    assert_trees_close(out.updates["batch_stats"]["heads"]["nir"], state.batch_stats["heads"]["nir"], atol=0)
    np.testing.assert_array_equal(out.updates["memory"]["proto"][1], state.memory["proto"][1])
    assert np.abs(out.updates["memory"]["proto"][0] - state.memory["proto"][0]).max() > 0.01
    assert not any(np.any(g) for g in jax.tree.leaves(grads["heads"]["nir"]))


def test_a_missing_key_equals_a_false_mask(row_f):
    method, state, _ = row_f
    batch = float_batch(np.random.default_rng(2), 10, method.modalities)
    batch["present"] = {m: jnp.full(10, m != "tir") for m in method.modalities}
    fewer = batch | {key: {m: x for m, x in batch[key].items() if m != "tir"} for key in ("images", "present")}
    use = method.modalities
    full, short = (embed(method, state.variables, encode(method, state.variables, b), use) for b in (batch, fewer))
    np.testing.assert_allclose(full, short, atol=2e-6)


def test_a_batch_of_other_modalities_is_refused(row_f):
    method, state, _ = row_f
    batch = {"images": {"ir": jnp.zeros((2, 32, 16, 3))}, "present": {"ir": jnp.ones(2, bool)}}
    with pytest.raises(ConfigError, match="miss_reid reads pictures of rgb, nir, tir, and there are none of these"):
        encode(method, state.variables, batch)


def test_embeddings_are_unit_and_blocks_of_missing_modalities_are_filled(row_f):
    method, state, _ = row_f
    batch = float_batch(np.random.default_rng(4), 10, method.modalities)
    batch["present"] = {m: jnp.ones(10, bool) for m in method.modalities}
    features = encode(method, state.variables, batch)
    zero = dataclasses.replace(method, imputation="zero")
    text, empty, full, full_zero = (
        np.asarray(embed(m, state.variables, features, use)).reshape(10, 3, -1)
        for m, use in [
            (method, ("rgb", "tir")),
            (zero, ("rgb", "tir")),
            (method, method.modalities),
            (zero, method.modalities),
        ]
    )
    for vectors in (text, empty, full):
        np.testing.assert_allclose(np.linalg.norm(vectors.reshape(10, -1), axis=1), 1, atol=1e-6)
    assert np.abs(text[:, 1]).max(axis=-1).min() > 0 and not empty[:, 1].any()
    np.testing.assert_array_equal(full, full_zero)  # no picture is missing, so nothing is imputed
    np.testing.assert_allclose(full.reshape(10, -1), masked.unit(features["feats"].reshape(10, -1)), atol=1e-7)


def test_the_imputation_alone_is_the_imputed_part_of_the_vector(row_f):
    method, state, _ = row_f
    batch = float_batch(np.random.default_rng(4), 10, method.modalities)
    batch["present"] = {m: jnp.ones(10, bool) for m in method.modalities}
    features = encode(method, state.variables, batch)
    alone = dataclasses.replace(method, imputation="alone")
    some, every, imputed = (
        np.asarray(embed(m, state.variables, features, use)).reshape(10, 3, -1)
        for m, use in [(alone, ("rgb", "tir")), (alone, method.modalities), (method, ("rgb", "tir"))]
    )
    assert not some[:, [0, 2]].any() and np.abs(every).max(axis=-1).min() > 0
    nir = imputed[:, 1] / np.linalg.norm(imputed[:, 1], axis=1, keepdims=True)
    np.testing.assert_allclose(some[:, 1], nir, atol=1e-6)


def test_structure_dropout_keeps_a_present_picture_of_every_row():
    present = jnp.asarray(np.random.default_rng(0).random((4000, 3)) < 0.7)
    shown = np.asarray(kept_in_training(present, jax.random.PRNGKey(0), 0.5))
    assert not (shown & ~present).any()
    np.testing.assert_array_equal(shown.any(axis=1), present.any(axis=1))
    three = np.asarray(present.all(axis=1))
    counts = np.bincount(shown[three].sum(axis=1), minlength=4) / three.sum()
    np.testing.assert_allclose(counts, [0, 3 / 8, 3 / 8, 1 / 4], atol=0.03)  # all three in place of none
    assert kept_in_training(present, None, 0.0) is present


def test_a_mask_at_test_equals_a_modality_out_of_use(row_f):
    method, state, _ = row_f
    batch = float_batch(np.random.default_rng(5), 10, method.modalities)
    batch["present"] = {m: jnp.ones(10, bool) for m in method.modalities}
    masked_out = batch | {"present": batch["present"] | {"rgb": jnp.zeros(10, bool)}}
    a = embed(method, state.variables, encode(method, state.variables, batch), ("nir", "tir"))
    b = embed(method, state.variables, encode(method, state.variables, masked_out), method.modalities)
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_imputation_uses_the_structure_of_present_pictures_only(row_f):
    method, state, _ = row_f
    features = encode(method, state.variables, float_batch(np.random.default_rng(6), 10, method.modalities))
    features["present"] = jnp.ones((10, 3), bool)
    other = features | {"structure": features["structure"].at[:, 1].set(9.0)}
    a, b = (embed(method, state.variables, f, ("rgb", "tir")) for f in (features, other))
    np.testing.assert_array_equal(a, b)
    a, b = (embed(method, state.variables, f, ("nir", "tir")) for f in (features, other))
    assert np.abs(a - b).max() > 1e-4


def test_text_updates_only_prototypes_without_any_picture(row_f):
    method, state, gradients = row_f
    batch = float_batch(np.random.default_rng(7), 10, method.modalities)
    unseen, seen_elsewhere = (int(batch["label"][row]) for row in (0, 2))  # rows come in pairs of one identity
    present = {m: x.at[:4].set(m != "tir") for m, x in batch["present"].items()}
    bank = {
        "proto": state.memory["proto"].at[2, unseen].set(0.0),
        "has_visual": state.memory["has_visual"].at[2, unseen].set(False),
    }
    out, _ = gradients(state.replace(memory=bank), batch | {"present": present})
    thermal = np.asarray(out.updates["memory"]["proto"][2])
    np.testing.assert_allclose(np.linalg.norm(thermal[unseen]), 1, atol=1e-6)
    np.testing.assert_array_equal(thermal[seen_elsewhere], bank["proto"][2, seen_elsewhere])


def test_the_loss_reads_the_memory_before_or_after_its_update(row_f):
    method, state, _ = row_f
    batch = float_batch(np.random.default_rng(8), 10, method.modalities)
    features = encode(method, state.variables, batch)

    @jax.jit
    def nce(bank):
        """{order: (the loss, the memory after it)}"""
        found = {}
        for order in ("before_loss", "after_loss"):
            fields = dataclasses.replace(method.prototypes.fields, order=order)
            prototypes = dataclasses.replace(method.prototypes, fields=fields)
            given = state.step, batch["label"], features["feats"], features["present"], None
            terms, updated = prototypes.terms(bank, *given)
            found[order] = terms["nce"], updated
        return found

    (a, first), (b, last) = (nce(state.memory)[order] for order in ("before_loss", "after_loss"))
    np.testing.assert_array_equal(first["proto"], last["proto"])
    assert a < b  # the updated prototypes lie nearer to these very features
    again, _ = nce(jax.device_get(first))["after_loss"]
    np.testing.assert_allclose(a, again, rtol=1e-6)


def test_an_epoch_mean_moves_the_memory_at_the_end_of_an_epoch_only(drawn):
    method, data, state = start(drawn, row="B", **{"model.memory.update": "per_epoch_mean"})
    step = jax.jit(loss_of(method))
    rng = np.random.default_rng(9)
    for number in range(data.spec.steps_per_epoch):
        assert not np.any(state.memory["proto"])
        out = step(state.replace(step=np.int32(number)), float_batch(rng, 8, data.spec.modalities))
        state = state.replace(memory=jax.device_get(out.updates["memory"]))
    assert np.any(state.memory["proto"]) and not np.any(state.memory["counts"])


def test_prototypes_start_as_the_mean_unit_feature_of_present_pictures(drawn):
    method, data, state = start(drawn, row="B", eta="0.5", **{"data.eval_batch_size": 10})
    sums, seen = np.zeros(state.memory["proto"].shape), np.zeros(state.memory["has_visual"].shape, bool)
    batches = []
    for batch in data.split("train"):
        batches.append(batch | {"images": {m: x / np.float32(127.5) - 1 for m, x in batch["images"].items()}})
        features = jax.device_get(encode(method, state.variables, batches[-1]))
        for i in np.flatnonzero(batch["valid"]):
            for m in np.flatnonzero(features["present"][i]):
                f = features["feats"][i, m]
                sums[m, batch["label"][i]] += f / np.linalg.norm(f)
                seen[m, batch["label"][i]] = True
    bank = method.begin(state, batches).memory
    np.testing.assert_array_equal(bank["has_visual"], seen)
    norms = np.linalg.norm(sums, axis=-1, keepdims=True)
    np.testing.assert_allclose(bank["proto"], sums / np.where(norms > 0, norms, 1), atol=2e-6)


def test_gradients_of_the_text_terms_reach_the_image_tower_unless_detached(row_f):
    method, state, gradients = row_f
    batch = float_batch(np.random.default_rng(10), 10, method.modalities)
    _, grads = gradients(state, batch, others=0.0)
    assert any(np.any(g) for g in jax.tree.leaves(grads["image"]))

    def text_loss(image):
        params = merge(state.params | {"image": image}, state.frozen)
        rngs = streams(state.rng, state.step, ("dropout",))
        return changed(method, detach_structure=True).loss(params, state, batch, rngs).terms["text_identity"]

    detached = jax.jit(jax.grad(text_loss))(state.params["image"])
    assert not any(np.any(g) for g in jax.tree.leaves(detached))


def test_a_zero_image_may_replace_a_missing_picture(drawn):
    method, _, state = start(drawn, row="A", **{"model.missing_fill": "encode_zero_image"})
    batch = float_batch(np.random.default_rng(11), 6, method.modalities)
    batch["present"] = {m: jnp.ones(6, bool) for m in method.modalities}
    grey = batch | {"images": batch["images"] | {"nir": jnp.zeros((6, 32, 16, 3))}}
    a = embed(method, state.variables, encode(method, state.variables, batch), ("rgb", "tir"))
    b = embed(method, state.variables, encode(method, state.variables, grey), method.modalities)
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_part_norm_gives_every_part_the_same_weight(row_f):
    method, state, _ = row_f
    features = encode(method, state.variables, float_batch(np.random.default_rng(12), 10, method.modalities))
    parts = embed(changed(method, part_norm=True), state.variables, features, method.modalities)
    np.testing.assert_allclose(np.linalg.norm(parts.reshape(10, 3, -1), axis=-1), 3**-0.5, atol=1e-6)


def test_a_camera_is_known_by_its_number():
    """Training cameras 2 and 5: camera 5 has the second embedding; 1 and 7, which are not among them, have none."""
    tower = SharedTower(("rgb",), ImageTower(patch=4, width=6, layers=1, heads=2, dim=5), cameras=(2, 5))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 4, 3)), jnp.float32)
    camid = jnp.array([5, 2, 7, 1])
    params = noise(jax.eval_shape(tower.init, jax.random.PRNGKey(0), images, camid)[0])
    batch = {"images": {"rgb": images}, "present": {"rgb": jnp.ones(4, bool)}, "camid": camid}
    forward_all = jax.jit(tower.forward_all)
    feats = forward_all(params, batch).feats[:, 0]
    one_hot = jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    _, expected = jax.jit(tower.image.apply)({"params": params}, images, one_hot)
    np.testing.assert_allclose(feats, expected[:, 0], atol=1e-6)
    swapped = forward_all(params, batch | {"camid": jnp.array([2, 5, 1, 7])}).feats[:, 0]
    assert [bool(np.any(a != b)) for a, b in zip(feats, swapped)] == [True, True, False, False]
