"""The trees of SYSU-MM01, RegDB and LLCM are read as published code reads the real ones; faults of each."""

import shutil

import numpy as np
import pytest
from drawn_tvi import BOTH, TEST, TRAIN, load, own_paths, refused
from drawn_tvi import copy as copy
from drawn_tvi import drawn as drawn
from PIL import Image

from input_pipeline import datasets
from input_pipeline.datasets import sysu_mm01
from input_pipeline.parsing.visible_infrared import Tree
from input_pipeline.reading import images
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics import galleries


def rows(records):
    return list(zip(own_paths(records), records.pid.tolist(), records.camid.tolist()))


# SYSU-MM01


def expected_sysu(pids, cameras):
    """Every third identity misses camera 5, every fifth camera 6."""
    return [
        (f"cam{camera}/{pid:04d}/000{image}.jpg", pid, camera)
        for pid in pids
        for camera in cameras
        if not (camera == 5 and pid % 3 == 0 or camera == 6 and pid % 5 == 0)
        for image in (1, 2)
    ]


def test_sysu_is_read_by_identity_camera_and_name(drawn):
    splits = load(drawn / "sysu_mm01")
    assert rows(splits["train"]) == expected_sysu(TRAIN, (1, 2, 4, 5)) + expected_sysu(TRAIN, (3, 6))
    assert rows(splits["query"]) == expected_sysu(TEST, (3, 6))
    assert rows(splits["gallery"]) == expected_sysu(TEST, (1, 2, 4, 5))
    assert (drawn / "sysu_mm01" / "exp" / "val_id.txt").read_text() == "9\n"


def test_sysu_galleries_skip_folders_that_do_not_exist(drawn):
    gallery = load(drawn / "sysu_mm01")["gallery"]
    columns = {"pid": gallery.pid, "camid": gallery.camid}
    drawn_rows = galleries.draw(columns, cameras=(1, 2, 4, 5), shots=1, trial=0)
    groups = [(pid, camera) for pid in TEST for camera in (1, 2, 4, 5) if (pid, camera) != (6, 5)]
    assert list(zip(gallery.pid[drawn_rows].tolist(), gallery.camid[drawn_rows].tolist())) == groups


def test_sysu_arrays_hold_the_pictures_of_the_folders_in_their_order(drawn):
    folders = load(drawn / "sysu_mm01")["train"]
    arrays = load(drawn / "sysu_mm01", source="npy")["train"]
    np.testing.assert_array_equal(arrays.pid, folders.pid)
    assert not arrays.camid.any()
    for modality in BOTH:
        np.testing.assert_array_equal(arrays.captions[modality], folders.captions[modality])
        np.testing.assert_array_equal(arrays.paths[modality] != "", folders.paths[modality] != "")
        row = np.flatnonzero(folders.paths[modality] != "")[3]
        assert arrays.part(modality, row) == 3
        with Image.open(folders.path(modality, row)) as image:
            resized = np.asarray(image.resize((144, 288), Image.Resampling.LANCZOS))
        array = images.read(arrays.path(modality, row))
        assert array.shape[1:] == (288, 144, 3)
        np.testing.assert_array_equal(array[3], resized)


@pytest.mark.parametrize(
    ("file", "array", "reason"),
    [
        ("train_rgb_resized_img.npy", np.array([{}]), "Python objects"),
        ("train_ir_resized_img.npy", np.zeros((5, 8, 4, 3), np.float32), "float32"),
        ("train_rgb_resized_label.npy", np.array([{}]), "Object arrays cannot be loaded"),
        ("train_rgb_resized_label.npy", np.arange(5), "a whole number 0..4 for each of"),
        ("train_ir_resized_label.npy", None, "No such file"),
    ],
)
def test_faulty_sysu_arrays(copy, file, array, reason):
    root = copy("sysu_mm01")
    if array is None:
        (root / file).unlink()
    else:
        np.save(root / file, array, allow_pickle=True)
    message = refused(root, source="npy")
    assert str(root / file) in message and reason in message
    assert len(load(root)["train"])


