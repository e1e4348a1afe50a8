"""Captions in batches: of which rows, rephrased or not, how long, and which rows have none."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from drawn_captions import BOTH, MASKS, OPTIONS, opened, records, rows, vocabulary
from drawn_captions import folder as folder
from PIL import Image

from input_pipeline import check as check_command
from input_pipeline import datasets
from input_pipeline.records import REPHRASED
from input_pipeline.text.token_table import TokenTable
from input_pipeline.text.tokenizer import open_tokenizer
from jax_mmreid.batch import check, has_caption

# Of which rows.


def test_every_row_of_a_split_has_its_own_captions(folder):
    data, tokenizer = opened(folder), vocabulary(folder)
    splits = records(folder)
    length = {}
    for split in ("train", "query"):
        batch = rows(data, split)
        ids = {m: tokenizer.encode(splits[split].captions[m].tolist()) for m in BOTH}
        length[split] = max(x.argmax(axis=1).max() + 1 for x in ids.values())
        L = max(length.values())  # a test split has at least L of training
        for m in BOTH:
            np.testing.assert_array_equal(batch["text"][m], ids[m][:, :L])
    assert data.spec.text_length == length["train"] != length["query"]
    assert data.spec.text == BOTH and data.spec.vocab == tokenizer.vocab
    assert (splits["query"].captions["rgb"] != "").all()  # although a query has no visible picture


def test_batches_follow_the_vocabulary(folder):
    data = opened(folder)
    train, query, gallery = next(data.train(0, 1)), *(next(data.split(name)) for name in ("query", "gallery"))
    for batch in (train, query, gallery):
        check(batch)
    assert {m: x.shape for m, x in train["text"].items()} == dict.fromkeys(BOTH, (12, data.spec.text_length))
    assert set(query["text"]) == set(BOTH) and "text" not in gallery
    captions = {"text", "text/rgb", "text/ir"}
    assert set(train["present"]) == {*BOTH, *captions} and set(query["present"]) == {"ir", *captions}
    assert set(gallery["present"]) == {"rgb"}


def test_captions_are_present_per_modality(folder):
    data = opened(folder, pairs=False)
    train, query = data.present("train"), data.present("query")
    for m in BOTH:  # a training row is one picture and has its caption
        np.testing.assert_array_equal(train[f"text/{m}"], train[m])
    assert not train["text"].any() and query["text"].all() and query["text/rgb"].all()
    assert not any(key.startswith("text") for key in data.present("gallery"))
    for split in ("train", "query"):
        batch, present = rows(data, split), data.present(split)
        for key in ("text", "text/rgb", "text/ir"):
            np.testing.assert_array_equal(batch["present"][key], present[key])


def test_a_split_without_a_modality_has_no_key_for_it(folder):
    data = opened(folder)
    keys = {"train": set(BOTH), "query": {"ir"}, "gallery": {"rgb"}}
    for split, want in keys.items():
        for batch in data.split(split):
            assert set(batch["images"]) == want == set(batch["present"]) & set(BOTH)
        assert set(BOTH) <= set(data.present(split))
    assert not data.present("gallery")["ir"].any()
    assert set(next(opened(folder, pairs=False).train(0, 1))["images"]) == set(BOTH)


def test_long_captions_are_cut_to_the_context(folder):
    data = opened(folder, text=dict(tokenizer="train", context=6))
    assert data.spec.text_length == 6
    batch = next(data.train(0, 1))
    assert (batch["text"]["ir"].argmax(axis=1) == 5).all() and (batch["text"]["ir"][:, 5] == data.spec.vocab - 1).all()


# Rephrased captions.


def replaced(folder, rate, steps, seed=1, **changes):
    """Which captions of training batches are rephrased ones, {modality: [steps, B] bool}."""
    data = opened(folder, text=dict(tokenizer="train", rephrased=rate), seed=seed, **changes)
    tokenizer, table = vocabulary(folder), records(folder)["train"]
    ids = {
        name: tokenizer.encode(column.tolist())[:, : data.spec.text_length] for name, column in table.captions.items()
    }
    found = {m: [] for m in BOTH}
    for batch, step in zip(data.train(0, steps), range(steps)):
        shown = dict(zip(BOTH, data._sampler.rows(step).T))
        for m in BOTH:
            original, other = ((batch["text"][m] == ids[name][shown[m]]).all(axis=1) for name in (m, m + REPHRASED))
            assert (original ^ other).all()
            found[m].append(other)
        assert batch["present"]["text"].all()
    return {m: np.stack(x) for m, x in found.items()}


def test_half_of_the_captions_are_rephrased_independently(folder):
    found = replaced(folder, 0.5, 50)
    mask = np.stack([found["rgb"], found["ir"]])  # [2,50,12]
    standard_error = 0.5 / np.sqrt(600)
    assert all(abs(mask.mean(axis=(1, 2)) - 0.5) < 4 * standard_error)
    agree = [mask[0] == mask[1], mask[:, 1:] == mask[:, :-1], mask[..., 1:] == mask[..., :-1]]
    for pairs in agree:  # of modalities, of steps, of rows
        assert abs(pairs.mean() - 0.5) < 4 * 0.5 / np.sqrt(pairs.size)


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_the_rate_is_that_of_the_config(folder, rate):
    share = np.mean(list(replaced(folder, rate, 40).values()))
    assert abs(share - rate) <= 4 * np.sqrt(rate * (1 - rate) / 960)


def test_the_paraphrase_mask_depends_on_seed_step_row_and_modality_alone():
    column = np.arange(3)
    ids = np.zeros((3, 5), np.int32)
    both = TokenTable(ids, {m: column for m in BOTH}, {m: column for m in BOTH}, 0.5, seed=7)
    one = TokenTable(ids, {"ir": column}, {"ir": column}, 0.5, seed=7)
    np.testing.assert_array_equal(one.paraphrase_mask(3, 1000)["ir"][:40], both.paraphrase_mask(3, 40)["ir"])
    others = (
        both.paraphrase_mask(4, 40)["ir"],
        both.paraphrase_mask(3, 40)["rgb"],
        dataclasses.replace(both, seed=8).paraphrase_mask(3, 40)["ir"],
    )
    for other in others:
        assert 5 < (other == both.paraphrase_mask(3, 40)["ir"]).sum() < 35


def test_evaluation_never_takes_rephrased_captions(folder):
    always = opened(folder, text=dict(tokenizer="train", rephrased=1.0))
    tokenizer, splits = vocabulary(folder), records(folder)
    for split in ("train", "query"):
        batch = rows(always, split)
        for m in BOTH:
            want = tokenizer.encode(splits[split].captions[m].tolist())[:, : batch["text"][m].shape[1]]
            np.testing.assert_array_equal(batch["text"][m], want)


# One modality only, captions of queries, and whole rows.


def test_captions_of_one_modality_only(tmp_path, capsys):
    """Captions of rgb alone are rgb alone in the spec, in batches, in `present` and in `check`."""
    lines = ["split,pid,rgb,ir,caption_rgb,caption_ir"]
    for row in range(12):
        split = "train" if row < 8 else "test"
        Image.new("RGB", (2, 4), (row, row, row)).save(tmp_path / f"{row:02d}.png")
        pid, caption = row % 2 + 2 * (row >= 8), "" if row in (2, 9) else "a man"
        lines.append(f"{split},{pid},{row:02d}.png,{row:02d}.png,{caption},")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    data = opened(tmp_path, name="manifest", options={}, pairs=False, identities=2, instances=2)
    assert data.spec.text == ("rgb",)
    for split, without in (("train", 2), ("test", 1)):
        present, batch = data.present(split), rows(data, split)
        assert list(batch["text"]) == ["rgb"] and set(present) == {*BOTH, "text", "text/rgb"}
        assert np.flatnonzero(~present["text/rgb"]).tolist() == [without]
        np.testing.assert_array_equal(present["text"], present["text/rgb"])
    for batch in data.train(0, 3):
        check(batch)
    assert check_command.main(["--dataset=manifest", f"--data_dir={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "train: rows with captions: rgb 7, ir 0" in lines and "test: rows with captions: rgb 3, ir 0" in lines


def test_query_captions_change_the_captions_of_queries_and_nothing_else(folder, tmp_path):
    file, query = tmp_path / "witness.json", records(folder)["query"]
    long = "a person who " + "walks and " * 20 + "stops"
    captions = {str(path): f"{long} at {i}" for i, path in enumerate(query.paths["ir"])}
    file.write_text(json.dumps(captions))
    published = opened(folder, text=dict(tokenizer="train", rephrased=0.5))
    own = opened(folder, text=dict(tokenizer="train", rephrased=0.5), options=OPTIONS | dict(query_captions=str(file)))
    assert own.spec == published.spec  # the fingerprint and the vocabulary too, so that a run goes on
    for batch, other in zip(own.train(0, 5), published.train(0, 5), strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, other)
    found, before = rows(own, "query"), rows(published, "query")
    np.testing.assert_array_equal(found["text"]["rgb"], own.tokenize(list(captions.values())))  # as long as can be
    L = before["text"]["ir"].shape[1]
    np.testing.assert_array_equal(found["text"]["ir"][:, :L], before["text"]["ir"])
    for key in ("images", "pid", "camid", "index"):
        jax.tree.map(np.testing.assert_array_equal, found[key], before[key])


def test_whole_rows_have_captions_of_three_modalities(tmp_path):
    """RGBNT201: the caption of a picture comes with it in training and in evaluation, masked or not."""
    drawing = dict(num_train_ids=4, num_test_ids=2, cameras=2, images_per_camera=1, height=32)
    names = ("tir", "rgb", "nir")
    data = opened(
        tmp_path / "drawn",
        modalities=names,
        pairs=False,
        identities=2,
        instances=2,
        options=drawing | dict(layout="rgbnt201", captioner="Blip", rephrased=True),
        missing=MASKS | dict(eta=(0.5, 0.5, 0.5)),
        text=dict(tokenizer="train", rephrased=0.5),
    )
    given = dict(data_dir=str(tmp_path / "drawn"), modalities=names, allow_missing_files=False)
    splits = datasets.find("rgbnt201", "load", dict(captioner="Blip", rephrased=True), **given)()
    assert data.spec.text == names and set(data.present("test")) == {*names, "text", *(f"text/{m}" for m in names)}

    def encoded(split, column, index):
        return data.tokenize(splits[split].captions[column][index].tolist())

    found = []
    for batch in data.train(0, 12):
        check(batch)
        assert batch["present"]["text"].all() and not all(batch["present"][m].all() for m in names)
        for m in names:
            L = data.spec.text_length
            original, other = (encoded("train", m + ending, batch["index"])[:, :L] for ending in ("", REPHRASED))
            rephrased = (batch["text"][m] == other).all(axis=1)
            np.testing.assert_array_equal(batch["text"][m], np.where(rephrased[:, None], other, original))
            found.append(rephrased)
    assert 0.3 < np.mean(found) < 0.7
    batch = rows(data, "test")
    for m in names:
        L = batch["text"][m].shape[1]
        np.testing.assert_array_equal(batch["text"][m], encoded("test", m, batch["index"])[:, :L])
        assert has_caption(batch["text"][m]).all()


def test_a_manifest_of_whole_rows(tmp_path):
    """Unpaired: a row has its own captions; an absent one has no tokens and is not present."""
    lines = ["split,pid,rgb,ir,caption_rgb,caption_ir"]
    captions = {}
    for row in range(12):
        split = "train" if row < 8 else "test"
        absent = [m for m in BOTH if (row, m) in ((2, "rgb"), (9, "ir"))]
        captions[row] = {m: "" if m in absent else f"{m} of {'abcdefghijkl'[row]}" for m in BOTH}
        Image.new("RGB", (2, 4), (row, row, row)).save(tmp_path / f"{row:02d}.png")
        Image.new("RGB", (2, 4), (99, row, 0)).save(tmp_path / f"i{row:02d}.png")
        lines.append(
            f"{split},{row % 2 + 2 * (row >= 8)},{row:02d}.png,i{row:02d}.png,{','.join(captions[row].values())}"
        )
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    data = opened(tmp_path, name="manifest", options={}, pairs=False, identities=2, instances=2)
    tokenizer = open_tokenizer("train", captions=[captions[row][m] for row in range(8) for m in BOTH])
    for batch in (*data.train(0, 6), rows(data, "train"), rows(data, "test")):
        check(batch)
        shown = batch["images"]["rgb"][:, 0, 0, 0]
        for m in BOTH:
            want = tokenizer.encode([captions[row][m] for row in shown])[:, : batch["text"][m].shape[1]]
            np.testing.assert_array_equal(batch["text"][m], want)
        np.testing.assert_array_equal(batch["present"]["text/rgb"], shown != 2)
        np.testing.assert_array_equal(batch["present"]["text/ir"], shown != 9)
        np.testing.assert_array_equal(batch["present"]["text"], ~np.isin(shown, [2, 9]))
    assert np.flatnonzero(~data.present("train")["text"]).tolist() == [2]
    assert (rows(data, "train")["text"]["rgb"][2][:3] == [tokenizer.start, tokenizer.end, 0]).all()
