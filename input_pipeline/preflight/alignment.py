"""How far the modalities of a row are shifted against each other: the cross-correlation of their edges.

Pictures of two spectra have few grey levels in common but many edges. A surface holds the correlation of the gradient
magnitudes over the overlap at every shift of up to an eighth of the longer side. A row alone is unreliable, since a
plain jacket in one spectrum is patterned in another: it counts only with a distinct peak. The mean surface of all rows
of a camera shows a shift of the sensors.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

LONG = 96  # pixels of the longer side of the compared pictures
REACH = LONG // 8  # pixels
FAR = 0.04  # of the longer side: smaller shifts are harmless
PEAK = 0.3  # correlation that a row's best shift needs
GAIN = 0.15  # by which it must be above the correlation without a shift
FEW = 5  # rows, below which the mean surface of a camera says little


class Shifts(NamedTuple):
    """Of one pair of modalities: by which shift the second one fits best, in fractions of the longer side, (y, x)."""

    rows: np.ndarray  # [n,2] float32, NaN where a picture is missing or flat
    peak: np.ndarray  # [n] float32, the correlation there
    gain: np.ndarray  # [n] float32, by how much it is above that without a shift
    cameras: dict[int, tuple[float, float, int]]  # {camera: (y, x, rows)} of the mean surface


class Sums:
    """Collects the surfaces of one pair of modalities."""

    def __init__(self, n: int):
        self.rows, self.peak, self.gain = np.full((n, 2), np.nan, np.float32), *np.zeros((2, n), np.float32)
        self.cameras = {}  # camera -> [sum of surfaces, rows]

    def add(self, row: int, camid: int, surface: np.ndarray) -> None:
        """Adds the surface [2R+1,2R+1] of one row."""
        self.rows[row], self.peak[row] = best(surface), surface.max()
        self.gain[row] = surface.max() - surface[REACH, REACH]
        total = self.cameras.setdefault(camid, [0, 0])
        total[0], total[1] = total[0] + surface, total[1] + 1

    def shifts(self) -> Shifts:
        """What was collected."""
        cameras = {camid: (*best(total), count) for camid, (total, count) in sorted(self.cameras.items())}
        return Shifts(self.rows, self.peak, self.gain, cameras)


def best(surface: np.ndarray) -> tuple[float, float]:
    """The shift (y, x) of the highest correlation, in fractions of the longer side."""
    y, x = np.unravel_index(surface.argmax(), surface.shape)
    return (int(y) - REACH) / LONG, (int(x) - REACH) / LONG


def surfaces(pictures: Mapping[str, Image.Image]) -> dict[tuple[str, str], np.ndarray]:
    """The surfaces [2R+1,2R+1] float32 of all pairs of modalities of a row, in the shape of the first picture."""
    if len(pictures) < 2:
        return {}
    w, h = next(iter(pictures.values())).size
    size = tuple(max(round(x * LONG / max(w, h)), LONG // 4) for x in (w, h))
    edges = {m: _edges(picture, size) for m, picture in pictures.items()}
    return {(a, b): correlation(edges[a], edges[b]) for a, b in combinations(pictures, 2)}


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The correlation of two pictures [H,W] over their overlap, where [REACH+y,REACH+x] is a[i,j] with b[i+y,j+x].

    Padfield, 2012, "Masked Object Registration in the Fourier Domain", with masks of ones.
    """
    shape = [side + REACH for side in a.shape]
    spectra = [np.fft.rfft2(np.stack([x, x * x, np.ones_like(x)]), shape) for x in (a, b)]

    def at_shifts(of_a: int, of_b: int) -> np.ndarray:
        return np.fft.irfft2(np.conj(spectra[0][of_a]) * spectra[1][of_b], shape)

    count, sum_a, sum_b = at_shifts(2, 2), at_shifts(0, 2), at_shifts(2, 0)
    spread_a, spread_b = at_shifts(1, 2) - sum_a**2 / count, at_shifts(2, 1) - sum_b**2 / count
    found = (at_shifts(0, 0) - sum_a * sum_b / count) / np.sqrt(np.maximum(spread_a * spread_b, 1e-12))
    y, x = (np.arange(-REACH, REACH + 1) % side for side in shape)
    return found[np.ix_(y, x)].astype(np.float32)


def misaligned(shifts: Shifts) -> np.ndarray:
    """The rows whose modalities are clearly shifted, most first."""
    far = np.linalg.norm(np.nan_to_num(shifts.rows), axis=1)
    found = np.flatnonzero((far > FAR) & (shifts.peak >= PEAK) & (shifts.gain >= GAIN))
    return found[np.argsort(-far[found], kind="stable")]


def shifted_cameras(shifts: Shifts) -> list[int]:
    """The cameras whose sensors are shifted against each other over all of their rows."""
    return [camid for camid, (y, x, count) in shifts.cameras.items() if count >= FEW and np.hypot(y, x) > FAR]


def _edges(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Gradient magnitudes [H,W] of unit spread of a picture resized to (W, H)."""
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.BOX), np.float64)
    edges = np.hypot(*np.gradient(gaussian_filter(grey, 1.0)))
    return (edges - edges.mean()) / (edges.std() + 1e-6)