def test_sysu_labels_are_ranks(copy):
    root = copy("sysu_mm01")
    file = root / "train_rgb_resized_label.npy"
    np.save(file, np.load(file) + 1)
    assert f"{file} should hold a whole number 0..4" in refused(root, source="npy")
    with pytest.raises(ConfigError, match="config.data.options.source='zip': expected one of 'folders', 'npy'"):
        load(root, source="zip")


def test_sysu_captions_are_of_as_many_pictures(copy):
    root = copy("sysu_mm01")
    (root / "cam1" / "0001" / "0002.jpg").unlink()
    message = refused(root)
    assert "train_text_Blip_RGB.npy" in message and "write the file again" in message


@pytest.mark.parametrize("content", ["", "1,two", None])
def test_sysu_identities_that_cannot_be_read(copy, content):
    root = copy("sysu_mm01")
    if content is None:
        (root / "exp" / "val_id.txt").unlink()
    else:
        (root / "exp" / "val_id.txt").write_text(content)
    assert str(root / "exp" / "val_id.txt") in refused(root)


def test_sysu_identities_and_cameras_without_pictures(copy):
    root = copy("sysu_mm01")
    (root / "exp" / "test_id.txt").write_text("0008,2,6,4,\n")
    assert rows(load(root)["query"]) == expected_sysu(TEST, (3, 6))
    (root / "exp" / "test_id.txt").write_text("2,4,6,8,10,12\n")
    message = refused(root)
    assert "no picture of identity 10, which exp/test_id.txt lists (and 1 more)" in message
    assert rows(load(root, allow_missing_files=True)["query"]) == expected_sysu(TEST, (3, 6))
    (root / "cam6").rename(root / "gone")
    assert f"no folder 'cam6' under {root}; expected cam3, cam6" in refused(root)


def test_a_dataset_without_any_test_picture(copy):
    root = copy("sysu_mm01")
    (root / "exp" / "test_id.txt").write_text("77\n")
    assert "no pictures for split 'query'" in refused(root, allow_missing_files=True)
    assert sysu_mm01.counts("", modalities=("rgb",), source="npy")["train"].cameras == (0,)


# RegDB


def test_regdb_follows_its_lists(drawn):
    root = drawn / "regdb"
    for trial in (1, 10):
        splits = load(root, trial=trial)
        lists = {
            (part, kind): [line.split() for line in (root / "idx" / f"{part}_{kind}_{trial}.txt").open()]
            for part in ("train", "test")
            for kind in ("visible", "thermal")
        }
        train = lists["train", "visible"] + lists["train", "thermal"]
        assert own_paths(splits["train"]) == [path for path, _ in train]
        assert splits["train"].pid.tolist() == [int(label) for _, label in train]
        assert set(splits["train"].pid) == {0, 1, 2, 3, 4}
        for split, kind, camera in (("query", "thermal", 2), ("gallery", "visible", 1)):
            paths = [path for path, _ in lists["test", kind]]
            assert rows(splits[split]) == [(path, int(path.split("/")[1]), camera) for path in paths]
            assert len(paths) == 40 and len(set(paths)) == 40


def test_regdb_trials_are_halves_of_the_same_identities(drawn):
    test = {}
    for trial in range(1, 11):
        splits = load(drawn / "regdb", trial=trial)
        train = {path.split("/")[1] for path in own_paths(splits["train"])}
        test[trial] = frozenset(map(str, splits["query"].pid))
        assert train.isdisjoint(test[trial]) and len(train | test[trial]) == 9
    assert len(set(test.values())) > 5


def test_regdb_pictures_are_bmp_of_three_channels(drawn):
    for folder in ("Visible", "Thermal"):
        files = sorted((drawn / "regdb" / folder / "3").iterdir())
        assert len(files) == 10
        with Image.open(files[0]) as image:
            assert (image.format, image.mode, image.size) == ("BMP", "RGB", (16, 32))


