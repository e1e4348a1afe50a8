"""Zero-shot classes of pictures, with the truth read from captions, against a loop over words."""

import numpy as np
import pytest
from captioned import END, START, VOCAB, Captioned, Whole, caption, draw, picture, run

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import encoder, runner
from jax_mmreid.evaluators.zero_shot import ZeroShot, contains

SENTENCES = (
    "a man in red", "a woman in blue", "red", "a man", "red hat in blue", "! in ! red", "a dark blue jacket",
    "dark red jacket", "jacket blue dark", "red red",
)  # fmt: skip
COLOURS = {"red": "a man in red jacket", "blue": "a woman in blue jacket"}
PHRASES = {"dark blue": "dark blue", "red jacket": "red jacket", "hat": "a hat", "!": "! !"}


def row(classes=COLOURS, modality="rgb", **more):
    return dict(kind="zero_shot", split="test", modality=modality, classes=dict(classes)) | more


def loop(rows, modality, classes):
    """The result by the definition, one picture at a time."""
    right, left_out = {}, 0
    for pictures, captions in rows:
        if pictures[modality] is None:
            continue
        found = [i for i, key in enumerate(classes) if f" {key} " in f" {captions[modality]} "]
        if len(found) != 1:
            left_out += 1
            continue
        scores = [float(picture(pictures[modality]) @ caption(sentence)) for sentence in classes.values()]
        right.setdefault(found[0], []).append(scores.index(max(scores)) == found[0])
    all_of_them = sum(right.values(), [])
    return {
        "accuracy": np.mean(all_of_them),
        "balanced": np.mean([np.mean(x) for x in right.values()]),
        "chance": 1 / len(classes),
        "pictures": len(all_of_them),
        "left_out": left_out,
    }


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("classes", [COLOURS, PHRASES], ids=["colours", "phrases"])
def test_every_number_is_that_of_a_loop(seed, classes):
    rows = draw(seed, 40, SENTENCES)
    results = run(Captioned(rows), rgb=row(classes), nir=row(classes, "nir"))
    for modality, result in results.items():
        for key, value in loop(rows, modality, classes).items():
            assert result[key] == pytest.approx(value, abs=1e-12), key


def test_a_caption_contains_words_that_follow_each_other():
    data = Captioned([])
    keys = ("red", "dark blue", "a man in red jacket a man in red", "!")
    captions = data.tokenize(["a red hat", "blue dark", "dark blue", "hat !", ""])[:, :7]
    assert contains(captions, data.tokenize(keys)).tolist() == [
        [True, False, False, False],
        [False, False, False, False],
        [False, True, False, False],
        [False, False, False, True],  # padding, which has the same id, is no word
        [False, False, False, False],
    ]
    assert VOCAB[0] == "!" and max(START, END) == END


def test_of_equal_scores_the_class_that_is_named_first_is_taken():
    rows = [(x, {"rgb": colour}) for colour in ("red", "red", "blue") for x, _ in draw(0, 1, ("hat",), absent=0)]
    same = dict.fromkeys(COLOURS, "a man")
    assert run(Captioned(rows), a=row(same))["a"]["accuracy"] == pytest.approx(2 / 3)
    turned = run(Captioned(rows), a=row(dict(reversed(same.items()))))["a"]
    assert (turned["accuracy"], turned["balanced"]) == (pytest.approx(1 / 3), 0.5)


@pytest.mark.parametrize("batch", [5, 16, 64])
def test_padding_changes_nothing(batch):
    rows = draw(1, 30, SENTENCES)
    expected = run(Captioned(rows, batch=1), a=row(PHRASES))
    assert run(Captioned(rows, batch=batch), a=row(PHRASES)) == expected


@pytest.mark.parametrize("classes", [COLOURS, PHRASES, dict.fromkeys(VOCAB, "a hat")])
def test_eight_devices_measure_what_one_does(classes):
    """Sentences are fewer or more than devices."""
    data = Captioned(draw(2, 30, SENTENCES))
    assert run(data, devices=8, a=row(classes)) == run(data, a=row(classes))


def test_pictures_are_encoded_once_and_captions_never(monkeypatch):
    seen, original = [], encoder.encode

    def watching(variables, batch, **settings):
        seen.append((sorted(batch["images"]), sorted(batch.get("text", {})), sorted(batch["present"])))
        return original(variables, batch, **settings)

    monkeypatch.setattr(encoder, "encode", watching)
    data = Captioned(draw(3, 20, SENTENCES))
    run(data, a=row(), b=row(PHRASES))
    sentences = ([], ["rgb"], ["text", "text/rgb"])
    assert data.read == {"test": 3} and seen == 3 * [(["rgb"], [], ["rgb"])] + 2 * [sentences]


def test_a_result_names_what_it_was_measured_on():
    result = run(Captioned(draw(4, 30, SENTENCES)), a=row())["a"]
    assert (result["protocol"], result["feature"]) == ("split test, 2 classes", "rgb>text")
    count = result["left_out"]
    assert count and result["note"] == (
        f"leaves out {count} pictures, whose captions contain the words of none or several of the classes."
    )
    assert set(ZeroShot.COLUMNS.values()) < set(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(split="query"), "evals.a: data: no split 'query'; there are test"),
        (dict(modality="tir"), "evals.a: use names 'tir'; there are the modalities rgb, nir"),
        (dict(template="a {}"), "evals.a: the row has a key 'template'; there are split, modality, classes"),
        (dict(classes={"red": "red"}), "evals.a: classes=.*, expected two or more {words of a caption: sentence}"),
        (dict(classes=("red", "blue")), "evals.a: classes=.*, expected two or more {words of a caption: sentence}"),
        (dict(classes={"red": "red", "blue": None}), "evals.a: classes=.*, expected two or more"),
        (dict(classes={"red": "red", " ": "blue"}), "evals.a: classes has ' ', which has no tokens"),
        (dict(classes={"red": "red", "blue": ""}), "evals.a: classes has '', which has no tokens"),
    ],
)
def test_a_row_that_cannot_be_measured_is_refused_at_once(change, message):
    data = Captioned(draw(5, 5, SENTENCES))
    with pytest.raises(ConfigError, match=message):
        runner.check({"a": row() | change}, data)
    assert not data.read


def test_sentences_need_a_tokenizer():
    with pytest.raises(ConfigError, match="evals.a: data: there is no tokenizer"):
        runner.check({"a": row()}, Captioned(draw(5, 5, SENTENCES), vocab=0))


def test_some_picture_must_be_of_a_class():
    data = Captioned(draw(6, 9, ("a man", "red in blue")))
    with pytest.raises(
        DataError, match="evals.a: no caption of rgb in split 'test' contains the words of exactly one class"
    ):
        run(data, a=row())


def test_vectors_that_cannot_be_compared_are_no_success():
    class Lost(Whole):
        def embed(self, variables, features, use):
            return super().embed(variables, features, use) * (0 if use == ("text/rgb",) else 1)

    with pytest.raises(DataError, match="evals.a: the sentence 'a man in red jacket' has a vector that is zero"):
        run(Captioned(draw(7, 12, SENTENCES)), method=Lost(), a=row())

    class Blind(Whole):
        def embed(self, variables, features, use):
            return super().embed(variables, features, use) * (0 if use == ("rgb",) else 1)

    with pytest.raises(DataError, match=r"evals.a: row \d+ of split 'test' has a vector of rgb that is zero or not"):
        run(Captioned(draw(7, 12, SENTENCES)), method=Blind(), a=row())
