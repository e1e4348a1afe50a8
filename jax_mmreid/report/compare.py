"""Finished runs side by side: means and spreads over seeds, in the form of the published tables.

Below a run with published numbers are these and the differences to them.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jax_mmreid.errors import ConfigError
from jax_mmreid.recipes import missing_settings
from jax_mmreid.recipes.missing_settings import FULL, MEAN
from jax_mmreid.report import groups, settings


class Line(NamedTuple):
    """A line of a table: its first columns, and the (row name, metric) that each other column shows."""

    title: tuple[str, ...]
    cells: list[tuple[str, str]]


def numbers(text: str) -> list[int]:
    """`1-10`, `3` or `1,3,5` as a list: how the drivers in launch/ take seeds and trials."""
    parts = (part.partition("-") for part in text.split(","))
    return [n for first, _, last in parts for n in range(int(first), int(last or first) + 1)]


def folder(text: str) -> Path:
    """Where a driver in launch/ puts its runs and `write` its tables; raises ValueError for a bucket."""
    if "://" in text:
        raise ValueError(text)
    return Path(text)


def summary(dirs: Iterable[str | Path]) -> dict[str, dict]:
    """{"groups": those of `groups.group` of the finished runs in `dirs`, "unfinished": {folder: "step 3 of 9"}}.

    Each of `dirs` is the workdir of a run, or a folder with such workdirs anywhere below it. A run is finished if its
    results are of its last step. Raises ConfigError for a folder without results, for files that cannot be read, and
    where no run is finished.
    """
    runs = groups.find_runs(dirs)
    unfinished = {str(run.folder): run.unfinished for run in runs if run.unfinished}
    finished = [run for run in runs if not run.unfinished]
    if not finished:
        states = "; ".join(f"{folder} ({state})" for folder, state in unfinished.items())
        raise ConfigError(f"no run is finished: {states or 'no folder is given'}")
    return {"groups": groups.group(finished), "unfinished": unfinished}


def markdown(table: dict[str, dict], metric: str = "") -> str:
    """A summary as tables in percent: settings of missing modalities as columns of `metric`, other rows line by line.

    Of pairs of settings there is a heat map of the means for every group.

    `metric` is mAP, or the first that there is, unless it is given; raises ConfigError for one that no result has.
    """
    found = table["groups"]
    there = dict.fromkeys(key for group in found.values() for row in group["rows"].values() for key in row)
    if metric and metric not in there:
        raise ConfigError(f"--metric={metric}: no result has it; there are {', '.join(there)}")
    metric = metric or ("mAP" if "mAP" in there else next(iter(there), ""))
    lines = ["Percent; mean ± sample standard deviation where there are several runs.", *_origins(table)]
    for block in (_table(*_settings(found, metric)), *_pairs(found, metric), *_others(found)):
        lines += ["", *block] if block else []
    return "\n".join(lines) + "\n"


def write(dirs: Iterable[str | Path], workdir: Path) -> str:
    """Writes results.json, a summary of the runs in `dirs`, and results.md into a folder; returns the latter's text."""
    table = summary(dirs)
    text = markdown(table)
    (workdir / "results.json").write_text(json.dumps(table, indent=2) + "\n")
    (workdir / "results.md").write_text(text)
    return text


def _origins(table: dict[str, dict]) -> Iterator[str]:
    """Sentences on the runs behind the numbers."""
    names = {}
    for name, group in table["groups"].items():
        parts = [_counted(key, group[f"{key}s"]) for key in groups.REPEATED if group[f"{key}s"]]
        parts = [f"{group['runs']} run{'s' * (group['runs'] > 1)}", *parts]
        parts += [f"checkpoints of {_counted('step', group['steps'])}"] * (len(group["steps"]) > 1)
        names.setdefault(", ".join(parts), []).append(name)
    yield from (f"{text}: {'; '.join(called)}." for text, called in names.items())
    forced = [folder for group in table["groups"].values() for folder in group["forced"]]
    if forced:
        yield f"Evaluated with --force, under another config than the run's own: {', '.join(forced)}."
    if table["unfinished"]:
        states = [f"{folder} ({state})" for folder, state in table["unfinished"].items()]
        yield f"Left out, since not finished: {', '.join(states)}."


def _counted(what: str, values: list[int]) -> str:
    return f"{what}{'s' * (len(values) > 1)} {', '.join(map(str, values))}"


def _forms(group: dict) -> settings.Forms:
    return settings.forms(group["labels"], group["modalities"])


def _heading(group: dict, metric: str, kind: str = settings.KIND) -> str:
    """How tables of a kind of evaluation call a metric."""
    return {key: title for title, key in group["columns"].get(kind, {}).items()}.get(metric, metric)


