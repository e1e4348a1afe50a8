"""Which pictures are searched: galleries drawn from a split, as the cross-modality protocols do it, trial by trial.

A draw is a pure function of pid and camid and the number of its trial; no global generator is touched.
"""

import random
from collections.abc import Mapping, Sequence

import numpy as np


def draw(columns: Mapping[str, np.ndarray], *, cameras: Sequence[int], shots: int, trial: int) -> np.ndarray:
    """Rows [n] of `shots` pictures of every person before every one of `cameras`, all where there are fewer.

    Persons come in the order of their numbers, their cameras in the order given; where there is no picture nothing is
    drawn. A single shot is what the field's code draws after `random.seed(trial)`, given that the rows of a person and
    camera are in the order of their file names, as `Records` has them. Several shots are drawn without replacement
    from NumPy's generator of this seed; there the field's code goes on from trial to trial.

    SYSU-MM01   cameras 1, 2, 4, 5 (all search) or 1, 2 (indoor search); 1 or 10 shots
    LLCM        cameras 1 to 9; 1 shot

    Raises ValueError for a number that cannot be and where the cameras have no picture.
    """
    if shots < 1 or trial < 0 or len(set(cameras)) < len(cameras):
        raise ValueError(f"galleries: cannot draw cameras={tuple(cameras)}, shots={shots}, trial={trial}")
    by_place = {}
    for row, place in enumerate(zip(columns["pid"].tolist(), columns["camid"].tolist())):
        by_place.setdefault(place, []).append(row)
    persons = np.unique(columns["pid"]).tolist()
    groups = [by_place[pid, camera] for pid in persons for camera in cameras if (pid, camera) in by_place]
    if not groups:
        seen = ", ".join(map(str, np.unique(columns["camid"])))
        raise ValueError(f"galleries: no picture of cameras {tuple(cameras)}; the split has cameras {seen}")
    if shots == 1:
        one = random.Random(trial)
        return np.array([one.choice(group) for group in groups])
    several = np.random.RandomState(trial)
    return np.concatenate(
        [several.choice(group, shots, replace=False) if len(group) > shots else group for group in groups]
    )
