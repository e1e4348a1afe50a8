"""MSVR310 (Zheng et al., Information Fusion 2023): vehicles in visible, near infrared and thermal light.

    MSVR310/bounding_box_train/0002/{vis,ni,th}/0002_s002_v0_000.jpg     155 identities, 1032 triples, views 0-7
    MSVR310/query3/...                                                   52 identities, 591 triples
    MSVR310/bounding_box_test/...                                        155 identities, 1055 triples: the gallery

The three pictures of a triple have the same file name: identity, scene, view, counter. The view is read as the camera.
The scene (a place and a time), which a query must not share with its gallery, is in the column `view`.
"""

import os
import re
from collections.abc import Sequence

import numpy as np

from input_pipeline.data_config import check_modalities
from input_pipeline.parsing import data_root
from input_pipeline.records import Counts, Records
from jax_mmreid.errors import DataError

FOLDERS = {"rgb": "vis", "nir": "ni", "tir": "th"}
SPLITS = {"train": "bounding_box_train", "query": "query3", "gallery": "bounding_box_test"}
NAME = re.compile(r"(\d+)_s(\d+)_v(\d+)_\w+\.jpg", re.IGNORECASE)


def load(data_dir: str, *, modalities: Sequence[str], allow_missing_files: bool) -> dict[str, Records]:
    """Splits "train", "query" and "gallery"; `data_dir` is the folder MSVR310 or the one that holds it.

    Rows are the union of the file names in an identity's folders of `modalities`. A name that one of them lacks is a
    DataError, or "" in that column with `allow_missing_files`. Raises ConfigError for a modality it lacks.
    """
    check_modalities("msvr310", modalities, FOLDERS)
    inner = (data_dir, os.path.join(data_dir, "MSVR310"))
    root = data_root.find("msvr310", inner, SPLITS["train"])
    return {split: _load_split(root, folder, modalities, allow_missing_files) for split, folder in SPLITS.items()}


def counts(data_dir: str, *, modalities: Sequence[str]) -> dict[str, Counts]:
    """The published sizes; () for cameras that are not published. Raises ConfigError for a modality it lacks."""
    check_modalities("msvr310", modalities, FOLDERS)
    return {
        "train": Counts(155, (0, 1, 2, 3, 4, 5, 6, 7), 1032),
        "query": Counts(52, (), 591),
        "gallery": Counts(155, (), 1055),
    }


def _load_split(root: str, folder: str, modalities: Sequence[str], allow_missing_files: bool) -> Records:
    if not os.path.isdir(os.path.join(root, folder)):
        raise DataError(f"msvr310: no folder '{folder}' under {root}; expected {', '.join(SPLITS.values())}")
    identities = sorted(entry.name for entry in os.scandir(os.path.join(root, folder)) if entry.is_dir())
    files = {m: {(i, name) for i in identities for name in _pictures(root, folder, i, m)} for m in modalities}
    names = sorted(set().union(*files.values()))
    if not names:
        raise DataError(f"msvr310: no *.jpg in '{folder}'/<identity>/{_braces(modalities)} under {root}")
    pid, scene, camid = np.array([_parse(root, folder, *name, files) for name in names], np.int32).T
    paths = {}
    for m in modalities:
        found = [f"{folder}/{i}/{FOLDERS[m]}/{name}" for i, name in names]
        absent = [path for path, name in zip(found, names) if name not in files[m]]
        if absent and not allow_missing_files:
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise DataError(
                f"msvr310: no file '{absent[0]}'{more} under {root}, though another modality has it; "
                "add it, or set data.allow_missing_files=True to train and test without it"
            )
        paths[m] = np.array([path if name in files[m] else "" for path, name in zip(found, names)])
    return Records(root=root, paths=paths, pid=pid, camid=camid, view=scene)


def _pictures(root: str, folder: str, identity: str, modality: str) -> list[str]:
    path = os.path.join(root, folder, identity, FOLDERS[modality])
    return [name for name in os.listdir(path) if name.lower().endswith(".jpg")] if os.path.isdir(path) else []


def _parse(root: str, folder: str, identity: str, name: str, files: dict[str, set]) -> tuple[int, int, int]:
    match = NAME.fullmatch(name)
    if not match:
        where = next(FOLDERS[m] for m in files if (identity, name) in files[m])
        raise DataError(
            f"msvr310: cannot read identity, scene and view from '{folder}/{identity}/{where}/{name}' under {root}; "
            "expected a name like 0002_s002_v0_000.jpg"
        )
    return int(match[1]), int(match[2]), int(match[3])


def _braces(modalities: Sequence[str]) -> str:
    return "{" + ",".join(FOLDERS[m] for m in modalities) + "}"
