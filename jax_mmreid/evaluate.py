"""The evaluator as a process of its own: a checkpoint's model, without its optimizer, against `config.evals`.

The model is built from the workdir's data_spec.json, not from the data that it is evaluated on. Writes results.json and
results.md (results_best.* for the best checkpoint, results_init.* for the weights that `config.init` names) into the
workdir. `watch.py` follows a run.
"""

import json
import logging
import os
import shlex
import sys
import time
from importlib.metadata import version
from typing import NamedTuple

import jax
import numpy as np
from etils.epath import Path, PathLike

from jax_mmreid import __version__, distributed, experiment, sharding
from jax_mmreid.batch import Data, DataSpec
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import ConfigDict, config_hash, difference, evals_hash, require_same
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import runner
from jax_mmreid.experiment import Experiment, model_spec
from jax_mmreid.paths import place
from jax_mmreid.report import baselines, tables
from jax_mmreid.weights import init as weights_init

log = logging.getLogger(__name__)

PACKAGES = ("jax", "flax", "numpy")
FILES = {"best": "results_best", "init": "results_init"}  # by step; "results" for any other
# What of a data spec the model cannot do without, and what may differ under --force.
FIXED = ("modalities", "image_size", "vocab")
FORCEABLE = ("cameras", "pids")
LAST = 10  # lines of the log whose mean is the training accuracy


class Checkpoint(NamedTuple):
    """A model that is evaluated."""

    step: int
    variables: dict
    which: str  # last, best, init or a number, as it was asked for


def evaluate(config: ConfigDict, workdir: PathLike, data: Data, step: str = "last", force: bool = False) -> dict:
    """Evaluates a checkpoint of a workdir, or with `step` "init" the weights of `config.init`; returns what it writes.

    `step` is "last", "best", a number or "init", which makes the workdir if there is none. `force` evaluates a
    checkpoint although it is of another config or of data with other cameras or identities; the result then says what
    differs. Raises ConfigError if the workdir has no such checkpoint or belongs to another config or data, DataError
    for weights that lack a part of the method.
    """
    begin = time.monotonic()
    workdir = place(workdir)
    if step == "init":
        spec, differences = model_spec(config, data), _init_differences(config, workdir)
    else:
        spec = load_spec(workdir)
        differences = _config_differences(config, workdir) + spec_differences(spec, model_spec(config, data), workdir)
    if differences and not force:
        what, other = f"workdir {workdir} holds a run of", "choose another --workdir"
        if step == "init":
            what, other = "config.init holds weights of", "name other weights"
        raise ConfigError(
            f"{what} another config or other data: {'; '.join(differences[:3])}; {other}, or evaluate it nevertheless "
            "with --force"
        )
    exp = experiment.build(config, spec, data.tokenize)
    runner.check(config.evals.to_dict(), data)
    loaded = _from_init(config, exp) if step == "init" else restore(exp, workdir, step, differences)
    results = measure(config, exp, data, loaded, workdir, begin)
    results |= {"forced": differences} if differences else {}
    write_results(workdir, results)
    log.info("evaluated %s in %.1fs; results in %s", tables.what(results), results["seconds"], workdir)
    return results


def load_spec(workdir: Path) -> DataSpec:
    """The data spec of a workdir; raises ConfigError if it holds no run, or one of a version that wrote none."""
    if not (workdir / "config.json").exists():
        raise ConfigError(f"workdir {workdir} holds no run; train one first (the same command with --mode=train)")
    path = workdir / "data_spec.json"
    if not path.exists():
        raise ConfigError(
            f"workdir {workdir} has no data_spec.json, as runs before version 0.2 have none; train it anew"
        )
    try:
        return DataSpec.from_json(path.read_text())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"cannot read {path} ({error}); restore it from a copy of the workdir") from error


def spec_differences(saved: DataSpec, found: DataSpec, workdir: Path) -> list[str]:
    """How data contradict the spec of the run that they are to evaluate, as far as --force may ignore it.

    Raises ConfigError for a difference that no evaluation can ignore: modalities, image size, vocabulary.
    """
    pairs = {key: (getattr(saved, key), getattr(found, key)) for key in (*FIXED, *FORCEABLE)}
    fixed = [f"{key} ({pairs[key][0]} -> {pairs[key][1]})" for key in FIXED if pairs[key][0] != pairs[key][1]]
    if fixed:
        raise ConfigError(
            f"the data do not fit the model in {workdir}: {'; '.join(fixed)}; set these fields of config.data as they "
            "were in training, see config.json in the workdir"
        )
    listed = {key: map(_listed, pairs[key]) for key in FORCEABLE if pairs[key][0] != pairs[key][1]}
    return [f"{key} of the training data ({' -> '.join(sides)})" for key, sides in listed.items()]


def _listed(values: tuple[int, ...]) -> str:
    """`8: 1, 2, 3, 4, 5, 6, ..`."""
    return f"{len(values)}: {', '.join(map(str, values[:6]))}{', ..' * (len(values) > 6)}"


