"""The reader: caches, rows that come twice, strips, arrays, packed pictures."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
from PIL import Image
from random_tree import H, W, join, opened, same, table
from random_tree import copy as copy
from random_tree import tree as tree

from input_pipeline.reading import images, loader
from jax_mmreid.batch import Share, check
from jax_mmreid.errors import DataError


def test_cached_batches_are_the_same(tree):
    """... for any number of threads, from any step on, on one process or two, and again when all is cached."""
    size = dict(image_size=(13, 17), eval_batch_size=6)  # resized: bicubic in training, bilinear in evaluation
    plain = opened(tree, threads=0, **size)
    want, splits = list(plain.train(0, 9)), {name: list(plain.split(name)) for name in ("train", "test")}
    for threads in (0, 1, 2):
        cached = opened(tree, threads=threads, cache="memory", **size)
        shares = [opened(tree, threads=threads, cache="memory", share=Share((i,), 2), **size) for i in range(2)]
        for start in (5, 0, 8):
            for a, b in zip(cached.train(start, 9), want[start:], strict=True):
                same(a, b)
            for b, *blocks in zip(want[start:], *(share.train(start, 9) for share in shares), strict=True):
                same(join(blocks), b)
            for name, batches in splits.items():
                for a, b in zip(cached.split(name), batches, strict=True):
                    same(a, b)
                for b, *blocks in zip(batches, *(share.split(name) for share in shares), strict=True):
                    same(join(blocks), b)


def test_what_is_cached_is_not_read_again(copy, monkeypatch):
    data = opened(copy, cache="memory", threads=2)
    read, paths = images.read, []
    monkeypatch.setattr(images, "read", lambda path, *args: paths.append(path) or read(path, *args))
    want = [list(data.train(0, 20)), list(data.split("test"))]
    first = len(paths)
    assert first <= data.present_train.sum() + 3 * 13 + 20  # some are met by two threads at once; in all they are 300
    shutil.rmtree(copy)
    for old, new in zip(want, [list(data.train(0, 20)), list(data.split("test"))], strict=True):
        for a, b in zip(old, new, strict=True):
            same(a, b)
    assert len(paths) == first
    with pytest.raises(DataError):  # bilinear training pictures are read once in a run, before its first step
        list(data.split("train"))


def test_changing_a_batch_changes_no_other(tree):
    data = opened(tree, cache="memory", threads=0)
    want = next(data.train(0, 1))["images"]["rgb"].copy()
    next(data.train(0, 1))["images"]["rgb"][:] = 0
    np.testing.assert_array_equal(next(data.train(0, 1))["images"]["rgb"], want)


def test_a_row_that_comes_again_is_decoded_once(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (2, H, W, 3)).astype(np.uint8)
    for row in range(2):
        Image.fromarray(pixels[row]).save(tmp_path / f"{row}.png")
    reader = loader.Reader(table(tmp_path, {"rgb": ["0.png", "1.png"]}), (H, W))
    read, opened_files = images.read, []
    monkeypatch.setattr(images, "read", lambda path, *args: opened_files.append(path) or read(path, *args))
    batch = reader.batch(np.array([1, 0, 1, 1]), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(batch["images"]["rgb"], pixels[[1, 0, 1, 1]])
    assert len(opened_files) == 2


def test_a_strip_is_decoded_once_for_its_three_pictures(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 768, 3)).astype(np.uint8)
    for row in range(2):
        Image.fromarray(pixels[row]).save(tmp_path / f"{row}.png")
    paths = ["0.png", "1.png"]
    split = table(tmp_path, {"tir": paths, "rgb": paths}, {"tir": [2, 2], "rgb": [0, 0]})
    read, opened_files = images.read, []
    monkeypatch.setattr(images, "read", lambda path, *args: opened_files.append(path) or read(path, *args))
    batch = check(loader.Reader(split, (128, 256)).batch(np.array([1, 0]), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(batch["images"]["rgb"], pixels[::-1, :, :256])
    np.testing.assert_array_equal(batch["images"]["tir"], pixels[::-1, :, 512:])
    assert len(opened_files) == 2


def test_rows_of_arrays(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, H, W, 3)).astype(np.uint8)
    np.save(tmp_path / "visible.npy", pixels[:3])
    np.save(tmp_path / "infrared.npy", pixels[3:])
    columns = {"rgb": ["visible.npy", "visible.npy", ""], "ir": ["", "", "infrared.npy"]}
    split = table(tmp_path, columns, {"rgb": [2, 0, 0], "ir": [0, 0, 1]})
    batch = check(loader.Reader(split, (H, W)).batch(np.arange(3), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(batch["images"]["rgb"], [pixels[2], pixels[0], np.zeros((H, W, 3))])
    np.testing.assert_array_equal(batch["images"]["ir"][2], pixels[4])
    assert batch["present"]["ir"].tolist() == [False, False, True]


def test_pictures_that_are_packed_in_memory(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, H, W, 3)).astype(np.uint8)
    stored = []
    for picture in pixels:
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "PNG")
        stored.append({"rgb": out.getvalue()})
    stored.append({"rgb": b""})
    split = table(tmp_path, {"rgb": ["a.png", "b.png"]})
    records = dataclasses.replace(split.records, packed=stored, rows=np.array([2, 3]))
    reader = loader.Reader(dataclasses.replace(split, records=records), (H, W))
    np.testing.assert_array_equal(reader.batch(np.array([0]), Image.Resampling.BILINEAR)["images"]["rgb"], pixels[2:])
    with pytest.raises(DataError, match="cannot read .*b.png .the file is empty"):
        reader.batch(np.array([1]), Image.Resampling.BILINEAR)
