"""Pictures that are in the data twice: leaks from training into test, duplicates, one picture of two identities.

Hashes find candidates among all pairs of rows, which the pictures themselves confirm: their gradients are correlated at
several crops and shifts of a pixel in 48, which separates copies from two shots of one scene.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from input_pipeline.preflight.scan import TRAIN, File, Look, Rows, Scan, read, view

BITS = 48  # of 255 that may differ in a candidate
SIDE = 48  # pixels in which gradients are compared
COPY = 0.93  # correlation of gradients from which two pictures are copies
CROPS = (0.0, 0.012, 0.024, 0.036)  # cut off each side of one of the two
BLOCK = 1 << 17  # distances at once
LEAK, TWO_IDENTITIES, DUPLICATE = "leak", "two identities", "duplicate"


class Copy(NamedTuple):
    """Two rows with the same picture."""

    kind: str  # LEAK, TWO_IDENTITIES or DUPLICATE
    rows: tuple[int, int]
    likeness: dict[str, float]  # {modality: correlation} of the modalities that are copies


def copies(rows: Rows, scan: Scan) -> list[Copy]:
    """All pairs of rows with a picture in common, nearly or exactly, the most alike first.

    A leak has one row in training and one in a test split; two identities share a picture within one side; a duplicate
    is inside an identity and a split. A test picture that is both query and gallery, the same file or not, is neither.
    """
    pairs = {pair for look in scan.looks.values() for pair in candidates(look)}
    kinds = {pair: kind for pair in sorted(pairs) if (kind := _kind(rows, *pair))}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        alike = pool.map(lambda pair: _alike(rows, scan, *pair), kinds)
        bar = tqdm(zip(kinds, alike), total=len(kinds), unit=" pairs", disable=None, leave=False)
        found = [Copy(kinds[pair], pair, alike) for pair, alike in bar if alike]
    return sorted(found, key=lambda copy: (-len(copy.likeness), -max(copy.likeness.values()), copy.rows))


def candidates(look: Look, bits: int = BITS) -> Iterator[tuple[int, int]]:
    """Pairs of rows, the lower one first, whose hashes differ in no more than `bits`, one of the two cropped or none.

    All pairs are compared, in blocks that fit a cache, at about 20 nanoseconds a pair on two cores.
    """
    rows = np.flatnonzero(look.textured)
    whole, cropped = look.hashes[rows, 0], look.hashes[rows, 1]
    step = max(BLOCK // max(len(rows), 1), 1)

    def block(start: int) -> np.ndarray:
        stop, near = start + step, False
        for left, right in ((whole, whole), (cropped, whole), (whole, cropped)):
            near = near | (distances(left[start:stop], right[start:]) <= bits)
        return np.argwhere(np.triu(near, 1)) + start

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(block, range(0, len(rows), step)):
            yield from map(tuple, rows[found].tolist())


def distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """In how many bits hashes [a,4] and [b,4] uint64 differ: [a,b] uint8. All 256 would be 0, and never are."""
    total = np.zeros((len(left), len(right)), np.uint8)
    for one, other in zip(left.T, right.T):
        total += np.bitwise_count(one[:, None] ^ other)
    return total


def likeness(one: File, other: File) -> float:
    """The highest correlation of the gradients of two pictures over crops of one of them and shifts of a pixel."""
    a, b = _gradients(one), _gradients(other)
    return max(*(_correlation(a[0], x) for x in b), *(_correlation(x, b[0]) for x in a[1:]))


def _kind(rows: Rows, a: int, b: int) -> str:
    """What a pair of rows with a picture in common is, "" for what may be."""
    if (rows.split[a] == TRAIN) != (rows.split[b] == TRAIN):
        return LEAK
    if rows.pid[a] != rows.pid[b]:
        return TWO_IDENTITIES
    return DUPLICATE if rows.split[a] == rows.split[b] else ""


def _alike(rows: Rows, scan: Scan, a: int, b: int) -> dict[str, float]:
    found = {}
    for m, column in rows.files.items():
        if scan.looks[m].textured[[a, b]].all():
            value = 1.0 if column[a] == column[b] else likeness(column[a], column[b])
            if value >= COPY:
                found[m] = round(value, 3)
    return found


@lru_cache(maxsize=512)
def _gradients(file: File) -> tuple[np.ndarray, ...]:
    """The gradients [46,46,3,2] float32 of a picture at each crop."""
    picture = read(file)
    grown = (view(picture, crop, SIDE).astype(np.float32) for crop in CROPS)
    return tuple(np.stack([x[2:, 1:-1] - x[:-2, 1:-1], x[1:-1, 2:] - x[1:-1, :-2]], -1) for x in grown)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of gradients [h,w,3,2] at the best shift of at most one pixel."""
    h, w = a.shape[:2]
    inner, best = a[1:-1, 1:-1], 0.0
    for y in range(3):
        for x in range(3):
            part = b[y : y + h - 2, x : x + w - 2]
            length = np.sqrt(np.vdot(inner, inner) * np.vdot(part, part))
            best = max(best, float(np.vdot(inner, part) / (length + 1e-9)))
    return best
