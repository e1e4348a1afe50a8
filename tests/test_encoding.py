"""What an evaluation costs: rows that go through towers, counted as the programs run, transfers, and memory."""

import dataclasses
import gc
import weakref
from collections import Counter

import jax
import numpy as np
import pytest
from conftest import build, noise, open_tiny, tiny_config

from jax_mmreid import distributed
from jax_mmreid.evaluators import encoder as encoding
from jax_mmreid.evaluators import runner
from jax_mmreid.metrics import vectors
from jax_mmreid.models.language import Language
from jax_mmreid.models.shared_tower import SharedTower
from jax_mmreid.recipes.missing_settings import missing_evals
from jax_mmreid.sharding import make_mesh

# Multiply-adds of a picture and of a sentence at full size; --mode=plan prints them for three of each.
PICTURE, SENTENCE = 34.017574 / 3, 2.051162 / 3
MODALITIES = ("rgb", "nir", "tir")


@pytest.fixture
def counts(monkeypatch):
    """How many rows have gone through which tower."""
    seen = Counter()

    def counting(original, name, rows):
        def counted(*args, **kw):
            number = rows(*args)
            jax.debug.callback(lambda: seen.update({name: number}))
            return original(*args, **kw)

        return counted

    pictures = counting(
        SharedTower.forward, "pictures", lambda self, params, batch, names: len(batch["index"]) * len(names)
    )
    monkeypatch.setattr(SharedTower, "forward", pictures)
    monkeypatch.setattr(Language, "_read", counting(Language._read, "sentences", lambda self, params, x: len(x)))
    for name in ("encode", "impute", "embed"):
        original = getattr(encoding, name).__wrapped__
        # Compiled anew, so that the counters are in the program.
        function = jax.jit(lambda *args, original=original, **kw: original(*args, **kw), static_argnames=STATIC)
        monkeypatch.setattr(encoding, name, function)
    return seen


STATIC = ("method", "devices", "part_rows", "use", "form", "mean", "std")
LEVELS = dict(mean=0.5, std=0.5)


@pytest.fixture(scope="module")
def model(drawn):
    """(method with text features, variables, data, mesh) of random weights."""
    config = tiny_config(drawn, **{"data.eval_batch_size": 10})  # 30 test rows, none of them padding
    data = open_tiny(config)
    exp = build(config, data)
    return exp.phases[-1].method, noise(exp.abstract.variables), data, exp.mesh


def work(model, counts, rows):
    """(pictures, sentences) per row of the split, and multiply-adds per row at full size, to evaluate `rows`."""
    method, variables, data, mesh = model
    counts.clear()
    runner.run(rows, method, variables, data, mesh, **LEVELS)
    jax.effects_barrier()
    pictures, sentences = (counts[name] / data.num_rows("test") for name in ("pictures", "sentences"))
    return pictures, sentences, pictures * PICTURE + sentences * SENTENCE


def settings(*imputations, **more):
    """The seven settings and their mean, with text features and as each of `imputations`."""
    kinds = {"": {}} | {name: {"imputation": name} for name in imputations}
    rows = [missing_evals(MODALITIES, "test", "same_camera", name, options=x, **more) for name, x in kinds.items()]
    return {name: row for some in rows for name, row in some.items()}


def test_seven_settings_and_49_pairs_cost_little_more_than_one(model, counts):
    seven, pairs = settings(), settings(pairs=True)
    one = work(model, counts, {"full": seven["full"]})
    assert one[:2] == (3, 0)
    all_settings, all_pairs = work(model, counts, seven), work(model, counts, pairs)
    # A sentence for each missing modality of the six: 1 + 1 + 1 + 2 + 2 + 2.
    assert all_settings[:2] == all_pairs[:2] == (3, 9)
    assert all_settings[2] < 1.3 * one[2] and all_pairs[2] < 1.5 * one[2]


def test_kinds_of_imputation_share_pictures_and_sentences(model, counts):
    assert work(model, counts, settings("zero", pairs=True))[:2] == (3, 9)
    assert work(model, counts, settings("zero", "alone"))[:2] == (3, 9 + 3)  # alone, complete rows have f~ of all three
    zero = {name: row for name, row in settings("zero").items() if name.startswith("zero/")}
    assert work(model, counts, zero)[:2] == (3, 0)


def test_what_no_row_uses_is_not_encoded(model, counts):
    rows = settings()
    assert work(model, counts, {"no_rt": rows["no_rt"]})[:2] == (1, 2)
    assert work(model, counts, {"no_r": rows["no_r"], "no_rt": rows["no_rt"]})[:2] == (2, 3)


