"""Several runs beside each other: tables, mAP by setting, and mAP by the rate of missing training pictures."""

import collections
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jax_mmreid.recipes import missing_settings
from jax_mmreid.recipes.missing_settings import FULL, MEAN
from jax_mmreid.report import charts, compare, markdown, settings
from jax_mmreid.report.page import Picture, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATES = "missing.eta"  # the field of the config
RATED = re.compile(r"(^|[-_.,/])eta[-_=]?\d*\.?\d+")  # a rate in the name of a folder
SPAN = 10  # percentage points that an axis spans at least, so that small differences look small
LINES = 20  # rows that are no settings and are drawn at most


class Point(NamedTuple):
    """The results of a group of runs and of rows, {setting: {"mean", "std", "n"}} of mAP."""

    run: str
    rows: str  # the group of rows, "" for the plain one
    modalities: tuple[str, ...]
    rate: float  # mean over the modalities, in percent
    others: tuple[str, ...]  # what else distinguishes the group of runs, without names of rows
    settings: dict[str, dict]


def section(workdirs: Sequence[str | Path]) -> Section | None:
    """The finished runs of these workdirs by the rows that they share; None unless there are two.

    Raises ConfigError for files that cannot be read.
    """
    with_results = [folder for folder in workdirs if Path(folder, "results.json").exists()]
    if len(with_results) < 2:
        return None
    table = compare.summary(with_results)
    table["groups"] = _shared(table["groups"])
    text, tables = markdown.captioned(compare.markdown(table))
    text = " ".join(text.split("\n\n"))
    if left_out := [str(folder) for folder in workdirs if folder not in with_results]:
        text += f" Without results: {', '.join(left_out)}."
    found = points(table["groups"])
    pictures = [picture for picture in (_by_setting(found, table["groups"]), _by_rate(found)) if picture]
    return Section("Runs beside each other", text, pictures, tables)


def points(groups: Mapping[str, Mapping]) -> list[Point]:
    """The settings of missing modalities of every group of `report.groups.group`, of those that have mAP."""
    found = []
    for name, group in groups.items():
        differs = {key: x for key, x in group["differs"].items() if not key.startswith("evals.")}
        rates = differs.pop(RATES, None) or [0.0]
        rate, others = 100 * sum(rates) / len(rates), tuple(f"{key}={x}" for key, x in differs.items())
        for rows, names in settings.forms(group["labels"], group["modalities"]).settings.items():
            mAP = {setting: group["rows"][row].get("mAP") for setting, row in names.items()}  # noqa: N806
            if None not in mAP.values():
                found.append(Point(name, rows, tuple(group["modalities"]), rate, others, mAP))
    return found


def _shared(groups: Mapping[str, dict]) -> dict[str, dict]:
    """The groups with no more rows than two of them have; where these have none in common, with all but pairs."""
    counts = collections.Counter(name for group in groups.values() for name in group["rows"])
    most = min(max(counts.values()), 2)
    kept = {
        row
        for group in groups.values()
        for row, x in group["labels"].items()
        if counts[row] >= most and "pair" not in x
    }
    return {
        name: group | {key: {row: x for row, x in group[key].items() if row in kept} for key in ("rows", "labels")}
        for name, group in groups.items()
    }


def _by_rate(found: Sequence[Point]) -> Picture | None:
    """Curves over the rate of missing training pictures; None where all rates are equal."""
    if len({point.rate for point in found}) < 2:
        return None
    lines: dict[tuple, list[Point]] = {}
    for point in sorted(found, key=lambda point: point.rate):
        lines.setdefault((point.others, point.rows), []).append(point)

    def paint(figure: "Figure") -> None:
        titles = {FULL: "all modalities at test", MEAN: "mean of all settings with missing modalities"}
        for axes, (setting, title) in zip(figure.subplots(1, 2), titles.items()):
            for number, points in enumerate(lines.values()):
                there = [(p.rate, p.settings[setting]) for p in points if setting in p.settings]
                _errors(axes, [x for x, _ in there], [y for _, y in there], number, _line_name(points))
            axes.set(title=title, xlabel="missing training pictures (%)")
            axes.grid(True)
            axes.legend(fontsize="small")
            _finish(axes)

    text = "mAP by the rate of training pictures that were hidden, mean over the modalities. Bars are sample standard "
    text += "deviations where runs differ in the seed only. Runs on one line differ in this rate alone."
    return Picture("missing_rates", charts.draw(paint, width=10, height=4), text)


def _by_setting(found: Sequence[Point], groups: Mapping[str, Mapping]) -> Picture | None:
    """mAP of each group by setting, or by row where there are no settings."""
    if found:
        labels, every = {}, {point.modalities for point in found}
        for modalities in sorted(every, key=len, reverse=True):
            labels |= missing_settings.labels(modalities)
        labels |= {FULL: FULL if len(every) > 1 else labels[FULL], MEAN: labels.pop(MEAN)}
        columns = [setting for setting in labels if any(setting in point.settings for point in found)]
        lines = {f"{p.run} ({p.rows})" if p.rows else p.run: p.settings for p in found}
        names = [labels[setting] for setting in columns]
        text = "mAP of every group of runs by test setting: all modalities, without one, without two, and the mean of "
        text += "those with missing modalities."
    else:
        text = "mAP of every group of runs by evaluation row."
        lines = {
            name: {row: x["mAP"] for row, x in group["rows"].items() if "mAP" in x} for name, group in groups.items()
        }
        columns = names = list(dict.fromkeys(row for rows in lines.values() for row in rows if ">" not in row))[:LINES]
    if not columns:
        return None

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for number, (name, values) in enumerate(lines.items()):
            shift = 0.5 * (number / max(len(lines) - 1, 1) - 0.5)
            there = [(i + shift, values[column]) for i, column in enumerate(columns) if column in values]
            _errors(axes, [x for x, _ in there], [y for _, y in there], number, name, line="")
        for i in range(1, len(columns)):
            axes.axvline(i - 0.5, color=charts.MISSING, linewidth=0.5)
        axes.set_xticks(range(len(names)), names)
        axes.set(xlim=(-0.5, len(names) - 0.5))
        _finish(axes)
        figure.legend(loc="outside right upper", fontsize="small")

    return Picture("settings", charts.draw(paint, width=10, height=4), text)


def _errors(axes: "Axes", x: list[float], y: list[dict], number: int, label: str, line: str = "-") -> None:
    style = charts.line(number) | ({} if line else {"linestyle": ""})
    values, spread = ([100 * (one[key] or 0.0) for one in y] for key in ("mean", "std"))
    axes.errorbar(x, values, yerr=spread, marker="osD^v<>P"[number % 8], markersize=4, capsize=2, label=label, **style)


def _finish(axes: "Axes") -> None:
    low, high = axes.get_ylim()
    more = max(SPAN - (high - low), 0) / 2
    axes.set(ylabel="mAP (%)", ylim=(low - more, high + more))


def _line_name(found: Sequence[Point]) -> str:
    """What the folders of runs on one line have in common."""
    names = [RATED.sub("", point.run).strip("-_.,/") for point in found]
    shared = names[0] if len(set(names)) == 1 else os.path.commonprefix(names).rstrip("-_.,/=")
    return " ".join(filter(None, (shared or ", ".join(names), f"({found[0].rows})" if found[0].rows else "")))
