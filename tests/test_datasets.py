"""Dataset modules: the layout of RGBNT201 and its faults, the records of a split, and options."""

import json

import numpy as np
import pytest
from PIL import Image
from rgbnt201_tree import ALL, TEST, TRAIN, write_tree

from input_pipeline import datasets
from input_pipeline.datasets import rgbnt201, synthetic
from input_pipeline.records import Records
from jax_mmreid.errors import ConfigError, DataError


def load(root, modalities=ALL, allow_missing_files=False, **options):
    return rgbnt201.load(str(root), modalities=modalities, allow_missing_files=allow_missing_files, **options)


def refused(root, **options):
    with pytest.raises(DataError) as error:
        load(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_columns_follow_the_sorted_file_names(tmp_path):
    records = load(write_tree(tmp_path))
    train = records["train"]
    assert list(records) == ["train", "test"] and len(train) == 5 and len(records["test"]) == 2
    assert train.paths["nir"].tolist() == [f"train_171/NI/{name}.jpg" for name in sorted(TRAIN)]
    assert list(train.paths) == list(ALL)
    assert train.pid.tolist() == [3, 3, 12, 12, 140]
    assert train.camid.tolist() == [1, 2, 1, 3, 12]
    assert train.view.tolist() == [0] * 5
    assert {x.dtype for x in (train.pid, train.camid, train.view)} == {np.dtype(np.int32)}
    with Image.open(train.path("tir", 4)) as image:
        assert image.size == (3, 5)


def test_other_files_in_the_folders_are_passed_over(tmp_path):
    root = write_tree(tmp_path)
    (root / "train_171" / "RGB" / "Thumbs.db").write_text("")
    assert len(load(root)["train"]) == 5


@pytest.mark.parametrize("modalities", [ALL, ("tir",), ("nir", "rgb")], ids="/".join)
def test_a_caption_is_that_of_the_picture_beside_it(tmp_path, modalities):
    plan = dict(num_train_ids=2, num_test_ids=2, cameras=2, images_per_camera=1, height=32)
    synthetic.load(str(tmp_path / "x"), modalities=ALL, allow_missing_files=False, **plan)
    tables = {}
    for stem, field in (("caption_dict", "description"), ("caption_llm_dict", "aug_description")):
        for kind in ("RGB", "IR"):
            table = json.loads((tmp_path / "x" / "Text" / f"Blip_{kind}" / f"{stem}_Blip_{kind}.json").read_text())
            tables |= {(path, field): entry[field] for path, entry in table.items()}
    found = load(tmp_path / "x", modalities, captioner="Blip", rephrased=True)
    for split, records in found.items():
        endings = {"": "description", "_rephrased": "aug_description"} if split == "train" else {"": "description"}
        assert list(records.captions) == [m + ending for m in modalities for ending in endings]
        for m in modalities:
            for ending, field in endings.items():
                assert records.captions[m + ending].tolist() == [tables[path, field] for path in records.paths[m]]
    assert list(load(tmp_path / "x", modalities, captioner="Blip")["train"].captions) == list(modalities)
    assert all(records.captions == {} for records in load(tmp_path / "x", modalities).values())


def test_every_picture_that_exists_needs_a_caption(tmp_path, caplog):
    plan = dict(num_train_ids=2, num_test_ids=2, cameras=2, images_per_camera=1, height=32)
    whole = synthetic.load(str(tmp_path / "x"), modalities=ALL, allow_missing_files=False, **plan, captioner="Blip")
    gone = whole["train"].paths["nir"][2]
    (tmp_path / "x" / gone).unlink()
    read = load(tmp_path / "x", allow_missing_files=True, captioner="Blip")["train"]
    for m in ALL:
        want = whole["train"].captions[m].tolist()
        assert read.captions[m].tolist() == (want if m != "nir" else [*want[:2], "", *want[3:]])
    assert f"has captions of {gone} (1 such), which is not in the data; left out" in caplog.text
    file = tmp_path / "x" / "Text" / "Blip_IR" / "caption_dict_Blip_IR.json"
    table = json.loads(file.read_text())
    del table[whole["test"].paths["tir"][1]]
    file.write_text(json.dumps(table))
    message = refused(tmp_path / "x", allow_missing_files=True, captioner="Blip")
    assert f"{file} has no 'description' of test/TI/" in message and "(1 of 4 pictures" in message
    assert "no file" in refused(tmp_path / "x", allow_missing_files=True, captioner="Other")


def test_parent_folder_and_dataset_folder_read_the_same(tmp_path):
    inner = load(write_tree(tmp_path / "RGBNT201"))["train"]
    outer = load(tmp_path)["train"]
    assert inner.fingerprint() == outer.fingerprint() and inner.root == outer.root


def test_fewer_modalities_need_only_their_folders(tmp_path):
    root = write_tree(tmp_path)
    for folder in ("train_171", "test"):
        (root / folder / "TI").rename(root / folder / "gone")
    assert list(load(root, modalities=("nir", "rgb"))["train"].paths) == ["nir", "rgb"]
    assert len(load(root, modalities=("rgb",))["test"]) == 2


def test_fingerprint_follows_files_identities_and_cameras(tmp_path):
    records = load(write_tree(tmp_path / "a"))["train"]
    assert records.fingerprint() == load(write_tree(tmp_path / "b"))["train"].fingerprint()  # not the root
    assert len(records.fingerprint()) == 16
    others = [
        load(tmp_path / "a", modalities=("rgb", "nir"))["train"],
        load(tmp_path / "a", modalities=("rgb", "tir", "nir"))["train"],
        load(write_tree(tmp_path / "c", train=(*TRAIN, "000140_cam1_0_02")))["train"],
        records.take(np.array([0, 1, 2, 4, 3])),
        Records(records.root, records.paths, records.pid, records.camid + 1, records.view),
        Records(records.root, records.paths, records.pid + 1, records.camid, records.view),
    ]
    assert len({x.fingerprint() for x in [records, *others]}) == 7


def test_take_keeps_the_rows_together(tmp_path):
    taken = load(write_tree(tmp_path))["train"].take(np.array([4, 0]))
    assert taken.pid.tolist() == [140, 3] and taken.camid.tolist() == [12, 1]
    assert taken.paths["rgb"].tolist() == ["train_171/RGB/000140_cam12_0_02.jpg", "train_171/RGB/000003_cam1_1_07.jpg"]


def test_a_file_absent_from_one_folder(tmp_path):
    root = write_tree(tmp_path)
    (root / "train_171" / "NI" / "000012_cam1_0_00.jpg").unlink()
    (root / "train_171" / "RGB" / "000003_cam1_1_07.jpg").unlink()
    assert "no file 'train_171/RGB/000003_cam1_1_07.jpg'" in refused(root)
    assert "data.allow_missing_files" in refused(root)
    train = load(root, allow_missing_files=True)["train"]
    assert train.has_file().tolist() == [[False, True, True], [True] * 3, [True, False, True], [True] * 3, [True] * 3]
    assert train.paths["nir"][2] == ""


def test_a_row_without_any_file_is_refused():
    two = np.array([1, 1], np.int32)
    with pytest.raises(DataError, match="row 1 .identity 1, camera 1. has no picture in any of rgb, nir"):
        Records("", {"rgb": np.array(["a", ""]), "nir": np.array(["", ""])}, two, two, two)
    with pytest.raises(ValueError, match="different lengths"):
        Records("", {"rgb": np.array(["a", "b", "c"])}, two, two, two)


def test_no_data_folder(tmp_path):
    message = refused(tmp_path / "nowhere")
    assert f"no data folder '{tmp_path}/nowhere'" in message
    assert f"python -m input_pipeline.synthesize --layout=rgbnt201 --output={tmp_path}/nowhere" in message


def test_no_modality_folder(tmp_path):
    root = write_tree(tmp_path)
    (root / "train_171" / "NI").rename(root / "train_171" / "NIR")
    want = f"rgbnt201: no folder 'train_171/NI' under {root}; expected train_171/{{RGB,NI,TI}}"
    assert refused(root) == want
    assert refused(root, allow_missing_files=True) == want


def test_empty_split(tmp_path):
    assert "no *.jpg in test/{RGB,NI,TI}" in refused(write_tree(tmp_path, test=()))


@pytest.mark.parametrize("name", ["000200_c1_0_00", "20_cam1_0_00", "000200_cam1"])
def test_file_name_without_an_identity(tmp_path, name):
    message = refused(write_tree(tmp_path, test=(*TEST, name)))
    assert f"'test/RGB/{name}.jpg'" in message and "000287_cam1_0_05.jpg" in message


def test_unknown_modality(tmp_path):
    with pytest.raises(ConfigError, match="config.data.modalities.*rgbnt201 has rgb, nir, tir"):
        load(write_tree(tmp_path), modalities=("rgb", "ir"))


def test_a_defect_of_a_dataset_module_is_no_config_error(monkeypatch):
    """Options are compared with the signature; a TypeError inside the call passes through."""

    def load(data_dir, *, modalities, allow_missing_files, colour=1):
        return len(colour)

    monkeypatch.setattr(rgbnt201, "load", load)
    monkeypatch.setattr(rgbnt201, "RANGES", {"colour": "[0, 3)"}, raising=False)
    given = dict(data_dir="", modalities=ALL, allow_missing_files=False)
    with pytest.raises(TypeError, match="object of type 'int' has no len"):
        datasets.find("rgbnt201", "load", dict(colour=2), **given)()
    with pytest.raises(ConfigError, match=r"config.data.options.colour=3: must lie in \[0, 3\)"):
        datasets.find("rgbnt201", "load", dict(colour=3), **given)
