"""The layout of RegDB: `{Visible,Thermal}/P/NAME_P.bmp`, ten lists of halves under `idx/`, captions under `Text/`."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.datasets.regdb import CAMERAS
from input_pipeline.synthetic.scenes import Captions, Plan, Row, frames, scenes

IMAGES = 10  # of each identity in each spectrum, as in RegDB
TRIALS = 10
SPECTRA = {"rgb": ("Visible", "v"), "tir": ("Thermal", "t")}  # RegDB's "ir" is thermal


def write(root: Path, plan: Plan) -> None:
    """Draws the plan into the folder `root`, with ten pictures and one pair of cameras instead of the plan's.

    Every trial draws its training identities from all of them.
    """
    captions = Captions("datasets/regdb/")
    paths = {}  # (spectrum, pid) -> paths
    pids = sorted([*plan.train_pids, *plan.test_pids])
    for scene in scenes(_as_regdb(plan), pids):
        for spectrum, (folder, letter) in SPECTRA.items():
            path = f"{folder}/{scene.pid}/person_{letter}_{scene.image:05d}_{scene.pid}.bmp"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.pictures[spectrum]).convert("RGB").save(root / path)
            captions.add(path, scene, spectrum)
            paths.setdefault((spectrum, scene.pid), []).append(path)
    (root / "idx").mkdir()
    for trial in range(1, TRIALS + 1):
        shuffled = np.random.default_rng([plan.seed, trial]).permutation(pids).tolist()
        halves = {"train": shuffled[: plan.num_train_ids], "test": shuffled[plan.num_train_ids :]}
        for half, members in halves.items():
            for spectrum, (folder, _) in SPECTRA.items():
                persons = [paths[spectrum, pid] for pid in sorted(members)]
                lines = [f"{path} {label}\n" for label, person in enumerate(persons) for path in person]
                (root / "idx" / f"{half}_{folder.lower()}_{trial}.txt").write_text("".join(lines))
    captions.write(root / "Text")


def rows(plan: Plan) -> Iterator[Row]:
    """The rows that are read from what `write` draws: as many in every trial, of other identities."""
    for pids, splits in ((plan.train_pids, {}), (plan.test_pids, {"rgb": "gallery", "ir": "query"})):
        for pid, _, _ in frames(_as_regdb(plan), pids):
            for m, camid in CAMERAS.items():
                yield Row(splits.get(m, "train"), (m,), pid, camid)


def _as_regdb(plan: Plan) -> Plan:
    return dataclasses.replace(plan, cameras=1, images_per_camera=IMAGES)
