"""Cross-entropy and the prototype loss against plain loops and PyTorch, and the laws of every masked loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reduced_losses import LOSSES, PROTO, B, D, K, batch, proto_of, torch_value_and_grad

from jax_mmreid.losses.contrastive import prototype_nce
from jax_mmreid.losses.identity import cross_entropy
from jax_mmreid.losses.triplet import batch_hard_triplet
from jax_mmreid.ops import masked, memory

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def loop_cross_entropy(logits, labels, smoothing):
    out = []
    for z, y in zip(np.asarray(logits, np.float64), labels):
        log_p = z - np.log(np.exp(z).sum())
        out.append(sum(-((1 - smoothing) * (k == y) + smoothing / len(z)) * log_p[k] for k in range(len(z))))
    return np.array(out)


def loop_nce(x, labels, proto, tau, valid, where):
    out = np.zeros(len(x))
    for i in range(len(x)):
        if where[i] and valid[labels[i]]:
            z = proto.astype(np.float64) @ (x[i] / np.linalg.norm(x[i])) / tau
            out[i] = np.log(sum(np.exp(z[k]) for k in range(len(proto)) if valid[k])) - z[labels[i]]
    return out


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_the_loop(seed, smoothing):
    logits, labels, where = batch(seed)
    logits, labels = logits[:, :K] * 5, labels
    expected = loop_cross_entropy(logits, labels, smoothing)
    np.testing.assert_allclose(cross_entropy(logits, labels, smoothing=smoothing), expected, rtol=1e-5)
    masked_loss = cross_entropy(logits, labels, smoothing=smoothing, where=where)
    np.testing.assert_allclose(masked_loss, expected * where, rtol=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_nce_equals_the_loop(seed):
    x, labels, where = batch(seed)
    proto = proto_of(seed, missing=[seed % K, (seed + 2) % K])
    valid = np.asarray(memory.valid(proto))
    assert valid.sum() == K - 2
    loss = prototype_nce(x, labels, proto, tau=0.05, valid=valid, where=where)
    np.testing.assert_allclose(loss, loop_nce(x, labels, proto, 0.05, valid, where), rtol=1e-5, atol=1e-5)
    unmasked = prototype_nce(x, labels, proto, tau=0.05, valid=valid)
    np.testing.assert_allclose(
        unmasked, loop_nce(x, labels, proto, 0.05, valid, np.ones(B, bool)), rtol=1e-5, atol=1e-5
    )


def test_nce_depends_on_the_direction_of_a_feature_only():
    x, labels, _ = batch(0)
    loss = [prototype_nce(x * s, labels, PROTO, tau=0.05, valid=memory.valid(PROTO)) for s in (1e-4, 1, 1e4)]
    np.testing.assert_allclose(loss[0], loss[1], rtol=1e-5)
    np.testing.assert_allclose(loss[2], loss[1], rtol=1e-5)


def test_nce_gives_no_gradient_to_prototypes():
    x, labels, _ = batch(0)
    grad = jax.grad(lambda p: prototype_nce(x, labels, p, tau=0.05, valid=memory.valid(p)).sum())(PROTO)
    assert (grad == 0).all()


@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_nce_of_rows_without_a_prototype_is_zero_with_zero_gradient(fill):
    x, labels, _ = batch(0)

    @jax.jit
    def run(x, valid):
        proto = jnp.where(valid[:, None], PROTO, fill)
        return jax.vjp(lambda x: prototype_nce(x, labels, proto, tau=0.5, valid=valid), x)

    some = np.array([False, True, False, False, True])
    loss, pull = run(x, some)
    grad = pull(jnp.ones(B))[0]
    assert np.isfinite(loss).all() and np.isfinite(grad).all()
    assert (loss[~some[labels]] == 0).all() and (grad[~some[labels]] == 0).all()
    assert (loss[some[labels]] > 0).all() and (grad[some[labels]] != 0).any(axis=1).all()
    loss, pull = run(x, np.zeros(K, bool))
    assert (loss == 0).all() and (pull(jnp.ones(B))[0] == 0).all()


@every_loss
@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e30, -5.0])
def test_values_of_masked_rows_have_no_influence(loss, fill):
    x, labels, where = batch(1)
    value, grad = loss(x, labels, where)
    assert np.isfinite(value) and np.isfinite(grad).all() and (grad[~where] == 0).all() and (grad[where] != 0).any()
    filled = np.where(where[:, None], x, np.float32(fill))
    for other in (labels, np.where(where, labels, -1), np.where(where, labels, K + 3)):
        value_filled, grad_filled = loss(filled, other.astype(np.int32), where)
        np.testing.assert_array_equal(value_filled, value)
        np.testing.assert_array_equal(grad_filled, grad)


@every_loss
def test_padding_has_no_influence(loss):
    x, labels, where = batch(2)
    value, grad = loss(x, labels, where)
    more = np.concatenate([x, np.full((6, D), np.nan, np.float32)])
    labels, where = np.concatenate([labels, labels[:6]]), np.concatenate([where, np.zeros(6, bool)])
    padded_value, padded_grad = loss(more, labels, where)
    np.testing.assert_allclose(padded_value, value, rtol=1e-6)
    np.testing.assert_allclose(padded_grad[:B], grad, rtol=1e-5, atol=1e-7)
    assert (padded_grad[B:] == 0).all()


@every_loss
def test_a_batch_without_rows_has_zero_loss_and_gradient(loss):
    x, labels, _ = batch(3)
    value, grad = loss(np.full_like(x, np.nan), labels, np.zeros(B, bool))
    assert value == 0 and (grad == 0).all()


@every_loss
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_duplicates_have_finite_gradients(loss, scale):
    x, labels, where = batch(4)
    value, grad = loss(np.broadcast_to(x[:1] * np.float32(scale), x.shape).copy(), labels, where)
    assert np.isfinite(value) and np.isfinite(grad).all()


@every_loss
def test_the_order_of_rows_does_not_matter(loss):
    x, labels, where = batch(5)
    order = np.random.default_rng(0).permutation(B)
    np.testing.assert_allclose(loss(x[order], labels[order], where[order])[0], loss(x, labels, where)[0], rtol=1e-5)


def test_losses_of_bfloat16_features_are_float32():
    x, labels, _ = batch(6)
    x = jnp.asarray(x, jnp.bfloat16)
    assert cross_entropy(x, labels).dtype == jnp.float32
    assert batch_hard_triplet(x, labels)[0].dtype == jnp.float32
    loss = prototype_nce(x, labels, PROTO, tau=0.05, valid=memory.valid(PROTO))
    np.testing.assert_allclose(
        loss, prototype_nce(x.astype(jnp.float32), labels, PROTO, tau=0.05, valid=memory.valid(PROTO))
    )


# PyTorch, value and gradient


@pytest.mark.reference
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_pytorch(torch, smoothing):
    x, labels, where = batch(0)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    keep = torch.tensor(where)
    target = torch.tensor(labels, dtype=torch.long)
    expected = torch_value_and_grad(torch, lambda x: loss(x[keep], target[keep]), x)

    def ours(x):
        return masked.mean(cross_entropy(x, labels, smoothing=smoothing, where=where), where)

    for a, b in zip(jax.value_and_grad(ours)(x), expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.reference
def test_nce_and_the_update_after_it_equal_pytorch(torch):
    x, labels, _ = batch(0)
    proto = torch.tensor(proto_of(0), dtype=torch.float64)
    y = torch.tensor(labels, dtype=torch.long)
    normalize = torch.nn.functional.normalize

    def reference(x):
        return torch.nn.functional.cross_entropy(normalize(x, dim=1) @ proto.T / 0.05, y)

    expected = torch_value_and_grad(torch, reference, x)
    valid = np.ones(K, bool)

    def ours(x):
        return prototype_nce(x, labels, proto_of(0), tau=0.05, valid=valid).mean()

    for a, b in zip(jax.value_and_grad(ours)(x), expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    for f, k in zip(normalize(torch.tensor(x, dtype=torch.float64), dim=1), labels):
        proto[k] = normalize(0.2 * proto[k] + 0.8 * f, dim=0)
    new = memory.update_sequential(proto_of(0)[None], x[:, None], labels, np.ones((B, 1), bool), 0.2)
    np.testing.assert_allclose(new[0], proto.numpy(), atol=1e-6)