def _settings(found: dict[str, dict], metric: str) -> tuple[list[str], list[tuple[dict, Line]]]:
    """(head, lines with their group) of the settings of missing modalities: a line for every group of runs and rows."""
    missing = {name: forms for name, group in found.items() if (forms := _forms(group).settings)}
    there = {
        (setting, key)
        for name, forms in missing.items()
        for rows in forms.values()
        for setting, row in rows.items()
        for key in found[name]["rows"][row]
    }
    every = {tuple(found[name]["modalities"]) for name in missing}
    labels = {}
    for modalities in sorted(every, key=len, reverse=True):  # the runs with most modalities decide the order
        labels |= missing_settings.labels(modalities)
    if len(every) > 1:
        labels |= {FULL: FULL, MEAN: labels.pop(MEAN)}
    names = [name for name in labels if (name, metric) in there]
    if not names:
        return [], []
    heading = _heading(found[next(iter(missing))], metric)
    head, keys = [heading, *(labels[name] for name in names)], [(name, metric) for name in names]
    if metric != "rank1" and (MEAN, "rank1") in there:
        head.append("Mean R-1")
        keys.append((MEAN, "rank1"))
    body = []
    for name, forms in missing.items():
        for group, rows in forms.items():
            title = f"{name} ({group})" if group else name
            body.append((found[name], Line((title,), [(rows.get(setting, ""), key) for setting, key in keys])))
    return head, body


def _pairs(found: dict[str, dict], metric: str) -> Iterator[list[str]]:
    """For every group and row with `pairs_of` a heat map of the means, and how far they are from the published."""
    for name, group in found.items():
        for pairs_of, pairs in _forms(group).pairs.items():
            title, modalities = f"{name}, {pairs_of}: {_heading(group, metric)}", group["modalities"]
            ours = {pair: group["rows"][x].get(metric) for pair, x in pairs.items()}
            known = {pair: group["published"].get(x, {}).get(metric) for pair, x in pairs.items()}
            if None in ours.values():
                continue
            yield settings.heat_map(title, {pair: x["mean"] for pair, x in ours.items()}, modalities)
            if None not in known.values():
                gaps = {pair: f"{100 * (x['mean'] - known[pair]):+z.1f}" for pair, x in ours.items()}
                yield settings.matrix(f"{title}, difference to the published", gaps, modalities)


def _others(found: dict[str, dict]) -> Iterator[list[str]]:
    """For every kind of evaluation a table of the rows that are no settings: a line for each, a column per metric."""
    kinds = dict.fromkeys(labels["kind"] for group in found.values() for labels in group["labels"].values())
    for kind in kinds:
        rows = [
            (name, group, row)
            for name, group in found.items()
            for row in _forms(group).lines
            if group["labels"][row]["kind"] == kind
        ]
        if not rows:
            continue
        metrics = dict.fromkeys(key for _, group, row in rows for key in group["rows"][row])
        named = {key: title for _, group, _ in rows for title, key in group["columns"][kind].items() if key in metrics}
        keys = [*named, *(key for key in metrics if key not in named)]
        head = ["run", "row", *(named.get(key, key) for key in keys)]
        yield _table(head, [(group, Line((name, row), [(row, key) for key in keys])) for name, group, row in rows])


def _table(head: list[str], body: list[tuple[dict, Line]]) -> list[str]:
    return settings.table(head, [cells for group, line in body for cells in _written(group, line)]) if body else []


def _written(group: dict, line: Line) -> Iterator[list[str | None]]:
    """The cells of a line, and below it what was published and how far ours is from that, if anything was."""
    ours = [group["rows"].get(row, {}).get(metric) for row, metric in line.cells]
    known = [group["published"].get(row, {}).get(metric) for row, metric in line.cells]
    units = [1 if _is_no_fraction(group, *cell) else 100 for cell in line.cells]
    yield [*line.title, *(one and _cell(one, unit, group["runs"]) for one, unit in zip(ours, units))]
    if any(number is not None for number in known):
        gaps = [None if None in pair else pair[0]["mean"] - pair[1] for pair in zip(ours, known)]
        for title, form, values in (("published", ".1f", known), ("difference", "+z.1f", gaps)):
            cells = [None if x is None else f"{unit * x:{form}}" for x, unit in zip(values, units)]
            yield [title, *line.title[1:], *cells]


def _is_no_fraction(group: dict, row: str, metric: str) -> bool:
    kind = group["labels"].get(row, {}).get("kind")
    return metric in group["not_fractions"].get(kind, ())


def _cell(found: dict, unit: int, runs: int) -> str:
    """`54.6 ± 0.3`, with the number of runs where some lack it."""
    text = f"{unit * found['mean']:.1f}"
    text += f" ± {unit * found['std']:.1f}" if found["n"] > 1 else ""
    return text + (f" (n={found['n']})" if found["n"] < runs else "")
