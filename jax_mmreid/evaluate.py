"""The evaluator as a process of its own: a checkpoint's model, without its optimizer, against `config.evals`.

Writes results.json and results.md (results_best.* for the best checkpoint, results_init.* for the weights that
`config.init` names) into the workdir. A watcher follows a run that is going on: results.* are of the newest checkpoint,
results_best.* of the best one that it has seen, and eval/ keeps the numbers of all, in the form of the training's own.
"""

import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from jax_mmreid import __version__, evaluators, experiment, sharding
from jax_mmreid.batch import Data
from jax_mmreid.checkpoint import Checkpoints, newest
from jax_mmreid.config import ConfigDict, config_hash, difference, require_same
from jax_mmreid.errors import ConfigError
from jax_mmreid.experiment import Experiment
from jax_mmreid.report import tables
from jax_mmreid.weights import init as weights_init
from jax_mmreid.writer import Writer

log = logging.getLogger(__name__)

PACKAGES = ("jax", "flax", "numpy")
FILES = {"best": "results_best", "init": "results_init"}  # by step; "results" for any other
POLL_SECONDS = 10.0  # between two looks of a watcher


def evaluate(config: ConfigDict, workdir: str | Path, data: Data, step: str = "last", force: bool = False) -> dict:
    """Evaluates a checkpoint of a workdir, or with `step` "init" the weights of `config.init`; returns what it writes.

    `step` is "last", "best", a number or "init", which makes the workdir if there is none. `force` evaluates a
    checkpoint although it is of another config; the result then says what differs. Raises ConfigError if the workdir
    has no such checkpoint or belongs to another config, DataError for weights that leave out a part of the method.
    """
    begin = time.monotonic()
    workdir = Path(workdir)
    differences = _init_differences(config, workdir) if step == "init" else _differences(config, workdir)
    if differences and not force:
        what, other = f"workdir {workdir}", "choose another --workdir"
        if step == "init":
            what, other = "config.init", "name other weights"
        raise ConfigError(
            f"{what} holds a run of another config: {'; '.join(differences[:3])}; {other}, or evaluate it all the same "
            "with --force"
        )
    exp = experiment.build(config, data)
    evaluators.check(config, data)
    number, variables = _from_init(config, exp, data) if step == "init" else _restore(exp, workdir, step, differences)
    results = _measure(config, exp, data, number, variables, step, begin)
    results |= {"forced": differences} if differences else {}
    _write(config, workdir, results)
    log.info("evaluated %s in %.1fs; results in %s", tables.what(config, results), results["seconds"], workdir)
    return results


def watch(config: ConfigDict, workdir: str | Path, open_data: Callable[[], Data]) -> Iterator[dict]:
    """Evaluates the newest checkpoint of a run, then each newer one, up to that of the last step; yields the results.

    It may begin before the run does: nothing is opened or built before there is a checkpoint. What came and went
    between two looks is left out, and a step that an earlier watcher has evaluated is not evaluated again. Raises
    ConfigError once there is a checkpoint of another config, and what `open_data` raises.
    """
    workdir, first = Path(workdir), jax.process_index() == 0
    step = _await(workdir, 0)
    require_same(workdir / "config.json", config)
    data = open_data()
    exp = experiment.build(config, data)
    evaluators.check(config, data)
    total = exp.phases[-1].stop
    done = _agreed(step if _is_known(config, workdir, step) else step - 1)
    if done == step:
        log.info("step %d of %d has been evaluated before; results in %s", step, total, workdir)
    with Writer(workdir / "eval", start=done, stop=total, rows_per_step=data.spec.batch_size, active=first) as writer:
        while done < total:
            step = _await(workdir, done)
            begin = time.monotonic()
            variables = _read(exp, workdir, step)
            if variables is None:
                continue
            results = _measure(config, exp, data, step, variables, "last", begin)
            if _is_best(config, workdir, results):
                _write(config, workdir, results | {"which": "best"})
            writer.write(step, evaluators.numbers(results["evals"]))
            _write(config, workdir, results)  # at the end: it is what says that this step is done
            log.info("evaluated %s in %.1fs; results in %s", tables.what(config, results), results["seconds"], workdir)
            yield results
            done = step


def _measure(
    config: ConfigDict, exp: Experiment, data: Data, number: int, variables: dict, which: str, begin: float
) -> dict:
    """The results of the variables of step `number`, as they are written down; `begin` is when work on them began."""
    method = exp.phases[-1].method if which == "init" else exp.phase(max(number - 1, 0)).method
    rows = evaluators.run(config, method, variables, data, exp.mesh)
    return {
        "step": number,
        "steps": exp.phases[-1].stop,
        "which": which,
        "config_hash": config_hash(config),
        "versions": {"jax_mmreid": __version__} | {name: version(name) for name in PACKAGES},
        "command": shlex.join(["python", "-m", "jax_mmreid.main", *sys.argv[1:]]),
        "seconds": round(time.monotonic() - begin, 2),
        "evals": rows,
    }


