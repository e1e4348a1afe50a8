"""RegDB (Nguyen et al., Sensors 2017): persons in visible and thermal light, ten trials of 206 + 206 identities.

    RegDB/Visible/193/female_back_v_02396_193.bmp     412 identities, 10 pictures each, camera 1
    RegDB/Thermal/193/female_back_t_02396_193.bmp     the same, camera 2
    RegDB/idx/{train,test}_{visible,thermal}_T.txt    lines "Visible/193/female_back_v_02396_193.bmp 0" of trial T

Identities are folder numbers in the test splits and the labels of the lists in the training split, as in the published
weights and results.
"""

import functools
from collections.abc import Sequence

from input_pipeline.parsing import visible_infrared
from input_pipeline.parsing.captions import CaptionFiles, from_folder
from input_pipeline.parsing.visible_infrared import Picture, Tree
from input_pipeline.records import Counts, Records
from jax_mmreid.errors import DataError

FOLDERS = {"rgb": "Visible", "ir": "Thermal"}
CAMERAS = {"rgb": 1, "ir": 2}  # one pair of cameras took all pictures; no protocol reads the numbers
RANGES = {"trial": "[1, 10]"}


def load(
    data_dir: str,
    *,
    modalities: Sequence[str],
    allow_missing_files: bool,
    trial: int = 1,
    captioner: str = "Blip",
    rephrased: bool = True,
    query_captions: str = "",
) -> dict[str, Records]:
    """Splits "train", "query" (thermal) and "gallery" (visible); `data_dir` is RegDB or the folder that holds it.

    `trial` is 1 to 10. `captioner` names the captions, "" for none; `rephrased` reads the rephrased captions of
    training pictures too; `query_captions` is a JSON file {thermal picture: caption} that replaces the published draw.
    With `allow_missing_files`, listed pictures that are absent are left out. Raises ConfigError for a modality that
    the dataset lacks.
    """
    visible_infrared.check_modalities("regdb", modalities)
    tree = visible_infrared.open_tree("regdb", data_dir, nested="RegDB", marker="idx")
    listed = {
        (part, m): tree.listed(_list(part, m, trial), allow_missing_files=allow_missing_files)
        for part in ("train", "test")
        for m in modalities
    }
    tree.check_labels(pair for (part, _), pairs in listed.items() if part == "train" for pair in pairs)
    splits = tree.splits(
        modalities,
        train={m: [Picture(path, label, CAMERAS[m]) for path, label in listed["train", m]] for m in modalities},
        query=_test(tree, listed, "ir"),
        gallery=_test(tree, listed, "rgb"),
    )
    key = functools.partial(from_folder, folders=tuple(FOLDERS.values()))
    return CaptionFiles(tree.root, captioner, rephrased, query_captions, key, allow_missing_files).add(splits)


def counts(
    data_dir: str,
    *,
    modalities: Sequence[str],
    trial: int = 1,
    captioner: str = "Blip",
    rephrased: bool = True,
    query_captions: str = "",
) -> dict[str, Counts]:
    """The published sizes, the same in every trial. Raises ConfigError for a modality that the dataset lacks."""
    visible_infrared.check_modalities("regdb", modalities)
    visible, thermal = (Counts(206, (CAMERAS[m],), 2060) for m in ("rgb", "ir"))
    return visible_infrared.counts(modalities, {"rgb": visible, "ir": thermal}, query=thermal, gallery=visible)


def _list(part: str, modality: str, trial: int) -> str:
    return f"idx/{part}_{FOLDERS[modality].lower()}_{trial}.txt"


def _test(tree: Tree, listed: dict, modality: str) -> list[Picture]:
    pictures = []
    for path, _ in listed.get(("test", modality), ()):
        folder, _, rest = path.partition("/")
        pid = rest.partition("/")[0]
        if folder != FOLDERS[modality] or not pid.isdecimal():
            raise DataError(
                f"regdb: cannot read an identity from {path!r} in the test lists under {tree.root}/idx; "
                f"expected a path like {FOLDERS[modality]}/193/NAME.bmp"
            )
        pictures.append(Picture(path, int(pid), CAMERAS[modality]))
    return pictures
