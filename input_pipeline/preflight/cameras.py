"""Cameras that give identities away: identities of one camera, and cameras that their mean pictures reveal."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from input_pipeline.preflight.scan import TRAIN, Look, Rows


class Camera(NamedTuple):
    """What one camera shows in one split."""

    rows: int
    identities: int
    alone: int  # of these, identities that no other camera of training shows, or of all test splits
    recognised: dict[str, float]  # {modality: share of its pictures that are nearest to its own mean picture}


def cameras(rows: Rows, looks: Mapping[str, Look]) -> dict[str, dict[int, Camera]]:
    """{split: {camera: what it shows}}; rows without a camera are left out."""
    found = {}
    for split in dict.fromkeys(rows.split.tolist()):
        chosen = np.flatnonzero((rows.split == split) & (rows.camid >= 0))
        pid, camid = rows.pid[chosen], rows.camid[chosen]
        side = ((rows.split == TRAIN) == (split == TRAIN)) & (rows.camid >= 0)
        single = single_camera(rows.pid[side], rows.camid[side])
        shares = {m: recognised(look.tiny[chosen], camid, look.there[chosen]) for m, look in looks.items()}
        found[split] = {}
        for camera in np.unique(camid).tolist():
            pids = np.unique(pid[camid == camera])
            share = {m: each[camera] for m, each in shares.items() if camera in each}
            alone = int(np.isin(pids, single).sum())
            found[split][camera] = Camera(int(np.sum(camid == camera)), len(pids), alone, share)
    return found


def single_camera(pid: np.ndarray, camid: np.ndarray) -> np.ndarray:
    """The identities [k] of rows [n] that one camera alone shows."""
    pids, counts = np.unique(np.unique(np.stack([pid, camid]), axis=1)[0], return_counts=True)
    return pids[counts == 1]


def recognised(tiny: np.ndarray, camid: np.ndarray, there: np.ndarray) -> dict[int, float]:
    """{camera: share of its pictures that are nearest to its own mean picture}, of pictures [n,8,8,3] uint8.

    The mean leaves out the picture itself. With equal cameras the share is about one by the number of cameras. A camera
    with one picture has none.
    """
    names, numbers, counts = np.unique(camid[there], return_inverse=True, return_counts=True)
    if len(names) < 2:
        return {}
    pixels = tiny[there].reshape(len(numbers), -1).astype(np.float64)
    sums = np.zeros((len(names), pixels.shape[1]))
    np.add.at(sums, numbers, pixels)
    means = sums / counts[:, None]
    away = (pixels**2).sum(1, keepdims=True) - 2 * pixels @ means.T + (means**2).sum(1)
    own = (sums[numbers] - pixels) / np.maximum(counts[numbers] - 1, 1)[:, None]
    every = np.arange(len(pixels))
    away[every, numbers] = ((pixels - own) ** 2).sum(1)
    right = away.argmin(axis=1) == numbers
    return {int(name): float(right[numbers == i].mean()) for i, name in enumerate(names) if counts[i] > 1}