def _write(config: ConfigDict, workdir: Path, results: dict) -> None:
    """Writes results as JSON and as a table; a run and its watcher may both do so, so each file is put there whole."""
    if jax.process_index() > 0:
        return
    workdir.mkdir(parents=True, exist_ok=True)
    texts = {"json": json.dumps(results, indent=2) + "\n", "md": tables.markdown(config, results)}
    for ending, text in texts.items():
        name = f"{FILES.get(results['which'], 'results')}.{ending}"
        part = workdir / f".{name}.{os.getpid()}"
        part.write_text(text)
        part.replace(workdir / name)


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
    return _agreed((newest(workdir) or 0) if (workdir / "config.json").exists() else 0)


def _read(exp: Experiment, workdir: Path, step: int) -> dict | None:
    """The variables of a step; None if the trainer has deleted it meanwhile, for there is a newer one."""
    variables, failure = None, None
    try:
        _, variables = _restore(exp, workdir, str(step), [])
    except Exception as error:  # what is not there any more ends in errors of many kinds
        failure = error
    complete = failure is None
    if jax.process_count() > 1:  # what is gone for one may have been there for another
        complete = bool(multihost_utils.process_allgather(np.asarray(complete)).all())
    if complete:
        return variables
    if _newest(workdir) == step and failure is not None:
        raise failure
    log.info("step %d was deleted before it was read", step)
    return None


def _agreed(number: int) -> int:
    """What the first process says, on every process."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


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
    number, saved = evaluators.watched(config, results["evals"]), workdir / "results_best.json"
    if number is None or not saved.exists():
        return number is not None
    old = json.loads(saved.read_text())
    best = evaluators.watched(config, old["evals"])
    return old["config_hash"] != results["config_hash"] or best is None or best <= number


def _differences(config: ConfigDict, workdir: Path) -> list[str]:
    """How the config of a workdir's run differs from this one; raises ConfigError if it holds no run."""
    saved = workdir / "config.json"
    if not saved.exists():
        raise ConfigError(f"workdir {workdir} holds no run; train one first (the same command with --mode=train)")
    return difference(json.loads(saved.read_text()), config)


def _init_differences(config: ConfigDict, workdir: Path) -> list[str]:
    """How the runs among the places of `config.init` differ in the trial of the same dataset.

    Another trial trains on what this one tests; other differences may be what an evaluation is for. Raises ConfigError
    if there is no place or the workdir holds a run of another config.
    """
    if not config.init:
        raise ConfigError("--step=init evaluates the weights of config.init, which is empty; set --config.init=PLACE")
    if (workdir / "config.json").exists():
        require_same(workdir / "config.json", config)
    ours, found = config.data.to_dict(), []
    for place, _ in weights_init.init_sources(config.init):
        saved = Path(place) / "config.json"
        theirs = json.loads(saved.read_text())["data"] if saved.exists() else ours
        old, new = (data["options"].get("trial") for data in (theirs, ours))
        if theirs["name"] == ours["name"] and old != new:
            found.append(f"{place}: data.options.trial ({old} -> {new})")
    return found


def _from_init(config: ConfigDict, exp: Experiment, data: Data) -> tuple[int, dict]:
    """(0, variables with every part of the method from `config.init`)."""
    state = exp.create(jax.device_put(jax.random.PRNGKey(config.seed), sharding.replicated(exp.mesh)))
    return 0, weights_init.start_from(
        state, weights_init.load(config.init), data.spec.image_size, required=None
    ).variables


def _restore(exp: Experiment, workdir: Path, step: str, differences: list[str]) -> tuple[int, dict]:
    """(step number, variables of that checkpoint); ConfigError where what differs has changed the model itself."""
    target = exp.abstract.replace(opt_state=None, rng=None)
    with Checkpoints(workdir, reading=True) as checkpoints:
        number = _choose(checkpoints, step)
        misfits = checkpoints.misfits(number, target) if differences else []
        if misfits:
            raise ConfigError(
                f"workdir {workdir} holds another model, which --force cannot help: {', '.join(misfits[:3])} "
                f"({len(misfits)} in all); the configs differ in {'; '.join(differences[:3])}"
            )
        return number, checkpoints.restore(number, target).variables


def _choose(checkpoints: Checkpoints, step: str) -> int:
    steps = checkpoints.steps()
    if not steps:
        raise ConfigError(f"{checkpoints.folder} has no checkpoint yet")
    number = {"last": checkpoints.last, "best": checkpoints.best}.get(
        step, lambda: int(step) if step.isdigit() else -1
    )()
    if number is None:
        raise ConfigError(
            f"{checkpoints.folder} has no best checkpoint: nothing was evaluated in training (eval_every)"
        )
    if number not in steps:
        raise ConfigError(f"{checkpoints.folder} has no checkpoint {step!r}; there are {', '.join(map(str, steps))}")
    return number
