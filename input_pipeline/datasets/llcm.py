"""LLCM (Zhang and Wang, CVPR 2023): persons in low light, visible and near infrared, before nine cameras.

    LLCM/{vis,nir}/0001/0001_c01_s185535_f7010_vis.jpg        713 training identities: 16946 visible, 13975 infrared
    LLCM/idx/train_{vis,nir}.txt                              lines "vis/0001/NAME.jpg 0"
    LLCM/test_{vis,nir}/cam1/0005/NAME.jpg                    351 identities: 8680 visible, 7166 infrared (no camera 3)
    LLCM/idx/test_id.txt                                      their numbers, separated by commas

Identities are folder numbers in the test splits and the labels of the lists in the training split. Caption files name
test pictures vis/0005/NAME.jpg or nir/0005/NAME.jpg.
"""

import re
from collections.abc import Sequence

from input_pipeline.parsing import visible_infrared
from input_pipeline.parsing.captions import CaptionFiles, from_folder
from input_pipeline.parsing.visible_infrared import Picture, Tree
from input_pipeline.records import Counts, Records
from jax_mmreid.errors import DataError

FOLDERS = {"rgb": "vis", "ir": "nir"}
CAMERAS = {"rgb": (1, 2, 3, 4, 5, 6, 7, 8, 9), "ir": (1, 2, 4, 5, 6, 7, 8, 9)}
CAMERA = re.compile(r"_c(\d+)_")
TEST_IDS = "idx/test_id.txt"


def load(
    data_dir: str,
    *,
    modalities: Sequence[str],
    allow_missing_files: bool,
    captioner: str = "Blip",
    rephrased: bool = True,
    query_captions: str = "",
) -> dict[str, Records]:
    """Splits "train", "query" (infrared) and "gallery" (all visible test pictures, which `galleries` draws from).

    `data_dir` is LLCM or the folder that holds it. `captioner` names the captions, "" for none; `rephrased` reads the
    rephrased captions of training pictures too; `query_captions` is a JSON file {infrared picture: caption} that
    replaces the published draw. With `allow_missing_files`, listed pictures and identities that are absent are left
    out. Raises ConfigError for a modality that the dataset lacks.
    """
    visible_infrared.check_modalities("llcm", modalities)
    tree = visible_infrared.open_tree("llcm", data_dir, nested="LLCM", marker="idx")
    lists = {m: tree.listed(f"idx/train_{FOLDERS[m]}.txt", allow_missing_files=allow_missing_files) for m in modalities}
    tree.check_labels(pair for pairs in lists.values() for pair in pairs)
    ids = tree.ids(TEST_IDS)
    test = {
        m: tree.folders(ids, {f"test_{FOLDERS[m]}/cam{camera}": camera for camera in CAMERAS[m]}) for m in modalities
    }
    tree.check_ids(ids, [picture for pictures in test.values() for picture in pictures], TEST_IDS, allow_missing_files)
    train = {m: _train(tree, pairs) for m, pairs in lists.items()}
    splits = tree.splits(modalities, train=train, query=test.get("ir", []), gallery=test.get("rgb", []))
    return CaptionFiles(tree.root, captioner, rephrased, query_captions, _key, allow_missing_files).add(splits)


def counts(
    data_dir: str,
    *,
    modalities: Sequence[str],
    captioner: str = "Blip",
    rephrased: bool = True,
    query_captions: str = "",
) -> dict[str, Counts]:
    """The published sizes. Raises ConfigError for a modality that the dataset lacks."""
    visible_infrared.check_modalities("llcm", modalities)
    return visible_infrared.counts(
        modalities,
        {"rgb": Counts(713, CAMERAS["rgb"], 16946), "ir": Counts(713, CAMERAS["ir"], 13975)},
        query=Counts(351, CAMERAS["ir"], 7166),
        gallery=Counts(351, CAMERAS["rgb"], 8680),
    )


def _train(tree: Tree, listed: list[tuple[str, int]]) -> list[Picture]:
    pictures = []
    for path, label in listed:
        match = CAMERA.search(path.rpartition("/")[2])
        if not match:
            raise DataError(
                f"llcm: cannot read the camera of {path!r} in the training lists under {tree.root}/idx; "
                "expected a name like 0001_c01_s185535_f7010_vis.jpg"
            )
        pictures.append(Picture(path, label, int(match[1])))
    return pictures


def _key(path: str) -> str:
    path = from_folder(path, ("vis", "nir", "test_vis", "test_nir"))
    return re.sub(r"^test_(vis|nir)/cam\d+/", r"\1/", path)
