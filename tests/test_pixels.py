"""Rows of kind "pixels": by their definition, beside learned rows, and what is refused."""

import jax
import numpy as np
import pytest
from brute import metrics
from conftest import load_config, open_tiny, start, tiny_config

from jax_mmreid import train
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import runner
from jax_mmreid.metrics import ranking
from jax_mmreid.ops.descriptors import DESCRIPTORS
from jax_mmreid.recipes.baselines import baselines
from jax_mmreid.recipes.missing_settings import missing_evals
from jax_mmreid.sharding import make_mesh

ALL = ("rgb", "nir", "tir")


def measure(rows, data, devices=1):
    """Results of rows that need no weights, checked before; nothing moves to a device unasked."""
    runner.check(rows, data)
    mesh = make_mesh(data=devices, model=1, devices=jax.devices()[:devices])
    with jax.transfer_guard("disallow"):
        return runner.run(rows, None, {}, data, mesh, mean=0.5, std=0.5)


def row(query, gallery, feature="gradients", **fields):
    sides = {name: dict(split="test", use=use) for name, use in (("query", query), ("gallery", gallery))}
    return dict(kind="pixels", options=dict(feature=feature), junk="same_camera", **sides) | fields


@pytest.fixture(scope="module")
def data(drawn):
    """Of every five test rows one has no RGB picture, and one RGB alone."""
    data = open_tiny(tiny_config(drawn, eta="0"))
    reader = data._find("test")
    for present in (reader.split.present, reader._present):
        present[::5, 0] = False
        present[1::5, 1:] = False
    return data


def similarity(data, feature, query, gallery):
    """[n,n] by the definition, pair by pair, in float64."""
    batches, vectors = list(data.split("test")), {}
    for m in ALL:
        images = np.concatenate([batch["images"][m][batch["valid"]] for batch in batches]) / np.float32(255)
        x = np.asarray(DESCRIPTORS[feature](images), float)
        vectors[m] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    present = data.present("test")
    n = len(present["rgb"])
    found = np.empty((n, n))
    for i, j in np.ndindex(n, n):
        q, g = ([m for m in use if present[m][row]] for use, row in ((query, i), (gallery, j)))
        both = [m for m in q if m in g]
        if not (q and g):  # such a row takes no part
            found[i, j] = np.nan
        elif both:
            found[i, j] = np.mean([vectors[m][i] @ vectors[m][j] for m in both])
        else:
            one, other = (sum(vectors[m][row] for m in own) for own, row in ((q, i), (g, j)))
            found[i, j] = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    return found


