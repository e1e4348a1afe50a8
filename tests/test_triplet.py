"""The triplet losses, batch-hard and weighted, against plain loops, PyTorch and the official code."""

import numpy as np
import pytest
from reduced_losses import LOSSES, B, batch, torch_value_and_grad

from jax_mmreid.losses.triplet import batch_hard_triplet, weighted_triplet


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
