"""Evaluation: every row from one pass over the pictures, the same on any batch size and mesh, and the table."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import build, noise, open_tiny, start, tiny_config, tiny_tvi_config
from random_run import few, named, saved_spec, write_workdir

from input_pipeline import DataConfig, load_records
from jax_mmreid import evaluate, train
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import config_hash
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import Evaluator, runner
from jax_mmreid.evaluators import encoder as encoding
from jax_mmreid.experiment import model_spec
from jax_mmreid.metrics import ranking, rerank
from jax_mmreid.report import tables

METRICS = ranking.METRICS
SIX = ("no_r", "no_n", "no_t", "no_rn", "no_rt", "no_nt")


def measure(config, variables):
    """Results of `config.evals` with weights of the same shapes, text features included."""
    data = open_tiny(config)
    exp = build(config, data)
    placed = jax.device_put(variables, jax.tree.map(lambda x: x.sharding, exp.abstract.variables))
    return run_rows_of(config, exp, placed, data)


def run_rows_of(config, exp, variables, data):
    """Results of `config.evals` by the method of the last phase."""
    rows, method = config.evals.to_dict(), exp.phases[-1].method
    return runner.run(rows, method, variables, data, exp.mesh, mean=0.5, std=0.5)


def numbers(results, names):
    return np.array([[results[name][metric] for metric in METRICS] for name in names])


@pytest.fixture(scope="module")
def tiny(drawn):
    """(config, experiment, data, state, results) of random weights."""
    config = tiny_config(drawn)
    data = open_tiny(config)
    exp = build(config, data)
    state = noise(exp.abstract)
    return config, exp, data, state, run_rows_of(config, exp, state.variables, data)


def test_results_stand_in_the_order_of_the_config(tiny):
    config, *_, results = tiny
    names = ["full", *SIX, "mean_missing"]
    assert list(results) == list(config.evals) == names + [f"zero/{name}" for name in names]


def test_every_result_is_a_fraction_and_says_what_it_was_measured_on(tiny):
    *_, results = tiny
    values = numbers(results, results)
    assert ((values >= 0) & (values <= 1)).all() and len(np.unique(values[:, 0])) > 8
    assert results["no_t"]["feature"] == "rgb+nir"
    assert results["zero/no_t"]["feature"] == "rgb+nir, imputation=zero"
    assert results["no_t"]["protocol"] == "query test, gallery test, junk same_camera"


def test_the_mean_is_that_of_the_six_missing_settings(tiny):
    *_, results = tiny
    for prefix in ("", "zero/"):
        six = numbers(results, [prefix + name for name in SIX])
        np.testing.assert_allclose(numbers(results, [prefix + "mean_missing"])[0], six.mean(axis=0), rtol=1e-12)


def test_the_full_row_needs_no_text(tiny):
    *_, results = tiny
    np.testing.assert_array_equal(numbers(results, ["full"]), numbers(results, ["zero/full"]))
    assert any(results[name]["mAP"] != results[f"zero/{name}"]["mAP"] for name in SIX)


def test_every_picture_is_encoded_once_whatever_the_number_of_rows(tiny, monkeypatch):
    config, exp, data, state, expected = tiny
    seen = []
    original = encoding.encode

    def counting(variables, batch, **settings):
        seen.extend(np.asarray(batch["index"])[np.asarray(batch["valid"])].tolist())
        return original(variables, batch, **settings)

    monkeypatch.setattr(encoding, "encode", counting)
    results = run_rows_of(config, exp, state.variables, data)
    assert seen == list(range(data.num_rows("test"))) and len(results) == 16
    assert results == expected


def test_evaluation_moves_nothing_to_a_device_unasked(tiny):
    config, exp, data, state, expected = tiny
    with jax.transfer_guard("disallow"):  # as the training loop calls it
        assert run_rows_of(config, exp, state.variables, data) == expected


@pytest.mark.parametrize("rows", [7, 64])
def test_padding_changes_nothing(tiny, drawn, rows):
    *_, state, expected = tiny
    config = few(drawn, **{"data.eval_batch_size": rows})
    results = measure(config, state.variables)
    np.testing.assert_allclose(numbers(results, config.evals), numbers(expected, config.evals), atol=1e-6)


@pytest.mark.parametrize("data, model", [(8, 1), (4, 2)])
def test_eight_devices_measure_what_one_does(tiny, drawn, data, model):
    """To the last digit, as each sees as many rows at once, unless they share the work on a row."""
    *_, state, expected = tiny
    config = few(drawn, **{"mesh.data": data, "mesh.model": model})
    results = measure(config, state.variables)
    atol = 0 if model == 1 else 1e-6
    np.testing.assert_allclose(numbers(results, config.evals), numbers(expected, config.evals), rtol=0, atol=atol)


class Fixed(Evaluator):
    """An evaluator whose result stands in its row."""

    def uses(self):
        return [("test", ("rgb",))]

    def run(self, encoder):
        return self.row["result"]


def test_rows_go_to_the_evaluator_of_their_kind_and_come_back_in_order(monkeypatch):
    a, b, c = ({"mAP": x, "protocol": "p", "feature": "f"} for x in (0.25, 0.5, 1.0))
    found = {"retrieval": type("A", (Fixed,), {}), "other": type("B", (Fixed,), {})}
    monkeypatch.setattr(runner, "find", found.get)
    other = {"kind": "other", "group": "g", "setting": "s"}
    rows = {"mean": {"mean_of": ("z", "y")}, "z": other | {"result": c}, "x": {"result": a}, "y": other | {"result": b}}
    results = runner.run(rows, None, {}, None, None, mean=0.5, std=0.5)
    assert list(results) == ["mean", "z", "x", "y"]
    assert [results[name]["mAP"] for name in results] == [0.75, 1.0, 0.25, 0.5]
    assert [results[name]["kind"] for name in results] == ["other", "other", "retrieval", "other"]
    assert results["z"]["group"] == "g" and results["z"]["setting"] == "s" and "group" not in results["x"]
    assert results["mean"]["feature"] == "mean of 2 rows" and results["mean"]["protocol"] == "p"


def test_a_row_may_be_reranked(tiny, drawn):
    _, exp, data, state, expected = tiny
    config, method = few(drawn), exp.phases[-1].method
    constants = dict(k1=4, k2=3, lam=0.25)
    with config.unlocked():
        for name in ("full", "no_rt"):
            config.evals[f"reranked/{name}"] = config.evals[name].to_dict() | {"rerank": constants}
    runner.check(config.evals.to_dict(), data)
    with jax.transfer_guard("disallow"):
        results = run_rows_of(config, exp, state.variables, data)
    assert results["full"] == expected["full"] and results["no_rt"] == expected["no_rt"]
    encoder = encoding.Encoder(
        method, state.variables, data, exp.mesh, mean=0.5, std=0.5, uses=[("test", ("rgb", "nir", "tir"))]
    )
    columns = data.columns("test")
    for name, use in (("full", ("rgb", "nir", "tir")), ("no_rt", ("nir",))):
        vectors = encoder.fetch(encoder.vectors("test", use, {}))
        blocks = rerank.rerank(vectors, vectors, **constants)
        scores = ranking.rank(blocks, ranking.relevance("same_camera", columns, columns))
        found = results[f"reranked/{name}"]
        assert {key: found[key] for key in METRICS} == {key: scores[key] for key in METRICS}
        assert found["protocol"] == results[name]["protocol"] + ", re-ranked (k1 4, k2 3, lam 0.25)"
    assert (numbers(results, ["reranked/full", "reranked/no_rt"]) != numbers(results, ["full", "no_rt"])).any()


@pytest.fixture(scope="module")
def workdir(tiny, drawn, tmp_path_factory):
    _, _, data, state, _ = tiny
    return write_workdir(tmp_path_factory.mktemp("run"), few(drawn), data, state)


def test_the_evaluator_measures_the_checkpoint_it_is_told_and_writes_it_down(drawn, workdir):
    config = few(drawn)
    with config.unlocked():
        del config.evals["no_rt"]  # rows may change after training
    data = open_tiny(config)
    last = evaluate.evaluate(config, workdir, data)
    best = evaluate.evaluate(config, workdir, data, step="best")
    assert (last["step"], best["step"]) == (9, 6)
    assert last["evals"]["full"]["mAP"] != best["evals"]["full"]["mAP"]
    for name, results in (("results", last), ("results_best", best)):
        assert json.loads((workdir / f"{name}.json").read_text()) == results
        assert (workdir / f"{name}.md").read_text() == tables.markdown(results)
    assert last["config_hash"] == config_hash(config) and set(last["evals"]) == {"full", "no_t"}
    assert last["versions"]["jax"] == jax.__version__ and last["seconds"] > 0
    by_number = evaluate.evaluate(config, workdir, data, step="6")
    assert by_number["evals"] == best["evals"]


def test_what_is_restored_measures_what_the_state_did(tiny, drawn, workdir):
    *_, expected = tiny
    config = few(drawn)
    found = evaluate.evaluate(config, workdir, open_tiny(config))["evals"]
    # Step 9 of 3 epochs lies in the first phase, before text features exist, where zeros stand in for pictures.
    assert found["full"] == expected["full"]
    for name in ("no_t", "no_rt"):
        assert numbers(found, [name]).tolist() == numbers(expected, [f"zero/{name}"]).tolist()


def test_best_needs_an_evaluation_in_training(tiny, drawn, tmp_path):
    _, _, data, state, _ = tiny
    config = few(drawn)
    train.init_workdir(tmp_path, config, data, model_spec(config, data), fresh=True)
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        evaluate.evaluate(config, tmp_path, data)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(9, state, {})
    with pytest.raises(ConfigError, match=r"no best checkpoint: nothing was evaluated in training \(eval_every\)"):
        evaluate.evaluate(config, tmp_path, data, step="best")


def test_what_is_forced_is_measured_and_says_what_differs(drawn, workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    config, other = few(drawn), few(drawn, seed=7, **{"weights.nce": 0.5})
    data = open_tiny(config)
    expected = evaluate.evaluate(config, tmp_path / "run", data, force=True)
    assert "forced" not in expected and "Forced" not in (tmp_path / "run" / "results.md").read_text()
    found = evaluate.evaluate(other, tmp_path / "run", data, force=True)
    assert found["evals"] == expected["evals"] and found["config_hash"] == config_hash(other)
    assert found["forced"] == ["seed (1111 -> 7)", "weights.nce (0.1 -> 0.5)"]
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == found
    (line,) = [x for x in (tmp_path / "run" / "results.md").read_text().splitlines() if x.startswith("Forced")]
    assert line.endswith("another config: seed (1111 -> 7); weights.nce (0.1 -> 0.5).")


def test_the_weights_that_a_config_names_are_measured_without_a_run(tiny, drawn, workdir, tmp_path):
    *_, expected = tiny
    config = named(drawn, workdir)
    found = evaluate.evaluate(config, tmp_path / "a" / "b", open_tiny(config), step="init")
    # The last phase has text features, which the weights were made for.
    for name in ("full", "no_t", "no_rt"):
        assert found["evals"][name] == expected[name]
    assert (found["step"], found["which"]) == (0, "init") and "forced" not in found
    assert sorted(x.name for x in (tmp_path / "a" / "b").iterdir()) == ["results_init.json", "results_init.md"]
    assert json.loads((tmp_path / "a" / "b" / "results_init.json").read_text()) == found
    table = (tmp_path / "a" / "b" / "results_init.md").read_text()
    assert table.startswith(f"Weights of {workdir}, config {config_hash(config)}.\n")


@pytest.fixture
def of_trial(drawn, workdir, tmp_path):
    """A function that makes a copy of the workdir into a run on trial N of a dataset."""

    def make(trial, name="synthetic"):
        folder = shutil.copytree(workdir, tmp_path / f"{name}_{trial}")
        saved = json.loads((folder / "config.json").read_text())
        saved["data"]["name"], saved["data"]["options"]["trial"] = name, trial
        saved["seed"] = 77  # which matters to nobody
        (folder / "config.json").write_text(json.dumps(saved))
        return folder

    return make


@pytest.mark.slow
def test_weights_of_another_trial_have_seen_the_test_and_must_be_forced(drawn, of_trial, tmp_path):
    config, data = few(drawn, **{"data.options.trial": 1}), open_tiny(few(drawn))
    for other in (of_trial(1), of_trial(3, "other_data")):
        config.init = str(other)
        assert "forced" not in evaluate.evaluate(config, tmp_path / "a", data, step="init")
    config.init = str(of_trial(3))
    with pytest.raises(ConfigError, match=r"config.init holds .*synthetic_3: data.options.trial \(3 -> 1\);.*--force"):
        evaluate.evaluate(config, tmp_path / "b", data, step="init")
    forced = evaluate.evaluate(config, tmp_path / "b", data, step="init", force=True)["forced"]
    assert forced == [f"{config.init}: data.options.trial (3 -> 1)"]
    assert f"another config: {forced[0]}." in (tmp_path / "b" / "results_init.md").read_text()


def test_each_of_several_places_is_looked_at(drawn, of_trial, tmp_path):
    config = few(drawn, **{"data.options.trial": 1, "init": f"{of_trial(1)},{of_trial(4)}"})
    with pytest.raises(ConfigError, match=r"synthetic_4: data.options.trial \(4 -> 1\)"):
        evaluate.evaluate(config, tmp_path / "a", open_tiny(few(drawn)), step="init")


def test_data_with_other_cameras_are_refused_and_forced_by_number(tiny, drawn, workdir, tmp_path):
    """A former defect: camera embeddings were used by position, whatever cameras the data had."""
    *_, expected = tiny
    config = few(drawn)
    shutil.copytree(workdir, tmp_path / "run")
    saved_spec(tmp_path / "run", cameras=[11, 12, 13])
    message = r"cameras of the training data \(3: 11, 12, 13 -> 3: 1, 2, 3\);.* with --force"
    with pytest.raises(ConfigError, match=message):
        evaluate.evaluate(config, tmp_path / "run", open_tiny(config))
    found = evaluate.evaluate(config, tmp_path / "run", open_tiny(config), force=True)
    assert found["forced"] == ["cameras of the training data (3: 11, 12, 13 -> 3: 1, 2, 3)"]
    assert found["evals"]["full"] != expected["full"]  # no picture gets a camera embedding


@pytest.mark.slow
def test_captions_of_witnesses_are_evaluated_without_force(drawn_sysu, tmp_path):
    """A former defect: `query_captions`, documented for evaluation, made a run "of another config"."""
    config = tiny_tvi_config(drawn_sysu)
    with config.unlocked():
        for name in set(config.evals) - {"all/ir", "all/text"}:
            del config.evals[name]
    _, data, state = start(config)
    with Checkpoints(tmp_path) as checkpoints:
        train.init_workdir(tmp_path, config, data, model_spec(config, data), fresh=True)
        checkpoints.save_frozen(state.frozen)
        checkpoints.save(9, state, {"fingerprint": data.spec.fingerprint})
    before = evaluate.evaluate(config, tmp_path, data)
    paths = load_records(DataConfig.from_dict(config.data.to_dict()))["query"].paths["ir"]
    captions = {path: f"a person with number {i % 3}" for i, path in enumerate(paths)}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    config.data.options.query_captions = str(tmp_path / "captions.json")
    after = evaluate.evaluate(config, tmp_path, open_tiny(config))
    assert "forced" not in after and after["config_hash"] == before["config_hash"]
    assert after["evals"]["all/ir"] == before["evals"]["all/ir"]
    assert after["evals"]["all/text"]["mAP"] != before["evals"]["all/text"]["mAP"]
