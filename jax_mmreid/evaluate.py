"""The evaluator as a process of its own: a checkpoint's model, without its optimizer, against `config.evals`.

Writes results.json and results.md (results_best.* for the best checkpoint) into the workdir.
"""

import json
import logging
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax

from jax_mmreid import __version__, evaluators, experiment
from jax_mmreid.batch import Data
from jax_mmreid.checkpoint import Checkpoints
from jax_mmreid.config import LETTERS, ConfigDict, ConfigError, config_hash, require_same

log = logging.getLogger(__name__)

COLUMNS = {"mAP": "mAP", "R-1": "rank1", "R-5": "rank5", "R-10": "rank10", "mINP": "mINP"}
PACKAGES = ("jax", "flax", "numpy")


def evaluate(config: ConfigDict, workdir: str | Path, data: Data, step: str = "last") -> dict:
    """Evaluates checkpoint `step` ("last", "best" or a number) of a workdir and returns what it writes.

    Raises ConfigError if the workdir has no such checkpoint or belongs to another config.
    """
    begin = time.monotonic()
    workdir = Path(workdir)
    saved = workdir / "config.json"
    if not saved.exists():
        raise ConfigError(f"workdir {workdir} holds no run; train one first (the same command with --mode=train)")
    require_same(saved, config)
    exp = experiment.build(config, data)
    evaluators.check(config, data)
    with Checkpoints(workdir) as checkpoints:
        number = _choose(checkpoints, step)
        state = checkpoints.restore(number, exp.abstract.replace(opt_state=None, rng=None))
    method = exp.phase(max(number - 1, 0)).method
    rows = evaluators.run(config, method, state.variables, data, exp.mesh)
    results = {
        "step": number,
        "which": step,
        "config_hash": config_hash(config),
        "versions": {"jax_mmreid": __version__} | {name: version(name) for name in PACKAGES},
        "command": shlex.join(["python", "-m", "jax_mmreid.main", *sys.argv[1:]]),
        "seconds": round(time.monotonic() - begin, 2),
        "evals": rows,
    }
    table = markdown(config, results)
    if jax.process_index() == 0:
        name = "results_best" if step == "best" else "results"
        (workdir / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
        (workdir / f"{name}.md").write_text(table)
    log.info("evaluated step %d in %.1fs; results in %s", number, results["seconds"], workdir)
    return results


def markdown(config: ConfigDict, results: dict) -> str:
    """The results as a table: percent, one row per setting, and how much of the first row's score each loses."""
    title = f"Checkpoint at step {results['step']} ({results['which']}), config {results['config_hash']}."
    lines = [
        title,
        "",
        "| setting | " + " | ".join(COLUMNS) + " | mAP drop | R-1 drop |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    names = {name: _label(config, name) for name in results["evals"]}
    for name, row in results["evals"].items():
        full = results["evals"].get(f"{name.rpartition('/')[0]}/full".lstrip("/"), row)
        drops = [(full[key] - row[key]) / full[key] if full[key] else 0.0 for key in ("mAP", "rank1")]
        cells = [f"{100 * row[key]:.1f}" for key in COLUMNS.values()]
        cells += ["" if full is row else f"{100 * drop:.1f} %" for drop in drops]
        lines.append(f"| {names[name]} | " + " | ".join(cells) + " |")
    for name, row in results["evals"].items():
        if any(row.get("skipped", {}).values()):
            counts = " and ".join(f"{count} {side} rows" for side, count in row["skipped"].items())
            lines += ["", f"{names[name]} leaves out {counts}, which have no picture that it uses."]
    return "\n".join(lines) + "\n"


def _label(config: ConfigDict, name: str) -> str:
    """How a poster writes a row: RNT for all modalities, -R for one without RGB, Mean; other names as they are."""
    prefix, _, last = name.rpartition("/")
    letters = "".join(LETTERS[m].upper() for m in config.data.modalities)
    label = {"full": letters, "mean_missing": "Mean"}.get(last, "-" + last[3:].upper() if last[:3] == "no_" else last)
    return f"{label} ({prefix})" if prefix else label


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
