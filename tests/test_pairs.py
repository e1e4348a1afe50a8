"""Paired training batches: the pictures of a row are pure functions of (seed, step); broken pictures."""

import shutil

import jax
import numpy as np
import pytest
from conftest import open_fields
from PIL import Image

from input_pipeline import datasets, tfds_builder
from input_pipeline.reading import images, loader
from jax_mmreid.batch import Share, check
from jax_mmreid.errors import DataError

BOTH = ("rgb", "ir")
P, K = 3, 4
# Identity 5 misses the second infrared camera, identities 3 and 9 a visible one.
DRAWING = dict(layout="sysu_mm01", seed=2, num_train_ids=5, num_test_ids=2, images_per_camera=2, height=32)
OPTIONS = DRAWING | dict(captioner="Blip", rephrased=True)
TEXT = dict(tokenizer="train", vocab_size=600, rephrased=0.5)
MASKS = dict(eta=(0.0, 0.0), seed=4, mode="bernoulli", all_missing="repair", mask_file="")
VISIBLE, INFRARED = 5 * 4 * 2 - 2 * 2, 5 * 2 * 2 - 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "drawn"
    records(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def records(folder, modalities=BOTH):
    given = dict(data_dir=str(folder), modalities=modalities, allow_missing_files=False)
    return datasets.find("synthetic", "load", OPTIONS, **given)()


def opened(folder, **changes):
    arguments = dict(
        name="synthetic",
        data_dir=str(folder),
        modalities=BOTH,
        image_size=(32, 16),  # as drawn, so that pixels are those of the files
        identities=P,
        instances=K,
        eval_batch_size=10,
        threads=0,
        allow_missing_files=False,
        missing=MASKS,
        seed=1,
        options=OPTIONS,
        pairs=True,
        text=TEXT,
    )
    return open_fields(**arguments | changes)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def join(blocks):
    return jax.tree.map(lambda *parts: np.concatenate(parts), *blocks)


def rows_by_pixels(table):
    """{modality: {pixels: row of the training split}}."""
    found = {
        m: {images.read(table.path(m, row)).tobytes(): row for row in np.flatnonzero(table.paths[m])} for m in BOTH
    }
    assert (len(found["rgb"]), len(found["ir"])) == (VISIBLE, INFRARED)  # no two pictures are equal
    return found


def rows_shown(batch, by_pixels):
    """The rows of the training split that the pictures of a batch are of, {modality: [B]}."""
    return {m: np.array([by_pixels[m][x.tobytes()] for x in pixels]) for m, pixels in batch["images"].items()}


@pytest.mark.parametrize("modalities", [BOTH, BOTH[::-1]])
def test_a_row_pairs_pictures_of_one_identity(folder, modalities):
    table = records(folder, modalities)["train"]
    by_pixels = rows_by_pixels(table)
    data = opened(folder, modalities=modalities)
    for batch in data.train(0, 20):
        check(batch)
        assert tuple(batch["images"]) == modalities and len(batch["index"]) == P * K
        shown = rows_shown(batch, by_pixels)
        for m in BOTH:
            assert batch["present"][m].all()
            np.testing.assert_array_equal(table.pid[shown[m]], batch["pid"])
        identities = batch["pid"].reshape(P, K)
        assert (identities == identities[:, :1]).all() and len(set(identities[:, 0])) == P
        np.testing.assert_array_equal(np.array(data.spec.pids)[batch["label"]], batch["pid"])
        first = shown[modalities[0]]
        np.testing.assert_array_equal(batch["index"], first)
        np.testing.assert_array_equal(batch["camid"], table.camid[first])


def test_a_row_has_the_captions_of_its_pictures(folder):
    table = records(folder)["train"]
    by_pixels = rows_by_pixels(table)
    data = opened(folder, text=TEXT | dict(rephrased=0.0))
    number = {}  # caption -> ids; no two captions have the same ones
    for batch in data.train(0, 20):
        for m, rows in rows_shown(batch, by_pixels).items():
            for caption, ids in zip(table.captions[m][rows].tolist(), batch["text"][m]):
                assert number.setdefault(caption, ids.tolist()) == ids.tolist()
        assert batch["present"]["text"].all()
    assert len(set(map(tuple, number.values()))) == len(number) > 20
    assert not set(table.captions["rgb"]) & set(table.captions["ir"]) - {""}


def test_an_epoch_is_as_long_as_the_larger_modality(folder):
    assert opened(folder).spec.steps_per_epoch == VISIBLE // (P * K) + 1
    assert opened(folder, identities=1, instances=2).spec.steps_per_epoch == VISIBLE // 2 + 1


def test_threads_restarts_caches_and_processes_change_nothing(folder):
    want = list(opened(folder).train(0, 9))
    assert any((a != b).any() for a, b in zip(want[0]["text"]["rgb"], want[1]["text"]["rgb"]))
    for options in (dict(threads=1), dict(threads=2), dict(threads=2, cache="memory")):
        data = opened(folder, **options)
        for start in (0, 8, 3):
            for batch, other in zip(data.train(start, 9), want[start:], strict=True):
                same(batch, other)
    for count in (2, 3):
        shares = [opened(folder, share=Share((i,), count), eval_batch_size=12) for i in range(count)]
        for other, *blocks in zip(want[2:], *(share.train(2, 9) for share in shares), strict=True):
            same(join(blocks), other)
        whole = opened(folder, eval_batch_size=12)
        for split in ("train", "query", "gallery"):
            for other, *blocks in zip(whole.split(split), *(share.split(split) for share in shares), strict=True):
                same(join(blocks), other)
    assert (next(opened(folder, seed=2).train(0, 1))["index"] != want[0]["index"]).any()


def test_packed_data_give_the_same_pairs_and_captions(folder, tmp_path):
    tfds_builder.build("synthetic", str(folder), str(tmp_path), modalities=BOTH, **OPTIONS)
    files, packed = opened(folder), opened(tmp_path, source="tfds")
    assert (packed.spec.text, packed.spec.text_length, packed.spec.vocab) == (
        files.spec.text,
        files.spec.text_length,
        files.spec.vocab,
    )
    assert (
        packed.spec.steps_per_epoch == files.spec.steps_per_epoch and packed.spec.fingerprint == files.spec.fingerprint
    )
    for batch, other in zip(packed.train(0, 5), files.train(0, 5), strict=True):
        same(batch, other)
    for split in ("train", "query", "gallery"):
        for batch, other in zip(packed.split(split), files.split(split), strict=True):
            same(batch, other)
    same(packed.columns("gallery"), files.columns("gallery"))


@pytest.fixture
def table(tmp_path):
    """A manifest whose rows have pictures of both kinds, some of them only one."""
    rng = np.random.default_rng(0)
    lines = ["split,pid,camid,rgb,ir,caption_rgb,caption_ir"]
    for row in range(24):
        split, pid = ("train", row % 4) if row < 18 else ("test", 9)
        names = {m: f"{m}{row:02d}.png" for m in BOTH}
        for name in names.values():
            Image.fromarray(rng.integers(0, 256, (6, 4, 3)).astype(np.uint8)).save(tmp_path / name)
        names |= {2: {"ir": ""}, 3: {"rgb": ""}}.get(row, {})
        captions = {m: f"{m} number {row}" if name else "" for m, name in names.items()}
        lines.append(",".join([split, str(pid), "1", *(names[m] for m in BOTH), *(captions[m] for m in BOTH)]))
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    return tmp_path


def opened_table(table, **changes):
    arguments = dict(name="manifest", options={}, image_size=(6, 4), text={}, identities=2, instances=2)
    return opened(table, **arguments | changes)


def test_only_the_pictures_of_a_batch_are_opened(table, monkeypatch):
    read, paths = images.read, []
    monkeypatch.setattr(images, "read", lambda path, *args: paths.append(path) or read(path, *args))
    data = opened_table(table)
    apart = 0
    for step in range(12):
        rows = data._sampler.rows(step)
        apart += int((rows[:, 0] != rows[:, 1]).sum())
        paths.clear()
        (batch,) = data.train(step, step + 1)
        files = data._splits["train"].split.records
        assert sorted(paths) == sorted({files.path(m, row) for i, m in enumerate(BOTH) for row in rows[:, i]})
        np.testing.assert_array_equal(batch["index"], rows[:, 0])
        for i, m in enumerate(BOTH):
            np.testing.assert_array_equal(batch["images"][m], [read(files.path(m, row)) for row in rows[:, i]])
    assert apart


def test_hidden_pictures_are_not_drawn(table):
    data = opened_table(table, missing=MASKS | dict(eta=(0.4, 0.4)), identities=4)
    hidden = {m: np.flatnonzero(~shown) for m, shown in data.present("train").items()}
    assert min(map(len, hidden.values())) > 2
    N = max(18 - len(rows) for rows in hidden.values())
    assert data.spec.steps_per_epoch == N // 8 + 1
    for step in range(30):
        for i, m in enumerate(BOTH):
            assert not np.isin(data._sampler.rows(step)[:, i], hidden[m]).any()


def test_captions_of_a_modality_without_pictures_come_from_the_row_of_the_first_modality(table):
    data = opened_table(table, modalities=("ir",), text=dict(tokenizer="train"), missing=MASKS | dict(eta=(0.0,)))
    assert data.spec.text == BOTH
    whole = [np.concatenate([batch["text"][m] for batch in data.split("train")]) for m in BOTH]
    for batch in data.train(0, 5):
        for m, ids in zip(BOTH, whole):
            np.testing.assert_array_equal(batch["text"][m], ids[batch["index"]])


def test_a_broken_picture_is_replaced_by_one_of_the_same_modality(copy, monkeypatch):
    monkeypatch.setattr(loader, "MAX_DROPPED", 0.5)
    plain = dict(text=TEXT | dict(rephrased=0.0))
    by_pixels, want = rows_by_pixels(records(copy)["train"]), list(opened(copy, **plain).train(0, 12))
    table = records(copy)["train"]
    lost = int(np.flatnonzero(table.paths["ir"])[3])
    broken = copy / table.paths["ir"][lost]
    broken.write_bytes(broken.read_bytes()[:50])
    same_person = np.flatnonzero((table.pid == table.pid[lost]) & (table.paths["ir"] != ""))
    instead = same_person[(np.searchsorted(same_person, lost) + 1) % len(same_person)]
    with pytest.raises(DataError, match=f"cannot read {broken}"):
        list(opened(copy, **plain).train(0, 12))
    captions = join(list(opened(copy, on_bad_image="drop", **plain).split("train")))["text"]
    met = 0
    for threads in (0, 2):
        data = opened(copy, on_bad_image="drop", threads=threads, **plain)
        for batch, other in zip(data.train(0, 12), want, strict=True):
            check(batch)
            shown, before = rows_shown(batch, by_pixels), rows_shown(other, by_pixels)
            gone = before["ir"] == lost
            met += gone.sum()
            np.testing.assert_array_equal(shown["ir"], np.where(gone, instead, before["ir"]))
            np.testing.assert_array_equal(batch["text"]["ir"], captions["ir"][shown["ir"]])
            np.testing.assert_array_equal(batch["text"]["rgb"], other["text"]["rgb"])
            for key in ("pid", "label", "camid", "index"):
                np.testing.assert_array_equal(batch[key], other[key])
            assert batch["present"]["ir"].all() and (shown["rgb"] == before["rgb"]).all()
    assert met


def test_the_other_picture_of_a_row_with_a_broken_one_is_still_drawn(table, monkeypatch):
    monkeypatch.setattr(loader, "MAX_DROPPED", 0.5)
    table_of = opened_table(table)._splits["train"].split.records
    lost = 8  # of identity 0, whose rows are 0, 4, 8, 12, 16
    (table / table_of.paths["ir"][lost]).write_bytes(b"")
    data = opened_table(table, on_bad_image="drop")
    met = {m: 0 for m in BOTH}
    for step, batch in enumerate(data.train(0, 30)):
        check(batch)
        rows = dict(zip(BOTH, data._sampler.rows(step).T))
        met = {m: met[m] + (rows[m] == lost).sum() for m in BOTH}
        rows["ir"] = np.where(rows["ir"] == lost, 12, rows["ir"])
        for m in BOTH:
            want = [images.read(table_of.path(m, row)) for row in rows[m]]
            np.testing.assert_array_equal(batch["images"][m], want)
    assert all(met.values())


def test_identities_that_lack_a_modality_are_left_out_and_logged(copy, caplog):
    for camera in (3, 6):
        shutil.rmtree(copy / f"cam{camera}" / "0007", ignore_errors=True)
    changes = dict(options=DRAWING | dict(captioner=""), text={})
    data = opened(copy, **changes)
    assert [line for line in caplog.messages if line.startswith("sampler")] == [
        "sampler: identities without a picture of each of rgb, ir are not drawn: 7 (1 in all)"
    ]
    assert data.spec.pids == (1, 3, 5, 7, 9)
    drawn = np.unique(np.concatenate([batch["pid"] for batch in data.train(0, 20)]))
    assert drawn.tolist() == [1, 3, 5, 9]
    message = "4 training identities have pictures of each of rgb, ir, fewer than the 5 of a batch; lower data.iden"
    with pytest.raises(DataError, match=message):
        opened(copy, identities=5, **changes)