def test_regdb_absent_pictures_and_broken_lists(copy):
    root = copy("regdb")
    file = root / "idx" / "train_visible_1.txt"
    lines = file.read_text().splitlines()
    path, label = lines[4].split()
    (root / path).unlink()
    message = refused(root)
    assert f"no file {path!r}, which idx/train_visible_1.txt lists" in message and "data.allow_missing_files" in message
    train = load(root, allow_missing_files=True)["train"]
    assert len(train) == 99 and path not in own_paths(train)
    for broken, reason in (
        (["Visible/1/a.bmp"], "has a line 'Visible/1/a.bmp', not 'path label'"),
        (["Visible/1/a.bmp one"], "not 'path label'"),
        ([lines[0].rpartition(" ")[0] + " 1", *lines[1:]], "pair identity"),
    ):
        file.write_text("\n".join(broken))
        assert reason in refused(root, allow_missing_files=True)
    file.write_text(lines[0])
    shutil.rmtree(root / "Visible")
    assert "no pictures for split 'train'" in refused(root, allow_missing_files=True, modalities=("rgb",))
    file.unlink()
    assert f"cannot read {file} (No such file or directory)" in refused(root)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (("Thermal/8/b.bmp", 0), "pair label 0 with each of 7, 8"),
        (("Thermal/7/b.bmp", 1), "pair identity 7 with each of 0, 1"),
    ],
)
def test_identities_and_labels_are_one_to_one(second, reason):
    with pytest.raises(DataError, match=reason):
        Tree("regdb", "root").check_labels([("Visible/7/a.bmp", 0), second])
    Tree("regdb", "root").check_labels([("Visible/7/a.bmp", 0), ("Thermal/7/b.bmp", 0), ("Visible/8/c.bmp", 1)])


def test_regdb_test_pictures_are_named_by_identity(copy):
    root = copy("regdb")
    (root / "Thermal" / "who").mkdir()
    Image.new("RGB", (4, 8)).save(root / "Thermal" / "who" / "a.bmp")
    (root / "idx" / "test_thermal_2.txt").write_text("Thermal/who/a.bmp 0\n")
    assert "cannot read an identity from 'Thermal/who/a.bmp'" in refused(root, trial=2)


@pytest.mark.parametrize("trial", [0, 11, "1"])
def test_regdb_has_ten_trials(drawn, trial):
    for function in ("load", "counts"):
        with pytest.raises(ConfigError, match=r"data.options.trial=.*: must (lie in \[1, 10\]|be a whole number)"):
            datasets.find("regdb", function, dict(trial=trial), data_dir="", modalities=BOTH)


# LLCM


def test_llcm_is_read_by_lists_and_by_folders(drawn):
    root = drawn / "llcm"
    splits = load(root)
    lines = [line.split() for kind in ("vis", "nir") for line in (root / "idx" / f"train_{kind}.txt").open()]
    assert own_paths(splits["train"]) == [path for path, _ in lines]
    assert splits["train"].pid.tolist() == [int(label) for _, label in lines]
    assert splits["train"].camid.tolist() == [int(path.split("_c")[1][:2]) for path, _ in lines]
    for split, kind, cameras in (("query", "nir", (1, 2, 4)), ("gallery", "vis", (1, 2, 3, 4))):
        assert rows(splits[split]) == [
            (f"test_{kind}/cam{camera}/{pid:04d}/{pid:04d}_c0{camera}_s000000_f000{image}_{kind}.jpg", pid, camera)
            for pid in TEST
            for camera in cameras
            if (pid, camera) != (6, 4)
            for image in (0, 1)
        ]


def test_llcm_pictures_without_a_camera_and_folders_that_are_gone(copy):
    root = copy("llcm")
    file = root / "idx" / "train_nir.txt"
    text = file.read_text()
    (root / "nir" / "0001" / "a.jpg").write_bytes((root / text.split()[0]).read_bytes())
    file.write_text("nir/0001/a.jpg 0\n" + text)
    assert "cannot read the camera of 'nir/0001/a.jpg'" in refused(root)
    file.write_text(text)
    assert len(load(root)["train"])
    shutil.rmtree(root / "test_vis" / "cam7")
    assert f"no folder 'test_vis/cam7' under {root}" in refused(root)


def test_llcm_identities_without_pictures(copy):
    root = copy("llcm")
    (root / "idx" / "test_id.txt").write_text("2,4,6,8,11\n")
    assert "no picture of identity 11, which idx/test_id.txt lists" in refused(root)
    assert set(load(root, allow_missing_files=True)["query"].pid) == set(TEST)
