"""What the writers of layouts share: the plan of a dataset, its scenes with pictures and captions, and their files.

A scene is one moment before one camera, seen in all spectra. Its pictures and captions are functions of (seed,
identity, camera, image) alone.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.synthetic.captions import make_captions
from input_pipeline.synthetic.drawing import draw
from input_pipeline.synthetic.people import TEXT_STREAM, generator, make_camera, make_identity, make_shot
from jax_mmreid.errors import ConfigError
from jax_mmreid.ranges import check_ranges

JPEG_QUALITY = 92
RANGES = {  # the upper limits come from the digits in the file names
    "seed": "[0, 4294967295]",
    "num_train_ids": "[1, 499999]",
    "num_test_ids": "[1, 499999]",
    "cameras": "[1, 9]",
    "images_per_camera": "[1, 1000]",
    "height": "[32, 4096]",
}


@dataclass(frozen=True)
class Plan:
    """What to draw. Raises ConfigError for a number outside its range."""

    seed: int = 0
    num_train_ids: int = 96
    num_test_ids: int = 32
    cameras: int = 4  # shared by training and test identities
    images_per_camera: int = 2  # of each identity, in each spectrum
    height: int = 256  # pixels; pictures are height x height // 2

    def __post_init__(self):
        check_ranges(vars(self), RANGES, prefix="synthesize: ")

    @property
    def train_pids(self) -> range:
        """Odd numbers; test identities have the even ones, so that neither depends on the number of the other."""
        return range(1, 2 * self.num_train_ids, 2)

    @property
    def test_pids(self) -> range:
        """Even numbers from 2 on."""
        return range(2, 2 * self.num_test_ids + 1, 2)

    def check_pids(self, limit: int) -> None:
        """Raises ConfigError if a layout whose identity numbers end at `limit` cannot name all identities."""
        for name in ("num_train_ids", "num_test_ids"):
            if getattr(self, name) > limit // 2:
                raise ConfigError(f"synthesize: {name}={getattr(self, name)}: this layout takes up to {limit // 2}")


@dataclass(frozen=True)
class Scene:
    """One moment before one camera: the pictures and captions of all spectra."""

    pid: int
    camid: int  # from 1
    image: int  # from 0
    pictures: dict[str, np.ndarray]  # spectrum -> [H,W,3] or [H,W] uint8
    captions: dict[str, tuple[str, str]]  # spectrum -> caption, rephrased caption


class Row(NamedTuple):
    """A row that the dataset module reads from the files."""

    split: str
    modalities: tuple[str, ...]
    pid: int
    camid: int


def frames(plan: Plan, pids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(pid, camera, image) of every scene of these identities, in this order; cameras count from 1, images from 0."""
    return itertools.product(pids, range(1, plan.cameras + 1), range(plan.images_per_camera))


def scenes(plan: Plan, pids: Sequence[int]) -> Iterator[Scene]:
    """Draws the scenes of these identities, in the order of `frames`."""
    cameras = {camid: make_camera(plan.seed, camid) for camid in range(1, plan.cameras + 1)}
    identities = {pid: make_identity(plan.seed, pid) for pid in pids}
    for pid, camid, image in frames(plan, pids):
        drawing = draw(identities[pid], cameras[camid], make_shot(plan.seed, pid, camid, image), height=plan.height)
        rng = generator(plan.seed, TEXT_STREAM, pid, camid, image)
        captions = {name: make_captions(identities[pid], drawing.seen, name, rng) for name in drawing.pictures}
        yield Scene(pid, camid, image, drawing.pictures, captions)


def save_jpeg(path: Path, picture: np.ndarray) -> None:
    """Writes a picture [H,W,3] or [H,W] uint8 as a JPEG file of three channels."""
    Image.fromarray(picture).convert("RGB").save(path, quality=JPEG_QUALITY)


class Captions:
    """Collects captions by picture and writes the JSON files; both infrared spectra share the IR files.

    The files name a picture by `prefix` followed by its path in the dataset.
    """

    def __init__(self, prefix: str = ""):
        self.prefix = prefix
        self.sentences = {"RGB": {}, "IR": {}}  # path of a picture -> caption, rephrased caption
        self.by_pid = {}  # unpadded pid -> RGB captions; a dict keeps them unique and in order

    def add(self, path: str, scene: Scene, spectrum: str) -> None:
        """Adds the captions of one picture under its path in the dataset."""
        pair = scene.captions[spectrum]
        self.sentences["RGB" if spectrum == "rgb" else "IR"][self.prefix + path] = pair
        if spectrum == "rgb":
            self.by_pid.setdefault(str(scene.pid), {})[pair[0]] = True

    def write(self, folder: Path) -> None:
        """Writes `Blip_RGB/` and `Blip_IR/` into `folder`."""
        for kind, sentences in self.sentences.items():
            target = folder / f"Blip_{kind}"
            target.mkdir(parents=True)
            first_only = {path: {"description": first} for path, (first, _) in sentences.items()}
            both = {
                path: {"description": first, "aug_description": second} for path, (first, second) in sentences.items()
            }
            write_json(target / f"caption_dict_Blip_{kind}.json", first_only)
            write_json(target / f"caption_llm_dict_Blip_{kind}.json", both)
        by_pid = {pid: list(sentences) for pid, sentences in self.by_pid.items()}
        write_json(folder / "Blip_RGB" / "id_caption_map_Blip_RGB.json", by_pid)


def write_json(path: Path, value: dict) -> None:
    """Writes an indented JSON file."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
