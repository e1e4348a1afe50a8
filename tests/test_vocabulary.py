"""The vocabulary of opened data: trained, saved, built in or none, and which captions it is trained on."""

import numpy as np
import pytest
from drawn_captions import BOTH, OPTIONS, opened, records, vocabulary
from drawn_captions import folder as folder

from input_pipeline import DataConfig, TextConfig, describe
from input_pipeline.records import Records
from input_pipeline.text import token_table
from input_pipeline.text.token_table import tokenize
from input_pipeline.text.tokenizer import open_tokenizer
from jax_mmreid.batch import check, has_caption
from jax_mmreid.errors import ConfigError, DataError


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


def test_captions_without_tokens_are_no_captions():
    """One truth: what the tokenizer makes of a caption decides, not whether its cell is empty."""
    splits = {"train": table_of(rgb=["a man", "\u00a0"], ir=["&nbsp;", ""]), "test": table_of(rgb=["&nbsp;"])}
    tables, tokenizer = tokenize("x", splits, TextConfig("train"), seed=0)
    assert list(tables) == ["train"] and list(tables["train"].captions) == ["rgb"]
    assert tables["train"].present["text/rgb"].tolist() == tables["train"].present["text"].tolist() == [True, False]


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
