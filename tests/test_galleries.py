"""Galleries drawn trial by trial, against the draws of the published code."""

import random

import numpy as np
import pytest

from jax_mmreid.errors import ConfigError
from jax_mmreid.metrics import galleries

# Made by the official code: per trial, one choice from each of nine lists of these sizes.
SIZES = (10, 10, 10, 7, 3, 1, 10, 9, 5)
DRAWS = {
    0: [6, 6, 0, 2, 2, 0, 6, 4, 3],
    1: [2, 9, 1, 2, 0, 0, 7, 7, 3],
    2: [0, 1, 1, 2, 0, 0, 4, 3, 4],
    3: [3, 9, 8, 1, 1, 0, 9, 1, 4],
    4: [3, 4, 1, 5, 1, 0, 2, 1, 0],
    5: [9, 4, 5, 6, 2, 0, 7, 3, 0],
    6: [9, 1, 7, 6, 1, 0, 0, 2, 4],
    7: [5, 2, 6, 5, 0, 0, 8, 1, 2],
    8: [3, 5, 6, 1, 0, 0, 1, 2, 1],
    9: [7, 9, 5, 2, 0, 0, 0, 5, 4],
}
CAMERAS = (1, 2, 4, 5)
# (identity, camera). Identities miss cameras; 1000 comes last in numerical order, not in alphabetical order.
GROUPS = [(7, 1), (7, 2), (7, 4), (9, 1), (9, 5), (31, 2), (1000, 1), (1000, 4), (1000, 5)]


def make(groups, sizes):
    """Columns with the given number of pictures of each (identity, camera)."""
    pid, camid = np.repeat(np.array(groups, np.int32), sizes, axis=0).T
    return {"pid": pid, "camid": camid}


COLUMNS = make(GROUPS, SIZES)
STARTS = np.cumsum((0, *SIZES[:-1]))


@pytest.mark.parametrize("trial", DRAWS)
def test_a_single_shot_is_the_official_draw(trial):
    rows = galleries.draw(COLUMNS, cameras=CAMERAS, shots=1, trial=trial)
    np.testing.assert_array_equal(rows, STARTS + DRAWS[trial])


def test_the_rows_of_the_split_may_be_in_another_order():
    """Only the order within an identity and camera counts."""
    groups = [GROUPS[i] for i in (8, 2, 5, 0, 7, 1, 4, 3, 6)]
    sizes = [dict(zip(GROUPS, SIZES))[group] for group in groups]
    starts = dict(zip(groups, np.cumsum((0, *sizes[:-1]))))
    rows = galleries.draw(make(groups, sizes), cameras=CAMERAS, shots=1, trial=3)
    np.testing.assert_array_equal(rows, [starts[group] for group in GROUPS] + np.array(DRAWS[3]))


def test_other_cameras_are_not_drawn_from():
    indoor = galleries.draw(COLUMNS, cameras=(1, 2), shots=1, trial=0)
    kept = [i for i, (_, camera) in enumerate(GROUPS) if camera in (1, 2)]
    only = make([GROUPS[i] for i in kept], [SIZES[i] for i in kept])
    drawn = galleries.draw(only, cameras=(1, 2), shots=1, trial=0)
    np.testing.assert_array_equal(COLUMNS["pid"][indoor], only["pid"][drawn])
    assert set(COLUMNS["camid"][indoor]) == {1, 2} and len(indoor) == 5


def test_several_shots_differ_by_trial_and_take_all_where_there_are_fewer():
    draws = [galleries.draw(COLUMNS, cameras=CAMERAS, shots=6, trial=trial) for trial in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    groups = list(zip(COLUMNS["pid"][draws[0]].tolist(), COLUMNS["camid"][draws[0]].tolist()))
    assert groups == [group for group, size in zip(GROUPS, SIZES) for _ in range(min(size, 6))]
    assert len(set(draws[0].tolist())) == len(draws[0])


def test_no_global_generator_is_touched():
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    for shots in (1, 6):
        galleries.draw(COLUMNS, cameras=CAMERAS, shots=shots, trial=2)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(shots=0), r"draw.shots=0: must lie in \[1, inf\)"),
        (dict(trial=-1), r"draw.trial=-1: must lie in \[0, inf\)"),
        (dict(cameras=(1, 1)), r"draw.cameras=\(1, 1\): a camera is named twice"),
        (dict(cameras=(3, 6)), r"draw.cameras=\(3, 6\): the split has pictures by cameras 1, 2, 4, 5 only"),
    ],
)
def test_impossible_draws(changes, message):
    with pytest.raises(ConfigError, match=message):
        galleries.draw(COLUMNS, **dict(cameras=CAMERAS, shots=1, trial=0) | changes)
