"""Runs and chains of runs as a notebook calls them: nothing is trained twice, and evaluation trains nothing."""

import json
import shutil
import sys

import pytest
from conftest import tiny_clip_config, tiny_config

from jax_mmreid import run
from jax_mmreid.config import config_hash, difference, to_json
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.run import Job


def with_pretraining(folder, place, **changes):
    """Miss-ReID that starts from a contrastive run in `place`, whose vocabulary it takes."""
    words = {"data.text.tokenizer": f"{place}/tokenizer", "data.text.context": 60, "model.text.context": 60}
    config = tiny_config(folder, epochs=1, **words, **{"model.text.vocab": 530, "init": f"{place}:image+text"})
    config.unlock()
    config.pretrain = dict(config=tiny_clip_config(folder, epochs=1, **changes), workdir=str(place))
    return config.lock()


@pytest.fixture
def trained(monkeypatch):
    """What is trained and evaluated, as (method, workdir), while `train_and_evaluate` only writes a workdir."""
    found = []

    def fake(config, workdir):
        found.append((config.method, config.seed, str(workdir)))
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(json.dumps(to_json(config)))
        hashes = {"config_hash": config_hash(config), "evals_hash": run.evals_hash(config)}
        results = {"step": 9, "steps": 9, "evals": {"full": {"mAP": config.seed}}} | hashes
        (workdir / "results.json").write_text(json.dumps(results))
        return results

    monkeypatch.setattr(run, "train_and_evaluate", fake)
    monkeypatch.setattr(run.jax, "clear_caches", lambda: None)  # other tests need theirs
    return found


def test_a_chain_runs_what_is_not_finished_and_returns_all_results(trained, tmp_path):
    jobs = [Job(tiny_config("data", seed=seed), tmp_path / str(seed)) for seed in (1, 2, 3)]
    results = run.chain(jobs)
    assert [one["evals"]["full"]["mAP"] for one in results] == [1, 2, 3] and len(trained) == 3
    assert run.chain(jobs) == results and len(trained) == 3
    shutil.rmtree(tmp_path / "2")
    assert run.chain(jobs) == results and trained[3:] == [("miss_reid", 2, str(tmp_path / "2"))]
    with jobs[0].config.unlocked():
        del jobs[0].config.evals["no_r"]  # other rows of evaluation: it is evaluated again
    run.chain(jobs)
    assert trained[4:] == [("miss_reid", 1, str(tmp_path / "1"))]


def test_a_workdir_of_another_run_is_refused(trained, tmp_path):
    run.chain([Job(tiny_config("data"), tmp_path / "a")])
    with pytest.raises(ConfigError, match=r"a holds a run of another config: seed \(1111 -> 7\)"):
        run.chain([Job(tiny_config("data", seed=7), tmp_path / "a")])


def test_a_run_in_progress_is_not_finished(trained, tmp_path):
    job = Job(tiny_config("data"), tmp_path / "a")
    assert not run.is_finished(job)
    run.chain([job])
    assert run.is_finished(job)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    (tmp_path / "a" / "results.json").write_text(json.dumps(results | {"step": 6}))  # as a watcher writes it
    assert not run.is_finished(job)


@pytest.mark.slow
def test_the_run_that_another_starts_from_is_trained_once(drawn, tmp_path, monkeypatch):
    place = tmp_path / "before"
    config = with_pretraining(drawn, place)
    first = run.train_and_evaluate(config, tmp_path / "a")
    before = (place / "results.json").read_text()
    assert json.loads(before)["evals"]["rgb/image_to_text"]["captions"] > 1 and "full" in first["evals"]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["pretrain"]["config"]["method"] == "clip"
    run.train_and_evaluate(config, tmp_path / "b")
    assert (place / "results.json").read_text() == before
    # What it started from may be deleted: the workdir keeps the vocabulary.
    shutil.rmtree(place)
    assert run.evaluate(config, tmp_path / "a")["evals"] == first["evals"]


def test_evaluation_trains_nothing(drawn, tmp_path, monkeypatch):
    """A former defect: --mode=eval trained config.pretrain where its folder was absent."""
    monkeypatch.setattr(run.training, "train", lambda *_: pytest.fail("evaluation trains"))
    config = with_pretraining(drawn, tmp_path / "before")
    with pytest.raises((ConfigError, DataError)):
        run.evaluate(config, tmp_path / "a")
    assert not (tmp_path / "before").exists()


def test_where_it_runs_may_change_and_what_it_is_may_not():
    config, other = (with_pretraining("data", "before") for _ in range(2))
    with other.unlocked():
        other.pretrain.config.mesh.data = 2
        other.pretrain.config.data.threads = 9
    assert config_hash(config) == config_hash(other) and not difference(to_json(config), other)
    with other.unlocked():
        other.pretrain.config.epochs = 5
    assert config_hash(config) != config_hash(other)
    assert difference(to_json(config), other) == ["pretrain.config.epochs (1 -> 5)"]


def test_a_run_needs_no_flags_and_plans_without_data(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ipykernel", "--config=nothing", "-f", "kernel.json"])
    config = tiny_config("nowhere", row="A")
    config.data.options.update(num_train_ids=96)
    assert "96 training identities" in run.plan(config)
