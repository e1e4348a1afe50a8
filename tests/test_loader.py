"""Opened data: batches as pure functions of the step, masks, padding, shards, cache, broken files, early close."""

import dataclasses
import io
import shutil
import threading
import time

import numpy as np
import pytest
from conftest import open_fields
from PIL import Image

import input_pipeline
from input_pipeline.datasets import rgbnt201
from input_pipeline.reading import images, loader, masks
from input_pipeline.records import Records
from jax_mmreid import sharding, train
from jax_mmreid.batch import check
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics import galleries

ALL = ("rgb", "nir", "tir")
FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
COUNTS = {31: 7, 2: 2, 17: 5, 40: 4, 9: 3, 25: 1}  # training pictures of each identity
PIDS = tuple(sorted(COUNTS))
H, W = 11, 7
MASKS = dict(eta=(0.2, 0.5, 0.3), seed=4, mode="bernoulli", all_missing="repair", mask_file="")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "RGBNT201"
    rng = np.random.default_rng(0)
    train = [f"{pid:06d}_cam{1 + i % 3}_0_{i:02d}.jpg" for pid, count in COUNTS.items() for i in range(count)]
    test = [f"{pid:06d}_cam{cam}_0_{i:02d}.jpg" for pid in (50, 51) for cam in (1, 2) for i in range(4)][:13]
    for folder, names in (("train_171", train), ("test", test)):
        for spectrum in FOLDERS.values():
            (root / folder / spectrum).mkdir(parents=True)
            for name in names:
                pixels = rng.integers(1, 256, (H, W, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / folder / spectrum / name, quality=95)
    return root


@pytest.fixture
def copy(tree, tmp_path):
    return shutil.copytree(tree, tmp_path / "RGBNT201")


def opened(root, **changes):
    arguments = dict(
        name="rgbnt201",
        data_dir=str(root),
        modalities=ALL,
        image_size=(H, W),
        identities=3,
        instances=2,
        eval_batch_size=10,
        threads=2,
        allow_missing_files=False,
        missing=MASKS,
        seed=1,
    )
    return open_fields(**arguments | changes)


def same(a, b):
    assert a.keys() == b.keys()
    for key, x in a.items():
        if isinstance(x, dict):
            same(x, b[key])
        else:
            assert x.dtype == b[key].dtype
            np.testing.assert_array_equal(x, b[key])


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


def test_the_spec_describes_the_data(tree):
    data = opened(tree)
    assert data.spec.modalities == ALL and data.spec.image_size == (H, W)
    assert data.spec.pids == PIDS and data.spec.cameras == (1, 2, 3)
    assert data.spec.batch_size == 6 and data.spec.steps_per_epoch >= 2
    assert data.num_rows("train") == sum(COUNTS.values()) and data.num_rows("test") == 13
    assert data.present_train.shape == (22, 3) and data.present_train.any(axis=1).all()
    assert data.missing_rates == masks.rates(data.present_train, ALL)
    assert data.spec.fingerprint == opened(tree, seed=9, threads=1).spec.fingerprint
    assert data.spec.fingerprint != opened(tree, missing=MASKS | {"seed": 5}).spec.fingerprint


def test_training_batch_follows_the_vocabulary(tree):
    data = opened(tree)
    for batch in data.train(0, 5):
        check(batch)
        assert set(batch) == {"images", "present", "label", "pid", "camid", "view", "index"}
        assert tuple(batch["images"]) == ALL and batch["images"]["nir"].shape == (6, H, W, 3)
        np.testing.assert_array_equal(np.array(data.spec.pids)[batch["label"]], batch["pid"])
        assert (batch["label"].reshape(3, 2)[:, 0] == batch["label"].reshape(3, 2)[:, 1]).all()
        for column, name in enumerate(ALL):
            np.testing.assert_array_equal(batch["present"][name], data.present_train[batch["index"], column])


def test_pixels_are_those_of_the_file(tree):
    (batch,) = opened(tree, missing=MASKS | {"eta": (0.0, 0.0, 0.0)}).train(3, 4)
    names = sorted(path.name for path in (tree / "train_171" / "RGB").iterdir())
    for name, folder in FOLDERS.items():
        for i, row in enumerate(batch["index"]):
            with Image.open(tree / "train_171" / folder / names[row]) as image:
                np.testing.assert_array_equal(batch["images"][name][i], np.asarray(image))


def test_training_resizes_bicubic_and_evaluation_bilinear(tree):
    data = opened(tree, image_size=(13, 17), modalities=("tir",), missing=MASKS | {"eta": (0.0,)})
    (train,) = data.train(0, 1)
    path = sorted((tree / "train_171" / "TI").iterdir())[train["index"][0]]
    with Image.open(path) as image:
        bicubic, bilinear = (image.resize((17, 13), kind) for kind in (Image.BICUBIC, Image.BILINEAR))
    np.testing.assert_array_equal(train["images"]["tir"][0], np.asarray(bicubic))
    rows = np.concatenate([batch["images"]["tir"] for batch in data.split("train")])
    np.testing.assert_array_equal(rows[train["index"][0]], np.asarray(bilinear))


def test_threads_and_restarts_change_nothing(tree):
    want = list(opened(tree, threads=0).train(0, 12))
    for threads in (1, 2, 4):
        got = list(opened(tree, threads=threads).train(0, 12))
        assert len(got) == 12
        for a, b in zip(got, want, strict=True):
            same(a, b)
    for start in range(12):
        for a, b in zip(opened(tree).train(start, 12), want[start:], strict=True):
            same(a, b)
    assert list(opened(tree).train(5, 5)) == []


def test_seed_changes_the_batches(tree):
    a, b = (np.concatenate([x["index"] for x in opened(tree, seed=seed).train(0, 6)]) for seed in (1, 2))
    assert (a != b).any()


def join(blocks):
    return {
        key: join([block[key] for block in blocks]) if isinstance(x, dict) else np.concatenate([b[key] for b in blocks])
        for key, x in blocks[0].items()
    }


@pytest.mark.parametrize("count", [2, 3])
def test_shards_together_are_the_unsharded_batches(tree, count):
    size = dict(eval_batch_size=18)  # 13 test rows: the last of three shards is padding alone
    whole = opened(tree, **size)
    shards = [opened(tree, shard=(i, count), **size) for i in range(count)]
    assert len({shard.spec.fingerprint for shard in shards}) == 1
    for want, *blocks in zip(whole.train(2, 7), *(shard.train(2, 7) for shard in shards), strict=True):
        assert len(blocks[0]["index"]) == 6 // count
        same(join(blocks), want)
    for split in ("train", "test"):
        for want, *blocks in zip(whole.split(split), *(shard.split(split) for shard in shards), strict=True):
            same(join(blocks), want)


def test_evaluation_yields_every_row_once_and_pads_the_last_batch(tree):
    data = opened(tree)
    batches = [check(batch) for batch in data.split("test")]
    assert [len(batch["index"]) for batch in batches] == [10, 10]
    valid = np.concatenate([batch["valid"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    assert valid.tolist() == [True] * 13 + [False] * 7
    assert index.tolist() == [*range(13), *[-1] * 7]
    assert "label" not in batches[0]
    for name in ALL:
        pixels, present = batches[1]["images"][name], batches[1]["present"][name]
        assert present.all()  # the test split is not masked
        assert (pixels[3:] == pixels[2]).all() and (pixels[2] != pixels[1]).any()
    assert set(batches[0]["pid"].tolist()) == {50, 51} and (batches[1]["pid"][3:] == batches[1]["pid"][2]).all()


def test_training_rows_for_evaluation_are_masked_and_labelled(tree):
    data = opened(tree)
    rows = join([check(batch) for batch in data.split("train")])
    keep = rows["valid"]
    assert keep.sum() == 22
    np.testing.assert_array_equal(np.stack([rows["present"][name][keep] for name in ALL], 1), data.present_train)
    np.testing.assert_array_equal(np.array(data.spec.pids)[rows["label"][keep]], rows["pid"][keep])


def test_absent_pictures_are_zeros_and_never_opened(copy):
    before = opened(copy)
    want = [list(before.train(0, 8)), list(before.split("train"))]
    names = sorted(path.name for path in (copy / "train_171" / "RGB").iterdir())
    for row, column in np.argwhere(~before.present_train):
        (copy / "train_171" / FOLDERS[ALL[column]] / names[row]).write_bytes(b"")
    after = opened(copy)
    for old, new in zip(want, [list(after.train(0, 8)), list(after.split("train"))], strict=True):
        for a, b in zip(old, new, strict=True):
            same(a, b)
            for name in ALL:
                assert not b["images"][name][~b["present"][name]].any()
                assert b["images"][name][b["present"][name]].any(axis=(1, 2, 3)).all()
    batch = next(before.train(0, 1))
    assert not all(batch["present"][name].all() for name in ALL)


def test_missing_files_are_masked_in_training_and_test(copy):
    names = {folder: sorted(p.name for p in (copy / folder / "RGB").iterdir()) for folder in ("train_171", "test")}
    (copy / "train_171" / "NI" / names["train_171"][3]).unlink()
    (copy / "test" / "TI" / names["test"][5]).unlink()
    with pytest.raises(DataError, match="allow_missing_files"):
        opened(copy)
    data = opened(copy, allow_missing_files=True, missing=MASKS | {"eta": (0.0, 0.0, 0.0)})
    assert np.argwhere(~data.present_train).tolist() == [[3, 1]]
    rows = join(list(data.split("test")))
    assert np.flatnonzero(~rows["present"]["tir"]).tolist() == [5] and not rows["images"]["tir"][5].any()
    assert rows["present"]["rgb"].all() and rows["present"]["nir"].all()


def test_a_modality_missing_from_all_training_rows(tree):
    data = opened(tree, missing=MASKS | {"eta": (0.0, 1.0, 0.0)})
    batch = check(next(data.train(0, 1)))
    assert not batch["present"]["nir"].any() and not batch["images"]["nir"].any()
    assert data.missing_rates == {"rgb": 0.0, "nir": 1.0, "tir": 0.0}


def test_a_modality_that_a_test_split_never_has_is_no_key_of_its_batches(copy):
    for path in (copy / "test" / "NI").iterdir():
        path.unlink()
    (copy / "test" / "TI" / sorted(path.name for path in (copy / "test" / "TI").iterdir())[3]).unlink()
    hidden = MASKS | {"eta": (0.0, 0.0, 1.0)}
    for threads in (0, 2):
        data = opened(copy, allow_missing_files=True, missing=hidden, threads=threads)
        for batch in data.split("test"):
            assert set(check(batch)["images"]) == {"rgb", "tir"}
        for batch in (*data.split("train"), *data.train(0, 2)):
            assert set(check(batch)["images"]) == set(ALL)
        assert set(data.present("test")) == set(ALL) and not data.present("test")["nir"].any()
        assert data.present("test")["tir"].sum() == 12


def test_columns_are_those_of_the_records(tree):
    data, records = opened(tree), rgbnt201.load(str(tree), modalities=ALL, allow_missing_files=False)
    for name in ("train", "test"):
        for key, column in data.columns(name).items():
            np.testing.assert_array_equal(column, getattr(records[name], key))
    rows = galleries.draw(data.columns("test"), cameras=(2, 1), shots=1, trial=0)
    assert records["test"].pid[rows].tolist() == [50, 50, 51, 51]
    with pytest.raises(ConfigError, match=r"draw.cameras=\(7,\): the split has pictures by cameras 1, 2 only"):
        galleries.draw(data.columns("test"), cameras=(7,), shots=1, trial=0)


def test_dropped_rows_are_left_out_of_training(tree):
    data = opened(tree, missing=MASKS | {"eta": (0.7, 0.8, 0.7), "all_missing": "drop_sample"})
    kept = data.present_train.any(axis=1)
    assert 0 < kept.sum() < 22 and data.present_train.shape == (22, 3)
    assert data.num_rows("train") == kept.sum()
    rows = join(list(data.split("train")))
    valid = rows["valid"]
    all_pids = np.repeat(PIDS, [COUNTS[pid] for pid in PIDS])
    np.testing.assert_array_equal(rows["pid"][valid], all_pids[kept])
    assert data.spec.pids == tuple(sorted(set(all_pids[kept].tolist())))
    assert data.missing_rates == masks.rates(data.present_train[kept], ALL)
    for batch in data.train(0, 6):
        assert np.stack(list(batch["present"].values()), axis=1).any(axis=1).all()
    with pytest.raises(DataError, match="every training row lost all its pictures"):
        opened(tree, missing=MASKS | {"eta": (1.0, 1.0, 1.0), "all_missing": "drop_sample"})


def test_saved_masks_replace_drawn_ones(tree, tmp_path):
    path = str(tmp_path / "masks.npz")
    data = opened(tree)
    data.save_masks(path)
    again = opened(tree, missing=MASKS | {"eta": (0.0, 0.0, 0.0), "mask_file": path})
    np.testing.assert_array_equal(again.present_train, data.present_train)
    assert again.spec.fingerprint == data.spec.fingerprint
    with pytest.raises(DataError, match="another list of files"):
        opened(tree, modalities=("rgb", "nir"), missing=MASKS | {"eta": (0.0, 0.0), "mask_file": path})
    hidden = data.present_train.copy()
    hidden[6] = False
    masks.save(path, hidden, rgbnt201.load(str(tree), modalities=ALL, allow_missing_files=False)["train"].fingerprint())
    with pytest.raises(DataError, match=f"{path} hides every picture of train_171/RGB/0000"):
        opened(tree, missing=MASKS | {"mask_file": path})
    drop = opened(tree, missing=MASKS | {"mask_file": path, "all_missing": "drop_sample"})
    assert drop.num_rows("train") == 21


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


def test_cached_batches_are_the_same(tree):
    """... for any number of threads, from any step on, on one process or two, and again when all is cached."""
    size = dict(image_size=(13, 17), eval_batch_size=6)  # resized: bicubic in training, bilinear in evaluation
    plain = opened(tree, threads=0, **size)
    want, splits = list(plain.train(0, 9)), {name: list(plain.split(name)) for name in ("train", "test")}
    for threads in (0, 1, 2):
        cached = opened(tree, threads=threads, cache="memory", **size)
        shards = [opened(tree, threads=threads, cache="memory", shard=(i, 2), **size) for i in range(2)]
        for start in (5, 0, 8):
            for a, b in zip(cached.train(start, 9), want[start:], strict=True):
                same(a, b)
            for b, *blocks in zip(want[start:], *(shard.train(start, 9) for shard in shards), strict=True):
                same(join(blocks), b)
            for name, batches in splits.items():
                for a, b in zip(cached.split(name), batches, strict=True):
                    same(a, b)
                for b, *blocks in zip(batches, *(shard.split(name) for shard in shards), strict=True):
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


def table(root, columns, parts=None):
    """A split without labels, of one identity."""
    rows = len(next(iter(columns.values())))
    numbers = np.zeros(rows, np.int32)
    records = Records(
        root=str(root),
        paths={name: np.array(column) for name, column in columns.items()},
        pid=numbers,
        camid=numbers,
        view=numbers,
        parts={name: np.array(column, np.int32) for name, column in (parts or {}).items()},
    )
    return loader.Split(records, records.has_file(), None)


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


def test_a_pass_that_loses_or_repeats_a_row_is_noticed(tree, monkeypatch):
    stream = loader._stream
    for change in (lambda batches: batches[:1], lambda batches: [*batches, batches[1]]):
        monkeypatch.setattr(loader, "_stream", lambda *args, change=change: iter(change(list(stream(*args)))))
        passing = opened(tree, missing=MASKS | {"eta": (0.0, 0.0, 0.0)}).split("test")
        with pytest.raises(RuntimeError, match="3 of 13 rows did not come once in a pass; the first is 10"):
            list(passing)


NO_MASKS = MASKS | {"eta": (0.0, 0.0, 0.0)}


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
            shards = [opened(copy, missing=NO_MASKS, on_bad_image="drop", shard=(i, 2)).train(6, 12) for i in range(2)]
            for rows, *blocks in zip(want[6:], *shards, strict=True):
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


def test_global_batches_are_one_ahead_of_the_step(tree):
    mesh = sharding.make_mesh(data=2, model=1)
    for count in (0, 1, 2, 5):
        asked = []
        stream = (asked.append(i) or batch for i, batch in enumerate(opened(tree).train(3, 3 + count)))
        ahead = train.prefetch_to_device(stream, mesh)
        for number, (batch, want) in enumerate(zip(ahead, opened(tree).train(3, 3 + count), strict=True)):
            assert len(asked) == min(number + 2, count)
            assert batch["label"].sharding.mesh == mesh
            same({key: batch[key] for key in want}, want)


def test_closing_early_ends_the_reading_threads(tree):
    stream = opened(tree, threads=3).train(0, 10_000)
    next(stream)
    assert reading_threads()
    stream.close()
    end = time.monotonic() + 10
    while reading_threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert not reading_threads()


def test_identities_with_one_picture_are_logged(tree, caplog):
    opened(tree)
    assert caplog.messages == [
        "rgbnt201: identities with one training image, which their batches repeat: 25 (1 in all)"
    ]


@pytest.mark.parametrize("split, folder", [("training", "train_171"), ("test", "test")])
def test_split_in_which_nothing_can_match(copy, split, folder):
    seen = set()
    for path in sorted((copy / folder / "RGB").iterdir()):
        if path.name[:6] in seen:
            for spectrum in FOLDERS.values():
                (copy / folder / spectrum / path.name).unlink()
        seen.add(path.name[:6])
    with pytest.raises(DataError, match=f"rgbnt201: no {split} identity has two images"):
        opened(copy)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(name="rgbnt2001"), "config.data.name: no dataset 'rgbnt2001'; there are .*rgbnt201, synthetic"),
        (dict(modalities=("rgb", "ir")), r"config.data.modalities=\('rgb', 'ir'\): rgbnt201 has rgb, nir, tir"),
        (
            dict(options=dict(colour=1)),
            "config.data.options of rgbnt201: no option 'colour'; there are captioner,",
        ),
        (dict(options=dict(captoner="")), "no option 'captoner'; .*; did you mean 'captioner'"),
        (dict(options=dict(captioner=3)), "config.data.options.captioner=3: must be a string"),
        (dict(shard=(0, 4)), "6 training rows do not divide by 4"),
        (dict(shard=(1, 2), eval_batch_size=5), "config.data.eval_batch_size=5: does not divide by 2"),
        (dict(missing=MASKS | {"eta": (0.1,)}), "config.missing.eta=.*expected 3 rates"),
    ],
)
def test_impossible_config_values_are_config_errors(tree, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        opened(tree, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("resize", [("bicubic", "bilinear"), ("lanczos", "lanczos")])
def test_pictures_are_resized_as_pillow_does(tree, resize):
    data = opened(tree, image_size=(2 * H + 1, W - 2), resize=resize, missing=NO_MASKS)
    for split, batch, name in (
        ("train_171", next(data.train(0, 1)), resize[0]),
        ("test", next(data.split("test")), resize[1]),
    ):
        paths = sorted((tree / split / "NI").iterdir())
        for row, pixels in zip(batch["index"], batch["images"]["nir"]):
            with Image.open(paths[row]) as image:
                expected = image.convert("RGB").resize((W - 2, 2 * H + 1), Image.Resampling[name.upper()])
            np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_unknown_split_and_negative_start(tree):
    data = opened(tree)
    for method in (data.split, data.num_rows, data.present, data.columns):
        with pytest.raises(ConfigError, match="no split 'query'; there are train, test"):
            method("query")
    with pytest.raises(ValueError, match="no process 2 among 2"):
        opened(tree, shard=(2, 2))
    with pytest.raises(ValueError, match="cannot start at step -1"):
        data.train(-1, 3)
    with pytest.raises(DataError, match="6 identities, fewer than the 7"):
        opened(tree, identities=7)


def test_import_error_inside_a_dataset_module_passes_through(tree, tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import a_package_that_does_not_exist\n")
    monkeypatch.setattr(input_pipeline.datasets, "__path__", [*input_pipeline.datasets.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="a_package_that_does_not_exist"):
        opened(tree, name="needs_more")
