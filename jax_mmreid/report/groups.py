"""Finished runs and their groups: runs that repeat one another, whose results have a mean and a spread.

Runs are one group if they measured the same rows and their configs differ in nothing but RUNTIME_FIELDS, the seed, the
dataset's trial, and the weights they start from where these are of runs that are one group themselves.
"""

import json
import os
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jax_mmreid.config import flat, is_runtime
from jax_mmreid.errors import ConfigError

REPEATED = {"seed": "seed", "trial": "data.options.trial"}  # in which the runs of a group may differ
NUMBERED = re.compile(r"(^|[-_.,/])(seed|trial)[-_=]?\d+(?=$|[-_.,/:])")  # seeds and trials in the names of folders
FIELDS = ("kind", "protocol", "feature")  # of results: rows that differ in one of these have no mean
LABELS = ("kind", "group", "setting", "pair")  # of results: where they are printed


class Run(NamedTuple):
    """A workdir, and the contents of its config.json and results.json."""

    folder: Path
    config: dict
    results: dict

    @property
    def unfinished(self) -> str:
        """How far an unfinished run has come; "" for a finished one."""
        step, steps = (self.results[key] for key in ("step", "steps"))
        return "" if step == steps else f"step {step} of {steps}"


def find_runs(dirs: Iterable[str | Path]) -> list[Run]:
    """The runs with results in `dirs`: each of these is a workdir, or a folder with workdirs anywhere below it.

    Each run once; raises ConfigError for a folder without any, and for files that cannot be read.
    """
    runs = {}
    for folder in map(Path, dirs):
        found = [path.parent for path in folder.rglob("results.json") if path.with_name("config.json").exists()]
        if not found:
            raise ConfigError(f"{folder}: no run with results there or below (results.json beside config.json)")
        for path in [folder] if folder in found else sorted(found):
            runs.setdefault(path.resolve(), path)
    return [_run(path) for path in runs.values()]


def group(runs: Iterable[Run]) -> dict[str, dict]:
    """The groups of runs by a short name, in the order in which they are found.

    A group is {"runs": their number, "seeds", "trials", "steps", "folders", "forced": folders that were evaluated
    under another config, "differs": {dotted field: value} for every field in which the groups differ, "modalities",
    "published", "columns" and "not_fractions" as in results.json, "labels": {row name: its LABELS}, "rows": {row name:
    {metric: {"mean", "std", "n"}}}}; std is the sample standard deviation, None of a single run.
    """
    identities, groups = [], []
    for run in runs:
        identity = _identity(run.config) | _measured(run.results)
        if identity not in identities:
            identities.append(identity)
            groups.append([])
        groups[identities.index(identity)].append(run)
    fields = dict.fromkeys(key for identity in identities for key in identity)
    fields = [key for key in fields if any(other.get(key) != identities[0].get(key) for other in identities)]
    differs = [{key: identity.get(key) for key in fields} for identity in identities]
    names = _names(groups, differs)
    return {name: _summary(runs) | {"differs": values} for name, runs, values in zip(names, groups, differs)}


def _run(folder: Path) -> Run:
    run = Run(folder, _read(folder / "config.json"), _read(folder / "results.json"))
    if not {"steps", "columns", "modalities"} <= run.results.keys():
        raise ConfigError(f"{folder}: results.json is of an older version; evaluate the run again with --mode=eval")
    return run


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _identity(config: dict) -> dict:
    """The dotted fields that all runs of a group share; a run that it starts from counts by those fields of its own."""
    fixed = {key: x for key, x in flat(config).items() if not is_runtime(key) and key not in REPEATED.values()}
    init = fixed.pop("init", "")
    for number, start in enumerate([init] if Path(init).exists() else init.split(",")):
        field = f"init{number or ''}"
        source, *parts = start.split(":")
        saved = Path(source, "config.json")
        if source and saved.exists() and "method" in (run := _read(saved)):
            fixed |= {f"{field}.{key}": value for key, value in _identity(run).items()}
            start = ":".join(["", *parts])
        fixed[field] = NUMBERED.sub("", start)
    return fixed


def _measured(results: dict) -> dict:
    """What the rows of a run measured; `evals` is one of RUNTIME_FIELDS, but runs with other rows have no mean."""
    return {f"evals.{name}": "; ".join(row[key] for key in FIELDS) for name, row in results["evals"].items()}


def _names(groups: list[list[Run]], differs: list[dict]) -> list[str]:
    """The folder of each group's runs where every group has one of its own, else what the groups differ in."""
    folders = [{NUMBERED.sub("", str(run.folder.resolve())) for run in runs} for runs in groups]
    shared = Path(os.path.commonpath(set.union(*folders)))
    if len(groups) == 1:
        return [shared.name]
    if all(len(one) == 1 for one in folders) and len(set.union(*folders)) == len(groups):
        paths = [Path(*one).relative_to(shared).as_posix() for one in folders]
        return [shared.name if path == "." else path for path in paths]
    names = [""] * len(groups)
    for key in sorted(differs[0], key=lambda key: sum(len(str(values[key])) for values in differs)):
        longer = [f"{name}, {key}={values[key]}".removeprefix(", ") for name, values in zip(names, differs)]
        names = longer if len(set(longer)) > len(set(names)) else names  # only fields that set groups apart
    return names


def _summary(runs: list[Run]) -> dict:
    """What `group` returns of one group, apart from the other groups."""
    configs, first, rows = [flat(run.config) for run in runs], runs[0], {}
    for name in first.results["evals"]:
        found = [run.results["evals"][name] for run in runs]
        metrics = dict.fromkeys(key for row in found for key, value in row.items() if isinstance(value, float))
        rows[name] = {key: _spread([row[key] for row in found if key in row]) for key in metrics}
    published = [run.config["published"] for run in runs if run.config.get("published")]
    return {
        "runs": len(runs),
        **{f"{key}s": sorted({x[field] for x in configs if field in x}) for key, field in REPEATED.items()},
        "steps": sorted({run.results["step"] for run in runs}),
        "folders": [str(run.folder) for run in runs],
        "forced": [str(run.folder) for run in runs if "forced" in run.results],
        **{key: first.results[key] for key in ("modalities", "columns", "not_fractions")},
        "published": published[0] if published else {},
        "labels": {
            name: {key: row[key] for key in LABELS if key in row} for name, row in first.results["evals"].items()
        },
        "rows": rows,
    }


def _spread(values: list[float]) -> dict:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": std, "n": len(values)}
