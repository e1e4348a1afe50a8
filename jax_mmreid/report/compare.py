"""Finished runs side by side: means and spreads over seeds, in the forms of the posters, and what was published.

Runs are one group if they measured the same rows and their configs differ in nothing but RUNTIME_FIELDS fields, the seed, the
dataset's trial, and the weights they start from where these are of runs that are one group themselves.
"""

import json
import os
import re
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jax_mmreid.config import flat, is_runtime
from jax_mmreid.errors import ConfigError
from jax_mmreid.report import settings

HEADS = {
    "rank1": "R-1",
    "rank5": "R-5",
    "rank10": "R-10",
    "rank20": "R-20",
    "mAP": "mAP",
    "mINP": "mINP",
}  # the first columns
NOT_FRACTIONS = ("median_rank",)  # what the evaluators call so: no fraction, and not printed in percent
REPEATED = {"seed": "seed", "trial": "data.options.trial"}  # in which the runs of a group may differ
NUMBERED = re.compile(r"(^|[-_.,/])(seed|trial)[-_=]?\d+(?=$|[-_.,/:])")  # how a path says them


class Run(NamedTuple):
    """A workdir, and what its config.json and results.json say."""

    folder: Path
    config: dict
    results: dict


class Line(NamedTuple):
    """A line of a table: its first columns, and the (row name, metric) that each other column shows."""

    title: tuple[str, ...]
    cells: list[tuple[str, str]]


def numbers(text: str) -> list[int]:
    """`1-10`, `3` or `1,3,5` as a list: how the drivers in launch/ are told seeds and trials."""
    parts = (part.partition("-") for part in text.split(","))
    return [n for first, _, last in parts for n in range(int(first), int(last or first) + 1)]


def folders(text: str) -> list[str]:
    """The folders in `DIR,DIR`; a folder may have commas in its own name, as those of launch/sweep.py do."""
    parts, found = text.split(","), []
    while parts:
        names = (",".join(parts[:count]) for count in range(len(parts), 0, -1))
        name = next(filter(os.path.isdir, names), parts[0])
        parts = parts[name.count(",") + 1 :]
        found.append(name)
    return list(filter(None, found))


def summary(dirs: Iterable[str | Path]) -> dict[str, dict]:
    """The groups of the runs in `dirs`, by a short name, in the order in which they are found.

    Each of `dirs` is the workdir of a finished run, or a folder with such workdirs anywhere below it.

    A group is {"runs": their number, "seeds", "trials", "steps", "folders", "forced": folders that were evaluated
    under another config, "modalities", "differs": {dotted field: value} for every field in which the groups differ,
    "published", "rows": {row name: {metric: {"mean", "std", "n"}}}}; std is the sample standard deviation, None of a
    single run. Raises ConfigError for a folder without a finished run and for files that cannot be read.
    """
    identities, groups = [], []
    for folder in _find(dirs):
        run = Run(folder, _read(folder / "config.json"), _read(folder / "results.json"))
        identity = _identity(run.config) | _measured(run.results)
        if identity not in identities:
            identities.append(identity)
            groups.append([])
        groups[identities.index(identity)].append(run)
    fields = dict.fromkeys(key for identity in identities for key in identity)
    fields = [key for key in fields if any(other.get(key) != identities[0].get(key) for other in identities)]
    differs = [{key: identity.get(key) for key in fields} for identity in identities]
    return {
        name: _group(runs) | {"differs": values} for name, runs, values in zip(_names(groups, differs), groups, differs)
    }


def markdown(table: dict[str, dict], metric: str = "") -> str:
    """A summary as tables in percent: rows of missing modalities as columns of `metric`, other rows line by line.

    Of pairs of settings there is a heat map of the means for every group.

    `metric` is mAP, or the first that there is, unless it is given; raises ConfigError for one that no result has.
    """
    rows = [row for group in table.values() for row in group["rows"].values()]
    there = dict.fromkeys(key for row in rows for key in row)
    if metric and metric not in there:
        raise ConfigError(f"--metric={metric}: no result has it; there are {', '.join(there)}")
    metric = metric or ("mAP" if "mAP" in there else next(iter(there), ""))
    lines = ["Percent; mean ± sample standard deviation where there are several runs.", *_origins(table)]
    for block in (_lines(*_settings(table, metric)), *_pairs(table, metric), _lines(*_others(table))):
        lines += ["", *block] if block else []
    return "\n".join(lines) + "\n"


