"""The losses against plain loops and PyTorch, and the laws of every masked loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mmreid.losses.contrastive import prototype_nce
from jax_mmreid.losses.identity import cross_entropy
from jax_mmreid.losses.triplet import batch_hard_triplet, weighted_triplet
from jax_mmreid.ops import masked, memory

B, D, K = 11, 7, 5


def proto_of(seed, missing=()):
    proto = np.array(masked.unit(np.random.default_rng(seed).normal(size=(K, D))))
    proto[list(missing)] = 0
    return proto


PROTO = proto_of(9, missing=[3])


# name -> the batch loss of x [B,D], labels [B], where [B], as a method would reduce it
def reduced_triplet(x, labels, where, margin=None):
    loss, anchors = batch_hard_triplet(x, labels, margin=margin, where=where)
    return masked.mean(loss, anchors)


def reduced_weighted(x, labels, where):
    loss, anchors = weighted_triplet(x, labels, where=where)
    return masked.mean(loss, anchors)


def reduced_cross_entropy(x, labels, where):
    return masked.mean(cross_entropy(x, labels, where=where), where)


def reduced_nce(x, labels, where):
    valid = memory.valid(PROTO)
    return masked.mean(prototype_nce(x, labels, PROTO, tau=0.05, valid=valid, where=where), where & valid[labels])


LOSSES = {
    "triplet": jax.jit(jax.value_and_grad(reduced_triplet)),
    "margin": jax.jit(jax.value_and_grad(functools.partial(reduced_triplet, margin=0.3))),
    "weighted": jax.jit(jax.value_and_grad(reduced_weighted)),
    "cross_entropy": jax.jit(jax.value_and_grad(reduced_cross_entropy)),
    "nce": jax.jit(jax.value_and_grad(reduced_nce)),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def batch(seed, rows=B, present=0.7):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, D)).astype(np.float32)
    return x, rng.integers(0, K, rows).astype(np.int32), rng.random(rows) < present


def loop_cross_entropy(logits, labels, smoothing):
    out = []
    for z, y in zip(np.asarray(logits, np.float64), labels):
        log_p = z - np.log(np.exp(z).sum())
        out.append(sum(-((1 - smoothing) * (k == y) + smoothing / len(z)) * log_p[k] for k in range(len(z))))
    return np.array(out)


def loop_triplet(x, labels, where, margin):
    loss, counted = np.zeros(len(x)), np.zeros(len(x), bool)
    x = np.asarray(x, np.float64)
    for a in range(len(x)):
        d = {j: max(np.linalg.norm(x[a] - x[j]), 1e-6) for j in range(len(x)) if where[j]}
        negatives = [d[j] for j in d if labels[j] != labels[a]]
        if where[a] and negatives:
            gap = max(d[j] for j in d if labels[j] == labels[a]) - min(negatives)
            loss[a] = np.log1p(np.exp(gap)) if margin is None else max(0, gap + margin)
            counted[a] = True
    return loss, counted


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


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("margin", [None, 0.3])
def test_triplet_equals_the_loop(seed, margin):
    x, labels, where = batch(seed, present=(seed % 5 + 1) / 5)
    labels = labels % (seed % 4 + 1)  # a single identity has no negatives
    loss, anchors = batch_hard_triplet(x, labels, margin=margin, where=where)
    expected, counted = loop_triplet(x, labels, where, margin)
    np.testing.assert_array_equal(anchors, counted)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)


def test_triplet_without_a_mask_uses_every_row():
    x, labels, _ = batch(0)
    for got, expected in zip(batch_hard_triplet(x, labels), batch_hard_triplet(x, labels, where=np.ones(B, bool))):
        np.testing.assert_array_equal(got, expected)


def test_an_anchor_without_other_positives_is_its_own_without_rounding_noise():
    x = (1e3 * np.random.default_rng(0).normal(size=(13, 7))).astype(np.float32)
    labels, margin = np.arange(13), 1e4
    loss, anchors = batch_hard_triplet(x, labels, margin=margin)
    assert anchors.all()
    np.testing.assert_allclose(loss, loop_triplet(x, labels, anchors, margin)[0], rtol=2e-6)


def loop_weighted(x, labels, where):
    loss, counted = np.zeros(len(x)), np.zeros(len(x), bool)
    x = np.asarray(x, np.float64)
    for a in np.flatnonzero(where):
        d = {j: max(np.linalg.norm(x[a] - x[j]), 1e-6) for j in range(len(x)) if where[j]}
        positives = [d[j] for j in d if labels[j] == labels[a]]
        negatives = [d[j] for j in d if labels[j] != labels[a]]
        if negatives:
            pull, push = np.exp(np.array(positives) - max(positives)), np.exp(-np.array(negatives))
            gap = (pull @ positives) / (pull.sum() + 1e-6) - (push @ negatives) / (push.sum() + 1e-6)
            loss[a], counted[a] = np.logaddexp(0, gap), True
    return loss, counted


@pytest.mark.parametrize("seed", range(20))
def test_weighted_triplet_equals_the_loop(seed):
    x, labels, where = batch(seed, present=(seed % 5 + 1) / 5)
    x, labels = x * (seed + 1), labels % (seed % 4 + 1)
    loss, anchors = weighted_triplet(x, labels, where=where)
    expected, counted = loop_weighted(x, labels, where)
    np.testing.assert_array_equal(anchors, counted)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)


# From the official code: scale -> loss, L2 norm of its gradient, gradient of the first number.
WEIGHTED = {
    0.5: (0.5878594517707825, 0.25913065671920776, -0.003360549919307232),
    1: (0.6731505990028381, 0.2761705219745636, -0.004068554379045963),
    5: (20.183486938476562, 0.7824017405509949, -0.01799669861793518),
    20: (81.5811767578125, 0.7071061134338379, -0.017545105889439583),
}


@pytest.mark.parametrize("scale", WEIGHTED)
def test_weighted_triplet_equals_the_official_code(scale):
    """At scale 5 a softmax over the negatives would give 0.88."""
    i, j = np.ogrid[:8, :16]
    x = (scale * np.sin(0.37 * (i + 1) * (j + 1) + 0.11 * (j + 1))).astype(np.float32)
    loss, grad = LOSSES["weighted"](x, np.arange(8) // 2, np.ones(8, bool))
    np.testing.assert_allclose((loss, np.linalg.norm(grad), grad[0, 0]), WEIGHTED[scale], rtol=1e-4)


def test_weighted_triplet_is_finite_at_large_distances():
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    for scale in (100, 1e4):
        loss, grad = LOSSES["weighted"](scale * x, np.arange(8) // 2, np.ones(8, bool))
        assert loss > 90 and np.isfinite(loss) and np.isfinite(grad).all()


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


def torch_value_and_grad(torch, f, x):
    x = torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True)
    value = f(x)
    value.backward()
    return value.item(), x.grad.numpy()


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
@pytest.mark.parametrize("margin", [None, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_triplet_equals_pytorch_on_the_rows_that_exist(torch, seed, margin):
    x, labels, where = batch(seed)
    y = torch.tensor(labels[where])

    def reference(x):
        x = x[torch.tensor(where)]
        square = x.pow(2).sum(1)
        dist = (square[:, None] + square[None, :] - 2 * x @ x.T).clamp(min=1e-12).sqrt()
        same = y[:, None] == y[None, :]
        positive = dist.masked_fill(~same, -1).max(dim=1).values
        negative = dist.masked_fill(same, torch.inf).min(dim=1).values
        if margin is None:
            return torch.nn.functional.soft_margin_loss(negative - positive, torch.ones(len(y)))
        return torch.nn.functional.margin_ranking_loss(negative, positive, torch.ones(len(y)), margin=margin)

    expected = torch_value_and_grad(torch, reference, x)
    ours = LOSSES["triplet" if margin is None else "margin"](x, labels, where)
    for a, b in zip(ours, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


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
