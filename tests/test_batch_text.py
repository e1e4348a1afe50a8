"""Captions in batches: of which rows, rephrased or not, how long, and which rows have none."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import open_fields
from PIL import Image

from input_pipeline import DataConfig, TextConfig, datasets, describe
from input_pipeline import check as check_command
from input_pipeline.records import REPHRASED, Records
from input_pipeline.text import token_table
from input_pipeline.text.token_table import TokenTable, tokenize
from input_pipeline.text.tokenizer import open_tokenizer
from jax_mmreid.batch import check, has_caption
from jax_mmreid.errors import ConfigError, DataError

BOTH = ("rgb", "ir")
OPTIONS = dict(layout="sysu_mm01", seed=2, num_train_ids=5, num_test_ids=2, images_per_camera=2, height=32)
MASKS = dict(eta=(0.0, 0.0), seed=4, mode="bernoulli", all_missing="repair", mask_file="")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "drawn"
    records(path)
    return path


def records(folder, **options):
    given = dict(data_dir=str(folder), modalities=BOTH, allow_missing_files=False)
    return datasets.find("synthetic", "load", OPTIONS | options, **given)()


def opened(folder, **changes):
    arguments = dict(
        name="synthetic",
        data_dir=str(folder),
        modalities=BOTH,
        image_size=(4, 2),
        identities=3,
        instances=4,
        eval_batch_size=10,
        threads=0,
        allow_missing_files=False,
        missing=MASKS,
        seed=1,
        options=OPTIONS,
        pairs=True,
        text=dict(tokenizer="train"),
    )
    return open_fields(**arguments | changes)


def rows(data, split):
    """A split as one batch, without padding."""
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *data.split(split))
    return jax.tree.map(lambda x: x[whole["valid"]], whole)


def vocabulary(folder, context=77, **options):
    """The tokenizer trained on the training captions, rephrased ones included."""
    columns = [column for column in records(folder, **options)["train"].captions.values()]
    return open_tokenizer("train", captions=np.concatenate(columns).tolist(), context=context)


# Evaluation.


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


def table_of(**columns):
    """A split of pictures in rgb with these columns of captions."""
    captions = {name: np.array(column) for name, column in columns.items()}
    number = np.zeros(len(next(iter(captions.values()))), np.int32)
    return Records("", {"rgb": np.array([f"{i}.png" for i in number])}, number, number, number, captions=captions)


def test_rephrased_captions_count_for_the_vocabulary_and_if_they_are_read_for_the_length():
    column = {"rgb": ["a man", "a dog"], "rgb_rephrased": ["an old man with a stick", "a puppy"]}
    splits = {"train": table_of(**column)}
    found = [tokenize("x", splits, TextConfig("train", rephrased=rate), seed=0) for rate in (0.0, 0.5)]
    assert (
        found[0].tokenizer.vocab
        == found[1].tokenizer.vocab
        == open_tokenizer("train", captions=sum(column.values(), [])).vocab
    )
    short, long = (tokenized.tables["train"].ids.shape[1] for tokenized in found)
    assert short < long


# One modality only, and captions of queries.


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


def test_captions_without_tokens_are_no_captions():
    """One truth: what the tokenizer makes of a caption decides, not whether its cell is empty."""
    splits = {"train": table_of(rgb=["a man", "\u00a0"], ir=["&nbsp;", ""]), "test": table_of(rgb=["&nbsp;"])}
    tables, tokenizer = tokenize("x", splits, TextConfig("train"), seed=0)
    assert list(tables) == ["train"] and list(tables["train"].captions) == ["rgb"]
    assert tables["train"].present["text/rgb"].tolist() == tables["train"].present["text"].tolist() == [True, False]


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


# Sources.


def test_without_a_tokenizer_there_are_no_captions(folder, monkeypatch):
    monkeypatch.setattr(token_table, "open_tokenizer", None)
    data = opened(folder, text=dict(tokenizer="", rephrased=0.5))
    assert (data.spec.text, data.spec.text_length, data.spec.vocab) == ((), 0, 0)
    for batch in (next(data.train(0, 1)), next(data.split("query"))):
        assert "text" not in check(batch)
    assert "text" not in data.present("query")
    with pytest.raises(ConfigError, match="config.data.text.tokenizer='': sentences cannot be encoded without a tok"):
        data.tokenize(["a man"])
    data.save_tokenizer(str(folder / "words"))
    assert not (folder / "words").exists()


@pytest.mark.parametrize("captioner", ["Blip", ""])
def test_a_saved_vocabulary_encodes_sentences_equally_with_captions_and_without(folder, tmp_path, captioner):
    learned, sentences = opened(folder, text=dict(tokenizer="train", context=9)), ["A man in red.", "", "a " * 50]
    learned.save_tokenizer(str(tmp_path / "words"))
    options = OPTIONS | dict(captioner=captioner, rephrased=bool(captioner))
    data = opened(folder, options=options, text=dict(tokenizer=str(tmp_path / "words"), context=9))
    assert (data.spec.vocab, data.spec.text) == (learned.spec.vocab, BOTH if captioner else ())
    ids = data.tokenize(sentences)
    assert ids.shape == (3, 9) and ids.dtype == np.int32 and has_caption(ids).tolist() == [True, False, True]
    np.testing.assert_array_equal(ids, vocabulary(folder, context=9).encode(sentences))
    np.testing.assert_array_equal(ids, learned.tokenize(sentences))
    data.save_tokenizer(str(tmp_path / "again"))
    np.testing.assert_array_equal(ids, open_tokenizer(str(tmp_path / "again"), context=9).encode(sentences))
    text = TextConfig(tokenizer=str(tmp_path / "words"), context=9)
    spec = describe(DataConfig("synthetic", modalities=BOTH, options=options, text=text)).spec
    assert (spec.vocab, spec.text_length) == (data.spec.vocab, 9)
    if not captioner:
        assert data.spec.text_length == 0
        for batch in (next(data.train(0, 1)), next(data.split("query"))):
            assert "text" not in check(batch)


def test_the_builtin_vocabulary_needs_neither_captions_nor_a_folder(folder, tmp_path):
    pytest.importorskip("instant_clip_tokenizer", reason="instant-clip-tokenizer has no wheel for this Python here")
    data = opened(folder, options=OPTIONS | dict(captioner=""), text=dict(tokenizer="builtin"))
    assert (data.spec.text, data.spec.text_length, data.spec.vocab) == ((), 0, 49408)
    assert data.tokenize(["a man", ""])[:, :4].tolist() == [[49406, 320, 786, 49407], [49406, 49407, 0, 0]]
    data.save_tokenizer(str(tmp_path / "words"))
    assert not list(tmp_path.iterdir())


def test_describe_refuses_a_folder_without_a_vocabulary(tmp_path):
    with pytest.raises(DataError, match="holds no tokenizer"):
        describe(DataConfig("rgbnt201", text=dict(tokenizer=str(tmp_path))))


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


def test_captions_are_tokenized_once(folder, monkeypatch):
    tokenizer, seen = vocabulary(folder), []

    def record(source, *, context, vocab_size, captions):
        seen.append((source, context, vocab_size, sorted(set(captions))))
        return tokenizer

    monkeypatch.setattr(token_table, "open_tokenizer", record)
    monkeypatch.setattr(
        type(tokenizer), "encode", lambda self, texts: seen.append(texts) or np.eye(len(texts), dtype=int)
    )
    opened(folder, text=dict(tokenizer="a/b", context=50, vocab_size=999, rephrased=0.5))
    splits = records(folder)
    columns = [column for table in splits.values() for column in table.captions.values()]
    captions = set(np.concatenate(columns).tolist())
    (source, texts) = seen
    assert source[:3] == ("a/b", 50, 999)
    assert source[3] == sorted(set(np.concatenate([*splits["train"].captions.values()]).tolist()))
    assert set(texts) == captions and len(texts) == len(captions)


def test_long_captions_are_cut_to_the_context(folder):
    data = opened(folder, text=dict(tokenizer="train", context=6))
    assert data.spec.text_length == 6
    batch = next(data.train(0, 1))
    assert (batch["text"]["ir"].argmax(axis=1) == 5).all() and (batch["text"]["ir"][:, 5] == data.spec.vocab - 1).all()


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


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(options=OPTIONS | dict(captioner="")),
            "config.data.text.tokenizer='train': synthetic was read without captions; .* data.options.captioner",
        ),
        (
            dict(text=dict(tokenizer="train", rephrased=0.5), options=OPTIONS | dict(rephrased=False)),
            "config.data.text.rephrased=0.5: synthetic was read without rephrased training captions; set data.opt",
        ),
        (dict(text=dict(tokenizer="nothing")), "config.data.text.tokenizer='nothing': neither a folder nor a Hub id"),
    ],
)
def test_impossible_captions_are_config_errors(folder, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        opened(folder, **changes)
    assert "\n" not in str(error.value)


def test_a_rate_of_rephrased_captions_needs_captions_with_any_vocabulary(folder, tmp_path):
    vocabulary(folder).save(str(tmp_path / "words"))
    text = dict(tokenizer=str(tmp_path / "words"), rephrased=0.5)
    with pytest.raises(ConfigError, match="data.text.rephrased=0.5: synthetic was read without rephrased training cap"):
        opened(folder, options=OPTIONS | dict(captioner=""), text=text)


def test_no_vocabulary_is_trained_on_captions_of_queries_but_they_are_encoded_by_another(folder, tmp_path):
    query = records(folder)["query"]
    file = tmp_path / "query.json"
    file.write_text("{" + ",".join(f'"{path}": "a man"' for path in query.paths["ir"]) + "}")
    changes = dict(options=OPTIONS | dict(captioner="", query_captions=str(file)))
    with pytest.raises(DataError, match="'train' found no training captions"):
        opened(folder, **changes)
    vocabulary(folder).save(str(tmp_path / "words"))
    data = opened(folder, **changes, text=dict(tokenizer=str(tmp_path / "words")))
    assert data.spec.text == () and "text" not in next(data.train(0, 1))
    batch = next(data.split("query"))
    assert list(batch["text"]) == ["rgb"] and batch["text"]["rgb"].shape[1] > 2 and data.spec.text_length == 0
    with pytest.raises(ConfigError, match="data.text.rephrased=0.5"):
        opened(folder, **changes, text=dict(tokenizer=str(tmp_path / "words"), rephrased=0.5))
