"""How many epochs a run has whose config gives its length in steps or in seconds (`config.length`).

Seconds become epochs once, by the measured speed of a step on this machine. What was chosen is `epochs` in the
workdir's config.json, which the same command reads when it resumes or evaluates the run.
"""

import contextlib
import json
import logging
import math
import statistics
import time

import jax
from etils.epath import PathLike

from jax_mmreid import distributed, experiment, sharding
from jax_mmreid.batch import Data
from jax_mmreid.config import ConfigDict
from jax_mmreid.errors import ConfigError
from jax_mmreid.experiment import model_spec
from jax_mmreid.paths import place
from jax_mmreid.train import compile_step, prefetch_to_device

STEPS = 10  # whose median is the speed; those before it, which may still compile or open files, do not count
FIRST = 2

log = logging.getLogger(__name__)


def from_workdir(config: ConfigDict, workdir: PathLike) -> ConfigDict:
    """The config, with the epochs that a workdir's run chose if their number is for the run to choose."""
    saved = place(workdir) / "config.json"
    if not _chosen(config) or not saved.exists():
        return config
    return _with_epochs(config, json.loads(saved.read_text())["epochs"])


def choose(config: ConfigDict, workdir: PathLike, data: Data) -> ConfigDict:
    """The config with the epochs of its `length`, rounded up from steps and down from seconds, at least one.

    Raises ConfigError for a length in both, and for seconds with several processes, which would measure apart.
    """
    length, steps = config.length, data.spec.steps_per_epoch
    if length.steps and length.seconds:
        raise ConfigError(f"config.length has steps={length.steps} and seconds={length.seconds}; set one of them to 0")
    if not _chosen(config) or (place(workdir) / "config.json").exists():
        return from_workdir(config, workdir)
    if length.steps:
        return _with_epochs(config, math.ceil(length.steps / steps))
    if distributed.is_multiprocess():
        raise ConfigError("config.length.seconds is for one process; set config.length.steps or epochs")
    begin = time.monotonic()
    seconds = step_seconds(config, data)
    # Training compiles its step again, and so has twice the time since `begin` less.
    left = length.seconds - 2 * (time.monotonic() - begin)
    epochs = max(1, int(left / (seconds * steps)))
    log.info(
        "a step takes %.3f s: %d epochs of %d steps are about %.0f of %.0f s",
        seconds, epochs, steps, epochs * steps * seconds, length.seconds,
    )  # fmt: skip
    return _with_epochs(config, epochs)


def step_seconds(config: ConfigDict, data: Data) -> float:
    """The median time of a step of the last phase, reading its batch included; the weights are random."""
    exp = experiment.build(config, model_spec(config, data), data.tokenize)
    state = exp.create(jax.device_put(jax.random.PRNGKey(config.seed), sharding.replicated(exp.mesh)))
    run, times = compile_step(config, exp, exp.phases[-1]), []
    with contextlib.closing(data.train(0, FIRST + STEPS)) as batches:
        begin = time.monotonic()
        for batch in prefetch_to_device(batches, exp.mesh):
            state, scalars = run(state, batch)
            jax.block_until_ready(scalars)
            times.append(time.monotonic() - begin)
            begin = time.monotonic()
    return statistics.median(times[FIRST:])


def _chosen(config: ConfigDict) -> bool:
    return bool(config.length.steps or config.length.seconds)


def _with_epochs(config: ConfigDict, epochs: int) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.evals = config.evals  # a copy forgets their order
    changed.epochs = epochs
    return changed
