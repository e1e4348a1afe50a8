"""Absent pictures of opened data: masks drawn and saved, missing files, rows that are dropped."""

import numpy as np
import pytest
from random_tree import ALL, COUNTS, FOLDERS, MASKS, PIDS, join, opened, same
from random_tree import copy as copy
from random_tree import tree as tree

from input_pipeline.datasets import rgbnt201
from input_pipeline.reading import masks
from jax_mmreid.batch import check
from jax_mmreid.errors import DataError


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
