"""Captions in batches: whose they are, in which words, how long; and what is said when there are none."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline import datasets, describe, open_data
from input_pipeline.records import Records
from input_pipeline.text import token_table
from input_pipeline.text.token_table import Options, TokenTable, tokenize
from input_pipeline.text.tokenizer import open_tokenizer
from jax_mmreid.batch import check, has_caption
from jax_mmreid.errors import DataError

BOTH = ("rgb", "ir")
OPTIONS = dict(layout="sysu_mm01", seed=2, num_train_ids=5, num_test_ids=2, images_per_camera=2, height=32)
MASKS = dict(eta=(0.0, 0.0), seed=4, mode="bernoulli", all_missing="repair", mask_file="")
OTHER = "_rephrased"


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
    return open_data(**arguments | changes)


def rows(data, split):
    """A split as one batch, without padding."""
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *data.split(split))
    return jax.tree.map(lambda x: x[whole["valid"]], whole)


def vocabulary(folder, context=77, **options):
    """The tokenizer that training captions give, all their wordings included."""
    said = [column for column in records(folder, **options)["train"].captions.values()]
    return open_tokenizer("train", captions=np.concatenate(said).tolist(), context=context)


# Evaluation.


def test_every_row_of_a_split_has_its_own_captions(folder):
    data, tokenizer = opened(folder), vocabulary(folder)
    splits = records(folder)
    lengths = set()
    for split in ("train", "query"):
        batch = rows(data, split)
        for m in BOTH:
            ids = tokenizer.encode(splits[split].captions[m].tolist())
            lengths.add(ids.argmax(axis=1).max() + 1)
            np.testing.assert_array_equal(batch["text"][m], ids[:, : data.spec.text_length])
    assert data.spec.text_length == max(lengths) and len(lengths) > 1
    assert data.spec.text == BOTH and data.spec.vocab == tokenizer.vocab
    assert (splits["query"].captions["rgb"] != "").all()  # of a query that has no visible picture


def test_batches_follow_the_vocabulary(folder):
    data = opened(folder)
    train, query, gallery = next(data.train(0, 1)), *(next(data.split(name)) for name in ("query", "gallery"))
    for batch in (train, query, gallery):
        check(batch)
    for batch in (train, query):
        assert {m: x.shape for m, x in batch["text"].items()} == dict.fromkeys(
            BOTH, (len(batch["index"]), data.spec.text_length)
        )
    assert "text" not in gallery and "text" not in gallery["present"]  # nothing is said of it
    assert set(train["present"]) == {*BOTH, "text"} and set(query["present"]) == {"ir", "text"}


def test_rows_that_are_not_described_in_all_modalities_are_told(folder):
    data = opened(folder, pairs=False)
    assert not data.present("train")["text"].any()  # a row is one picture
    assert data.present("query")["text"].all() and len(data.present("query")["text"]) == data.num_rows("query")
    assert "text" not in data.present("gallery")
    assert not next(data.train(0, 1))["present"]["text"].any()
    assert rows(data, "query")["present"]["text"].all()


def test_a_split_without_a_modality_has_no_key_for_it(folder):
    data = opened(folder)
    keys = {"train": set(BOTH), "query": {"ir"}, "gallery": {"rgb"}}
    for split, want in keys.items():
        for batch in data.split(split):
            assert set(batch["images"]) == want == set(batch["present"]) - {"text"}
        assert set(data.present(split)) - {"text"} == set(BOTH)
    assert not data.present("gallery")["ir"].any()
    assert set(next(opened(folder, pairs=False).train(0, 1))["images"]) == set(BOTH)


# Other words.


def wordings(folder, rate, steps, seed=1, **changes):
    """Which captions of training batches are in their other words, {modality: [steps, B] bool}."""
    data = opened(folder, text=dict(tokenizer="train", rephrased=rate), seed=seed, **changes)
    tokenizer, table = vocabulary(folder), records(folder)["train"]
    ids = {
        name: tokenizer.encode(column.tolist())[:, : data.spec.text_length] for name, column in table.captions.items()
    }
    found = {m: [] for m in BOTH}
    for batch, step in zip(data.train(0, steps), range(steps)):
        shown = dict(zip(BOTH, data._sampler.rows(step).T))
        for m in BOTH:
            plain, other = ((batch["text"][m] == ids[name][shown[m]]).all(axis=1) for name in (m, m + OTHER))
            assert (plain ^ other).all()
            found[m].append(other)
        assert batch["present"]["text"].all()
    return {m: np.stack(x) for m, x in found.items()}


def test_half_of_the_captions_are_rephrased_each_by_its_own_coin(folder):
    paraphrase_mask = wordings(folder, 0.5, 50)
    tosses = np.stack([paraphrase_mask["rgb"], paraphrase_mask["ir"]])  # [2,50,12]
    standard_error = 0.5 / np.sqrt(600)
    assert all(abs(tosses.mean(axis=(1, 2)) - 0.5) < 4 * standard_error)
    agree = [tosses[0] == tosses[1], tosses[:, 1:] == tosses[:, :-1], tosses[..., 1:] == tosses[..., :-1]]
    for pairs in agree:  # of modalities, of steps, of slots
        assert abs(pairs.mean() - 0.5) < 4 * 0.5 / np.sqrt(pairs.size)


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_the_rate_is_that_of_the_config(folder, rate):
    share = np.mean(list(wordings(folder, rate, 40).values()))
    assert abs(share - rate) <= 4 * np.sqrt(rate * (1 - rate) / 960)


def test_a_coin_depends_on_seed_step_slot_and_modality_alone():
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


def test_evaluation_never_takes_other_words(folder):
    always = opened(folder, text=dict(tokenizer="train", rephrased=1.0))
    tokenizer, splits = vocabulary(folder), records(folder)
    for split in ("train", "query"):
        batch = rows(always, split)
        for m in BOTH:
            want = tokenizer.encode(splits[split].captions[m].tolist())[:, : always.spec.text_length]
            np.testing.assert_array_equal(batch["text"][m], want)


def test_other_words_count_for_the_vocabulary_and_for_the_length_if_they_are_read():
    column = {"rgb": ["a man", "a dog"], "rgb_rephrased": ["an old man with a stick", "a puppy"]}
    number = np.zeros(2, np.int32)
    captions = {name: np.array(said) for name, said in column.items()}
    splits = {"train": Records("", {"rgb": np.array(["0", "1"])}, number, number, number, captions=captions)}
    found = [tokenize("x", splits, Options("train", rephrased=rate), seed=0) for rate in (0.0, 0.5)]
    assert (
        found[0].tokenizer.vocab
        == found[1].tokenizer.vocab
        == open_tokenizer("train", captions=sum(column.values(), [])).vocab
    )
    short, long = (said.tables["train"].ids.shape[1] for said in found)
    assert short < long


# Sources.


def test_without_a_tokenizer_nothing_is_tokenised(folder, monkeypatch):
    monkeypatch.setattr(token_table, "open_tokenizer", None)
    data = opened(folder, text=dict(tokenizer="", rephrased=0.5))
    assert (data.spec.text, data.spec.text_length, data.spec.vocab) == ((), 0, 0)
    for batch in (next(data.train(0, 1)), next(data.split("query"))):
        assert "text" not in check(batch)
    assert "text" not in data.present("query")
    with pytest.raises(ValueError, match="data: .* no tokenizer; set data.text.tokenizer$"):
        data.tokenize(["a man"])
    data.save_tokenizer(str(folder / "words"))
    assert not (folder / "words").exists()


@pytest.mark.parametrize("captioner", ["Blip", ""])
def test_a_vocabulary_that_was_saved_reads_sentences_alike_with_captions_and_without(folder, tmp_path, captioner):
    learned, said = opened(folder, text=dict(tokenizer="train", context=9)), ["A man in red.", "", "a " * 50]
    learned.save_tokenizer(str(tmp_path / "words"))
    options = OPTIONS | dict(captioner=captioner, rephrased=bool(captioner))
    data = opened(folder, options=options, text=dict(tokenizer=str(tmp_path / "words"), context=9))
    assert (data.spec.vocab, data.spec.text) == (learned.vocab, BOTH if captioner else ())
    ids = data.tokenize(said)
    assert ids.shape == (3, 9) and ids.dtype == np.int32 and has_caption(ids).tolist() == [True, False, True]
    np.testing.assert_array_equal(ids, vocabulary(folder, context=9).encode(said))
    np.testing.assert_array_equal(ids, learned.tokenize(said))
    data.save_tokenizer(str(tmp_path / "again"))
    np.testing.assert_array_equal(ids, open_tokenizer(str(tmp_path / "again"), context=9).encode(said))
    described = describe(
        name="synthetic",
        data_dir="",
        modalities=BOTH,
        image_size=(4, 2),
        identities=3,
        instances=4,
        options=options,
        text=dict(tokenizer=str(tmp_path / "words"), context=9),
    )
    assert (described.spec.vocab, described.spec.text_length) == (data.spec.vocab, 9)
    if not captioner:
        assert data.spec.text_length == 0
        for batch in (next(data.train(0, 1)), next(data.split("query"))):
            assert "text" not in check(batch)


def test_the_builtin_vocabulary_is_there_without_captions_and_needs_no_folder(folder, tmp_path):
    pytest.importorskip("instant_clip_tokenizer", reason="instant-clip-tokenizer has no wheel for this Python here")
    data = opened(folder, options=OPTIONS | dict(captioner=""), text=dict(tokenizer="builtin"))
    assert (data.spec.text, data.spec.text_length, data.spec.vocab) == ((), 0, 49408)
    assert data.tokenize(["a man", ""])[:, :4].tolist() == [[49406, 320, 786, 49407], [49406, 49407, 0, 0]]
    data.save_tokenizer(str(tmp_path / "words"))
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_vocabulary_is_told_of_data_that_are_described(tmp_path):
    arguments = dict(name="rgbnt201", data_dir="", modalities=("rgb",), image_size=(4, 2), identities=3, instances=4)
    with pytest.raises(DataError, match="holds no tokenizer"):
        describe(**arguments, text=dict(tokenizer=str(tmp_path)))


def test_whole_rows_have_captions_of_three_modalities(tmp_path):
    """RGBNT201: what is said of a picture comes with it in training and in evaluation, masked or not."""
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
    assert data.spec.text == names and set(data.present("test")) == {*names, "text"}

    def encoded(split, column, index):
        return data.tokenize(splits[split].captions[column][index].tolist())[:, : data.spec.text_length]

    heads = []
    for batch in data.train(0, 12):
        check(batch)
        assert batch["present"]["text"].all() and not all(batch["present"][m].all() for m in names)
        for m in names:
            plain, other = (encoded("train", m + ending, batch["index"]) for ending in ("", OTHER))
            other_words = (batch["text"][m] == other).all(axis=1)
            np.testing.assert_array_equal(batch["text"][m], np.where(other_words[:, None], other, plain))
            heads.append(other_words)
    assert 0.3 < np.mean(heads) < 0.7
    batch = rows(data, "test")
    for m in names:
        np.testing.assert_array_equal(batch["text"][m], encoded("test", m, batch["index"]))
        assert has_caption(batch["text"][m]).all()


def test_captions_are_tokenised_once(folder, monkeypatch):
    tokenizer, seen = vocabulary(folder), []

    def tell(source, *, context, vocab_size, captions):
        seen.append((source, context, vocab_size, sorted(set(captions))))
        return tokenizer

    monkeypatch.setattr(token_table, "open_tokenizer", tell)
    monkeypatch.setattr(
        type(tokenizer), "encode", lambda self, texts: seen.append(texts) or np.eye(len(texts), dtype=int)
    )
    opened(folder, text=dict(tokenizer="a/b", context=50, vocab_size=999, rephrased=0.5))
    splits = records(folder)
    columns = [column for table in splits.values() for column in table.captions.values()]
    said = set(np.concatenate(columns).tolist())
    (source, texts) = seen
    assert source[:3] == ("a/b", 50, 999)
    assert source[3] == sorted(set(np.concatenate([*splits["train"].captions.values()]).tolist()))
    assert set(texts) == said and len(texts) == len(said)


def test_long_captions_are_cut_to_the_context(folder):
    data = opened(folder, text=dict(tokenizer="train", context=6))
    assert data.spec.text_length == 6
    batch = next(data.train(0, 1))
    assert (batch["text"]["ir"].argmax(axis=1) == 5).all() and (batch["text"]["ir"][:, 5] == data.spec.vocab - 1).all()


def test_a_manifest_of_whole_rows(tmp_path):
    """Unpaired: a row has its own captions; what is not said is a sentence without words, and told."""
    lines = ["split,pid,rgb,ir,caption_rgb,caption_ir"]
    said = {}
    for row in range(12):
        split = "train" if row < 8 else "test"
        said[row] = {m: "" if (row, m) in ((2, "rgb"), (9, "ir")) else f"{m} of {'abcdefghijkl'[row]}" for m in BOTH}
        Image.new("RGB", (2, 4), (row, row, row)).save(tmp_path / f"{row:02d}.png")
        Image.new("RGB", (2, 4), (99, row, 0)).save(tmp_path / f"i{row:02d}.png")
        lines.append(
            f"{split},{row % 2 + 2 * (row >= 8)},{row:02d}.png,i{row:02d}.png,{said[row]['rgb']},{said[row]['ir']}"
        )
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    data = opened(tmp_path, name="manifest", options={}, pairs=False, identities=2, instances=2)
    captions = [said[row][m] for row in range(8) for m in BOTH]
    tokenizer = open_tokenizer("train", captions=captions)
    for batch in (*data.train(0, 6), rows(data, "train"), rows(data, "test")):
        check(batch)
        shown = batch["images"]["rgb"][:, 0, 0, 0]
        for m in BOTH:
            want = tokenizer.encode([said[row][m] for row in shown])[:, : data.spec.text_length]
            np.testing.assert_array_equal(batch["text"][m], want)
        np.testing.assert_array_equal(batch["present"]["text"], ~np.isin(shown, [2, 9]))
    assert np.flatnonzero(~data.present("train")["text"]).tolist() == [2]
    assert (rows(data, "train")["text"]["rgb"][2][:3] == [tokenizer.start, tokenizer.end, 0]).all()
    for split, count in (("train", 8), ("test", 4)):
        for m, ids in rows(data, split)["text"].items():
            first = 0 if split == "train" else 8
            assert has_caption(ids).tolist() == [said[row][m] != "" for row in range(first, first + count)]


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(options=OPTIONS | dict(captioner="")),
            "data.text.tokenizer='train': synthetic .* no captions; .* data.options.capti",
        ),
        (
            dict(text=dict(tokenizer="train", rephrased=0.5), options=OPTIONS | dict(rephrased=False)),
            "data.text.rephrased=0.5: synthetic .* no training captions in other words; set data.options.rephr",
        ),
        (dict(text=dict(tokenizer="train", rephrased=1.5)), "data.text.rephrased=1.5: must lie in .0, 1."),
        (dict(text=dict(rephrased=-0.1)), "data.text.rephrased=-0.1"),
        (dict(text=dict(tokenizer="nothing")), "data.text.tokenizer='nothing' is no folder and no Hub id"),
        (dict(text=dict(tokenizer="train", vocab_size=10)), "vocab_size=10 is less than 514"),
        (dict(text=dict(tokenizer="train", context=1)), "context=1 must be at least 2"),
    ],
)
def test_text_that_cannot_be_is_told_by_its_config_key(folder, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        opened(folder, **changes)
    assert "\n" not in str(error.value)


def test_a_rate_of_other_words_needs_captions_with_any_vocabulary(folder, tmp_path):
    vocabulary(folder).save(str(tmp_path / "words"))
    words = dict(tokenizer=str(tmp_path / "words"), rephrased=0.5)
    with pytest.raises(ValueError, match="data.text.rephrased=0.5: synthetic .* no training captions in other words"):
        opened(folder, options=OPTIONS | dict(captioner=""), text=words)


def test_captions_of_queries_alone_give_no_vocabulary(folder, tmp_path):
    """... of their own, but are words of another's."""
    query = records(folder)["query"]
    file = tmp_path / "said.json"
    file.write_text("{" + ",".join(f'"{path}": "a man"' for path in query.paths["ir"]) + "}")
    changes = dict(options=OPTIONS | dict(captioner="", query_captions=str(file)))
    with pytest.raises(DataError, match="'train' found no captions to learn from"):
        opened(folder, **changes)
    vocabulary(folder).save(str(tmp_path / "words"))
    data = opened(folder, **changes, text=dict(tokenizer=str(tmp_path / "words")))
    assert data.spec.text == () and "text" not in next(data.train(0, 1))
    assert list(next(data.split("query"))["text"]) == ["rgb"] and data.spec.text_length > 2
    with pytest.raises(ValueError, match="data.text.rephrased=0.5"):
        opened(folder, **changes, text=dict(tokenizer=str(tmp_path / "words"), rephrased=0.5))
