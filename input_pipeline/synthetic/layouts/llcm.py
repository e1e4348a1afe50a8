"""The layout of LLCM: `{vis,nir}/PPPP/NAME.jpg` to train, `test_{vis,nir}/camC/PPPP/NAME.jpg`, `idx/`, `Text/`."""

from collections.abc import Iterator
from pathlib import Path

from input_pipeline.datasets.llcm import CAMERAS, FOLDERS
from input_pipeline.synthetic.scenes import Captions, Plan, Row, Scene, frames, save_jpeg, scenes
from jax_mmreid.batch import MODALITIES


def write(root: Path, plan: Plan) -> None:
    """Draws the plan into the folder `root`; camera 3 has no infrared, every third identity misses the last camera."""
    plan.check_pids(9999)
    captions = Captions("datasets/llcm/")
    for modality, folder in FOLDERS.items():
        for camera in CAMERAS[modality]:
            (root / f"test_{folder}" / f"cam{camera}").mkdir(parents=True)
    lists = {folder: [] for folder in FOLDERS.values()}
    for scene in scenes(plan, plan.train_pids):
        for folder, name, spectrum in _shown(scene, plan):
            path = f"{folder}/{scene.pid:04d}/{name}"
            _save(root / path, scene, spectrum)
            captions.add(path, scene, spectrum)
            lists[folder].append(f"{path} {plan.train_pids.index(scene.pid)}\n")
    for scene in scenes(plan, plan.test_pids):
        for folder, name, spectrum in _shown(scene, plan):
            _save(root / f"test_{folder}" / f"cam{scene.camid}" / f"{scene.pid:04d}" / name, scene, spectrum)
            captions.add(f"{folder}/{scene.pid:04d}/{name}", scene, spectrum)
    (root / "idx").mkdir()
    for folder, lines in lists.items():
        (root / "idx" / f"train_{folder}.txt").write_text("".join(lines))
    (root / "idx" / "test_id.txt").write_text(",".join(map(str, plan.test_pids)) + "\n")
    captions.write(root / "Text")


def rows(plan: Plan) -> Iterator[Row]:
    """The rows that are read from what `write` draws."""
    for pids, splits in ((plan.train_pids, {}), (plan.test_pids, {"rgb": "gallery", "ir": "query"})):
        for pid, camid, _ in frames(plan, pids):
            for m in _modalities(pid, camid, plan):
                yield Row(splits.get(m, "train"), (m,), pid, camid)


def _modalities(pid: int, camid: int, plan: Plan) -> list[str]:
    """The modalities in which a camera films an identity."""
    if pid % 3 == 0 and camid == plan.cameras > 1:
        return []
    return [m for m, cameras in CAMERAS.items() if camid in cameras]


def _shown(scene: Scene, plan: Plan) -> list[tuple[str, str, str]]:
    """(folder, file name, spectrum) of the pictures of a scene."""
    stem = f"{scene.pid:04d}_c{scene.camid:02d}_s000000_f{scene.image:04d}"
    shown = _modalities(scene.pid, scene.camid, plan)
    return [(FOLDERS[m], f"{stem}_{FOLDERS[m]}.jpg", MODALITIES[m].drawing) for m in shown]


def _save(path: Path, scene: Scene, spectrum: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_jpeg(path, scene.pictures[spectrum])
