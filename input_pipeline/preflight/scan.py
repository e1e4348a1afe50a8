"""One pass over all pictures: what preflight keeps of each, so that no picture stays in memory.

The perceptual hash is the sign of the lowest 16 x 16 frequencies (discrete cosine transform) of the grey picture in
32 x 32 pixels, against their median and without the constant: 255 bits that hardly change with compression, brightness
and size (Zauner, 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", with more frequencies).
"""

import collections
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn
from tqdm import tqdm

from input_pipeline.preflight import alignment
from input_pipeline.reading import images
from input_pipeline.records import Records
from jax_mmreid.errors import DataError

SIDE, FREQUENCIES = 32, 16
CROP = 0.025  # cut off each side for the second hash, so that slightly cropped copies are found
FLAT = 2.0  # grey levels of standard deviation below which a picture shows nothing that could be compared
TINY = 8
TRAIN = "train"  # the split whose rows are no test rows
LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601

File = tuple[str, int | None]  # a path, and which picture of the file


class Rows(NamedTuple):
    """The rows of all splits."""

    split: np.ndarray  # [n] str
    pid: np.ndarray  # [n]
    camid: np.ndarray  # [n], negative where not known
    files: dict[str, list[File | None]]  # modality -> n files, None where there is none

    def name(self, row: int) -> str:
        """The path of the first picture of a row."""
        path, part = next(column[row] for column in self.files.values() if column[row])
        return path if part is None else f"{path}[{part}]"


class Look(NamedTuple):
    """The pictures of one modality."""

    there: np.ndarray  # [n] bool: it exists and can be read
    textured: np.ndarray  # [n] bool: it shows enough to be compared
    hashes: np.ndarray  # [n,2,4] uint64: 256 bits of the picture, and of the picture less CROP on each side
    tiny: np.ndarray  # [n,8,8,3] uint8
    size: np.ndarray  # [n,2] int64, height and width


class Scan(NamedTuple):
    """What a pass over the pictures found."""

    looks: dict[str, Look]
    shifts: dict[tuple[str, str], alignment.Shifts]  # by pair of modalities
    faults: list[str]  # one line for each picture that cannot be read


def rows_of(splits: Mapping[str, Records]) -> Rows:
    """All rows of the splits of a dataset, one split after the other."""
    files = collections.defaultdict(list)
    for records in splits.values():
        for m, column in records.paths.items():
            there = ((records.path(m, row), records.part(m, row)) if path else None for row, path in enumerate(column))
            files[m] += there
    split = np.repeat(list(splits), [len(records) for records in splits.values()])
    pid, camid = (np.concatenate([getattr(x, key) for x in splits.values()]) for key in ("pid", "camid"))
    return Rows(split, pid, camid, dict(files))


def read(file: File) -> Image.Image:
    """A picture in its own size; raises DataError for one that cannot be read."""
    path, part = file
    pixels = images.read(path)
    height, width = pixels.shape[-3:-1]
    size = (height, width // 3) if pixels.ndim == 3 and part is not None else (height, width)
    return Image.fromarray(images.fit(pixels, path, size, Image.Resampling.BOX, part))


def view(picture: Image.Image, crop: float = 0.0, side: int = SIDE) -> np.ndarray:
    """A picture less a fraction `crop` on each side, in side x side pixels: [side,side,3] uint8."""
    w, h = picture.size
    box = (w * crop, h * crop, w * (1 - crop), h * (1 - crop))
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX, box=box))


def perceptual_hash(pixels: np.ndarray) -> np.ndarray:
    """255 bits and a zero of a picture [32,32,3] as [4] uint64."""
    low = dctn(pixels @ LUMA, norm="ortho")[:FREQUENCIES, :FREQUENCIES].reshape(-1)[1:]
    return np.packbits(np.append(low > np.median(low), False)).view(np.uint64)


def scan(rows: Rows) -> Scan:
    """Reads every picture once, with a progress bar on a terminal; pictures that cannot be read count as missing."""
    n, pairs = len(rows.pid), list(combinations(rows.files, 2))
    looks = {
        m: Look(
            np.zeros(n, bool),
            np.zeros(n, bool),
            np.zeros((n, 2, 4), np.uint64),
            np.zeros((n, TINY, TINY, 3), np.uint8),
            np.zeros((n, 2), np.int64),
        )
        for m in rows.files
    }
    sums = {pair: alignment.Sums(n) for pair in pairs}
    faults = []
    each = (dict(zip(rows.files, files)) for files in zip(*rows.files.values()))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(_row, each), total=n, unit=" rows", disable=None, leave=False)
        for row, (seen, surfaces, wrong) in enumerate(bar):
            faults += wrong
            for m, values in seen.items():
                for column, value in zip(looks[m], values):
                    column[row] = value
            for pair, surface in surfaces.items():
                sums[pair].add(row, int(rows.camid[row]), surface)
    return Scan(looks, {pair: found.shifts() for pair, found in sums.items()}, faults)


def _row(files: Mapping[str, File | None]) -> tuple[dict[str, Sequence], dict, list[str]]:
    """What is kept of each picture of a row, the surfaces of its pairs of modalities, and its faults."""
    seen, pictures, faults = {}, {}, []
    for m, file in files.items():
        try:
            picture = read(file) if file else None
        except DataError as error:
            faults.append(str(error))
            continue
        if picture is None:
            continue
        whole = view(picture)
        textured = bool((whole @ LUMA).std() >= FLAT)
        hashes = [perceptual_hash(whole), perceptual_hash(view(picture, CROP))]
        seen[m] = (True, textured, hashes, view(picture, side=TINY), picture.size[::-1])
        if textured:
            pictures[m] = picture
    return seen, alignment.surfaces(pictures), faults
