"""What an evaluation costs: pictures and sentences that go through their towers, counted as the programs run."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
from conftest import noise, open_tiny, tiny_config

from jax_mmreid import evaluators, experiment
from jax_mmreid.config import missing_evals
from jax_mmreid.evaluators import encoder as encoding
from jax_mmreid.methods.miss_reid import MissReID
from jax_mmreid.models.language import Language

# Multiply-adds of a picture and of a sentence at full size; --mode=plan prints them for three of each.
PICTURE, SENTENCE = 34.017574 / 3, 2.051162 / 3
MODALITIES = ("rgb", "nir", "tir")


@pytest.fixture
def counts(monkeypatch):
    """How many rows have gone through which tower."""
    seen = Counter()

    def counting(original, name, rows):
        def counted(*args):
            number = rows(*args)
            jax.debug.callback(lambda: seen.update({name: number}))
            return original(*args)

        return counted

    pictures = counting(
        MissReID._towers, "pictures", lambda self, params, batch: sum(map(len, batch["images"].values()))
    )
    monkeypatch.setattr(MissReID, "_towers", pictures)
    monkeypatch.setattr(Language, "_read", counting(Language._read, "sentences", lambda self, params, x: len(x)))
    for name in ("_encode", "_complete", "_embed"):
        original = getattr(encoding, name).__wrapped__
        # Compiled anew, so that the counters are in the program.
        function = jax.jit(lambda *args, original=original, **kw: original(*args, **kw), static_argnames=STATIC)
        monkeypatch.setattr(encoding, name, function)
    return seen


STATIC = ("method", "devices", "use", "mean", "std")


@pytest.fixture(scope="module")
def model(drawn):
    """(config, method with text features, variables, data, mesh) of random weights."""
    config = tiny_config(drawn, **{"data.eval_batch_size": 10})  # 30 test rows, none of them padding
    data = open_tiny(config)
    exp = experiment.build(config, data)
    return config, exp.phases[-1].method, noise(exp.abstract.variables), data, exp.mesh


def work(model, counts, rows):
    """(pictures, sentences) per row of the split, and multiply-adds per row at full size, to evaluate `rows`."""
    config, method, variables, data, mesh = model
    with config.unlocked():
        config.evals = rows
    counts.clear()
    evaluators.run(config, method, variables, data, mesh)
    jax.effects_barrier()
    pictures, sentences = (counts[name] / data.num_rows("test") for name in ("pictures", "sentences"))
    return pictures, sentences, pictures * PICTURE + sentences * SENTENCE


def settings(*completions, **more):
    """The seven settings and their mean, with text features and as each of `completions`."""
    kinds = {"": {}} | {f"{name}/": {"completion": name} for name in completions}
    rows = [
        missing_evals(MODALITIES, "test", "same_camera", prefix, options, **more) for prefix, options in kinds.items()
    ]
    return {name: row for some in rows for name, row in some.items()}


def test_seven_settings_and_49_pairs_cost_little_more_than_one(model, counts):
    seven, pairs = settings(), settings(pairs=True)
    one = work(model, counts, {"full": seven["full"]})
    assert one[:2] == (3, 0)
    all_settings, all_pairs = work(model, counts, seven), work(model, counts, pairs)
    # A sentence for each missing modality of the six: 1 + 1 + 1 + 2 + 2 + 2.
    assert all_settings[:2] == all_pairs[:2] == (3, 9)
    assert all_settings[2] < 1.3 * one[2] and all_pairs[2] < 1.5 * one[2]


def test_kinds_of_completion_share_pictures_and_sentences(model, counts):
    assert work(model, counts, settings("zero", pairs=True))[:2] == (3, 9)
    assert work(model, counts, settings("zero", "alone"))[:2] == (3, 9 + 3)  # alone, complete rows have f~ of all three
    zero = {name: row for name, row in settings("zero").items() if name.startswith("zero/")}
    assert work(model, counts, zero)[:2] == (3, 0)


def test_what_no_row_uses_is_not_encoded(model, counts):
    rows = settings()
    assert work(model, counts, {"no_rt": rows["no_rt"]})[:2] == (1, 2)
    assert work(model, counts, {"no_r": rows["no_r"], "no_rt": rows["no_rt"]})[:2] == (2, 3)


@pytest.mark.parametrize("completion", ["text", "alone", "zero"])
@pytest.mark.parametrize("use", [("rgb",), MODALITIES])
def test_what_is_completed_apart_is_what_embed_makes_at_once(model, completion, use):
    _, method, variables, data, mesh = model
    encoder = encoding.Encoder(method, variables, data, mesh, mean=0.5, std=0.5, uses=[("test", MODALITIES)])
    for other in ("text", "alone", "zero"):  # what others left behind changes nothing
        encoder.vectors("test", use, {"completion": other})
    changed = dataclasses.replace(method, completion=completion)
    once = [changed.embed(variables, features, use) for features in encoder.split("test").features]
    np.testing.assert_allclose(
        encoder.vectors("test", use, {"completion": completion}), np.concatenate(once), atol=1e-6
    )
