"""Pictures to captions and back, against a loop over sorted candidates."""

from collections import Counter

import numpy as np
import pytest
from captioned import LEVELS, Captioned, H, W, Whole, caption, draw, picture, run

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import encoder, runner
from jax_mmreid.evaluators.image_text import ImageText

SENTENCES = ("a man", "a man in red", "a woman", "man a", "a man in red hat", "a woman in blue", "hat")
DIRECTIONS = ("image_to_text", "text_to_image")


def row(direction="image_to_text", modality="rgb", **more):
    return dict(kind="image_text", split="test", modality=modality, direction=direction) | more


def both(modality="rgb"):
    return {f"{modality}/{direction}": row(direction, modality) for direction in DIRECTIONS}


def loop(rows, modality, direction):
    """The ranks by the definition, one query at a time."""
    pairs = [(picture(p[modality]), c[modality]) for p, c in rows if p[modality] is not None and c[modality]]
    pictures, described = [x for x, _ in pairs], [x for _, x in pairs]
    sentences = list(dict.fromkeys(described))
    captions = [caption(x) for x in sentences]
    if direction == "image_to_text":
        queries = [(x, captions, [sentences.index(s)]) for x, s in pairs]
    else:
        queries = [(caption(s), pictures, [i for i, x in enumerate(described) if x == s]) for s in sentences]
    ranks, chances = [], []
    for query, candidates, right in queries:
        ranked = sorted(range(len(candidates)), key=lambda i: (-float(query @ candidates[i]), i))
        ranks.append(1 + min(ranked.index(i) for i in right))
        chances.append(len(right) / len(candidates))
    return np.array(ranks), np.mean(chances), len(pictures), len(sentences)


@pytest.mark.parametrize("seed", range(12))
def test_every_number_is_that_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    rows = draw(seed, int(rng.integers(5, 40)), SENTENCES[: rng.integers(2, 8)], absent=0.3, uncaptioned=0.3)
    results = run(Captioned(rows), **both(), **both("nir"))
    for name, result in results.items():
        modality, direction = name.split("/")
        ranks, chance, pictures, captions = loop(rows, modality, direction)
        for r in (1, 5, 10):
            assert result[f"rank{r}"] == np.mean(ranks <= r), name
        assert result["median_rank"] == np.median(ranks)
        assert result["chance"] == pytest.approx(chance, abs=1e-12)
        assert (result["pictures"], result["captions"]) == (pictures, captions)
        assert result["left_out"] == sum(p[modality] is not None for p, _ in rows) - pictures


def test_ties_go_to_the_candidate_that_comes_first():
    """Five equal pictures, and a caption that is closest to each: only the first of them is found at once."""
    pixels = np.full((H, W, 3), 3, np.uint8)
    rows = [({"rgb": pixels}, {"rgb": sentence}) for sentence in ("red", "red", "blue", "blue", "red")]
    results = run(Captioned(rows), **both())
    ranks = {name: loop(rows, *name.split("/"))[0] for name in results}
    assert ranks["rgb/text_to_image"].tolist() == [1, 3]  # the first red one, the first blue one
    for name, result in results.items():
        assert result["rank1"] == np.mean(ranks[name] == 1) and result["median_rank"] == np.median(ranks[name])


def test_chance_is_what_noise_gets_on_average():
    rng, sentences = np.random.default_rng(0), SENTENCES
    firsts = []
    for seed in range(60):
        rows = draw(seed, 60, sentences, absent=0, uncaptioned=0)
        noise = Captioned([({"rgb": rng.integers(0, LEVELS, (H, W, 3)).astype(np.uint8)}, text) for _, text in rows])
        firsts.append([result["rank1"] - result["chance"] for result in run(noise, **both()).values()])
    np.testing.assert_allclose(np.mean(firsts, axis=0), 0, atol=0.05)


@pytest.mark.parametrize("batch", [5, 16, 64])
def test_padding_changes_nothing(batch):
    rows = draw(1, 30, SENTENCES)
    expected = run(Captioned(rows, batch=1), **both())
    assert run(Captioned(rows, batch=batch), **both()) == expected


def test_eight_devices_measure_what_one_does():
    data = Captioned(draw(2, 30, SENTENCES))
    rows = both() | both("nir")
    assert run(data, devices=8, **rows) == run(data, devices=1, **rows)


