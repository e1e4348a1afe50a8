"""A run that saves when a test tells it to, and what happens while its watcher sleeps, for tests of the watcher."""

import json
import time
from types import SimpleNamespace

import pytest
from conftest import build, noise, open_tiny, tiny_config

from jax_mmreid import evaluate, experiment, train, watch
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import config_hash


def few(folder, **changes):
    """A method without text and two rows of evaluation; `changes` as in tiny_config."""
    config = tiny_config(folder, row="A", **changes)
    with config.unlocked():
        for name in set(config.evals) - {"full", "no_t"}:
            del config.evals[name]
    return config


def opened(folder):
    """(config, data, experiment)."""
    config = few(folder)
    data = open_tiny(config)
    return config, data, build(config, data)


_experiments = {}


def build_once(monkeypatch):
    """Watchers and evaluations of one config share an experiment, which takes longer to build than to use."""
    original = experiment.build

    def build(config, *args, **options):
        key = config_hash(config)
        if key not in _experiments:
            _experiments[key] = original(config, *args, **options)
        return _experiments[key]

    monkeypatch.setattr(experiment, "build", build)


class Run:
    """A run that saves when a test tells it to; the weights of a step are a function of the step."""

    def __init__(self, workdir, config, data, exp):
        self.workdir, self.config, self.data, self.exp = workdir, config, data, exp
        self.total = exp.phases[-1].stop

    def init_workdir(self, config=None):
        self.workdir.mkdir(parents=True)
        train.init_workdir(self.workdir, config or self.config, self.data, self.exp.spec, fresh=True)

    def save(self, *steps):
        for step in steps:
            with Checkpoints(self.workdir) as checkpoints:
                checkpoints.save(step, noise(self.exp.abstract, seed=step), {})

    def watch(self, config=None):
        return watch.watch(config or self.config, self.workdir, lambda: self.data)

    def evaluate(self):
        return evaluate.evaluate(self.config, self.workdir, self.data)

    def history(self):
        return [json.loads(line) for line in (self.workdir / "eval" / "metrics.jsonl").read_text().splitlines()]

    def results(self, name="results"):
        return json.loads((self.workdir / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def tiny(drawn):
    return opened(drawn)


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    build_once(monkeypatch)
    return Run(tmp_path / "run", *tiny)


@pytest.fixture
def meanwhile(monkeypatch):
    """A list of what happens while the watcher sleeps, one entry each time; it may not sleep more often."""
    script = []
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: script.pop(0)()))
    return script
