"""Broken and absent files: named, or dropped from training and replaced."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from random_tree import ALL, COUNTS, FOLDERS, MASKS, NO_MASKS, PIDS, H, W, join, opened, table
from random_tree import copy as copy
from random_tree import tree as tree

from input_pipeline.datasets import rgbnt201
from input_pipeline.reading import loader, masks
from jax_mmreid.batch import Share, check
from jax_mmreid.errors import DataError

BROKEN = {
    "zero": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "text": lambda whole: b"these are not pixels\n",
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("threads", [0, 2])
def test_a_broken_file_is_named(copy, kind, threads):
    for folder in ("train_171", "test"):
        for path in (copy / folder / "TI").iterdir():
            path.write_bytes(BROKEN[kind](path.read_bytes()))
    data = opened(copy, threads=threads, missing=MASKS | {"eta": (0.0, 0.0, 0.0)})
    for stream in (data.train(0, 50), data.split("test")):
        with pytest.raises(DataError, match=r"cannot read .*/TI/\d{6}_cam\d_0_\d\d\.jpg \(.*replace the file") as error:
            list(stream)
        assert "\n" not in str(error.value)


def test_a_file_that_vanished_is_named(copy):
    data = opened(copy, missing=MASKS | {"eta": (0.0, 0.0, 0.0)})
    path = sorted((copy / "test" / "NI").iterdir())[12]
    path.unlink()
    stream = data.split("test")
    next(stream)
    with pytest.raises(DataError, match=path.name):
        next(stream)


def pictures(root, row):
    """The files of a training row, by modality."""
    name = sorted(path.name for path in (root / "train_171" / "RGB").iterdir())[row]
    return {modality: root / "train_171" / folder / name for modality, folder in FOLDERS.items()}


def spoiled(root, row, modalities):
    for modality in modalities:
        path = pictures(root, row)[modality]
        path.write_bytes(path.read_bytes()[:60])


def test_a_dropped_picture_is_an_absent_one(copy, monkeypatch, caplog):
    monkeypatch.setattr(loader, "MAX_DROPPED", 0.1)
    whole = list(opened(copy, missing=NO_MASKS).train(0, 12))
    spoiled(copy, 4, ["nir"])
    spoiled(copy, 9, ["rgb", "nir"])
    lost = {(4, "nir"), (9, "rgb"), (9, "nir")}
    caplog.clear()
    data = opened(copy, missing=NO_MASKS, on_bad_image="drop")
    for batch, want in zip(data.train(0, 12), whole, strict=True):
        check(batch)
        np.testing.assert_array_equal(batch["index"], want["index"])
        for name in ALL:
            gone = np.array([(row, name) in lost for row in batch["index"]])
            np.testing.assert_array_equal(batch["present"][name], ~gone)
            assert not batch["images"][name][gone].any()
            np.testing.assert_array_equal(batch["images"][name][~gone], want["images"][name][~gone])
    list(data.split("train"))
    lines = [line for line in caplog.messages if "dropped" in line]
    assert len(lines) == 3 and "dropped from training (3 of 66 pictures so far): images: cannot read" in lines[2]
    assert data.present_train.all() and data.spec.fingerprint == opened(copy, missing=NO_MASKS).spec.fingerprint


def test_a_row_without_readable_pictures_is_replaced_by_the_next_of_its_identity(copy, monkeypatch):
    monkeypatch.setattr(loader, "MAX_DROPPED", 0.5)
    whole = list(opened(copy, missing=NO_MASKS).train(0, 12))
    one = next(row for row in range(22) if COUNTS[[*np.repeat(PIDS, [COUNTS[pid] for pid in PIDS])][row]] == 5)
    last = one + 4  # of the five rows of identity 17; the row after it is the first, then the second
    spoiled(copy, last, ALL)
    spoiled(copy, one, ALL)
    moved = {last: one + 1, one: one + 1}
    want = [[moved.get(row, row) for row in batch["index"].tolist()] for batch in whole]
    assert any(row in moved for batch in whole for row in batch["index"].tolist())
    for threads in (0, 1, 2):
        for cache in ("", "memory"):
            data = opened(copy, missing=NO_MASKS, on_bad_image="drop", threads=threads, cache=cache)
            for start in (6, 0, 11):
                for batch, rows, old in zip(data.train(start, 12), want[start:], whole[start:], strict=True):
                    check(batch)
                    assert batch["index"].tolist() == rows
                    np.testing.assert_array_equal(batch["label"], old["label"])
                    assert all(batch["present"][name].all() for name in ALL)
                    assert all(x.any() for name in ALL for x in batch["images"][name])
            halves = (Share((i,), 2) for i in range(2))
            shares = [opened(copy, missing=NO_MASKS, on_bad_image="drop", share=x).train(6, 12) for x in halves]
            for rows, *blocks in zip(want[6:], *shares, strict=True):
                assert join(blocks)["index"].tolist() == rows
    rows = join(list(data.split("train")))
    assert not np.isin([one, last], rows["index"]).any() and rows["valid"].sum() == 20


def test_a_row_is_replaced_by_one_that_shows_the_same_modality(copy, monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "MAX_DROPPED", 0.5)
    present = np.ones((22, 3), bool)
    path = str(tmp_path / "masks.npz")
    first = int(np.repeat(PIDS, [COUNTS[pid] for pid in PIDS]).tolist().index(17))
    present[first] = (False, True, False)
    present[first + 1] = (True, False, True)
    records = rgbnt201.load(str(copy), modalities=ALL, allow_missing_files=False)["train"]
    masks.save(path, present, records.fingerprint())
    options = dict(missing=MASKS | {"mask_file": path}, on_bad_image="drop")
    before = list(opened(copy, **options).train(0, 12))
    spoiled(copy, first, ["nir"])
    after = list(opened(copy, **options).train(0, 12))
    pairs = [(a, b) for x, y in zip(before, after) for a, b in zip(x["index"].tolist(), y["index"].tolist()) if a != b]
    assert set(pairs) == {(first, first + 2)}


def test_a_broken_picture_that_comes_twice_is_replaced_twice(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, H, W, 3)).astype(np.uint8)
    for row in range(3):
        Image.fromarray(pixels[row]).save(tmp_path / f"{row}.png")
    (tmp_path / "0.png").write_bytes(b"")
    split = dataclasses.replace(table(tmp_path, {"rgb": ["0.png", "1.png", "2.png"]}), label=np.zeros(3, np.int32))
    reader = loader.Reader(split, (H, W), drop=True)
    batch = check(reader.batch(np.array([0, 2, 0]), reader.training, replace=True))
    assert batch["index"].tolist() == [1, 2, 1] and batch["present"]["rgb"].all()
    np.testing.assert_array_equal(batch["images"]["rgb"], pixels[[1, 2, 1]])


def test_an_identity_without_readable_pictures_is_an_error(copy, monkeypatch):
    monkeypatch.setattr(loader, "MAX_DROPPED", 0.5)
    spoiled(copy, 0, ALL)
    spoiled(copy, 1, ALL)
    with pytest.raises(DataError, match="identity 2 has no other picture to use instead of .*train_171/RGB/000002_"):
        list(opened(copy, missing=NO_MASKS, on_bad_image="drop").train(0, 20))


def test_too_many_dropped_pictures_are_an_error(copy):
    spoiled(copy, 4, ["nir"])
    list(opened(copy, missing=NO_MASKS, on_bad_image="drop").train(0, 20))  # one is always allowed
    spoiled(copy, 5, ["tir"])
    with pytest.raises(DataError, match="2 of 66 training pictures cannot be read, more than data.on_bad_image='drop'"):
        list(opened(copy, missing=NO_MASKS, on_bad_image="drop").train(0, 20))


def test_evaluation_never_drops(copy):
    path = sorted((copy / "test" / "NI").iterdir())[5]
    path.write_bytes(b"")
    data = opened(copy, missing=NO_MASKS, on_bad_image="drop")
    list(data.train(0, 5))
    with pytest.raises(DataError, match=f"cannot read {path} .the file is empty"):
        list(data.split("test"))


def test_a_file_that_cannot_be_opened_is_never_dropped(copy):
    """A fault of the disk or the network is no property of the files; batches must not depend on it."""
    data = opened(copy, missing=NO_MASKS, on_bad_image="drop")
    pictures(copy, 4)["rgb"].unlink()
    with pytest.raises(DataError, match="No such file"):
        list(data.train(0, 20))
