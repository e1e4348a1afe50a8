"""The identity sampler: what a batch and a pass hold, and that a batch depends on (seed, step) alone."""

import collections

import numpy as np
import pytest

from input_pipeline.sampler import IdentitySampler
from jax_mmreid.batch import DataError

P, K = 3, 4
COUNTS = (9, 2, 4, 11, 1, 8, 5)  # rows per label: fewer than K, exactly K, multiples, remainders
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))


def make(seed=5, labels=LABELS, identities=P, instances=K):
    return IdentitySampler(labels, identities=identities, instances=instances, seed=seed)


def test_batch_has_p_identities_with_k_adjacent_rows():
    sampler = make()
    for step in range(40):
        rows = sampler.rows(step)
        assert rows.shape == (P * K,)
        groups = LABELS[rows].reshape(P, K)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == P


def test_pass_shuffles_cuts_and_draws_with_replacement():
    sampler = make()
    batches = np.stack([sampler.rows(step) for step in range(sampler.steps_per_epoch)])
    used = collections.Counter(batches.ravel().tolist())
    drawn = collections.Counter(LABELS[batches[:, ::K]].ravel().tolist())
    for label, count in enumerate(COUNTS):
        rows = np.flatnonzero(label == LABELS)
        assert drawn[label] <= max(count // K, 1)  # the remainder is left out
        if count >= K:
            assert all(used[row] <= 1 for row in rows)
        elif drawn[label]:
            assert sum(used[row] for row in rows) == K  # drawn with replacement
    left = [max(count // K, 1) - drawn[label] for label, count in enumerate(COUNTS)]
    assert sum(groups > 0 for groups in left) < P  # no further batch was possible


def test_pass_of_equal_identities_uses_every_row_once():
    labels = np.repeat(np.arange(P), 2 * K)
    sampler = make(labels=labels)
    assert sampler.steps_per_epoch == 2
    assert sorted(np.concatenate([sampler.rows(0), sampler.rows(1)])) == list(range(len(labels)))
    assert sorted(np.concatenate([sampler.rows(2), sampler.rows(3)])) == list(range(len(labels)))


def test_batch_is_a_pure_function_of_seed_and_step():
    steps = list(range(60))
    want = [make().rows(step) for step in steps]  # a fresh sampler for each
    sampler = make()
    for step in np.random.default_rng(1).permutation(steps):
        np.testing.assert_array_equal(sampler.rows(int(step)), want[step])
    other = make(seed=6)
    assert any((other.rows(step) != want[step]).any() for step in steps)


def test_passes_differ_in_order_and_may_differ_in_length():
    sampler = make()
    sampler.rows(300)
    assert len(set(np.diff(sampler._starts))) > 1  # else locating a step would not be tested
    assert any((sampler.rows(t) != sampler.rows(sampler.steps_per_epoch + t)).any() for t in range(2))


def test_negative_step_is_refused():
    with pytest.raises(ValueError, match="step -1 is negative"):
        make().rows(-1)


def test_too_few_identities_are_told_with_both_numbers():
    with pytest.raises(DataError, match=r"7 identities.*the 8 of a batch; lower data\.identities"):
        make(identities=8)
