"""The length of a run in steps or seconds: chosen once, kept in the workdir, and the same config otherwise."""

import json
from types import SimpleNamespace

import pytest
from conftest import tiny_config

from jax_mmreid import run, run_length
from jax_mmreid.config import to_json
from jax_mmreid.errors import ConfigError


def data(steps):
    return SimpleNamespace(spec=SimpleNamespace(steps_per_epoch=steps))


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (10, 1), (11, 2), (95, 10)])
def test_steps_are_rounded_up_to_epochs(tmp_path, steps, epochs):
    config = tiny_config("data", **{"length.steps": steps, "epochs": 3})
    chosen = run_length.choose(config, tmp_path, data(10))
    assert chosen.epochs == epochs and list(chosen.evals) == list(config.evals)
    assert config.epochs == 3  # the caller's is as it was


def test_seconds_are_rounded_down_to_epochs_by_the_measured_speed(tmp_path, monkeypatch):
    now = [0.0]

    def measured(config, data):
        now[0] += 4  # what measuring takes, and training takes again
        return 0.5

    monkeypatch.setattr(run_length, "step_seconds", measured)
    monkeypatch.setattr(run_length.time, "monotonic", lambda: now[0])
    for seconds, epochs in ((30, 4), (33, 5), (1, 1)):
        config = tiny_config("data", **{"length.seconds": float(seconds)})
        assert run_length.choose(config, tmp_path, data(10)).epochs == epochs


def test_a_run_keeps_the_epochs_that_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(run_length, "step_seconds", lambda config, data: 1 / 0)
    config = tiny_config("data", **{"length.seconds": 60.0})
    begun = tiny_config("data", **{"length.seconds": 60.0, "epochs": 17})
    (tmp_path / "config.json").write_text(json.dumps(to_json(begun)))
    assert run_length.choose(config, tmp_path, data(10)).epochs == 17
    assert run_length.from_workdir(config, tmp_path).epochs == 17
    assert run_length.from_workdir(tiny_config("data", epochs=5), tmp_path).epochs == 5


def test_two_lengths_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config.length has steps=5 and seconds=9.0; set one of them to 0"):
        run_length.choose(tiny_config("data", **{"length.steps": 5, "length.seconds": 9.0}), tmp_path, data(10))


@pytest.mark.slow
def test_a_run_of_some_seconds_resumes_and_is_evaluated_by_the_same_config(drawn, tmp_path):
    config = tiny_config(drawn, row="A", **{"length.seconds": 0.1, "epochs": 9, "model.image.layers": 1})
    results = run.train_and_evaluate(config, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["epochs"] == 1
    assert results["step"] == results["steps"] == 9  # an epoch
    assert run.is_finished(run.Job(config, tmp_path / "a"))
    assert run.evaluate(config, tmp_path / "a")["evals"] == results["evals"]
