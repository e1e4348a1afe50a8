"""RGBNT100 (Li et al., AAAI 2020): vehicles in visible, near infrared and thermal light.

    RGBNT100/rgbir/bounding_box_train/0561_c0001_006.jpg     50 identities, 8675 triples, cameras 1-8
    RGBNT100/rgbir/query/...                                 1715 triples
    RGBNT100/rgbir/bounding_box_test/...                     50 identities, 8575 triples: the gallery

One file is a triple: a strip of 768x128 pixels with the RGB, the NI and the TI picture from left to right. Its name is
identity, camera and a counter.
"""

import os
import re
from collections.abc import Sequence

import numpy as np

from input_pipeline.data_config import check_modalities
from input_pipeline.parsing import data_root
from input_pipeline.records import Counts, Records
from jax_mmreid.errors import DataError

PARTS = {"rgb": 0, "nir": 1, "tir": 2}  # thirds of a strip
SPLITS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
NAME = re.compile(r"(\d+)_c(\d+)_\w+\.jpg", re.IGNORECASE)


def load(data_dir: str, *, modalities: Sequence[str], allow_missing_files: bool) -> dict[str, Records]:
    """Splits "train", "query" and "gallery"; `data_dir` is the folder rgbir, RGBNT100 or the one that holds it.

    A strip has all three pictures: none can be missing, and `allow_missing_files` changes nothing. Raises ConfigError
    for a modality that the dataset lacks.
    """
    check_modalities("rgbnt100", modalities, PARTS)
    inner = (data_dir, os.path.join(data_dir, "rgbir"), os.path.join(data_dir, "RGBNT100", "rgbir"))
    root = data_root.find("rgbnt100", inner, SPLITS["train"])
    return {split: _load_split(root, folder, modalities) for split, folder in SPLITS.items()}


def counts(data_dir: str, *, modalities: Sequence[str]) -> dict[str, Counts]:
    """The published sizes; 0 and () for what is not published. Raises ConfigError for a modality it lacks."""
    check_modalities("rgbnt100", modalities, PARTS)
    return {
        "train": Counts(50, (1, 2, 3, 4, 5, 6, 7, 8), 8675),
        "query": Counts(0, (), 1715),
        "gallery": Counts(50, (), 8575),
    }


def _load_split(root: str, folder: str, modalities: Sequence[str]) -> Records:
    path = os.path.join(root, folder)
    if not os.path.isdir(path):
        raise DataError(f"rgbnt100: no folder '{folder}' under {root}; expected {', '.join(SPLITS.values())}")
    names = sorted(name for name in os.listdir(path) if name.lower().endswith(".jpg"))
    if not names:
        raise DataError(f"rgbnt100: no *.jpg in '{folder}' under {root}; copy the pictures there")
    pid, camid = np.array([_parse(root, folder, name) for name in names], np.int32).T
    files = np.array([f"{folder}/{name}" for name in names])
    return Records(
        root=root,
        paths={m: files for m in modalities},
        pid=pid,
        camid=camid,
        view=np.zeros(len(names), np.int32),
        parts={m: np.full(len(names), PARTS[m], np.int32) for m in modalities},
    )


def _parse(root: str, folder: str, name: str) -> tuple[int, int]:
    match = NAME.fullmatch(name)
    if not match:
        raise DataError(
            f"rgbnt100: cannot read identity and camera from '{folder}/{name}' under {root}; "
            "expected a name like 0561_c0001_006.jpg"
        )
    return int(match[1]), int(match[2])
