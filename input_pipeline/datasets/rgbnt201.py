"""RGBNT201 (Zheng et al., AAAI 2021): persons in visible, near infrared and thermal light.

    RGBNT201/train_171/{RGB,NI,TI}/000287_cam1_0_05.jpg     171 identities, 3951 triples, cameras 1-4
    RGBNT201/test/{RGB,NI,TI}/...                            30 identities, 836 triples; query = gallery

The three pictures of a triple have the same file name: identity (6 digits), camera, two counters. The published dataset
has no captions; with data.options.captioner=C your own are read (see `parsing.captions`) from

    RGBNT201/Text/C_RGB/caption_dict_C_RGB.json              of the visible pictures, by their paths: train_171/RGB/..
    RGBNT201/Text/C_IR/caption_dict_C_IR.json                of the near infrared and thermal ones
"""

import functools
import os
import re
from collections.abc import Sequence

import numpy as np

from input_pipeline.data_config import check_modalities
from input_pipeline.parsing import data_root
from input_pipeline.parsing.captions import CaptionFiles, from_folder
from input_pipeline.records import Counts, Records
from jax_mmreid.errors import DataError

FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
SPLITS = {"train": "train_171", "test": "test"}
NAME = re.compile(r"(\d{6})_cam(\d+)_\w+\.jpg", re.IGNORECASE)


def load(
    data_dir: str,
    *,
    modalities: Sequence[str],
    allow_missing_files: bool,
    captioner: str = "",
    rephrased: bool = False,
) -> dict[str, Records]:
    """Splits "train" and "test"; `data_dir` is the folder RGBNT201 or the one that holds it.

    Rows are the union of the file names in the folders of `modalities`. A name that one of them lacks is a DataError,
    or "" in that column with `allow_missing_files`. `captioner` names the captions, "" for none; `rephrased` reads the
    rephrased captions of training pictures too. Raises ConfigError for a modality it lacks.
    """
    check_modalities("rgbnt201", modalities, FOLDERS)
    root = data_dir
    nested = os.path.join(data_dir, "RGBNT201")
    if os.path.isdir(nested) and not os.path.isdir(os.path.join(data_dir, SPLITS["train"])):
        root = nested
    data_root.require("rgbnt201", root)
    splits = {split: _load_split(root, folder, modalities, allow_missing_files) for split, folder in SPLITS.items()}
    key = functools.partial(from_folder, folders=tuple(SPLITS.values()))
    return CaptionFiles(root, captioner, rephrased, "", key, allow_missing_files).of_every_picture(splits)


def counts(
    data_dir: str, *, modalities: Sequence[str], captioner: str = "", rephrased: bool = False
) -> dict[str, Counts]:
    """The published sizes. Raises ConfigError for a modality it lacks."""
    check_modalities("rgbnt201", modalities, FOLDERS)
    return {"train": Counts(171, (1, 2, 3, 4), 3951), "test": Counts(30, (1, 2), 836)}


def _load_split(root: str, folder: str, modalities: Sequence[str], allow_missing_files: bool) -> Records:
    files = {m: _list_pictures(root, folder, m, modalities) for m in modalities}
    names = sorted(set().union(*files.values()))
    if not names:
        raise DataError(f"rgbnt201: no *.jpg in {folder}/{_braces(modalities)} under {root}")
    parsed = [_parse(root, folder, name, files) for name in names]
    pid, camid = np.asarray(parsed, np.int32).T
    paths = {}
    for m in modalities:
        absent = [name for name in names if name not in files[m]]
        if absent and not allow_missing_files:
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise DataError(
                f"rgbnt201: no file '{folder}/{FOLDERS[m]}/{absent[0]}'{more} under {root}, though another "
                f"modality has it; add it, or set data.allow_missing_files=True to train and test without it"
            )
        paths[m] = np.array([f"{folder}/{FOLDERS[m]}/{name}" if name in files[m] else "" for name in names])
    return Records(root=root, paths=paths, pid=pid, camid=camid, view=np.zeros(len(names), np.int32))


def _list_pictures(root: str, folder: str, modality: str, modalities: Sequence[str]) -> set[str]:
    path = os.path.join(root, folder, FOLDERS[modality])
    if not os.path.isdir(path):
        raise DataError(
            f"rgbnt201: no folder '{folder}/{FOLDERS[modality]}' under {root}; expected {folder}/{_braces(modalities)}"
        )
    return {name for name in os.listdir(path) if name.lower().endswith(".jpg")}


def _parse(root: str, folder: str, name: str, files: dict[str, set[str]]) -> tuple[int, int]:
    match = NAME.fullmatch(name)
    if not match:
        where = next(FOLDERS[m] for m in files if name in files[m])
        raise DataError(
            f"rgbnt201: cannot read identity and camera from '{folder}/{where}/{name}' under {root}; "
            "expected a name like 000287_cam1_0_05.jpg"
        )
    return int(match[1]), int(match[2])


def _braces(modalities: Sequence[str]) -> str:
    return "{" + ",".join(FOLDERS[m] for m in modalities) + "}"
