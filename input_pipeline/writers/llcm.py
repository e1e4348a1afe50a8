"""The layout of LLCM: `{vis,nir}/PPPP/NAME.jpg` to train, `test_{vis,nir}/camC/PPPP/NAME.jpg`, `idx/`, `Text/`."""

from pathlib import Path

from input_pipeline.captures import Captions, Capture, Plan, captures, save_jpeg
from input_pipeline.datasets.llcm import CAMERAS, FOLDERS

SPECTRA = {"rgb": "rgb", "nir": "ir"}


def write(root: Path, plan: Plan) -> None:
    """Draws the plan into the folder `root`; camera 3 has no infrared, every third person misses the last camera."""
    plan.check_pids(9999)
    captions = Captions("datasets/llcm/")
    for modality, folder in FOLDERS.items():
        for camera in CAMERAS[modality]:
            (root / f"test_{folder}" / f"cam{camera}").mkdir(parents=True)
    lists = {folder: [] for folder in FOLDERS.values()}
    for capture in captures(plan, plan.train_pids):
        for folder, name, spectrum in _shown(capture, plan):
            path = f"{folder}/{capture.pid:04d}/{name}"
            _save(root / path, capture, spectrum)
            captions.add(path, capture, spectrum)
            lists[folder].append(f"{path} {plan.train_pids.index(capture.pid)}\n")
    for capture in captures(plan, plan.test_pids):
        for folder, name, spectrum in _shown(capture, plan):
            _save(root / f"test_{folder}" / f"cam{capture.camid}" / f"{capture.pid:04d}" / name, capture, spectrum)
            captions.add(f"{folder}/{capture.pid:04d}/{name}", capture, spectrum)
    (root / "idx").mkdir()
    for folder, lines in lists.items():
        (root / "idx" / f"train_{folder}.txt").write_text("".join(lines))
    (root / "idx" / "test_id.txt").write_text(",".join(map(str, plan.test_pids)) + "\n")
    captions.write(root / "Text")


def _shown(capture: Capture, plan: Plan) -> list[tuple[str, str, str]]:
    """(folder, file name, spectrum) of the pictures that this moment leaves."""
    if capture.pid % 3 == 0 and capture.camid == plan.cameras > 1:
        return []
    stem = f"{capture.pid:04d}_c{capture.camid:02d}_s000000_f{capture.image:04d}"
    folders = {spectrum: FOLDERS[m] for spectrum, m in SPECTRA.items() if capture.camid in CAMERAS[m]}
    return [(folder, f"{stem}_{folder}.jpg", spectrum) for spectrum, folder in folders.items()]


def _save(path: Path, capture: Capture, spectrum: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_jpeg(path, capture.pictures[spectrum])
