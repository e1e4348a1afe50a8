"""Pictures to captions and back, against a loop over sorted candidates."""

from collections import Counter

import numpy as np
import pytest
from captioned import LEVELS, Captioned, H, W, Whole, caption, draw, picture, run

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import encoder, image_text

SENTENCES = ("a man", "a man in red", "a woman", "man a", "a man in red hat", "a woman in blue", "hat")
DIRECTIONS = ("image_to_text", "text_to_image")


def row(direction="image_to_text", modality="rgb", **more):
    return dict(kind="image_text", split="test", modality=modality, direction=direction) | more


def both(modality="rgb"):
    return {f"{modality}/{direction}": row(direction, modality) for direction in DIRECTIONS}


def loop(rows, modality, direction):
    """The ranks by the definition, one query at a time."""
    pairs = [(picture(p[modality]), said[modality]) for p, said in rows if p[modality] is not None and said[modality]]
    pictures, said = [x for x, _ in pairs], [x for _, x in pairs]
    sentences = list(dict.fromkeys(said))
    captions = [caption(x) for x in sentences]
    if direction == "image_to_text":
        queries = [(x, captions, [sentences.index(s)]) for x, s in pairs]
    else:
        queries = [(caption(s), pictures, [i for i, x in enumerate(said) if x == s]) for s in sentences]
    ranks, chances = [], []
    for query, candidates, right in queries:
        ranked = sorted(range(len(candidates)), key=lambda i: (-float(query @ candidates[i]), i))
        ranks.append(1 + min(ranked.index(i) for i in right))
        chances.append(len(right) / len(candidates))
    return np.array(ranks), np.mean(chances), len(pictures), len(sentences)


@pytest.mark.parametrize("seed", range(12))
def test_every_number_is_that_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    rows = draw(seed, int(rng.integers(5, 40)), SENTENCES[: rng.integers(2, 8)], absent=0.3, untold=0.3)
    results = run(image_text, Captioned(rows), **both(), **both("nir"))
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
    results = run(image_text, Captioned(rows), **both())
    ranks = {name: loop(rows, *name.split("/"))[0] for name in results}
    assert ranks["rgb/text_to_image"].tolist() == [1, 3]  # the first red one, the first blue one
    for name, result in results.items():
        assert result["rank1"] == np.mean(ranks[name] == 1) and result["median_rank"] == np.median(ranks[name])


def test_chance_is_what_noise_gets_on_average():
    rng, sentences = np.random.default_rng(0), SENTENCES
    firsts = []
    for seed in range(60):
        rows = draw(seed, 60, sentences, absent=0, untold=0)
        noise = Captioned([({"rgb": rng.integers(0, LEVELS, (H, W, 3)).astype(np.uint8)}, said) for _, said in rows])
        firsts.append([result["rank1"] - result["chance"] for result in run(image_text, noise, **both()).values()])
    np.testing.assert_allclose(np.mean(firsts, axis=0), 0, atol=0.05)


@pytest.mark.parametrize("batch", [5, 16, 64])
def test_padding_changes_nothing(batch):
    rows = draw(1, 30, SENTENCES)
    expected = run(image_text, Captioned(rows, batch=1), **both())
    assert run(image_text, Captioned(rows, batch=batch), **both()) == expected


def test_eight_devices_measure_what_one_does():
    data = Captioned(draw(2, 30, SENTENCES))
    rows = both() | both("nir")
    assert run(image_text, data, devices=8, **rows) == run(image_text, data, devices=1, **rows)


def test_pictures_and_captions_are_encoded_once_for_both_directions(monkeypatch):
    calls, data = Counter(), Captioned(draw(3, 20, SENTENCES))
    for name in ("_encode", "_embed"):
        original = getattr(encoder, name)

        def counting(*args, name=name, original=original, **settings):
            calls[name] += 1
            return original(*args, **settings)

        monkeypatch.setattr(encoder, name, counting)
    run(image_text, data, **both(), again=row(), **both("nir"))
    assert data.read == {"test": 3}
    assert calls == {"_encode": 3, "_embed": 4 * 3}  # pictures and captions of two modalities


