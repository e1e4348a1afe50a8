"""Opened data: batches as pure functions of the step, masks, padding, shards, broken files, early close."""

import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

import input_pipeline
from input_pipeline import images, missing, open_data
from input_pipeline.datasets import rgbnt201
from jax_mmreid.batch import DataError, check

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
    return open_data(**arguments | changes)


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


def test_what_open_data_says_of_the_data(tree):
    data = opened(tree)
    assert data.modalities == ALL and data.image_size == (H, W)
    assert data.pids == PIDS and data.cameras == (1, 2, 3)
    assert data.batch_size == 6 and data.steps_per_epoch >= 2
    assert data.num_rows("train") == sum(COUNTS.values()) and data.num_rows("test") == 13
    assert data.present_train.shape == (22, 3) and data.present_train.any(axis=1).all()
    assert data.missing_rates == missing.rates(data.present_train, ALL)
    assert data.fingerprint == opened(tree, seed=9, threads=1).fingerprint
    assert data.fingerprint != opened(tree, missing=MASKS | {"seed": 5}).fingerprint


def test_training_batch_follows_the_vocabulary(tree):
    data = opened(tree)
    for batch in data.train(0, 5):
        check(batch)
        assert set(batch) == {"images", "present", "label", "pid", "camid", "view", "index"}
        assert tuple(batch["images"]) == ALL and batch["images"]["nir"].shape == (6, H, W, 3)
        np.testing.assert_array_equal(np.array(data.pids)[batch["label"]], batch["pid"])
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
    assert len({shard.fingerprint for shard in shards}) == 1
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
    np.testing.assert_array_equal(np.array(data.pids)[rows["label"][keep]], rows["pid"][keep])


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


def test_dropped_rows_are_left_out_of_training(tree):
    data = opened(tree, missing=MASKS | {"eta": (0.7, 0.8, 0.7), "all_missing": "drop_sample"})
    kept = data.present_train.any(axis=1)
    assert 0 < kept.sum() < 22 and data.present_train.shape == (22, 3)
    assert data.num_rows("train") == kept.sum()
    rows = join(list(data.split("train")))
    valid = rows["valid"]
    all_pids = np.repeat(PIDS, [COUNTS[pid] for pid in PIDS])
    np.testing.assert_array_equal(rows["pid"][valid], all_pids[kept])
    assert data.pids == tuple(sorted(set(all_pids[kept].tolist())))
    assert data.missing_rates == missing.rates(data.present_train[kept], ALL)
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
    assert again.fingerprint == data.fingerprint
    with pytest.raises(DataError, match="another list of files"):
        opened(tree, modalities=("rgb", "nir"), missing=MASKS | {"eta": (0.0, 0.0), "mask_file": path})
    hidden = data.present_train.copy()
    hidden[6] = False
    missing.save(
        path, hidden, rgbnt201.load(str(tree), modalities=ALL, allow_missing_files=False)["train"].fingerprint()
    )
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


def test_other_kinds_of_pictures(tmp_path):
    gray = np.arange(H * W, dtype=np.uint8).reshape(H, W)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    read = images.read(str(tmp_path / "gray.png"), (H, W), Image.Resampling.BILINEAR)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, np.repeat(gray[..., None], 3, axis=2))
    Image.fromarray(gray).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert images.read(str(tmp_path / "cmyk.jpg"), (5, 3), Image.Resampling.BICUBIC).shape == (5, 3, 3)
    Image.fromarray(gray.astype(np.uint16) * 200).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="deep.png has pixels of mode I;16"):
        images.read(str(tmp_path / "deep.png"), (H, W), Image.Resampling.BILINEAR)


def test_closing_early_ends_the_reading_threads(tree):
    stream = opened(tree, threads=3).train(0, 10_000)
    next(stream)
    assert reading_threads()
    stream.close()
    end = time.monotonic() + 10
    while reading_threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert not reading_threads()


def test_single_pictures_are_told(tree, tmp_path, caplog):
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
        (dict(name="rgbnt2001"), "data.name: no dataset 'rgbnt2001'; there are .*rgbnt201, synthetic"),
        (dict(options=dict(colour=1)), "data.options of rgbnt201: .*'colour'"),
        (dict(shard=(0, 4)), "6 training rows .* do not divide by 4"),
        (dict(shard=(1, 2), eval_batch_size=5), "data.eval_batch_size=5 does not divide by 2"),
        (dict(shard=(2, 2)), "no process 2 among 2"),
        (dict(modalities=("rgb", "nir", "rgb")), "data.modalities.*twice"),
        (dict(instances=0), "data.instances=0"),
        (dict(threads=-1), "data.threads=-1"),
        (dict(missing=MASKS | {"eta": (0.1,)}), "missing.eta"),
    ],
)
def test_impossible_arguments_are_told_by_their_config_key(tree, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        opened(tree, **changes)
    assert "\n" not in str(error.value)


def test_unknown_split_and_negative_start(tree):
    data = opened(tree)
    for ask in (data.split, data.num_rows):
        with pytest.raises(ValueError, match="no split 'query'; there are train, test"):
            ask("query")
    with pytest.raises(ValueError, match="cannot start at step -1"):
        data.train(-1, 3)
    with pytest.raises(DataError, match="6 identities, fewer than the 7"):
        opened(tree, identities=7)


def test_import_error_inside_a_dataset_module_passes_through(tree, tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.setattr(input_pipeline.datasets, "__path__", [*input_pipeline.datasets.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
        opened(tree, name="needs_more")
