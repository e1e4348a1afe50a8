"""Identities that are likely wrong: rows that look more like another identity than like their own.

The neighbours of a row are those before other cameras, since those before its own share a background. A row is compared
with an identity by its mean cosine with the two nearest of them, so that one wrong label does not accuse the other rows
of its identity. With fewer than three neighbours per identity it does.
"""

from typing import NamedTuple

import numpy as np

MARGIN = 0.1  # of cosines, by which another identity must be nearer
BLOCK = 512  # rows at once
NEVER = -2.0  # less than any cosine


class Suspect(NamedTuple):
    """A row whose identity is likely wrong."""

    row: int
    pid: int  # its label
    likely: int  # the identity that it looks like
    margin: float  # by which its cosine is higher, in (0, 2]


class Verdict(NamedTuple):
    """What the vectors of a split say."""

    suspects: list[Suspect]  # the clearest first
    judged: int  # rows with neighbours of their own identity before other cameras


def suspects(vectors: np.ndarray, pid: np.ndarray, camid: np.ndarray, margin: float = MARGIN) -> Verdict:
    """Rows of vectors [n,D] that are nearer to another identity than to their own [n] by at least `margin`.

    Vectors are compared less their mean, at unit length. `camid` [n] is negative where the camera is not known; such
    rows are neighbours of all, and so are all rows if there is one camera only. Neighbours with the same cosine count
    once, as copies of one picture should.
    """
    order = np.argsort(pid, kind="stable")
    camid = camid if len(np.unique(camid)) > 1 else np.full(len(camid), -1)
    x, pid, camid = vectors[order].astype(np.float32), pid[order], camid[order]
    x = x - x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-9
    pids, starts, numbers, counts = np.unique(pid, return_index=True, return_inverse=True, return_counts=True)
    found, judged = [], 0
    for first in range(0, len(x), BLOCK):
        block = np.arange(first, min(first + BLOCK, len(x)))
        every = np.arange(len(block))
        hidden = (camid[block, None] == camid) & (camid >= 0)
        hidden[every, block] = True
        scores = _scores(np.where(hidden, NEVER, x[block] @ x.T), starts, counts)
        own = scores[every, numbers[block]]
        scores[every, numbers[block]] = NEVER
        gain, known = scores.max(axis=1) - own, own > NEVER
        judged += int(known.sum())
        for i in np.flatnonzero(known & (gain >= margin)):
            likely = int(pids[scores[i].argmax()])
            found.append(Suspect(int(order[block[i]]), int(pid[block[i]]), likely, round(float(gain[i]), 3)))
    return Verdict(sorted(found, key=lambda suspect: -suspect.margin), judged)


def _scores(cosines: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The means [b,I] of the two highest cosines of each identity, of cosines [b,n] ordered by identity."""
    highest = np.maximum.reduceat(cosines, starts, axis=1)
    below = np.where(cosines < np.repeat(highest, counts, axis=1), cosines, NEVER)
    second = np.maximum.reduceat(below, starts, axis=1)
    return np.where(second > NEVER, (highest + second) / 2, highest)