def measure(config: ConfigDict, exp: Experiment, data: Data, loaded: Checkpoint, workdir: Path, begin: float) -> dict:
    """The results of a checkpoint, as they are written down; `begin` is when work on it began (time.monotonic).

    With rows of kind "pixels" they contain an advice, which is logged too.
    """
    last = loaded.which == "init"
    method = exp.phases[-1].method if last else exp.phase(max(loaded.step - 1, 0)).method
    rows, variables = config.evals.to_dict(), exp.gather(loaded.variables)
    results = {
        "step": loaded.step,
        "steps": exp.phases[-1].stop,
        "which": loaded.which,
        "init": config.init,
        "config_hash": config_hash(config),
        "evals_hash": evals_hash(config),
        "versions": {"jax_mmreid": __version__} | {name: version(name) for name in PACKAGES},
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "modalities": list(config.data.modalities),
        **runner.columns(rows),
        "evals": runner.run(rows, method, variables, data, exp.mesh, mean=exp.spec.mean, std=exp.spec.std),
        "seconds": round(time.monotonic() - begin, 2),
    }
    if baselines.compare(results):
        results["advice"] = baselines.advice(results, _facts(config, data, workdir, loaded.step))
        log.info("%s", results["advice"])
    return results


def write_results(workdir: Path, results: dict) -> None:
    """Writes results as JSON and as tables; a run and its watcher may both do so, so each file is replaced whole."""
    if not distributed.is_writer():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    texts = {"json": json.dumps(results, indent=2) + "\n", "md": tables.markdown(results)}
    for ending, text in texts.items():
        name = f"{FILES.get(results['which'], 'results')}.{ending}"
        part = workdir / f".{name}.{os.getpid()}"
        part.write_text(text)
        part.replace(workdir / name)


def _facts(config: ConfigDict, data: Data, workdir: Path, step: int) -> baselines.Facts:
    """What an advice on the run in a workdir, at a step of it, follows from."""
    columns = data.columns("train")
    seen, rows = np.unique(np.stack([columns["pid"], columns["camid"]]), axis=1, return_counts=True)
    _, own, cameras = np.unique(seen[0], return_inverse=True, return_counts=True)
    pairs, same = (np.sum(count * (count - 1)) for count in (np.bincount(own, rows), rows))
    logged = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in logged.read_text().splitlines()] if logged.exists() else []
    accuracies = [line["accuracy"] for line in lines if "accuracy" in line and line["step"] <= step][-LAST:]
    return baselines.Facts(
        identities=len(cameras),
        cameras=len(np.unique(seen[1])),
        one_camera=int(np.sum(cameras == 1)),
        same_camera=float(same / max(pairs, 1)),
        accuracy=float(np.mean(accuracies)) if accuracies else None,
        pretrained=bool(config.init),
    )


def _config_differences(config: ConfigDict, workdir: Path) -> list[str]:
    """How the config of a workdir's run differs from this one."""
    return difference(json.loads((workdir / "config.json").read_text()), config)


def _init_differences(config: ConfigDict, workdir: Path) -> list[str]:
    """How the runs among the sources of `config.init` differ in the trial of the same dataset.

    Another trial trains on what this one tests; other differences may be what an evaluation is for. Raises ConfigError
    if there is no source or the workdir holds a run of another config.
    """
    if not config.init:
        raise ConfigError("--step=init evaluates the weights of config.init, which is empty; set --config.init=SOURCE")
    if (workdir / "config.json").exists():
        require_same(workdir / "config.json", config)
    ours, found = config.data.to_dict(), []
    for source, _ in weights_init.init_sources(config.init):
        saved = place(source) / "config.json"
        theirs = json.loads(saved.read_text())["data"] if saved.exists() else ours
        old, new = (data["options"].get("trial") for data in (theirs, ours))
        if theirs["name"] == ours["name"] and old != new:
            found.append(f"{source}: data.options.trial ({old} -> {new})")
    return found


def _from_init(config: ConfigDict, exp: Experiment) -> Checkpoint:
    """Step 0 with every part of the method from `config.init`."""
    state = exp.create(jax.device_put(jax.random.PRNGKey(config.seed), sharding.replicated(exp.mesh)))
    loaded, size = weights_init.load(config.init), tuple(config.data.image_size)
    state = weights_init.start_from(state, loaded, size, required=None, source=config.init)
    return Checkpoint(0, state.variables, "init")


def restore(exp: Experiment, workdir: Path, step: str, differences: list[str]) -> Checkpoint:
    """A checkpoint's variables; ConfigError where what differs has changed the model itself."""
    target = exp.abstract.replace(opt_state=None, rng=None)
    with Checkpoints(workdir, reading=True) as checkpoints:
        number = choose_step(checkpoints, step)
        misfits = checkpoints.misfits(number, target) if differences else []
        if misfits:
            raise ConfigError(
                f"workdir {workdir} holds another model, which --force cannot help: {', '.join(misfits[:3])} "
                f"({len(misfits)} in all); the configs differ in {'; '.join(differences[:3])}"
            )
        return Checkpoint(number, checkpoints.restore(number, target).variables, step)


def choose_step(checkpoints: Checkpoints, step: str) -> int:
    """The number of the step "last", "best" or a number; raises ConfigError naming those that there are."""
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
