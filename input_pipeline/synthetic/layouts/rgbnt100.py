"""The layout of RGBNT100: `rgbir/{bounding_box_train,query,bounding_box_test}/PPPP_cCCCC_III.jpg`, a strip a triple.

Pedestrians stand in for vehicles, stretched to their shape. The first picture of every camera is a query too.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.datasets.rgbnt100 import PARTS
from input_pipeline.synthetic.scenes import Plan, Row, Scene, frames, save_jpeg, scenes
from jax_mmreid.batch import MODALITIES

SIZE = (256, 128)  # width, height of a picture


def write(root: Path, plan: Plan) -> None:
    """Draws the plan into the folder `root`."""
    train, query, gallery = (root / "rgbir" / name for name in ("bounding_box_train", "query", "bounding_box_test"))
    for folder in (train, query, gallery):
        folder.mkdir(parents=True)
    for folder, pids in ((train, plan.train_pids), (gallery, plan.test_pids)):
        for scene in scenes(plan, pids):
            name = f"{scene.pid:04d}_c{scene.camid:04d}_{scene.image:03d}.jpg"
            save_jpeg(folder / name, _strip(scene))
            if folder == gallery and scene.image == 0:
                shutil.copyfile(gallery / name, query / name)


def rows(plan: Plan) -> Iterator[Row]:
    """The rows that are read from what `write` draws."""
    for split, pids in (("train", plan.train_pids), ("query", plan.test_pids), ("gallery", plan.test_pids)):
        for pid, camid, image in frames(plan, pids):
            if split != "query" or image == 0:
                yield Row(split, tuple(PARTS), pid, camid)


def _strip(scene: Scene) -> np.ndarray:
    """The pictures of all spectra side by side, [128,768,3]."""
    order = sorted(PARTS, key=PARTS.get)
    pictures = (Image.fromarray(scene.pictures[MODALITIES[m].drawing]).convert("RGB") for m in order)
    return np.concatenate([np.asarray(picture.resize(SIZE)) for picture in pictures], axis=1)