@pytest.mark.parametrize("feature", DESCRIPTORS)
@pytest.mark.parametrize("query, gallery", [(ALL, ALL), (ALL, ("nir", "tir")), (("nir",), ("tir",))])
def test_ranks_are_those_of_the_mean_cosine_of_what_both_have(data, feature, query, gallery):
    found = measure({"a": row(query, gallery, feature, incomplete="skip")}, data)["a"]
    present = data.present("test")
    some = [np.any([present[m] for m in use], axis=0) for use in (query, gallery)]
    columns = [{name: x[own] for name, x in data.columns("test").items()} for own in some]
    dist = -similarity(data, feature, query, gallery)[np.ix_(*some)]
    expected = metrics(dist.tolist(), ranking.relevance("same_camera", *columns))
    for name in ("mAP", "rank1", "rank5", "mINP"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name
    assert found["kind"] == "pixels" and 0 < found["mAP"] < 1


@pytest.mark.slow
def test_eight_devices_measure_what_one_does(data):
    rows = baselines(missing_evals(ALL, "test", "same_camera", incomplete="skip"))
    assert measure(rows, data, devices=8) == measure(rows, data)


def test_a_recipe_has_the_same_settings_and_pairs_without_learning(drawn):
    plain = missing_evals(("rgb", "tir"), "test", "none", pairs=True, options={"imputation": "zero"})
    found = baselines(plain)
    assert list(found) == [f"{feature}/{name}" for feature in DESCRIPTORS for name in plain]
    assert found["gradients/mean_missing"]["mean_of"] == ("gradients/no_r", "gradients/no_t")
    assert {key: x for key, x in found["pixels/no_r"].items() if plain["no_r"].get(key) != x} == {
        "kind": "pixels",
        "group": "pixels",
        "options": {"feature": "pixels"},
    }
    results = measure(found, open_tiny(tiny_config(drawn, modalities="rgb/tir")))
    assert results["gradients/pairs/full>full"]["mAP"] == results["gradients/full"]["mAP"]
    assert {row["kind"] for row in results.values()} == {"pixels"}
    assert results["pixels/pairs/no_r>no_t"]["pair"] == ["no_r", "no_t"]


@pytest.mark.exhaustive
def test_training_measures_what_weights_change_and_the_end_measures_all(drawn, tmp_path):
    config = tiny_config(drawn, row="A", modalities="rgb/tir", epochs=1, eval_every=1)
    with config.unlocked():
        config.evals.update(baselines(missing_evals(("rgb", "tir"), "test", "same_camera")))
    learned = runner.learned(config.evals.to_dict())
    assert list(learned) == ["full", "no_r", "no_t", "mean_missing"]
    with pytest.raises(ConfigError, match="best='pixels/full/mAP': training does not change evals.pixels/full"):
        runner.check_best("pixels/full/mAP", config.evals.to_dict())
    train.train(config, tmp_path, open_tiny(config))
    assert "pixels" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_learned_rows_are_the_same_beside_others(drawn):
    exp, data, state = start(tiny_config(drawn, row="A"))
    rows = missing_evals(ALL, "test", "same_camera")
    both = {**baselines(rows), **rows}
    runner.check_method(both, exp.phases[-1].method, exp.abstract.variables, data)
    arguments = exp.phases[-1].method, state.variables, data, exp.mesh
    alone = runner.run(rows, *arguments, mean=0.5, std=0.5)
    found = runner.run(both, *arguments, mean=0.5, std=0.5)
    assert {name: found[name] for name in rows} == alone and list(found) == list(both)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"options": {}}, "evals.a: options lacks the key 'feature'; it is one of pixels, mean_free, gradients"),
        ({"options": {"feature": "sift"}}, "evals.a: options: feature='sift': expected one of 'pixels', "),
        ({"options": {"feature": "pixels", "neck": "base"}}, "evals.a: options: the method has no option 'neck'"),
        ({"similarity": "embed"}, "evals.a: similarity belongs to rows of kind 'retrieval'; leave it out"),
        ({"rerank": {"k1": 3}}, "evals.a: rerank belongs to rows of kind 'retrieval'"),
        ({"query": {"split": "test", "use": ("uv",)}}, "evals.a: use names 'uv'"),
    ],
)
def test_a_row_that_cannot_be_measured_is_refused_at_once(data, change, message):
    with pytest.raises(ConfigError, match=message):
        runner.check({"a": row(ALL, ALL, incomplete="skip") | change}, data)


@pytest.mark.parametrize(
    "name, arg", [("manifest", ""), ("quickstart", "dataset=manifest"), ("manifest", "method=tvi_lfm")]
)
def test_configs_of_a_table_have_baselines(name, arg):
    kinds = {row.get("kind", "retrieval") for row in load_config(name, arg).evals.values() if "mean_of" not in row}
    assert kinds == {"retrieval", "pixels"}


@pytest.mark.parametrize(
    "name, arg", [("quickstart", ""), ("quickstart", "method=tvi_lfm"), ("rgbnt201", ""), ("regdb", "")]
)
def test_other_configs_have_none(name, arg):
    assert all(row.get("kind", "retrieval") == "retrieval" for row in load_config(name, arg).evals.values())
