"""The samplers: what a batch and a pass hold, and that a batch depends on (seed, step) alone."""

import collections

import numpy as np
import pytest

from input_pipeline.reading.sampler import IdentitySampler, PairSampler, draw_pairs
from jax_mmreid.errors import DataError

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


def test_too_few_identities_are_an_error_with_both_numbers():
    with pytest.raises(DataError, match=r"7 identities.*the 8 of a batch; lower data\.identities"):
        make(identities=8)


# Pairs.

# Made by the official code with RandomState(1): three batches of 8 identities x 4, from 10 identities with 7 visible
# and 5 infrared pictures each.
VISIBLE = """
        19 18 20 15 66 67 65 67 48 42 48 47 28 32 29 28 0 6 3 6 21 22 24 25 8 9 7 11 49 55 50 52
        34 34 28 28 35 40 40 41 54 52 54 49 27 25 26 25 7 12 9 11 67 67 63 67 16 17 15 16 6 0 1 2
        53 51 49 54 24 22 22 27 66 63 66 64 19 17 15 15 12 10 11 9 37 39 38 35 62 58 56 61 5 2 1 0
"""
INFRARED = """
        12 14 12 14 47 49 46 46 31 31 31 31 20 23 22 21 1 1 3 4 17 19 15 18 6 7 7 6 39 38 36 38
        21 21 23 20 29 27 29 28 38 39 38 39 16 15 19 17 6 6 5 7 46 49 46 45 14 14 12 12 2 0 1 2
        35 36 35 36 19 19 18 15 47 49 45 45 10 10 14 12 5 8 8 6 25 29 27 29 43 40 40 44 4 3 0 1
"""


def test_pairs_are_the_official_draws():
    rows = [(np.arange(7 * i, 7 * i + 7), np.arange(5 * i, 5 * i + 5)) for i in range(10)]
    drawn = draw_pairs(np.random.RandomState(1), rows, identities=8, instances=4, steps=3)
    want = np.stack([np.array(column.split(), int) for column in (VISIBLE, INFRARED)], axis=1)
    np.testing.assert_array_equal(drawn.reshape(96, 2), want)


PIDS = np.repeat([3, 8, 9, 20, 41], 9)
HAS = np.random.default_rng(1).random((len(PIDS), 2)) < 0.6  # some rows have both pictures, some none


def make_pairs(seed=5, pids=PIDS, has=HAS, identities=P, instances=K):
    return PairSampler(pids, {"rgb": has[:, 0], "ir": has[:, 1]}, identities=identities, instances=instances, seed=seed)


def test_pairs_are_of_one_identity_and_have_their_pictures():
    sampler, seen = make_pairs(), set()
    for step in range(40):
        rows = sampler.rows(step)
        assert rows.shape == (P * K, 2)
        assert all(HAS[rows[:, column], column].all() for column in (0, 1))
        groups = PIDS[rows].reshape(P, 2 * K)
        assert (groups == groups[:, :1]).all() and len(set(groups[:, 0])) == P
        seen |= {(column, row) for column in (0, 1) for row in rows[:, column].tolist()}
    assert len(seen) == HAS.sum()  # all of them are drawn


def test_rows_of_pairs_are_drawn_with_replacement_and_independently():
    rows = np.concatenate([make_pairs().rows(step) for step in range(20)]).reshape(-1, K, 2)
    assert any(len(set(group[:, 0])) < K for group in rows)
    assert len({tuple(pair) for pair in rows.reshape(-1, 2).tolist()}) > 60


def test_a_pass_of_pairs_is_as_long_as_the_larger_modality():
    sampler = make_pairs()
    assert sampler.steps_per_epoch == HAS.sum(axis=0).max() // (P * K) + 1
    for counts, steps in (((22258, 11909), 696), ((2060, 2060), 65), ((13975, 16946), 530)):  # SYSU-MM01, RegDB, LLCM
        has = np.arange(max(counts))[:, None] < counts
        pids = np.arange(len(has)) % 8
        assert make_pairs(pids=pids, has=has, identities=8, instances=4).steps_per_epoch == steps


def test_a_batch_of_pairs_is_a_pure_function_of_seed_and_step():
    steps = list(range(3 * make_pairs().steps_per_epoch))
    want = [make_pairs().rows(step) for step in steps]
    sampler = make_pairs()
    for step in np.random.default_rng(1).permutation(steps):
        np.testing.assert_array_equal(sampler.rows(int(step)), want[step])
    assert len({rows.tobytes() for rows in want}) == len(want)  # passes differ
    assert all((make_pairs(seed=6).rows(step) != want[step]).any() for step in steps)
    with pytest.raises(ValueError, match="step -1 is negative"):
        sampler.rows(-1)


def test_identities_that_lack_a_modality_are_not_drawn_and_logged_once(caplog):
    has = HAS.copy()
    has[PIDS == 8, 1] = False
    has[PIDS == 41, 0] = False
    sampler = make_pairs(has=has)
    drawn = {pid for step in range(30) for pid in PIDS[sampler.rows(step)].ravel().tolist()}
    assert drawn == {3, 9, 20}
    assert caplog.messages == [
        "sampler: identities without a picture of each of rgb, ir are not drawn: 8, 41 (2 in all)"
    ]
    assert sampler.steps_per_epoch == has.sum(axis=0).max() // (P * K) + 1  # the pictures of all count
    with pytest.raises(DataError, match="3 training identities .* fewer than the 4 of a batch; lower data.identities"):
        make_pairs(has=has, identities=4)
