"""The layout of RGBNT201: `{train_171,test}/{RGB,NI,TI}/PPPPPP_camC_S_II.jpg`, and captions under `Text/`."""

from collections.abc import Iterator
from pathlib import Path

from input_pipeline.synthetic.scenes import Captions, Plan, Row, frames, save_jpeg, scenes


def write(root: Path, plan: Plan) -> None:
    """Draws the plan into the folder `root`."""
    folders = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
    captions = Captions()
    for split, pids in (("train_171", plan.train_pids), ("test", plan.test_pids)):
        for folder in folders.values():
            (root / split / folder).mkdir(parents=True)
        for capture in scenes(plan, pids):
            name = f"{capture.pid:06d}_cam{capture.camid}_{capture.image // 100}_{capture.image % 100:02d}.jpg"
            for spectrum, folder in folders.items():
                path = f"{split}/{folder}/{name}"
                save_jpeg(root / path, capture.pictures[spectrum])
                captions.add(path, capture, spectrum)
    captions.write(root / "Text")


def rows(plan: Plan) -> Iterator[Row]:
    """The rows that are read from what `write` draws."""
    for split, pids in (("train", plan.train_pids), ("test", plan.test_pids)):
        for pid, camid, _ in frames(plan, pids):
            yield Row(split, ("rgb", "nir", "tir"), pid, camid)
