"""Following a run that is in progress: each new checkpoint is evaluated as soon as it is complete.

results.* in the workdir are of the newest checkpoint, results_best.* of the best one that was seen, and eval/ keeps the
numbers of all, in the form of the training's own.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator

from etils.epath import Path, PathLike

from jax_mmreid import distributed, experiment
from jax_mmreid.batch import Data
from jax_mmreid.checkpoint import newest
from jax_mmreid.config import ConfigDict, config_hash, require_same
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluate import Checkpoint, load_spec, measure, restore, spec_differences, write_results
from jax_mmreid.evaluators import runner
from jax_mmreid.experiment import Experiment, model_spec
from jax_mmreid.paths import place
from jax_mmreid.report import tables
from jax_mmreid.writer import Writer

log = logging.getLogger(__name__)

POLL_SECONDS = 10.0  # between two looks


def watch(config: ConfigDict, workdir: PathLike, open_data: Callable[[], Data]) -> Iterator[dict]:
    """Evaluates the newest checkpoint of a run, then each newer one, up to that of the last step; yields the results.

    It may begin before the run does: nothing is opened or built before there is a checkpoint. A checkpoint that was
    written and deleted between two looks is left out, and a step that an earlier watcher has evaluated is not evaluated
    again. Raises ConfigError once there is a checkpoint of another config, and what `open_data` raises.
    """
    workdir = place(workdir)
    step = _await(workdir, 0)
    require_same(workdir / "config.json", config)
    data, spec = open_data(), load_spec(workdir)
    if differences := spec_differences(spec, model_spec(config, data), workdir):
        raise ConfigError(f"workdir {workdir} was trained on other data: {'; '.join(differences[:3])}")
    exp = experiment.build(config, spec, data.tokenize)
    runner.check(config.evals.to_dict(), data)
    total = exp.phases[-1].stop
    done = distributed.agree(step if _is_known(config, workdir, step) else step - 1)
    if done == step:
        log.info("step %d of %d has been evaluated before; results in %s", step, total, workdir)
    rows, active = spec.batch_size, distributed.is_writer()
    with Writer(workdir / "eval", start=done, stop=total, rows_per_step=rows, active=active) as writer:
        while done < total:
            step = _await(workdir, done)
            begin = time.monotonic()
            variables = _read(exp, workdir, step)
            if variables is None:
                continue
            results = measure(config, exp, data, Checkpoint(step, variables, "last"), workdir, begin)
            if _is_best(config, workdir, results):
                write_results(workdir, results | {"which": "best"})
            writer.write(step, runner.numbers(results["evals"]))
            write_results(workdir, results)  # at the end: it is what says that this step is done
            log.info("evaluated %s in %.1fs; results in %s", tables.what(results), results["seconds"], workdir)
            yield results
            done = step


def _await(workdir: Path, done: int) -> int:
    """The newest complete step beyond `done`, as soon as there is one; every process gets the same."""
    step = _newest(workdir)
    if step <= done:
        what = f"a checkpoint beyond step {done}" if done else "the first checkpoint of a run"
        log.info("waiting for %s in %s", what, workdir)
    while step <= done:
        time.sleep(POLL_SECONDS)
        step = _newest(workdir)
    return step


def _newest(workdir: Path) -> int:
    """The newest complete step that the first process sees, 0 while there is no run with a checkpoint."""
    return distributed.agree((newest(workdir) or 0) if (workdir / "config.json").exists() else 0)


def _read(exp: Experiment, workdir: Path, step: int) -> dict | None:
    """The variables of a step; None if the trainer has deleted it meanwhile, for there is a newer one."""
    variables, failure = None, None
    try:
        variables = restore(exp, workdir, str(step), []).variables
    except Exception as error:  # reading what is being deleted ends in errors of many types
        failure = error
    if distributed.all_true(failure is None):  # what is gone for one process may still be there for another
        return variables
    if _newest(workdir) == step and failure is not None:
        raise failure
    log.info("step %d was deleted before it was read", step)
    return None


def _is_known(config: ConfigDict, workdir: Path, step: int) -> bool:
    """Whether a watcher has ended its work on this step: it is the last in eval/, and results.json says the same."""
    history, saved = workdir / "eval" / "metrics.jsonl", workdir / "results.json"
    if not history.exists() or not saved.exists():
        return False
    lines, results = history.read_text().splitlines(keepends=True), json.loads(saved.read_text())
    if not lines or not lines[-1].endswith("\n") or json.loads(lines[-1])["step"] != step:  # none, torn, or another
        return False
    return (results["step"], results["config_hash"]) == (step, config_hash(config))


def _is_best(config: ConfigDict, workdir: Path, results: dict) -> bool:
    """Whether `config.best` is measured, and results_best.json holds no better results of this config."""
    number, saved = runner.best_metric(config.best, results["evals"]), workdir / "results_best.json"
    if number is None or not saved.exists():
        return number is not None
    old = json.loads(saved.read_text())
    best = runner.best_metric(config.best, old["evals"])
    return old["config_hash"] != results["config_hash"] or best is None or best <= number