def test_the_method_sees_one_modality_and_its_captions():
    seen = []

    class Watching(Whole):
        def encode(self, variables, batch):
            seen.append({key: sorted(batch[key]) for key in ("images", "present", "text")})
            return super().encode(variables, batch)

    run(image_text, Captioned(draw(4, 8, SENTENCES)), method=Watching(), **both("nir"))
    assert seen == [{"images": ["nir"], "present": ["nir", "text"], "text": ["nir"]}]


def test_a_result_says_what_it_was_measured_on():
    results = run(image_text, Captioned(draw(5, 20, SENTENCES)), **both("nir"))
    there, back = results.values()
    assert (there["protocol"], there["feature"]) == ("split test, image to text", "nir>text")
    assert (back["protocol"], back["feature"]) == ("split test, text to image", "text>nir")
    left_out = there["left_out"]
    assert image_text.note(row(), there) == f"leaves out {left_out} pictures, of which nothing is said." and left_out
    assert image_text.note(row(), there | {"left_out": 0}) == ""
    assert image_text.note({}, {"rank1": 0.5}) == ""  # a mean
    assert set(image_text.COLUMNS.values()) < set(there) and set(image_text.NOT_FRACTIONS) < set(there)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(split="query"), "evals.a: data: no split 'query'; there are test"),
        (dict(modality="tir"), r"evals.a: modality='tir', data.modalities are \('rgb', 'nir'\)"),
        (dict(direction="both"), "evals.a: direction='both', expected one of image_to_text, text_to_image"),
        (dict(use=("rgb",)), "evals.a has a key 'use'; there are split, modality, direction, kind"),
    ],
)
def test_a_row_that_cannot_be_measured_is_refused_at_once(change, message):
    data = Captioned(draw(6, 5, SENTENCES))
    with pytest.raises(ConfigError, match=message):
        image_text.check("a", row() | change, data)
    with pytest.raises(ConfigError, match="evals.a lacks the key 'direction'"):
        image_text.check("a", dict(split="test", modality="rgb"), data)
    assert not data.read


def test_pictures_and_captions_there_must_be():
    pixels = np.zeros((H, W, 3), np.uint8)
    with pytest.raises(ConfigError, match="evals.a uses text, of which split 'test' has none; .* or take this row"):
        image_text.check("a", row(), Captioned([({"rgb": pixels}, {})]))
    with pytest.raises(DataError, match="evals.a: split 'test' has no picture of nir"):
        image_text.check("a", row(modality="nir"), Captioned([({"rgb": pixels}, {"nir": "red"})]))
    with pytest.raises(ConfigError, match="evals.a: captions describe nir, not rgb"):
        run(image_text, Captioned([({"rgb": pixels}, {"nir": "red"})]), a=row())
    apart = [({"rgb": pixels}, {"rgb": ""}), ({"rgb": None}, {"rgb": "red"})]
    with pytest.raises(DataError, match="evals.a: no picture of rgb in split 'test' has a caption of it"):
        run(image_text, Captioned(apart), a=row())


def test_vectors_that_cannot_be_ranked_are_no_success():
    class Lost(Whole):
        def embed(self, variables, features, use):
            return super().embed(variables, features, use) * (float("nan") if use == ("text/rgb",) else 1)

    class Deaf(Whole):
        def encode(self, variables, batch):
            return super().encode(variables, {key: x for key, x in batch.items() if key != "text"})

    data = Captioned(draw(7, 12, SENTENCES))
    with pytest.raises(DataError, match="evals.a: the vector of a picture or caption is zero or not finite"):
        run(image_text, data, method=Lost(), a=row())
    with pytest.raises(ConfigError, match="evals.a: whole: cannot read text"):
        run(image_text, data, method=Deaf(), a=row())
