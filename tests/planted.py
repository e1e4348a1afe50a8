"""A drawn folder in the layout of RGBNT201 in which faults are planted, and where they are."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.synthesize import synthesize

FOLDERS = ("RGB", "NI", "TI")
SPLITS = ("train_171", "test")
# JPEG quality, gain of brightness, and what is cut off each side
DAMAGES = ((95, 1, 0), (50, 1, 0), (80, 1.2, 0), (80, 0.8, 0), (90, 1, 0.03), (70, 1.1, 0.02))


class Planted(NamedTuple):
    """Names of the RGB pictures of rows, below the folder."""

    leaks: set[frozenset]
    duplicates: set[frozenset]
    swapped: set[str]


def plant(folder: Path, count: int, *, labels: bool = True, **sizes: int) -> Planted:
    """Draws a dataset of `sizes`, and plants `count` leaks, duplicates and pairs of swapped labels, all elsewhere."""
    synthesize(folder, **sizes)
    rng = np.random.default_rng(0)
    train, test = ([f"{split}/RGB/{x.name}" for x in sorted((folder / split / "RGB").iterdir())] for split in SPLITS)
    leaked, doubled = np.split(rng.permutation(train)[: 2 * count], 2)
    leaks = {frozenset((x, _copy(folder, x, str(rng.choice(test)), i))) for i, x in enumerate(leaked)}
    duplicates = {frozenset((x, _copy(folder, x, x, count + i))) for i, x in enumerate(doubled)}
    kept = sorted({*train, *test} - {*leaked, *doubled})
    swapped = _swap(folder, [x for x in kept if x in test], count, rng) if labels else set()
    return Planted(leaks, duplicates, swapped)


def damaged(picture: Image.Image, number: int) -> Image.Image:
    """One of six copies: the same, compressed, brighter, darker, cropped, cropped and compressed."""
    w, h = picture.size
    quality, gain, crop = DAMAGES[number % len(DAMAGES)]
    box = (round(w * crop), round(h * crop), round(w * (1 - crop)), round(h * (1 - crop)))
    pixels = np.asarray(picture.crop(box), np.float64) * gain
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=quality)
    return Image.open(out)


def _copy(folder: Path, name: str, like: str, number: int) -> str:
    """Writes a damaged copy of a row with the split, identity and camera of another; returns its name."""
    target = f"{like[:-6]}{50 + number:02d}.jpg"
    for spectrum in FOLDERS:
        picture = damaged(Image.open(folder / name.replace("/RGB/", f"/{spectrum}/")), number)
        picture.save(folder / target.replace("/RGB/", f"/{spectrum}/"), quality=95)
    return target


def _swap(folder: Path, names: list[str], count: int, rng: np.random.Generator) -> set[str]:
    """Exchanges the files of `count` pairs of rows of two identities before one camera, each identity used once."""
    swapped, used = set(), set()
    for name in rng.permutation(names).tolist():
        place, split = Path(name).name, name.split("/")[0]
        rest = [x for x in names if Path(x).name[:6] not in {*used, place[:6]} and Path(x).name[6:] == place[6:]]
        if len(swapped) == 2 * count:
            break
        if place[:6] in used or not rest:
            continue
        other = Path(str(rng.choice(rest))).name
        for spectrum in FOLDERS:
            a, b = (folder / split / spectrum / x for x in (place, other))
            first, second = a.read_bytes(), b.read_bytes()
            a.write_bytes(second), b.write_bytes(first)
        swapped |= {name, name.replace(place, other)}
        used |= {place[:6], other[:6]}
    assert len(swapped) == 2 * count
    return swapped