def write(dirs: Iterable[str | Path], workdir: Path) -> str:
    """Writes results.json, a summary of the runs in `dirs`, and results.md into a folder; returns the latter's text."""
    table = summary(dirs)
    text = markdown(table)
    (workdir / "results.json").write_text(json.dumps(table, indent=2) + "\n")
    (workdir / "results.md").write_text(text)
    return text


def _find(dirs: Iterable[str | Path]) -> list[Path]:
    """The workdirs of finished runs, each once: each of `dirs`, or where one is none, those below it, sorted."""
    runs = {}
    for folder in map(Path, dirs):
        found = [path.parent for path in folder.rglob("results.json") if path.with_name("config.json").exists()]
        if not found:
            raise ConfigError(f"{folder}: no finished run there or below, which is results.json beside config.json")
        for path in [folder] if folder in found else sorted(found):
            runs.setdefault(path.resolve(), path)
    if not runs:
        raise ConfigError("no folder to compare is named; set --compare=DIR,DIR")
    return list(runs.values())


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
        place, *parts = start.split(":")
        saved = Path(place, "config.json")
        if place and saved.exists() and "method" in (run := _read(saved)):
            fixed |= {f"{field}.{key}": value for key, value in _identity(run).items()}
            start = ":".join(["", *parts])
        fixed[field] = NUMBERED.sub("", start)
    return fixed


def _measured(results: dict) -> dict:
    """What a run's rows are: two runs whose rows differ in name or protocol have no mean, though `evals` is RUNTIME_FIELDS."""
    words = {name: [x for x in row.values() if isinstance(x, str)] for name, row in results["evals"].items()}
    return {f"evals.{name}": "; ".join(said) for name, said in words.items()}


def _names(groups: list[list[Run]], differs: list[dict]) -> list[str]:
    """What the folders of the groups' runs are called where each group has one of its own, else what they differ in."""
    places = [{NUMBERED.sub("", str(run.folder.resolve())) for run in runs} for runs in groups]
    shared = Path(os.path.commonpath(set.union(*places)))
    if len(groups) == 1:
        return [shared.name]
    if all(len(place) == 1 for place in places) and len(set.union(*places)) == len(groups):
        paths = [Path(*place).relative_to(shared).as_posix() for place in places]
        return [shared.name if path == "." else path for path in paths]
    names = [""] * len(groups)
    for key in sorted(differs[0], key=lambda key: sum(len(str(values[key])) for values in differs)):
        longer = [f"{name}, {key}={values[key]}".removeprefix(", ") for name, values in zip(names, differs)]
        names = longer if len(set(longer)) > len(set(names)) else names  # no field that tells nothing new
    return names


def _group(runs: list[Run]) -> dict:
    """What `summary` says of a group, apart from the other groups."""
    configs, rows = [flat(run.config) for run in runs], {}
    for name in runs[0].results["evals"]:
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
        "modalities": runs[0].config["data"]["modalities"],
        "published": published[0] if published else {},
        "rows": rows,
    }


def _spread(values: list[float]) -> dict:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": std, "n": len(values)}


def _origins(table: dict[str, dict]) -> Iterator[str]:
    """Sentences on the runs behind the numbers."""
    names = {}
    for name, group in table.items():
        parts = [_counted(key, group[f"{key}s"]) for key in REPEATED if group[f"{key}s"]]
        parts = [f"{group['runs']} run{'s' * (group['runs'] > 1)}", *parts]
        parts += [f"checkpoints of {_counted('step', group['steps'])}"] * (len(group["steps"]) > 1)
        names.setdefault(", ".join(parts), []).append(name)
    yield from (f"{text}: {'; '.join(called)}." for text, called in names.items())
    forced = [folder for group in table.values() for folder in group["forced"]]
    if forced:
        yield f"Evaluated with --force, under another config than the run's own: {', '.join(forced)}."


def _counted(what: str, values: list[int]) -> str:
    return f"{what}{'s' * (len(values) > 1)} {', '.join(map(str, values))}"


