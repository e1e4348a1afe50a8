"""Opened data: batches as pure functions of the step, pixels, padding, shares, early close."""

import threading
import time

import numpy as np
import pytest
from PIL import Image
from random_tree import ALL, COUNTS, FOLDERS, MASKS, NO_MASKS, PIDS, H, W, join, opened, same
from random_tree import copy as copy
from random_tree import tree as tree

import input_pipeline
from input_pipeline.datasets import rgbnt201
from input_pipeline.reading import loader, masks
from jax_mmreid import sharding, train
from jax_mmreid.batch import Share, check
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.metrics import galleries


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


@pytest.mark.parametrize("count", [2, 3])
def test_shares_together_are_the_whole_batches(tree, count):
    size = dict(eval_batch_size=18)  # 13 test rows: the last of three shares is padding alone
    whole = opened(tree, **size)
    shares = [opened(tree, share=Share((i,), count), **size) for i in range(count)]
    assert len({share.spec.fingerprint for share in shares}) == 1
    for want, *blocks in zip(whole.train(2, 7), *(share.train(2, 7) for share in shares), strict=True):
        assert len(blocks[0]["index"]) == 6 // count
        same(join(blocks), want)
    for split in ("train", "test"):
        for want, *blocks in zip(whole.split(split), *(share.split(split) for share in shares), strict=True):
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


def test_columns_are_those_of_the_records(tree):
    data, records = opened(tree), rgbnt201.load(str(tree), modalities=ALL, allow_missing_files=False)
    for name in ("train", "test"):
        for key, column in data.columns(name).items():
            np.testing.assert_array_equal(column, getattr(records[name], key))
    rows = galleries.draw(data.columns("test"), cameras=(2, 1), shots=1, trial=0)
    assert records["test"].pid[rows].tolist() == [50, 50, 51, 51]
    with pytest.raises(ConfigError, match=r"draw.cameras=\(7,\): the split has pictures by cameras 1, 2 only"):
        galleries.draw(data.columns("test"), cameras=(7,), shots=1, trial=0)


def test_a_pass_that_loses_or_repeats_a_row_is_noticed(tree, monkeypatch):
    stream = loader.stream
    for change in (lambda batches: batches[:1], lambda batches: [*batches, batches[1]]):
        monkeypatch.setattr(loader, "stream", lambda *args, change=change: iter(change(list(stream(*args)))))
        passing = opened(tree, missing=MASKS | {"eta": (0.0, 0.0, 0.0)}).split("test")
        with pytest.raises(RuntimeError, match="3 of 13 rows did not come once in a pass; the first is 10"):
            list(passing)


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
        (dict(share=Share((0,), 4)), "6 rows do not divide over 4 devices"),
        (dict(share=Share((1,), 2), eval_batch_size=5), "eval_batch_size: 5 rows do not divide over 2 devices"),
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
    with pytest.raises(ValueError, match=r"no blocks \(2,\) of 2"):
        opened(tree, share=Share((2,), 2))
    with pytest.raises(ValueError, match="cannot start at step -1"):
        data.train(-1, 3)
    with pytest.raises(DataError, match="6 identities, fewer than the 7"):
        opened(tree, identities=7)


def test_import_error_inside_a_dataset_module_passes_through(tree, tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import a_package_that_does_not_exist\n")
    monkeypatch.setattr(input_pipeline.datasets, "__path__", [*input_pipeline.datasets.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="a_package_that_does_not_exist"):
        opened(tree, name="needs_more")
