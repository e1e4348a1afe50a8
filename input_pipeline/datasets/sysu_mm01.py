"""SYSU-MM01 (Wu et al., ICCV 2017): persons in visible (cameras 1, 2, 4, 5) and near infrared light (cameras 3, 6).

    SYSU-MM01/cam1/0001/0001.jpg                   camera, identity, picture
    SYSU-MM01/exp/{train,val,test}_id.txt          identities separated by commas; train and val are trained on: 395
    SYSU-MM01/train_{rgb,ir}_resized_img.npy       the 22258 visible, 11909 infrared training pictures as one array,
    SYSU-MM01/train_{rgb,ir}_resized_label.npy     as common scripts pack them, and the ranks of their identities

Test: 96 identities, 3803 infrared queries, 6775 visible pictures to draw galleries from.
"""

import functools
import os
from collections.abc import Sequence

import numpy as np

from input_pipeline.data_config import check_choice
from input_pipeline.parsing import visible_infrared
from input_pipeline.parsing.captions import CaptionFiles, from_folder
from input_pipeline.parsing.visible_infrared import Picture, Tree
from input_pipeline.reading import images
from input_pipeline.records import Counts, Records
from jax_mmreid.errors import DataError

CAMERAS = {"rgb": (1, 2, 4, 5), "ir": (3, 6)}
TRAIN_IDS, TEST_IDS = ("exp/train_id.txt", "exp/val_id.txt"), "exp/test_id.txt"
SOURCES = ("folders", "npy")


def load(
    data_dir: str,
    *,
    modalities: Sequence[str],
    allow_missing_files: bool,
    source: str = "folders",
    captioner: str = "Blip",
    rephrased: bool = True,
    query_captions: str = "",
) -> dict[str, Records]:
    """Splits "train", "query" (infrared) and "gallery" (all visible test pictures, which `galleries` draws from).

    `data_dir` is SYSU-MM01 or the folder that holds it. `source` "npy" trains on the arrays, which do not hold cameras:
    they are 0. `captioner` names the captions, "" for none; `rephrased` reads the rephrased captions of training
    pictures too; `query_captions` is a JSON file {infrared picture: caption} that replaces the published draw. With
    `allow_missing_files`, identities without a picture are left out. Raises ConfigError for a source or modality that
    does not exist.
    """
    _check(modalities, source)
    tree = visible_infrared.open_tree("sysu_mm01", data_dir, nested="SYSU-MM01", marker="exp")
    train_ids, test_ids = sorted({pid for file in TRAIN_IDS for pid in tree.ids(file)}), tree.ids(TEST_IDS)
    folders = functools.partial(_folders, tree, modalities)
    train = _arrays(tree, modalities, train_ids) if source == "npy" else folders(train_ids)
    test = folders(test_ids)
    for ids, pictures, file in ((train_ids, train, " and ".join(TRAIN_IDS)), (test_ids, test, TEST_IDS)):
        tree.check_ids(ids, sum(pictures.values(), []), file, allow_missing_files)
    splits = tree.splits(modalities, train=train, query=test.get("ir", []), gallery=test.get("rgb", []))
    key = functools.partial(from_folder, folders=tuple(f"cam{n}" for cameras in CAMERAS.values() for n in cameras))
    files = CaptionFiles(tree.root, captioner, rephrased, query_captions, key, allow_missing_files, in_arrays=True)
    return files.add(splits)


def counts(
    data_dir: str,
    *,
    modalities: Sequence[str],
    source: str = "folders",
    captioner: str = "Blip",
    rephrased: bool = True,
    query_captions: str = "",
) -> dict[str, Counts]:
    """The published sizes. Raises ConfigError for a source or modality that does not exist."""
    _check(modalities, source)
    cameras = CAMERAS if source == "folders" else dict.fromkeys(CAMERAS, (0,))
    return visible_infrared.counts(
        modalities,
        {"rgb": Counts(395, cameras["rgb"], 22258), "ir": Counts(395, cameras["ir"], 11909)},
        query=Counts(96, CAMERAS["ir"], 3803),
        gallery=Counts(96, CAMERAS["rgb"], 6775),
    )


def _check(modalities: Sequence[str], source: str) -> None:
    visible_infrared.check_modalities("sysu_mm01", modalities)
    check_choice("data.options.source", source, SOURCES)


def _folders(tree: Tree, modalities: Sequence[str], ids: Sequence[int]) -> dict[str, list[Picture]]:
    return {m: tree.folders(ids, {f"cam{camera}": camera for camera in CAMERAS[m]}) for m in modalities}


def _arrays(tree: Tree, modalities: Sequence[str], ids: Sequence[int]) -> dict[str, list[Picture]]:
    pictures = {}
    for m in modalities:
        file = f"train_{m}_resized_img.npy"
        N = len(images.read(os.path.join(tree.root, file)))
        labels = _labels(os.path.join(tree.root, f"train_{m}_resized_label.npy"), N, len(ids))
        pictures[m] = [Picture(file, ids[label], 0, row) for row, label in enumerate(labels)]
    return pictures


def _labels(path: str, N: int, K: int) -> list[int]:
    """The labels [N] of an array, each the rank 0..K-1 of an identity."""
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"sysu_mm01: cannot read {path} ({reason}); save it as a plain array of numbers") from error
    if labels.shape != (N,) or labels.dtype.kind not in "iu" or not np.isin(labels, np.arange(K)).all():
        raise DataError(
            f"sysu_mm01: {path} should hold a whole number 0..{K - 1} for each of {N} pictures, the rank of its "
            f"identity in {' and '.join(TRAIN_IDS)}; pack the arrays again, or set data.options.source='folders'"
        )
    return labels.tolist()
