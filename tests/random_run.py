"""A workdir as training leaves it, with random weights and a config of few rows, for tests of evaluation."""

import json

import jax
from conftest import tiny_config

from jax_mmreid import train
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.experiment import model_spec


def few(folder, **changes):
    """Three rows, in two of which text features stand in for pictures; `changes` as in tiny_config."""
    config = tiny_config(folder, **changes)
    with config.unlocked():
        for name in set(config.evals) - {"full", "no_t", "no_rt"}:
            del config.evals[name]
    return config


def write_workdir(folder, config, data, state):
    """Writes checkpoints of steps 6 (the best, other weights) and 9 (the last, those of `state`); returns `folder`."""
    with Checkpoints(folder) as checkpoints:
        train.init_workdir(folder, config, data, model_spec(config, data), fresh=True)
        checkpoints.save_frozen(state.frozen)
        other = state.replace(params=jax.tree.map(lambda x: -x, state.params))
        for step, best_metric, it in ((6, 0.9, other), (9, 0.4, state)):
            checkpoints.save(step, it, {"fingerprint": data.spec.fingerprint}, best_metric)
    return folder


def named(folder, workdir, **changes):
    """`few`, with the workdir as the weights to start from."""
    return few(folder, init=str(workdir), **changes)


def saved_spec(workdir, **changes):
    """Writes other numbers into the data spec of a workdir."""
    path = workdir / "data_spec.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
