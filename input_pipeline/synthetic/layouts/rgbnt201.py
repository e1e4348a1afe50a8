"""The layout of RGBNT201: `{train_171,test}/{RGB,NI,TI}/PPPPPP_camC_S_II.jpg`, and captions under `Text/`."""

from collections.abc import Iterator
from pathlib import Path

from input_pipeline.datasets.rgbnt201 import FOLDERS, SPLITS
from input_pipeline.synthetic.scenes import Captions, Plan, Row, frames, save_jpeg, scenes
from jax_mmreid.batch import MODALITIES


def write(root: Path, plan: Plan) -> None:
    """Draws the plan into the folder `root`."""
    captions = Captions()
    for split, pids in ((SPLITS["train"], plan.train_pids), (SPLITS["test"], plan.test_pids)):
        for folder in FOLDERS.values():
            (root / split / folder).mkdir(parents=True)
        for scene in scenes(plan, pids):
            name = f"{scene.pid:06d}_cam{scene.camid}_{scene.image // 100}_{scene.image % 100:02d}.jpg"
            for modality, folder in FOLDERS.items():
                path, spectrum = f"{split}/{folder}/{name}", MODALITIES[modality].drawing
                save_jpeg(root / path, scene.pictures[spectrum])
                captions.add(path, scene, spectrum)
    captions.write(root / "Text")


def rows(plan: Plan) -> Iterator[Row]:
    """The rows that are read from what `write` draws."""
    for split, pids in (("train", plan.train_pids), ("test", plan.test_pids)):
        for pid, camid, _ in frames(plan, pids):
            yield Row(split, tuple(FOLDERS), pid, camid)