def _settings(table: dict[str, dict], metric: str) -> tuple[list[str], list[tuple[dict, Line]]]:
    """(head, lines with their group) of the rows of missing modalities: a line for every group and prefix."""
    missing = {name: settings.parts(group["rows"]).settings for name, group in table.items()}
    missing = {name: prefixes for name, prefixes in missing.items() if prefixes}
    there = {
        (setting, key)
        for name, prefixes in missing.items()
        for found in prefixes.values()
        for setting, row in found.items()
        for key in table[name]["rows"][row]
    }
    names = sorted({setting for setting, key in there if key == metric}, key=settings.place)
    if not names:
        return [], []
    modalities = {tuple(table[name]["modalities"]) for name in missing}
    modalities = modalities.pop() if len(modalities) == 1 else ()
    head = [HEADS.get(metric, metric), *(settings.label(name, modalities) for name in names)]
    keys = [(name, metric) for name in names]
    if metric != "rank1" and ("mean_missing", "rank1") in there:
        head.append("Mean R-1")
        keys.append(("mean_missing", "rank1"))
    body = []
    for name, prefixes in missing.items():
        for prefix in prefixes:
            title = f"{name} ({prefix})" if prefix else name
            cells = [(f"{prefix}/{setting}".removeprefix("/"), key) for setting, key in keys]
            body.append((table[name], Line((title,), cells)))
    return head, body


def _pairs(table: dict[str, dict], metric: str) -> Iterator[list[str]]:
    """For every group and row with `pairs_of` a heat map of the means, and how far they are from the published."""
    for name, group in table.items():
        for row, pairs in settings.parts(group["rows"]).pairs.items():
            title, modalities = f"{name}, {row}: {HEADS.get(metric, metric)}", group["modalities"]
            found = {pair: group["rows"][x].get(metric) for pair, x in pairs.items()}
            known = {pair: group["published"].get(x, {}).get(metric) for pair, x in pairs.items()}
            if None in found.values():
                continue
            yield settings.heat_map(title, {pair: x["mean"] for pair, x in found.items()}, modalities)
            if None not in known.values():
                gaps = {pair: f"{100 * (x['mean'] - known[pair]):+z.1f}" for pair, x in found.items()}
                yield settings.matrix(f"{title}, difference to the published", gaps, modalities)


def _others(table: dict[str, dict]) -> tuple[list[str], list[tuple[dict, Line]]]:
    """(head, lines with their group) of all other rows: a line for each, a column for every metric that one has."""
    rows = [(name, group, row) for name, group in table.items() for row in settings.parts(group["rows"]).others]
    found = dict.fromkeys(key for _, group, row in rows for key in group["rows"][row])
    keys = [*(key for key in HEADS if key in found), *(key for key in found if key not in HEADS)]
    head = ["run", "row", *(HEADS.get(key, key) for key in keys)]
    return head, [(group, Line((name, row), [(row, key) for key in keys])) for name, group, row in rows]


def _lines(head: list[str], body: list[tuple[dict, Line]]) -> list[str]:
    return settings.table(head, [cells for group, line in body for cells in _written(group, line)]) if body else []


def _written(group: dict, line: Line) -> Iterator[list[str | None]]:
    """The cells of a line, and below it what was published and how far ours is from that, if anything was."""
    ours = [group["rows"].get(row, {}).get(metric) for row, metric in line.cells]
    known = [group["published"].get(row, {}).get(metric) for row, metric in line.cells]
    units = [1 if metric in NOT_FRACTIONS else 100 for _, metric in line.cells]
    yield [*line.title, *(found and _cell(found, unit, group["runs"]) for found, unit in zip(ours, units))]
    if any(number is not None for number in known):
        gaps = [None if None in pair else pair[0]["mean"] - pair[1] for pair in zip(ours, known)]
        for title, form, values in (("published", ".1f", known), ("difference", "+z.1f", gaps)):
            cells = [None if x is None else f"{unit * x:{form}}" for x, unit in zip(values, units)]
            yield [title, *line.title[1:], *cells]


def _cell(found: dict, unit: int, runs: int) -> str:
    """`54.6 ± 0.3`, with the number of runs where some lack it."""
    text = f"{unit * found['mean']:.1f}"
    text += f" ± {unit * found['std']:.1f}" if found["n"] > 1 else ""
    return text + (f" (n={found['n']})" if found["n"] < runs else "")