def test_pictures_and_captions_are_encoded_once_for_both_directions(monkeypatch):
    calls, data = Counter(), Captioned(draw(3, 20, SENTENCES))
    for name in ("encode", "embed"):
        original = getattr(encoder, name)

        def counting(*args, name=name, original=original, **settings):
            calls[name] += 1
            return original(*args, **settings)

        monkeypatch.setattr(encoder, name, counting)
    run(data, **both(), again=row(), **both("nir"))
    assert data.read == {"test": 3}
    assert calls == {"encode": 3, "embed": 4 * 3}  # pictures and captions of two modalities


def test_the_method_sees_one_modality_and_its_captions():
    seen = []

    class Watching(Whole):
        def encode(self, variables, batch):
            seen.append({key: sorted(batch[key]) for key in ("images", "present", "text")})
            return super().encode(variables, batch)

    run(Captioned(draw(4, 8, SENTENCES)), method=Watching(), **both("nir"))
    assert seen == [{"images": ["nir"], "present": ["nir", "text", "text/nir"], "text": ["nir"]}]


def test_a_result_names_what_it_was_measured_on():
    results = run(Captioned(draw(5, 20, SENTENCES)), **both("nir"))
    there, back = results.values()
    assert (there["protocol"], there["feature"]) == ("split test, image to text", "nir>text")
    assert (back["protocol"], back["feature"]) == ("split test, text to image", "text>nir")
    assert there["note"] == f"leaves out {there['left_out']} pictures, which have no caption." and there["left_out"]
    assert set(ImageText.COLUMNS.values()) < set(there) and set(ImageText.NOT_FRACTIONS) < set(there)
    whole = run(Captioned(draw(5, 20, SENTENCES, absent=0, uncaptioned=0)), **both())
    assert whole["rgb/image_to_text"]["left_out"] == 0 and "note" not in whole["rgb/image_to_text"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(split="query"), "evals.a: data: no split 'query'; there are test"),
        (dict(modality="tir"), "evals.a: use names 'tir'; there are the modalities rgb, nir, captions of one"),
        (dict(direction="both"), "evals.a: direction='both', expected one of image_to_text, text_to_image"),
        (dict(use=("rgb",)), "evals.a: the row has a key 'use'; there are split, modality, direction, kind, group"),
    ],
)
def test_a_row_that_cannot_be_measured_is_refused_at_once(change, message):
    data = Captioned(draw(6, 5, SENTENCES))
    with pytest.raises(ConfigError, match=message):
        runner.check({"a": row() | change}, data)
    with pytest.raises(ConfigError, match="evals.a: the row lacks the key 'direction'"):
        runner.check({"a": dict(kind="image_text", split="test", modality="rgb")}, data)
    assert not data.read


def test_pictures_and_captions_there_must_be():
    pixels = np.zeros((H, W, 3), np.uint8)
    with pytest.raises(ConfigError, match="evals.a: captions are used, and split 'test' has none; set data.text.token"):
        runner.check({"a": row()}, Captioned([({"rgb": pixels}, {})]))
    with pytest.raises(DataError, match="evals.a: split 'test' has no picture of nir"):
        runner.check({"a": row(modality="nir")}, Captioned([({"rgb": pixels}, {"nir": "red"})]))
    with pytest.raises(ConfigError, match="evals.a: captions of rgb are used, .* it has captions of nir; set"):
        runner.check({"a": row()}, Captioned([({"rgb": pixels}, {"nir": "red"})]))
    apart = [({"rgb": pixels}, {"rgb": ""}), ({"rgb": None}, {"rgb": "red"})]
    with pytest.raises(DataError, match="evals.a: no picture of rgb in split 'test' has a caption"):
        run(Captioned(apart), a=row())


def test_vectors_that_cannot_be_ranked_are_no_success():
    class Lost(Whole):
        def embed(self, variables, features, use):
            return super().embed(variables, features, use) * (float("nan") if use == ("text/rgb",) else 1)

    class TextBlind(Whole):
        def encode(self, variables, batch):
            return super().encode(variables, {key: x for key, x in batch.items() if key != "text"})

    data = Captioned(draw(7, 12, SENTENCES))
    with pytest.raises(
        DataError, match=r"evals.a: row \d+ of split 'test' has a vector of text/rgb that is zero or not"
    ):
        run(data, method=Lost(), a=row())
    with pytest.raises(ConfigError, match="evals.a: whole: cannot read text"):
        run(data, method=TextBlind(), a=row())
