"""The layout of MSVR310: `{bounding_box_train,query3,bounding_box_test}/PPPP/{vis,ni,th}/PPPP_sSSS_vV_III.jpg`.

Pedestrians stand in for vehicles, stretched to twice as wide as high. A camera becomes a scene of the dataset, since it
has a background of its own; images take the views 0 to 7 in turn. The first image of every camera is a query too.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.datasets.msvr310 import FOLDERS
from input_pipeline.synthetic.scenes import Plan, Row, frames, save_jpeg, scenes
from jax_mmreid.batch import MODALITIES

VIEWS = 8


def write(root: Path, plan: Plan) -> None:
    """Draws the plan into the folder `root`."""
    for split, pids in (("bounding_box_train", plan.train_pids), ("bounding_box_test", plan.test_pids)):
        for scene in scenes(plan, pids):
            view, counter = scene.image % VIEWS, scene.image // VIEWS
            name = f"{scene.pid:04d}_s{scene.camid:03d}_v{view}_{counter:03d}.jpg"
            for modality, folder in FOLDERS.items():
                pixels = scene.pictures[MODALITIES[modality].drawing]
                picture = Image.fromarray(pixels).resize((plan.height, plan.height // 2))
                path = root / split / f"{scene.pid:04d}" / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                save_jpeg(path, np.asarray(picture))
                if split == "bounding_box_test" and scene.image == 0:
                    copy = root / "query3" / path.relative_to(root / split)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)


def rows(plan: Plan) -> Iterator[Row]:
    """The rows that are read from what `write` draws; a camera of the dataset is a view."""
    for split, pids in (("train", plan.train_pids), ("query", plan.test_pids), ("gallery", plan.test_pids)):
        for pid, _, image in frames(plan, pids):
            if split != "query" or image == 0:
                yield Row(split, tuple(FOLDERS), pid, image % VIEWS)
