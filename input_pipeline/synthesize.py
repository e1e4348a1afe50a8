"""Procedural multi-spectral pedestrians on disk, in the folders and file names of an official dataset.

python -m input_pipeline.synthesize --layout=rgbnt201 --output=DIR --seed=0

The same arguments write the same bytes, and a picture does not depend on how many others are drawn. Captions go
into the JSON files of TVI-LFM (NeurIPS 2024), under the captioner name its readers expect, `Blip`. The folder
appears only once it is complete. `synthesized.json` keeps the arguments.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.pedestrian_captions import describe
from input_pipeline.pedestrian_drawing import draw
from input_pipeline.pedestrians import TEXT_STREAM, generator, make_camera, make_identity, make_shot
from jax_mmreid.batch import DataError

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


@dataclass(frozen=True)
class Capture:
    """One moment before one camera: the pictures and captions of all spectra."""

    pid: int
    camid: int  # from 1
    image: int  # from 0
    pictures: dict[str, np.ndarray]  # spectrum -> [H,W,3] or [H,W] uint8
    captions: dict[str, tuple[str, str]]  # spectrum -> sentence, the same in other words


def synthesize(
    output: str | Path,
    *,
    layout: str = "rgbnt201",
    seed: int = 0,
    num_train_ids: int = 96,
    num_test_ids: int = 32,
    cameras: int = 4,
    images_per_camera: int = 2,
    height: int = 256,
) -> None:
    """Draws a dataset of pedestrians into the new or empty folder `output`; pictures are height x height // 2 pixels.

    Raises ValueError for an unknown layout or an impossible number, DataError where `output` holds something.
    """
    plan = Plan(seed, num_train_ids, num_test_ids, cameras, images_per_camera, height)
    if layout not in LAYOUTS:
        raise ValueError(f"synthesize: no layout {layout!r}; the layouts are: {', '.join(LAYOUTS)}")
    _check(plan)
    output = Path(output).resolve()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise DataError(f"synthesize: {output} is not an empty folder; name a new --output or empty it first")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".synthesize-") as holder:
        draft = Path(holder) / output.name
        draft.mkdir()
        LAYOUTS[layout](draft, plan)
        _write_json(draft / "synthesized.json", {"layout": layout, **vars(plan)})
        if output.exists():
            output.rmdir()
        draft.rename(output)


def _check(plan: Plan) -> None:
    limits = {  # the upper ones come from the digits in the file names
        "seed": (0, 2**32 - 1),
        "num_train_ids": (1, 499_999),
        "num_test_ids": (1, 499_999),
        "cameras": (1, 9),
        "images_per_camera": (1, 1000),
        "height": (32, 4096),
    }
    for name, (low, high) in limits.items():
        value = getattr(plan, name)
        if not low <= value <= high:
            raise ValueError(f"synthesize: {name} is {value}, expected {low} to {high}")


def captures(plan: Plan, pids: Sequence[int]) -> Iterator[Capture]:
    """Draws every picture of these people, in the order of pid, camera and image."""
    cameras = {camid: make_camera(plan.seed, camid) for camid in range(1, plan.cameras + 1)}
    for pid in pids:
        identity = make_identity(plan.seed, pid)
        for camid, camera in cameras.items():
            for image in range(plan.images_per_camera):
                drawing = draw(identity, camera, make_shot(plan.seed, pid, camid, image), height=plan.height)
                rng = generator(plan.seed, TEXT_STREAM, pid, camid, image)
                captions = {name: describe(identity, drawing.seen, name, rng) for name in drawing.pictures}
                yield Capture(pid, camid, image, drawing.pictures, captions)


def write_rgbnt201(root: Path, plan: Plan) -> None:
    """Writes `{train_171,test}/{RGB,NI,TI}/PPPPPP_camC_S_II.jpg` and the captions under `Text/`."""
    folders = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
    captions = Captions()
    for split, pids in (("train_171", plan.train_pids), ("test", plan.test_pids)):
        for folder in folders.values():
            (root / split / folder).mkdir(parents=True)
        for capture in captures(plan, pids):
            name = f"{capture.pid:06d}_cam{capture.camid}_{capture.image // 100}_{capture.image % 100:02d}.jpg"
            for spectrum, folder in folders.items():
                path = f"{split}/{folder}/{name}"
                save_jpeg(root / path, capture.pictures[spectrum])
                captions.add(path, capture, spectrum)
    captions.write(root / "Text")


LAYOUTS = {"rgbnt201": write_rgbnt201}


def save_jpeg(path: Path, picture: np.ndarray) -> None:
    """Writes a picture [H,W,3] or [H,W] uint8 as a JPEG file of three channels."""
    Image.fromarray(picture).convert("RGB").save(path, quality=JPEG_QUALITY)


class Captions:
    """Collects captions by picture and writes the JSON files; both infrared spectra share the IR files."""

    def __init__(self):
        self.sentences = {"RGB": {}, "IR": {}}  # picture's path -> sentence, the same in other words
        self.by_pid = {}  # unpadded pid -> RGB sentences; a dict keeps them unique and in order

    def add(self, path: str, capture: Capture, spectrum: str) -> None:
        """Files the captions of one picture under its path inside the dataset."""
        pair = capture.captions[spectrum]
        self.sentences["RGB" if spectrum == "rgb" else "IR"][path] = pair
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
            _write_json(target / f"caption_dict_Blip_{kind}.json", plain)
            _write_json(target / f"caption_llm_dict_Blip_{kind}.json", both)
        by_pid = {pid: list(sentences) for pid, sentences in self.by_pid.items()}
        _write_json(folder / "Blip_RGB" / "id_caption_map_Blip_RGB.json", by_pid)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 2 bad arguments, 3 the folder cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m input_pipeline.synthesize", description=__doc__.splitlines()[0])
    parser.add_argument("--layout", default="rgbnt201", help=f"one of: {', '.join(LAYOUTS)}")
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_train_ids", type=int, default=96)
    parser.add_argument("--num_test_ids", type=int, default=32)
    parser.add_argument("--cameras", type=int, default=4, help="shared by training and test people")
    parser.add_argument("--images_per_camera", type=int, default=2, help="of each person, in each spectrum")
    parser.add_argument("--height", type=int, default=256, help="pixels; the width is half of it")
    arguments = vars(parser.parse_args(argv))
    try:
        synthesize(**arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except DataError as error:
        print(error, file=sys.stderr)
        return 3
    except OSError as error:
        print(f"synthesize: cannot write {arguments['output']}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
