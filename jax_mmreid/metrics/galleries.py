"""Galleries drawn from a split: rows trial by trial, as the visible-infrared protocols do, or what each row shows.

A draw is a pure function of its arguments; it does not use a global generator.
"""

import random
from collections.abc import Mapping, Sequence

import numpy as np

from jax_mmreid.errors import ConfigError


def draw(columns: Mapping[str, np.ndarray], *, cameras: Sequence[int], shots: int, trial: int) -> np.ndarray:
    """Rows [n]: `shots` pictures of every identity by each of `cameras`, or all of them if there are fewer.

    `columns` are pid and camid of a split, each [N]. Identities come in ascending order, their cameras in the order
    given; an identity without a picture by a camera has no row of it. A single shot is the draw of the published codes
    after `random.seed(trial)`, provided that the rows of an identity and camera are in the order of their file names,
    as `Records` has them. Several shots are drawn without replacement from NumPy's generator with seed `trial`; the
    published codes use one generator for all trials there.

    Raises ConfigError for impossible shots, trial or cameras, and if the split has no picture by these cameras.
    """
    if shots < 1:
        raise ConfigError(f"draw.shots={shots}: must lie in [1, inf)")
    if trial < 0:
        raise ConfigError(f"draw.trial={trial}: must lie in [0, inf)")
    if len(set(cameras)) < len(cameras):
        raise ConfigError(f"draw.cameras={tuple(cameras)}: a camera is named twice")
    by_camera = {}
    for row, key in enumerate(zip(columns["pid"].tolist(), columns["camid"].tolist())):
        by_camera.setdefault(key, []).append(row)
    pids = np.unique(columns["pid"]).tolist()
    groups = [by_camera[pid, camera] for pid in pids for camera in cameras if (pid, camera) in by_camera]
    if not groups:
        existing = ", ".join(map(str, np.unique(columns["camid"])))
        raise ConfigError(f"draw.cameras={tuple(cameras)}: the split has pictures by cameras {existing} only")
    if shots == 1:
        one = random.Random(trial)
        return np.array([one.choice(group) for group in groups])
    several = np.random.RandomState(trial)
    return np.concatenate(
        [several.choice(group, shots, replace=False) if len(group) > shots else group for group in groups]
    )


def subsets(present: np.ndarray, *, seed: int) -> np.ndarray:
    """A random non-empty subset of what each row has: present [n,M] bool -> [n,M] bool.

    Every non-empty subset is as likely as any other; a row that has nothing stays empty.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    shown = np.zeros_like(present)
    while (empty := present.any(axis=1) & ~shown.any(axis=1)).any():
        drawn = rng.random(present.shape) < 0.5
        shown[empty] = (present & drawn)[empty]
    return shown
