"""The prototype memory against a plain loop, one sample and one modality at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mmreid.ops import memory

B, M, K, D = 13, 3, 5, 7


def norm(x):
    return np.linalg.norm(x, axis=-1, keepdims=True)


def loop(proto, feats, labels, where, alpha):
    """Eq. 3 as it is printed."""
    proto = np.array(proto, np.float64)
    for i in range(len(feats)):
        for m in range(proto.shape[0]):
            if where[i, m]:
                p = alpha * proto[m, labels[i]] + (1 - alpha) * feats[i, m] / norm(feats[i, m])
                proto[m, labels[i]] = p / norm(p)
    return proto


def batch(seed, rows=B):
    rng = np.random.default_rng(seed)
    proto = rng.normal(size=(M, K, D))
    proto /= norm(proto)
    feats = rng.normal(size=(rows, M, D)) * 9
    return (
        proto.astype(np.float32),
        feats.astype(np.float32),
        rng.integers(0, K, rows).astype(np.int32),
        rng.random((rows, M)) < 0.7,
    )


sequential, mean = jax.jit(memory.update_sequential), jax.jit(memory.update_mean)
UPDATES = pytest.mark.parametrize("update", [sequential, mean])


@pytest.mark.parametrize("seed", range(7))
@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.9])
def test_sequential_update_equals_the_loop(seed, alpha):
    proto, feats, labels, where = batch(seed)
    assert len(set(labels)) < B  # labels repeat
    proto[1, 2] = 0
    new = sequential(proto, feats, labels, where, alpha)
    np.testing.assert_allclose(new, loop(proto, feats, labels, where, alpha), atol=1e-6)


def test_the_last_sample_has_the_largest_weight_in_a_sequential_update():
    proto, feats, _, _ = batch(0, rows=2)
    labels, where = np.array([3, 3], np.int32), np.ones((2, M), bool)
    forward = sequential(proto, feats, labels, where, 0.2)
    backward = sequential(proto, feats[::-1], labels, where, 0.2)
    assert np.abs(forward - backward).max() > 0.1
    unit = feats / norm(feats)
    assert (np.sum(forward[:, 3] * unit[1], -1) > np.sum(backward[:, 3] * unit[1], -1)).all()


@pytest.mark.parametrize("seed", range(3))
def test_mean_update_is_one_step_with_the_batch_mean(seed):
    proto, feats, labels, where = batch(seed)
    expected = proto.copy()
    for m in range(M):
        for k in range(K):
            rows = [feats[i, m] / norm(feats[i, m]) for i in range(B) if labels[i] == k and where[i, m]]
            if rows:
                p = 0.2 * proto[m, k] + 0.8 * np.mean(rows, axis=0)
                expected[m, k] = p / norm(p)
    np.testing.assert_allclose(mean(proto, feats, labels, where, 0.2), expected, atol=1e-6)
    order = np.random.default_rng(seed).permutation(B)
    shuffled = mean(proto, feats[order], labels[order], where[order], 0.2)
    np.testing.assert_allclose(shuffled, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_prototypes_start_as_the_normalised_mean_of_unit_features(seed):
    _, feats, labels, where = batch(seed)
    where[labels == 1, 2] = False
    state = memory.init(M, K, D)
    for part in (slice(0, 5), slice(5, 12), slice(12, B)):
        state = memory.accumulate(*state, feats[part], labels[part], where[part])
    proto, has_visual = memory.finalize(*state)
    assert proto.dtype == jnp.float32 and has_visual.dtype == bool
    for m in range(M):
        for k in range(K):
            rows = [feats[i, m] / norm(feats[i, m]) for i in range(B) if labels[i] == k and where[i, m]]
            assert has_visual[m, k] == bool(rows)
            expected = np.mean(rows, axis=0) / norm(np.mean(rows, axis=0)) if rows else np.zeros(D)
            np.testing.assert_allclose(proto[m, k], expected, atol=1e-6)
    assert not has_visual[2, 1]
    np.testing.assert_array_equal(memory.valid(proto), has_visual)


def test_ema_of_an_epoch_equals_the_mean_update_of_all_its_rows():
    proto, feats, labels, where = batch(0)
    state = memory.init(M, K, D)
    for part in (slice(0, 5), slice(5, B)):
        state = memory.accumulate(*state, feats[part], labels[part], where[part])
    updated = memory.ema(proto, *state, 0.2)
    np.testing.assert_allclose(updated, mean(proto, feats, labels, where, 0.2), atol=1e-6)


@UPDATES
def test_a_row_without_a_prototype_takes_the_feature(update):
    _, feats, _, _ = batch(0, rows=1)
    label, where = np.array([3], np.int32), np.array([[True, False, True]])
    proto = np.asarray(update(np.zeros((M, K, D), np.float32), feats, label, where, 0.2))
    np.testing.assert_allclose(proto[[0, 2], 3], (feats / norm(feats))[0, [0, 2]], atol=1e-6)
    assert memory.valid(proto).sum() == 2


@UPDATES
def test_text_updates_only_prototypes_without_pictures(update):
    proto, feats, labels, _ = batch(0)
    has_visual = np.ones((M, K), bool)
    has_visual[1, labels[0]] = has_visual[2, labels[1]] = False
    proto = np.where(has_visual[..., None], proto, 0)
    new = np.asarray(update(proto, feats, labels, ~has_visual[:, labels].T, 0.2))
    np.testing.assert_array_equal(new[has_visual], proto[has_visual])
    assert memory.valid(new).all()


@UPDATES
def test_rows_stay_unit_or_zero_and_float32(update):
    proto, feats, labels, where = batch(0)
    proto[:, 4] = 0
    where[labels == 4] = False
    for _ in range(5):
        proto = update(proto, feats, labels, where, 0.2)
    assert proto.dtype == jnp.float32 and (proto[:, 4] == 0).all()
    np.testing.assert_allclose(norm(np.asarray(proto)[:, :4]), 1, rtol=1e-6)


@UPDATES
def test_missing_samples_are_never_read(update):
    proto, feats, labels, where = batch(0)
    expected = update(proto, feats, labels, where, 0.2)
    holes = np.where(where[..., None], feats, np.nan)
    np.testing.assert_array_equal(update(proto, holes, labels, where, 0.2), expected)
    nothing = np.zeros((B, M), bool)
    np.testing.assert_array_equal(update(proto, feats, labels, nothing, 0.2), proto)


@UPDATES
def test_padding_rows_have_no_influence(update):
    proto, feats, labels, where = batch(0)
    more = np.concatenate([feats, np.full((4, M, D), np.nan, np.float32)])
    labels_more = np.concatenate([labels, np.array([0, 1, -1, K], np.int32)])
    where_more = np.concatenate([where, np.zeros((4, M), bool)])
    expected = update(proto, feats, labels, where, 0.2)
    np.testing.assert_array_equal(update(proto, more, labels_more, where_more, 0.2), expected)


@UPDATES
def test_a_feature_of_one_modality_does_not_change_the_others(update):
    proto, feats, labels, where = batch(0)
    where[:, [0, 2]] = False
    new = np.asarray(update(proto, feats, labels, where, 0.2))
    np.testing.assert_array_equal(new[[0, 2]], proto[[0, 2]])
    assert (new[1] != proto[1]).any()


@UPDATES
def test_no_gradient_reaches_the_features(update):
    proto, feats, labels, where = batch(0)
    grad = jax.grad(lambda f: jnp.sum(update(proto, f, labels, where, 0.2) ** 3))(feats)
    assert (grad == 0).all()


@UPDATES
def test_zero_features_do_not_change_a_prototype(update):
    proto, feats, labels, _ = batch(0)
    new = update(proto, np.zeros_like(feats), labels, np.ones((B, M), bool), 0.2)
    np.testing.assert_allclose(new, proto, atol=1e-6)