@pytest.mark.parametrize("imputation", ["text", "alone", "zero"])
@pytest.mark.parametrize("use", [("rgb",), MODALITIES])
def test_what_is_imputed_apart_is_what_embed_makes_at_once(model, imputation, use):
    method, variables, data, mesh = model
    encoder = encoding.Encoder(method, variables, data, mesh, **LEVELS, uses=[("test", MODALITIES)])
    for other in ("text", "alone", "zero"):  # what others left behind changes nothing
        encoder.vectors("test", use, {"imputation": other})
    changed = dataclasses.replace(method, imputation=imputation)
    encoded = encoder._encoded(encoding.Side("test", ()))
    once = [changed.embed(variables, features, use) for features in encoded.features]
    found = encoder.fetch(encoder.vectors("test", use, {"imputation": imputation}))
    np.testing.assert_allclose(found, np.concatenate(once), atol=1e-6)


@pytest.fixture
def moved(monkeypatch):
    """The shapes of float arrays that travel between host and devices during an evaluation."""
    shapes = []

    def watching(place, name, argument):
        original = getattr(place, name)

        def watched(*args, **kw):
            leaves = jax.tree.leaves(args[argument])
            shapes.extend(x.shape for x in leaves if np.issubdtype(x.dtype, np.floating) and moves(name, x))
            return original(*args, **kw)

        monkeypatch.setattr(place, name, watched)

    def moves(name, x):
        return name != "device_put" or isinstance(x, np.ndarray)

    watching(distributed, "gather", 0)
    watching(vectors, "put", 0)
    for name in ("device_put", "device_get"):
        watching(jax, name, 0)
    return shapes


def test_features_and_vectors_stay_on_the_devices_while_they_fit(model, moved, monkeypatch):
    """Re-ranked or not, on one device or five: the same results as those that went over the host."""
    method, variables, data, _ = model
    width = method.config.dim
    rows = settings("zero") | settings(rerank=dict(k1=3, k2=2, lam=0.3))
    rows = {name: rows[name] for name in ("full", "no_rt", "zero/no_r")}
    found = {}
    for devices in (1, 5):
        mesh = make_mesh(data=devices, model=1, devices=jax.devices()[:devices])
        placed = jax.device_put(variables, jax.NamedSharding(mesh, jax.P()))
        for kept in (1 << 30, 0):
            monkeypatch.setattr(encoding, "KEPT_BYTES", kept)
            moved.clear()
            found[devices, kept] = runner.run(rows, method, placed, data, mesh, **LEVELS)
            wide = [shape for shape in moved if len(shape) > 1 and shape[-1] in (width, 3 * width)]
            assert bool(wide) == (kept == 0), (devices, kept, wide)
    assert found[1, 0] == found[1, 1 << 30]
    assert found[5, 0] == found[5, 1 << 30]


def test_what_an_encoder_holds_goes_with_it(model):
    """Without waiting for a collection of cycles: a watcher has the next weights beside these."""
    method, variables, data, mesh = model
    variables = jax.tree.map(jax.numpy.copy, variables)
    encoder = encoding.Encoder(method, variables, data, mesh, **LEVELS, uses=[("test", MODALITIES)])
    found = encoder.vectors("test", ("rgb",), {})
    arrays = [weakref.ref(x) for x in (jax.tree.leaves(variables)[0], found.array, encoder)]
    arrays += [weakref.ref(x) for x in jax.tree.leaves(encoder._encoded(encoding.Side("test", ())).features)]
    gc.collect()
    gc.disable()
    try:
        del encoder, variables, found
        assert [ref for ref in arrays if ref() is not None] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("use", [("rgb",), MODALITIES])
def test_a_batch_of_one_part_gives_the_bits_of_a_whole_batch(model, use):
    """What a single picture becomes, when a tower sees it with as many others as in evaluation."""
    method, variables, data, mesh = model
    batch = next(iter(data.split("test")))
    batch = {key: batch[key] for key in ("images", "present", "camid", "index", "valid")}
    batch = jax.tree.map(lambda x: np.concatenate([x] * 4)[:32], batch)  # eight parts of 4

    def embedded(batch, part_rows):
        settings = dict(devices=1, part_rows=part_rows)
        features = encoding.encode(variables, batch, method=method, **settings, **LEVELS)
        imputer = method.imputer(use)
        if imputer:
            used = np.array([m in use for m in MODALITIES])
            features = encoding.impute(variables, features, used, method=imputer, **settings)
        return np.asarray(encoding.embed(variables, features, method=method, use=use, **settings))

    whole = embedded(batch, encoding.rows_at_once(32, 1))
    for start in (0, 12, 28):
        part = embedded(jax.tree.map(lambda x: x[start : start + 4], batch), 4)  # noqa: B023
        np.testing.assert_array_equal(part, whole[start : start + 4])
