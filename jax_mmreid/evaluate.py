"""The evaluator as a process of its own: a checkpoint's model, without its optimizer, against `config.evals`.

Writes results.json and results.md (results_best.* for the best checkpoint, results_init.* for the weights that
`config.init` names) into the workdir.
"""

import json
import logging
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax

from jax_mmreid import __version__, evaluators, experiment, sharding, tables
from jax_mmreid.batch import Data
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import ConfigDict, ConfigError, config_hash, difference, require_same
from jax_mmreid.experiment import Experiment
from jax_mmreid.models import pretrained

log = logging.getLogger(__name__)

PACKAGES = ("jax", "flax", "numpy")
FILES = {"best": "results_best", "init": "results_init"}  # by step; "results" for any other


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
    method = exp.phases[-1].method if step == "init" else exp.phase(max(number - 1, 0)).method
    rows = evaluators.run(config, method, variables, data, exp.mesh)
    results = {
        "step": number,
        "which": step,
        "config_hash": config_hash(config),
        "versions": {"jax_mmreid": __version__} | {name: version(name) for name in PACKAGES},
        "command": shlex.join(["python", "-m", "jax_mmreid.main", *sys.argv[1:]]),
        "seconds": round(time.monotonic() - begin, 2),
        **({"forced": differences} if differences else {}),
        "evals": rows,
    }
    table = tables.markdown(config, results)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        name = FILES.get(step, "results")
        (workdir / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
        (workdir / f"{name}.md").write_text(table)
    log.info("evaluated %s in %.1fs; results in %s", tables.what(config, results), results["seconds"], workdir)
    return results


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
    for place, _ in pretrained.places(config.init):
        saved = Path(place) / "config.json"
        theirs = json.loads(saved.read_text())["data"] if saved.exists() else ours
        old, new = (data["options"].get("trial") for data in (theirs, ours))
        if theirs["name"] == ours["name"] and old != new:
            found.append(f"{place}: data.options.trial ({old} -> {new})")
    return found


def _from_init(config: ConfigDict, exp: Experiment, data: Data) -> tuple[int, dict]:
    """(0, variables with every part of the method from `config.init`)."""
    state = exp.create(jax.device_put(jax.random.PRNGKey(config.seed), sharding.replicated(exp.mesh)))
    return 0, pretrained.start_from(state, pretrained.load(config.init), data.image_size, required=None).variables


def _restore(exp: Experiment, workdir: Path, step: str, differences: list[str]) -> tuple[int, dict]:
    """(step number, variables of that checkpoint); ConfigError where what differs has changed the model itself."""
    target = exp.abstract.replace(opt_state=None, rng=None)
    with Checkpoints(workdir) as checkpoints:
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
