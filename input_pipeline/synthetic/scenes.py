"""What the writers of layouts share: moments before cameras, drawn and described, and files for them.

A picture and its words are functions of (seed, identity, camera, image) alone.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from input_pipeline.synthetic.captions import describe
from input_pipeline.synthetic.drawing import draw
from input_pipeline.synthetic.people import TEXT_STREAM, generator, make_camera, make_identity, make_shot

JPEG_QUALITY = 92


@dataclass(frozen=True)
class Plan:
    """How much to draw."""

    seed: int
    num_train_ids: int
    num_test_ids: int
    cameras: int
    images_per_camera: int
    height: int

    @property
    def train_pids(self) -> range:
        """Odd numbers; test people have the even ones, so neither depends on how many the other has."""
        return range(1, 2 * self.num_train_ids, 2)

    @property
    def test_pids(self) -> range:
        return range(2, 2 * self.num_test_ids + 1, 2)

    def check_pids(self, limit: int) -> None:
        """Raises ValueError if a layout whose identities go up to `limit` cannot name all people."""
        for name in ("num_train_ids", "num_test_ids"):
            if getattr(self, name) > limit // 2:
                raise ValueError(f"synthesize: {name} is {getattr(self, name)}, this layout takes up to {limit // 2}")


@dataclass(frozen=True)
class Scene:
    """One moment before one camera: the pictures and captions of all spectra."""

    pid: int
    camid: int  # from 1
    image: int  # from 0
    pictures: dict[str, np.ndarray]  # spectrum -> [H,W,3] or [H,W] uint8
    captions: dict[str, tuple[str, str]]  # spectrum -> sentence, the same in other words


class Row(NamedTuple):
    """A row that a reader finds in what was written."""

    split: str
    modalities: tuple[str, ...]
    pid: int
    camid: int


def frames(plan: Plan, pids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(pid, camera, image) of every picture of these people, in this order; cameras count from 1, images from 0."""
    return itertools.product(pids, range(1, plan.cameras + 1), range(plan.images_per_camera))


def scenes(plan: Plan, pids: Sequence[int]) -> Iterator[Scene]:
    """Draws these moments."""
    cameras = {camid: make_camera(plan.seed, camid) for camid in range(1, plan.cameras + 1)}
    identities = {pid: make_identity(plan.seed, pid) for pid in pids}
    for pid, camid, image in frames(plan, pids):
        drawing = draw(identities[pid], cameras[camid], make_shot(plan.seed, pid, camid, image), height=plan.height)
        rng = generator(plan.seed, TEXT_STREAM, pid, camid, image)
        captions = {name: describe(identities[pid], drawing.seen, name, rng) for name in drawing.pictures}
        yield Scene(pid, camid, image, drawing.pictures, captions)


def save_jpeg(path: Path, picture: np.ndarray) -> None:
    """Writes a picture [H,W,3] or [H,W] uint8 as a JPEG file of three channels."""
    Image.fromarray(picture).convert("RGB").save(path, quality=JPEG_QUALITY)


class Captions:
    """Collects captions by picture and writes the JSON files; both infrared spectra share the IR files.

    The files name a picture by `prefix` and its path inside the dataset.
    """

    def __init__(self, prefix: str = ""):
        self.prefix = prefix
        self.sentences = {"RGB": {}, "IR": {}}  # picture's path -> sentence, the same in other words
        self.by_pid = {}  # unpadded pid -> RGB sentences; a dict keeps them unique and in order

    def add(self, path: str, capture: Scene, spectrum: str) -> None:
        """Files the captions of one picture under its path inside the dataset."""
        pair = capture.captions[spectrum]
        self.sentences["RGB" if spectrum == "rgb" else "IR"][self.prefix + path] = pair
        if spectrum == "rgb":
            self.by_pid.setdefault(str(capture.pid), {})[pair[0]] = True

    def write(self, folder: Path) -> None:
        """Writes `Blip_RGB/` and `Blip_IR/` into `folder`."""
        for kind, sentences in self.sentences.items():
            target = folder / f"Blip_{kind}"
            target.mkdir(parents=True)
            plain = {path: {"description": first} for path, (first, _) in sentences.items()}
            both = {
                path: {"description": first, "aug_description": second} for path, (first, second) in sentences.items()
            }
            write_json(target / f"caption_dict_Blip_{kind}.json", plain)
            write_json(target / f"caption_llm_dict_Blip_{kind}.json", both)
        by_pid = {pid: list(sentences) for pid, sentences in self.by_pid.items()}
        write_json(folder / "Blip_RGB" / "id_caption_map_Blip_RGB.json", by_pid)


def write_json(path: Path, value: dict) -> None:
    """Writes a JSON file for people to read."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
