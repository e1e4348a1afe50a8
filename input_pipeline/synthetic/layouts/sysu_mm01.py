"""The layout of SYSU-MM01: `camC/PPPP/NNNN.jpg`, `exp/*_id.txt`, training arrays as .npy, captions under `Text/`."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.datasets.sysu_mm01 import CAMERAS
from input_pipeline.reading import images
from input_pipeline.synthetic.scenes import Captions, Plan, Row, frames, save_jpeg, scenes
from jax_mmreid.batch import MODALITIES

ARRAY_SIZE = (288, 144)  # H, W of the usual arrays
PREFIX = "datasets/sysu/"
FILMED_IN = {camera: m for m, cameras in CAMERAS.items() for camera in cameras}


def write(root: Path, plan: Plan) -> None:
    """Draws the plan into the folder `root`, with the six cameras of SYSU-MM01 instead of the plan's.

    Every third identity misses camera 5 and every fifth camera 6. The last tenth of the training identities is in
    val_id.txt.
    """
    plan.check_pids(9999)
    captions = Captions(PREFIX)
    for camera in FILMED_IN:
        (root / f"cam{camera}").mkdir()
    train = {m: [] for m in CAMERAS}  # paths, in the order of the arrays
    for scene in scenes(_as_sysu(plan), sorted([*plan.train_pids, *plan.test_pids])):
        if not _films(scene.camid, scene.pid):
            continue
        m = FILMED_IN[scene.camid]
        path = f"cam{scene.camid}/{scene.pid:04d}/{scene.image + 1:04d}.jpg"
        (root / path).parent.mkdir(exist_ok=True)
        save_jpeg(root / path, scene.pictures[MODALITIES[m].drawing])
        captions.add(path, scene, MODALITIES[m].drawing)
        if scene.pid in plan.train_pids:
            train[m].append(path)
    _write_ids(root / "exp", plan)
    captions.write(root / "Text")
    for m, paths in train.items():
        _write_arrays(root, m, paths, plan.train_pids, captions)


def rows(plan: Plan) -> Iterator[Row]:
    """The rows that are read from what `write` draws, with their cameras, which the training arrays do not hold."""
    for pids, splits in ((plan.train_pids, {}), (plan.test_pids, {"rgb": "gallery", "ir": "query"})):
        for pid, camid, _ in frames(_as_sysu(plan), pids):
            if _films(camid, pid):
                yield Row(splits.get(FILMED_IN[camid], "train"), (FILMED_IN[camid],), pid, camid)


def _as_sysu(plan: Plan) -> Plan:
    return dataclasses.replace(plan, cameras=len(FILMED_IN))


def _films(camid: int, pid: int) -> bool:
    return not (camid == 5 and pid % 3 == 0 or camid == 6 and pid % 5 == 0)


def _write_ids(folder: Path, plan: Plan) -> None:
    folder.mkdir()
    kept = plan.num_train_ids * 9 // 10
    # Neither is empty, even if a single person is in both.
    ids = {"train": plan.train_pids[: max(kept, 1)], "val": plan.train_pids[kept:], "test": plan.test_pids}
    for part, pids in ids.items():
        (folder / f"{part}_id.txt").write_text(",".join(map(str, pids)) + "\n")


def _write_arrays(root: Path, modality: str, paths: list[str], pids: range, captions: Captions) -> None:
    """Writes the pictures, labels and captions of one modality, row by row of `paths`."""
    shape = (len(paths), *ARRAY_SIZE, 3)
    pixels = np.lib.format.open_memmap(root / f"train_{modality}_resized_img.npy", "w+", np.uint8, shape)
    for row, path in zip(pixels, paths):
        picture = images.read(str(root / path))
        row[:] = images.fit(picture, path, ARRAY_SIZE, Image.Resampling.LANCZOS)
    pixels.flush()
    persons = [int(path.split("/")[1]) for path in paths]
    np.save(root / f"train_{modality}_resized_label.npy", np.array([pids.index(pid) for pid in persons]))
    kind = modality.upper()
    folder = root / "Text" / f"Blip_{kind}"
    pairs = [captions.sentences[kind][PREFIX + path] for path in paths]
    for name, sentences in zip(("train_text", "train_llm_text"), zip(*pairs)):
        np.save(folder / f"{name}_Blip_{kind}.npy", np.array(sentences))
    digits = "04d" if modality == "rgb" else "d"
    np.save(folder / f"train_text_label_Blip_{kind}.npy", np.array([format(pid, digits) for pid in persons]))
